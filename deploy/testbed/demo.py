"""The demonstration: a cluster, a promotable clone, a load that never stops, and everything that can go wrong.

Events run one after another while tests/load.py writes and reads from the client host. Times of events are
CLOCK_MONOTONIC of this machine, which the load uses too.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from testbed import floors, packages, plot
from testbed.clone import CLIENT_PORT, CLONE, RESOURCE, Operator
from testbed.cluster import Lab
from testbed.errors import LabError

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import load

BEFORE_S = 3.0
AFTER_S = 31.0  # the write gap is looked for up to 30 s after the event
WRITERS, READERS, RATE = 4, 2, 100
EXPLAINED = {
    "move": "pcs resource move",
    "kill": "kill -9 of the primary",
    "stop": "SIGSTOP of the primary",
    "links_cut": "its links cut",
    "power_off": "its node loses power",
    "all_off": "every node loses power",
}
EVENTS = tuple(EXPLAINED)
# Which of Pacemaker's own floors an event is compared with (testbed/floors.py).
FLOOR_OF = {"move": "move", "power_off": "power_off", "all_off": "all_off"}


@dataclass
class Event:
    name: str
    at: float  # monotonic seconds
    wall: float  # the same instant as the nodes' logs say it, seconds since 1970
    from_node: str
    to_node: str = ""
    write_gap_ms: int = 0
    promoted_ms: int | None = None  # from the event until a primary serves, by its own log
    pacemaker_ms: int | None = None
    notes: list[str] = field(default_factory=list)


class Demo(Operator):
    """One run."""

    def __init__(self, lab: Lab, directory: Path, tell: Callable[[str], object] = print):
        super().__init__(lab, tell)
        self.history = directory / "load.jsonl"
        self.events: list[Event] = []
        self._load: subprocess.Popen[Any] | None = None

    # --- The load ---

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """A stream of exactly-once writes and of linearizable reads while the body runs."""
        endpoints = ",".join(f"{self.lab.address(node)}:{CLIENT_PORT}" for node in self.lab.nodes)
        argv = [
            packages.PYTHON,
            load.__file__,
            "--endpoints",
            endpoints,
            "--seconds",
            "7200",
            "--out",
            str(self.history),
        ]
        argv += ["--writers", str(WRITERS), "--readers", str(READERS), "--rate", str(RATE)]
        log = self.history.with_suffix(".log")
        with log.open("w") as output:
            self._load = self.lab.popen_client(
                argv, env=self.client_env(self.history.parent), stdout=output, stderr=output
            )
            try:
                time.sleep(BEFORE_S)
                yield
            finally:
                self._load.terminate()
                try:
                    self._load.wait(180)
                except subprocess.TimeoutExpired:
                    self._load.kill()
        if self._load.returncode not in (0, 1):
            raise LabError(f"the load ended with {self._load.returncode}: {log.read_text()[-500:]}")

    # --- The events ---

    def run(self, name: str) -> None:
        """One event: settled before, watched for 30 s after, settled again."""
        self.settle()
        old = self.primary()
        self.say(f"{name}: {old} is primary")
        time.sleep(1.5)
        heal = getattr(self, f"_{name}")(old)
        event = self.events[-1]
        time.sleep(max(0.0, event.at + AFTER_S - time.monotonic()))
        if heal:
            heal()
        event.to_node = self.primary()
        seconds = self.settle()
        self.say(f"{name}: {event.to_node} is primary, all in sync ({seconds:.0f} s after the watch)")
        if event.name in ("kill", "stop", "power_off", "links_cut"):
            self.show()
            event.notes += self._failures()
            self.operator("pcs", "resource", "cleanup", RESOURCE)

    def _begin(self, name: str, node: str) -> None:
        self.events.append(Event(name, time.monotonic(), time.time(), node))

    def _failures(self) -> list[str]:
        return [f"crm_mon: {f.operation} on {f.node}: {f.reason or f.status}" for f in self.failures()]

    def _move(self, node: str) -> None:
        self._begin("move", node)
        self.operator("pcs", "resource", "move", CLONE, "--promoted", node=node)

    def _kill(self, node: str) -> None:
        pid = self.daemon(node)
        self._begin("kill", node)
        self.operator("kill", "-KILL", str(pid), node=node)

    def _stop(self, node: str) -> None:
        pid = self.daemon(node)
        self._begin("stop", node)
        self.operator("kill", "-STOP", str(pid), node=node)

    def _links_cut(self, node: str) -> Callable[[], None]:
        pid = self.daemon(node)
        self._begin("links_cut", node)
        event = self.events[-1]
        self.lab.cut(node, links="food")
        self.say(f"food's links of {node} are cut, Corosync's are not")

        def heal() -> None:
            self.lab.heal(node)
            same = self.daemon(node) == pid
            event.notes.append("the role moved without a restart" if same else "the daemon was restarted")
            self.say(f"healed; the daemon on {node} is {'the same as before' if same else 'another one'}")

        return heal

    def _power_off(self, node: str) -> Callable[[], None]:
        self._begin("power_off", node)
        self.lab.kill(node)
        self.say(f"{node} has lost its power")

        def back() -> None:
            self.lab.wait_fenced(node)
            primary, pid = self.primary(), self.daemon(self.primary())
            self.lab.start(node)
            self.say(f"{node} is switched on again")
            self.lab.wait_online()
            self.settle()
            disturbed = (self.primary(), self.daemon(self.primary())) != (primary, pid)
            self.events[-1].notes.append(
                "the primary was disturbed by the return" if disturbed else "the return did not disturb the primary"
            )

        return back

    def _all_off(self, node: str) -> None:
        self._begin("all_off", node)
        self.lab.kill(*self.lab.nodes)
        self.say("every node has lost its power")
        self.lab.start(*self.lab.nodes)
        self.say("every node is switched on again")
        self.lab.wait_online()

    # --- The verdict ---

    def verdict(self, measured: dict[str, int]) -> dict[str, Any]:
        """The report of the whole run; `measured` are Pacemaker's floors, in milliseconds, if they were taken."""
        history, final = load.read_history(self.history)
        if final is None:
            raise LabError("the load did not read the final state")
        found = load.check(history, final)
        for event in self.events:
            event.write_gap_ms = round(load.write_gap_ms(history, event.at))
            event.promoted_ms = self._promoted_ms(event)
            event.pacemaker_ms = measured.get(FLOOR_OF.get(event.name, "kill"))
        times = [event.at for event in self.events]
        acks = [write.end for write in history.writes if write.outcome == "ack"]
        between = [sum(a <= ack < b for ack in acks) for a, b in itertools.pairwise(times)]
        return {
            **found,
            "acknowledged_between_events": between,
            "events": [
                {
                    "name": event.name,
                    "write_gap_ms": event.write_gap_ms,
                    "promoted_ms": event.promoted_ms,
                    "pacemaker_ms": event.pacemaker_ms,
                    "from": event.from_node,
                    "to": event.to_node,
                    "notes": event.notes,
                }
                for event in self.events
            ],
        }

    def _promoted_ms(self, event: Event) -> int | None:
        times = []
        for node in self.lab.nodes:
            log = self.lab.path(node, f"/var/log/food/{RESOURCE}.log")
            for line in log.read_text().splitlines() if log.exists() else []:
                if "-> primary in epoch" in line:
                    times.append(datetime.fromisoformat(line.split(" ", 1)[0]).timestamp())
        later = [at - event.wall for at in times if at >= event.wall]
        return round(min(later) * 1000) if later else None

    def picture(self) -> str:
        """Acknowledged writes over time as SVG, with the events and their write gaps. After `verdict`."""
        history, _ = load.read_history(self.history)
        marks = [
            plot.Mark(
                event.name,
                event.at,
                load.write_gap(history, event.at),
                EXPLAINED[event.name] + (f": {event.from_node} → {event.to_node}" if event.to_node else ""),
            )
            for event in self.events
        ]
        return plot.timeline(
            "Acknowledged writes while things break",
            f"food on three Pacemaker nodes, {WRITERS} clients of {RATE} writes a second each; "
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors",
            [write.end for write in history.writes if write.outcome == "ack"],
            marks,
            [
                "Red: the event, and the longest time that one client waited between two acknowledgements. "
                f"Below: rates in steps of {plot.CLOSE_STEP_S * 1000:.0f} ms, seconds from the event."
            ],
        )


