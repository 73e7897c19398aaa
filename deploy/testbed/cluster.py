"""`Lab`: what tests, benches and the demo use. It asks the warden, enters nodes with nsenter, and parents no node."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from testbed import layers, layout, ownership, packages, seed
from testbed.errors import LabError
from testbed.inside import Inside, argv_inside
from testbed.layout import Settings
from testbed.seed import FENCE_DEVICE

ONLINE_TIMEOUT_S = 60.0
POLL_S = 0.1
PROGRESS_EVERY_S = 5.0
REQUEST_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 30.0
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Lab:
    """A cluster of `nodes` nodes, up inside `with` and gone after it, whatever happens.

    `token_ms` is Corosync's; `properties` are Pacemaker's cluster properties; `install` runs deploy/install for the
    nodes; `reboot` makes a fenced node come back by itself after `reboot_delay_s` (else it stays off until `start`).
    The last `spare` nodes are off at first, and Corosync does not know them: see `list_nodes`.
    `disk_mib`: /var/lib/food is a disk of its own, in memory and so small, and can be filled.
    `tell` takes progress lines. All methods raise LabError, with the remedy, for what the lab itself cannot do.
    """

    def __init__(
        self,
        name: str = "food",
        nodes: int = 3,
        fencing: bool = True,
        token_ms: int = 500,
        *,
        install: bool = False,
        reboot: bool = False,
        reboot_delay_s: float = 1.0,
        properties: Mapping[str, str] | None = None,
        background: bool = False,
        wait: bool = True,
        spare: int = 0,
        disk_mib: int = 0,
        tell: Callable[[str], None] = _tell,
    ) -> None:
        self.settings = Settings(
            name, nodes, fencing, token_ms, install, reboot, reboot_delay_s, dict(properties or {}), spare, disk_mib
        )
        self.directory = layout.BASES[0] / name
        self._background = background
        self._wait = wait
        self._tell = tell
        self._warden: subprocess.Popen[str] | None = None

    @classmethod
    def attach(cls, name: str = "food", tell: Callable[[str], None] = _tell) -> Lab:
        """The running lab of that name, started elsewhere. Leaving it is up to its owner, or to `down`."""
        directory = layout.find(name)
        if directory is None or not ownership.is_live(directory):
            raise LabError(f"no lab {name} is up; start one with: deploy/lab --name {name} up")
        lab = cls(name, tell=tell)
        lab.directory = directory
        lab.settings = Settings.from_json((directory / "lab.json").read_text())
        return lab

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def nodes(self) -> list[str]:
        return self.settings.node_names

    def address(self, node: str) -> str:
        self._known(node)
        return layout.address_of(node)

    def path(self, node: str, inside: str) -> Path:
        """Where the machine sees a file of the node's disk: /var/log, /var/lib/food, /var/lib/pacemaker, /usr, /etc.

        Of /usr and /etc only what that very node changed; do not write there while it runs.
        """
        self._known(node)
        for top, target in {**layout.PERSISTENT, "usr": "/usr", "etc": "/etc"}.items():
            if inside == target or inside.startswith(target + "/"):
                path = self.directory / "hosts" / node / top / inside.removeprefix(target).lstrip("/")
                small = top == layout.DISK and self.settings.disk_mib
                return Path(f"/proc/{self.status()['warden']}/root{path}") if small else path
        raise LabError(f"{inside} is not on {node}'s own disk; read it with run({node!r}, ['cat', ...])")

    def up(self) -> None:
        """Start the lab; with `wait`, return when the cluster is online. On any failure nothing remains."""
        packages.require_root()
        packages.require_tools()
        self.directory = layers.choose_base() / self.settings.name
        for base in layout.BASES:
            if (base / self.settings.name).is_dir():
                ownership.remove_stale(base / self.settings.name)
        started = time.monotonic()
        try:
            self._start_warden()
            self._tell(f"lab {self.settings.name}: {len(self.nodes)} nodes boot ({time.monotonic() - started:.1f} s)")
            if self._wait:
                self.wait_online()
                self._tell(f"lab {self.settings.name}: online ({time.monotonic() - started:.1f} s)")
            if self._background:
                self._untie()
        except BaseException:
            self._end_warden()
            raise

    def down(self) -> None:
        """Take everything away. May be called twice, and for a lab whose owner was killed."""
        with contextlib.suppress(LabError):
            self._request("down")
        self._end_warden()
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while ownership.is_live(self.directory) and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.directory.exists():
            ownership.remove_stale(self.directory)

    def argv(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside a host: for exec, and for programs that take command lines."""
        pid = layout.read_pid(self.directory / "hosts" / host / "pid")
        if pid is None:
            self._known(host)
            raise LabError(f"{host} is off; start it with lab.start({host!r}) or: deploy/lab start {host}")
        return argv_inside(pid, list(argv))

    def run(
        self,
        node: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 30.0,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a node to its end.

        LabError with its output when `check` and it fails, or when it takes longer than `timeout_s`.
        The environment is a clean one (PATH, LANG) plus `env`; the working directory is /.
        """
        pipe = subprocess.PIPE
        with self.popen(node, argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                out, err = process.communicate(input or "", timeout_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise LabError(f"{node}: {' '.join(argv)}: not done after {timeout_s:g} s") from error
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise LabError(f"{node}: {' '.join(argv)}: exit code {process.returncode}: {(err + out).strip()}")
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def popen(self, node: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **keywords: Any) -> Inside:
        """Start a command inside a node; `keywords` are Popen's. Signals sent to the result reach the program."""
        return Inside(self.argv(node, argv), env={**ENVIRONMENT, **(env or {})}, **keywords)

    def run_client(self, argv: Sequence[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
        """`run` in the client host, which reaches all nodes' addresses and is never cut off."""
        return self.run(layout.CLIENT, argv, **keywords)

    def popen_client(self, argv: Sequence[str], **keywords: Any) -> Inside:
        """`popen` in the client host."""
        return self.popen(layout.CLIENT, argv, **keywords)

    def pids_of(self, node: str, pattern: str) -> list[int]:
        """The pids, as the node numbers them, of its processes whose command line matches a regular expression."""
        found = self.run(node, ["pgrep", "-f", "--", pattern], check=False)
        return [int(pid) for pid in found.stdout.split()]

    def pid_of(self, node: str, pattern: str) -> int:
        """The oldest process that matches. LabError when there is none."""
        pids = self.pids_of(node, pattern)
        if not pids:
            raise LabError(f"{node}: no process matches {pattern!r}")
        return pids[0]

    def signal(self, node: str, pattern: str, name: str) -> None:
        """Send a signal, say STOP, to all processes of a node that match."""
        self.run(node, ["kill", f"-{name}", *(str(pid) for pid in self.pids_of(node, pattern))])

    def on(self, node: str) -> bool:
        return bool(self.status()["nodes"][node]["on"])

    def kill(self, *nodes: str) -> None:
        """Pull the plug, of several nodes at once: their wires fall silent, then all their processes are dead."""
        self._request("kill", nodes=list(nodes))

    def start(self, *nodes: str) -> None:
        """Boot nodes that are off. Returns when they run, not when they have joined: see `wait_online`.

        After a `kill`, `wait_fenced` first: the others fence a node that they lost even if it is booting by then.
        """
        self._request("start", nodes=list(nodes))

    def shut_down(self, *nodes: str, timeout_s: float = 60.0) -> None:
        """Stop Pacemaker, then Corosync, then the node, in order, and wait for the end."""
        self._request("shutdown", nodes=list(nodes))
        self.wait(lambda: not any(self.on(node) for node in nodes), timeout_s, f"shutdown of {', '.join(nodes)}")
        self.kill(*nodes)

    def cut(
        self,
        node: str,
        links: str = "all",
        direction: str = "both",
        *,
        percent: int = 100,
        peers: Sequence[str] = (),
    ) -> None:
        """Let a node drop packets from (in) or to (out) the other nodes: food is TCP, corosync UDP.

        Adds to earlier cuts, and lasts until `heal`, through power-offs. `percent` loses only some packets; `peers`
        names the nodes it is cut from.
        """
        self._request("cut", node=node, links=links, direction=direction, percent=percent, peers=list(peers))

    def heal(self, *nodes: str) -> None:
        """Take away all cuts of these nodes, or of all."""
        for node in nodes or self.nodes:
            self._request("heal", node=node)

    def list_nodes(self, *nodes: str) -> None:
        """Give Corosync another node list, on every node: what `pcs cluster node add` and `remove` write and reload."""
        conf = seed.corosync_conf(self.settings, nodes)
        powered = self._powered()
        for node in self.nodes:
            if node in powered:
                self.run(node, ["tee", layout.COROSYNC_CONF], input=conf)
            else:
                layout.write(self.path(node, layout.COROSYNC_CONF), conf)
        self.run(powered[0], ["corosync-cfgtool", "-R"])

    def status(self) -> dict[str, Any]:
        """What is on: {"nodes": {"n1": {"on", "pid", "boots", "cuts"}}, "client": pid, "warden": pid}."""
        return self._request("status")

    def wait(self, predicate: Callable[[], object], timeout_s: float = 30.0, what: str = "the condition") -> float:
        """Poll until `predicate` is true, with progress lines; the seconds it took. LabError after `timeout_s`."""
        started = time.monotonic()
        told = started
        while not predicate():
            now = time.monotonic()
            if now - started > timeout_s:
                raise LabError(f"lab {self.settings.name}: {what} did not come within {timeout_s:g} s")
            if now - told >= PROGRESS_EVERY_S:
                told = now
                self._tell(f"lab {self.settings.name}: waiting for {what} ({now - started:.0f} s)")
            time.sleep(POLL_S)
        return time.monotonic() - started

    def wait_online(self, timeout_s: float = ONLINE_TIMEOUT_S) -> None:
        """Wait until every node that is on is online, in one quorate membership with a DC, and fencing is ready."""
        powered = self._powered()
        try:
            self.wait(lambda: self._is_online(powered), timeout_s, f"{', '.join(powered)} online with a DC")
        except LabError as error:
            raise LabError(f"{error}\n{self._crm_mon_text()}") from error

    def wait_fenced(self, node: str, timeout_s: float = 30.0) -> float:
        """Wait until the others hold a node that is off for cleanly down; the seconds it took."""
        return self.wait(lambda: self._is_clean_off(node), timeout_s, f"the fencing of {node}")

    def _is_clean_off(self, node: str) -> bool:
        tree = self.crm_mon()
        state = tree.find(f"nodes/node[@name='{node}']") if tree is not None else None
        return state is not None and state.get("online") == "false" and state.get("unclean") == "false"

    def crm_mon(self, node: str | None = None) -> ElementTree.Element | None:
        """What `crm_mon --output-as=xml` says on `node`, or on the first that is on; None while it cannot say."""
        asked = node or next(iter(self._powered()), None)
        if asked is None:
            return None
        done = self.run(asked, ["crm_mon", "-1", "--output-as=xml"], check=False)
        if done.returncode != 0:
            return None
        return ElementTree.fromstring(done.stdout)

    def _is_online(self, nodes: Sequence[str]) -> bool:
        lost = [node for node in nodes if node not in self._powered()]
        if lost and not self.settings.reboot:
            raise LabError(f"lab {self.settings.name}: {', '.join(lost)} lost power meanwhile, most likely to fencing")
        for asked in nodes:
            tree = self.crm_mon(asked)
            dc = tree.find("summary/current_dc") if tree is not None else None
            if tree is None or dc is None or dc.get("present") != "true" or dc.get("with_quorum") != "true":
                return False
            states = {node.get("name"): node for node in tree.findall("nodes/node")}
            for node in nodes:
                state = states.get(node)
                if state is None or state.get("online") != "true" or state.get("pending") == "true":
                    return False
            if self.settings.fencing and asked == nodes[0]:
                device = tree.find(f".//resource[@id='{FENCE_DEVICE}']")
                if device is not None and device.get("active") != "true":
                    return False
        return bool(nodes)

    def _powered(self) -> list[str]:
        return [node for node, state in self.status()["nodes"].items() if state["on"]]

    def _crm_mon_text(self) -> str:
        texts = (self.run(node, ["crm_mon", "-1"], check=False) for node in self._powered()[:1])
        return "\n".join((text.stdout + text.stderr).strip() for text in texts)

    def _known(self, host: str) -> None:
        if host not in (*self.nodes, layout.CLIENT):
            raise LabError(f"no node {host!r} in lab {self.settings.name}; it has {', '.join(self.nodes)}")

    def _start_warden(self) -> None:
        """Start the lab's process and follow its progress to `ready`. Its standard input is the tie to this process."""
        # The nodes' small disks are mounted where nobody else sees them.
        private = ["unshare", "--mount"] if self.settings.disk_mib else []
        self._warden = subprocess.Popen(
            [*private, sys.executable, "-m", "testbed.warden", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd="/",
            env={**ENVIRONMENT, "PYTHONPATH": str(layout.PACKAGE.parent), "PYTHONUNBUFFERED": "1"},
        )
        assert self._warden.stdin and self._warden.stdout
        self._warden.stdin.write(self.settings.to_json() + "\n")
        self._warden.stdin.flush()
        said: list[str] = []
        for line in self._warden.stdout:
            if line == "ready\n":
                break
            said.append(line.strip())
            if not line.startswith("error "):
                self._tell(f"lab {self.settings.name}: {line.strip()}")
        else:
            last = said[-1].removeprefix("error ") if said else "no reason given"
            raise LabError(f"lab {self.settings.name} did not start: {last}")
        self._warden.stdout.close()

    def _untie(self) -> None:
        """Let the lab outlive this process."""
        assert self._warden is not None and self._warden.stdin is not None
        self._warden.stdin.write("background\n")
        self._warden.stdin.close()

    def _end_warden(self) -> None:
        """Cut the tie to the warden that this object started, if any, and wait until it has taken everything away."""
        if self._warden is None:
            return
        assert self._warden.stdin is not None
        with contextlib.suppress(OSError):
            self._warden.stdin.close()
        try:
            self._warden.wait(DOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._warden.kill()  # the nodes die with it
            self._warden.wait()
        self._warden = None

    def _request(self, action: str, **arguments: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(REQUEST_TIMEOUT_S)
            try:
                connection.connect(str(self.directory / "warden.sock"))
                connection.sendall(json.dumps({"do": action, **arguments}).encode() + b"\n")
                with connection.makefile() as stream:
                    reply = stream.readline()
            except OSError as error:
                raise LabError(f"lab {self.settings.name} does not answer ({error}); is it up?") from error
        answer: dict[str, Any] = json.loads(reply) if reply else {"error": "the warden ended while it was asked"}
        if "error" in answer:
            raise LabError(f"lab {self.settings.name}: {action}: {answer['error']}")
        return answer
