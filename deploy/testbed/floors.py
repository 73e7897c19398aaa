"""Pacemaker's own share of a failover: what an agent that does nothing (ocf:pacemaker:Stateful) costs in the same lab.

Times are wall-clock milliseconds of the one machine. The end is the end of a promote action that succeeded, taken from
the agent's own record (guest/Stateful), not from polling Pacemaker.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.cluster import Lab
from testbed.errors import LabError

AGENT = "ocf:lab:Stateful"
ACTIONS_LOG = "/var/log/actions.log"
PROMOTED_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 60.0
POLL_S = 0.02


@dataclass(frozen=True)
class Event:
    """One line of a node's record: an action began or ended."""

    node: str
    resource: str
    action: str  # start, promote, pre-demote (a notify), ...
    edge: str  # begin or end
    at_ms: int
    code: int | None = None  # the exit code, at the end


@dataclass(frozen=True)
class Floor:
    """One failover. `ms` from the trigger, `actions_ms` from the first action it caused, to the end of the promote."""

    ms: int
    actions_ms: int
    promoted: str


def create(lab: Lab, resource: str = "floor") -> None:
    """A promotable clone of the recording agent, notify on; returns when it is promoted somewhere."""
    lab.run(lab.nodes[0], ["pcs", "resource", "create", resource, AGENT, "promotable", "notify=true"])
    settle(lab, resource)


def events(lab: Lab, resource: str, since_ms: int = 0) -> list[Event]:
    """What the agent recorded for `resource` on all nodes at or after `since_ms`, oldest first."""
    found = []
    for node in lab.nodes:
        path = lab.path(node, ACTIONS_LOG)
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            fields = line.split()
            if len(fields) < 4 or fields[0] != resource or int(fields[3]) < since_ms:
                continue
            code = int(fields[4]) if len(fields) > 4 else None
            found.append(Event(node, fields[0], fields[1], fields[2], int(fields[3]), code))
    return sorted(found, key=lambda event: event.at_ms)


def promoted_node(lab: Lab, resource: str, asked: str | None = None) -> str | None:
    """Where crm_mon says that the clone is promoted; None for nowhere."""
    tree = lab.crm_mon(asked)
    if tree is None:
        return None
    for instance in tree.iter("resource"):
        node = instance.find("node")
        if instance.get("id") == resource and instance.get("role") in ("Promoted", "Master") and node is not None:
            return node.get("name")
    return None


def settle(lab: Lab, resource: str) -> str:
    """Wait until all nodes are online, nothing is under way and the clone runs everywhere; its promoted node."""
    lab.wait_online()
    lab.run(lab.nodes[0], ["crm_resource", "--wait", f"--timeout={SETTLE_TIMEOUT_S:.0f}"], timeout_s=SETTLE_TIMEOUT_S)
    lab.wait(lambda: promoted_node(lab, resource), PROMOTED_TIMEOUT_S, f"a promoted {resource}")
    node = promoted_node(lab, resource)
    if node is None:
        raise LabError(f"{resource} lost its promoted instance while nothing was done")
    return node


def floor_move(lab: Lab, resource: str = "floor") -> Floor:
    """An operator's `pcs resource move --promoted`; its half second of start is in `ms`, not in `actions_ms`."""
    old = settle(lab, resource)
    return _measure(
        lab,
        resource,
        [node for node in lab.nodes if node != old],
        lambda: lab.run(old, ["pcs", "resource", "move", f"{resource}-clone", "--promoted"]),
    )


def floor_score_deleted(lab: Lab, resource: str = "floor") -> Floor:
    """The promoted node's score deleted: what food's guardian does for a dead daemon.

    Stateful's demote sets a score again, so the new place may be the old one: the actions and their time are the same.
    """
    old = settle(lab, resource)
    argv = ["attrd_updater", "--name", f"master-{resource}", "--delete", "--node", old]
    return _measure(lab, resource, lab.nodes, lambda: lab.run(old, argv))


def floor_power_off(lab: Lab, resource: str = "floor") -> Floor:
    """The promoted node loses power and is fenced. It is on again, and settled, when this returns."""
    old = settle(lab, resource)
    floor = _measure(lab, resource, [node for node in lab.nodes if node != old], lambda: lab.kill(old))
    lab.wait_fenced(old)
    lab.start(old)
    settle(lab, resource)
    return floor


def floor_all_off(lab: Lab, resource: str = "floor") -> Floor:
    """All nodes lose power at once and are booted again."""
    settle(lab, resource)

    def cycle() -> None:
        lab.kill(*lab.nodes)
        lab.start(*lab.nodes)

    floor = _measure(lab, resource, lab.nodes, cycle)
    settle(lab, resource)
    return floor


FLOORS: dict[str, Callable[[Lab, str], Floor]] = {
    "move": floor_move,
    "kill": floor_score_deleted,
    "power_off": floor_power_off,
    "all_off": floor_all_off,
}


def measure_all(lab: Lab, resource: str = "floor", rounds: int = 5) -> dict[str, list[Floor]]:
    """`rounds` of each, on a clone made for it if there is none."""
    if lab.run(lab.nodes[0], ["crm_resource", "--resource", resource, "--query-xml"], check=False).returncode:
        create(lab, resource)
    return {name: [floor(lab, resource) for _ in range(rounds)] for name, floor in FLOORS.items()}


def table(measured: dict[str, list[Floor]]) -> str:
    """A Markdown table of medians and ranges, in milliseconds."""
    lines = ["| what | from the trigger, ms | from its first action, ms |", "|---|---|---|"]
    for name, floors in measured.items():
        cells = (_summary([floor.ms for floor in floors]), _summary([floor.actions_ms for floor in floors]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _summary(values: Sequence[int]) -> str:
    return f"{statistics.median(values):.0f} ({min(values)} to {max(values)})"


def _measure(lab: Lab, resource: str, candidates: Sequence[str], trigger: Callable[[], object]) -> Floor:
    began_ms = time.time_ns() // 1_000_000
    trigger()

    def done() -> list[Event]:
        return [
            event
            for event in events(lab, resource, began_ms)
            if (event.node in candidates and (event.action, event.edge, event.code) == ("promote", "end", 0))
        ]

    deadline = time.monotonic() + PROMOTED_TIMEOUT_S
    while not done():
        if time.monotonic() > deadline:
            raise LabError(f"{resource} was not promoted on {', '.join(candidates)} in {PROMOTED_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
    end = done()[0]
    first = next(event for event in events(lab, resource, began_ms) if event.action != "monitor")
    return Floor(end.at_ms - began_ms, end.at_ms - first.at_ms, end.node)