def table(report: dict[str, Any]) -> str:
    """The verdict for people."""
    lines = ["", f"{'event':<12}{'role moved':<14}{'write gap':>12}{'promoted':>12}{'Pacemaker alone':>18}   notes"]
    for event in report["events"]:
        floor = "-" if event["pacemaker_ms"] is None else f"{event['pacemaker_ms']} ms"
        moved = f"{event['from']} -> {event['to']}"
        gap = f"{event['write_gap_ms']} ms"
        promoted = "-" if event["promoted_ms"] is None else f"{event['promoted_ms']} ms"
        lines.append(
            f"{event['name']:<12}{moved:<14}{gap:>12}{promoted:>12}{floor:>18}   {'; '.join(event['notes'])}".rstrip()
        )
    lines += [
        "",
        f"acknowledged {report['acknowledged']}   unknown {report['unknown']}   lost {report['lost']}   "
        f"duplicated {report['duplicated']}   stale {report['stale_reads']} of {report['reads']} reads",
    ]
    return "\n".join(lines + [f"  {problem}" for problem in report.get("problems", [])])


def measure_floors(demo: Demo) -> dict[str, int]:
    """What Pacemaker itself takes for the same events, with an agent that does nothing, in the same lab."""
    lab = demo.lab
    demo.say("measuring Pacemaker's own share with ocf:pacemaker:Stateful")
    measured = floors.measure_all(lab, rounds=1)
    for line in floors.table(measured).splitlines():
        demo.say(line)
    lab.run(lab.nodes[0], ["pcs", "resource", "delete", "floor"], timeout_s=90)
    medians = {}
    for name, rounds in measured.items():
        # An operator's command has its own start; what Pacemaker takes begins with its first action.
        values = sorted(floor.actions_ms if name == "move" else floor.ms for floor in rounds)
        medians[name] = values[len(values) // 2]
    return medians


def run(
    directory: Path,
    name: str,
    events: Sequence[str] = EVENTS,
    with_floors: bool = False,
    keep: bool = False,
    picture: Path | None = None,
) -> dict[str, Any]:
    """The whole demonstration; returns the report. With `keep`, the cluster stays up; a `picture` is an SVG file."""
    lab = Lab(name, 3, install=True, background=keep)
    with contextlib.ExitStack() as stack:
        if keep:
            lab.up()
        else:
            stack.enter_context(lab)
        demo = Demo(lab, directory)
        measured = measure_floors(demo) if with_floors else {}
        demo.create()
        demo.show()
        with demo.load():
            for event in events:
                demo.run(event)
            demo.say("stopping the load, reading everything back")
        report = demo.verdict(measured)
        print(table(report), flush=True)
        if picture:
            picture.write_text(demo.picture())
        if keep:
            here = Path(sys.argv[0]).with_name("lab")
            print(f"\nThe cluster is still up. Enter a node:  {here} --name {name} exec n1 -- bash")
            print(f"Then try: crm_mon -A, foodctl status.   Take it down:  {here} --name {name} down")
        return report


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")
