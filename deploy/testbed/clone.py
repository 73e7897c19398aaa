"""The clone as its operator knows it: commands as they would be typed, where it is promoted, whether it is whole."""

from __future__ import annotations

import html
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from testbed import floors
from testbed.cluster import Lab
from testbed.errors import LabError

RESOURCE = "food"
CLONE = f"{RESOURCE}-clone"
CLIENT_PORT = 10001
SETTLE_S = 90.0


class Failure(NamedTuple):
    """One of crm_mon's Failed Resource Actions."""

    node: str
    operation: str
    status: str  # Pacemaker's own word
    reason: str  # the agent's exit reason


class Operator:
    """`tell` takes the lines to show; nothing here prints. `resource` and `client_port` say which clone, where several
    run; `hosts` are the nodes that have an instance."""

    def __init__(
        self,
        lab: Lab,
        tell: Callable[[str], object] = print,
        *,
        resource: str = RESOURCE,
        client_port: int = CLIENT_PORT,
        hosts: Sequence[str] = (),
    ):
        self.lab = lab
        self.resource = resource
        self.client_port = client_port
        self.hosts = list(hosts or lab.nodes)
        self._tell = tell
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def operator(self, *argv: str, node: str | None = None) -> str:
        """Runs a command on a node, shown as an operator would type it."""
        node = node or self.on()[0]
        self._tell(f"          {node}# {' '.join(argv)}")
        return self.lab.run(node, argv, timeout_s=60).stdout

    def on(self) -> list[str]:
        return [node for node in self.lab.nodes if self.lab.on(node)]

    @property
    def clone(self) -> str:
        return f"{self.resource}-clone"

    def create(self, *parameters: str, options: Sequence[str] = ("notify=true",)) -> None:
        self.say("creating the clone")
        argv = ["pcs", "resource", "create", self.resource, "ocf:food:food", *parameters, "promotable", *options]
        self.operator(*argv)
        self.settle()

    def client_env(self, directory: Path) -> dict[str, str]:
        """What a client elsewhere needs: the key, which a node gives out, in a file."""
        path = directory / f"client-key-{self.resource.encode().hex()}"
        path.touch(0o600)
        giver = next(node for node in self.hosts if self.lab.on(node))
        path.write_text(self.lab.run(giver, ["foodctl", "--id", self.resource, "client-key"]).stdout)
        return {"FOOD_KEY_FILE": str(path)}

    def primary(self) -> str:
        node = floors.promoted_node(self.lab, self.resource)
        if node is None:
            raise LabError("no node is promoted")
        return node

    def settle(self) -> float:
        """Waits until one node is promoted, every other one in sync, and nothing under way."""
        try:
            return self.lab.wait(self.whole, SETTLE_S, "one primary, all others in sync and nothing under way")
        except LabError:
            self.show()
            raise

    def whole(self) -> bool:
        tree = self.lab.crm_mon(self.on()[0])
        return self._settled(tree) and self._idle(tree)

    def _idle(self, tree: ElementTree.Element | None) -> bool:
        """Whether the DC has nothing to do. `crm_resource --wait` says the same, and sleeps for two seconds first."""
        found = tree.find("summary/current_dc") if tree is not None else None
        dc = found.get("name") if found is not None else None
        if dc is None or not self.lab.on(dc):
            return False
        return "S_IDLE" in self.lab.run(dc, ["crmadmin", "--status", dc], check=False).stdout

    def states(self) -> dict[str, str]:
        """What each node says of itself in its attribute; empty while Pacemaker cannot say."""
        return self._states(self.lab.crm_mon(self.on()[0]))

    def _states(self, tree: ElementTree.Element | None) -> dict[str, str]:
        found = {}
        for node in tree.iterfind("node_attributes/node") if tree is not None else ():
            attributes = {item.get("name"): item.get("value") or "" for item in node.iterfind("attribute")}
            found[node.get("name") or ""] = attributes.get(f"{self.resource}-state", "")
        return {node: state for node, state in found.items() if node in self.hosts}

    def _settled(self, tree: ElementTree.Element | None) -> bool:
        states = self._states(tree)
        others = [state for state in states.values() if not state.startswith("primary")]
        whole = f"{len(self.hosts)} of {len(self.hosts)} in sync"
        return (
            len(states) == len(self.hosts)
            and sum(state.startswith("primary") and state.endswith(whole) for state in states.values()) == 1
            and all(state.startswith("backup") and state.endswith("in sync") for state in others)
        )

    def show(self) -> None:
        """crm_mon's view, without what never changes."""
        text = self.lab.run(self.on()[0], ["crm_mon", "-A1"]).stdout
        for line in text[text.find("Node List:") :].splitlines():
            if line.strip():
                self._tell(f"          | {line}")

    def failures(self) -> list[Failure]:
        tree = self.lab.crm_mon()
        return [
            # Pacemaker 2.1.5 escapes the reason twice.
            Failure(*(html.unescape(f.get(name) or "") for name in ("node", "op_key", "exitstatus", "exitreason")))
            for f in (tree.iterfind("failures/failure") if tree is not None else ())
        ]

    def daemon(self, node: str) -> int:
        """The daemon's pid inside the node; it is written in the lock that it holds."""
        return self._holder(node, "daemon")

    def guardian(self, node: str) -> int:
        return self._holder(node, "guardian")

    def _holder(self, node: str, part: str) -> int:
        text = self.lab.run(node, ["cat", f"/run/food/{self.resource}/{part}.lock"]).stdout
        found = re.search(r"\d+", text)
        if not found:
            raise LabError(f"{node}: no {part}'s pid in its lock file")
        return int(found[0])
