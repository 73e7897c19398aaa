#!/usr/bin/env python3
"""Failovers of food beside ocf:heartbeat:redis and ocf:pacemaker:Stateful, in one lab: tests/bench/failover.py

    tests/bench/failover.py [--rounds 5] [--report FILE] [--plot FILE]

In each round one after another is enabled, moved (`pcs resource move --promoted`), its promoted server killed
(kill -9), and disabled; the others are stopped meanwhile. Every monitor has the interval of ten seconds, and a kill
comes at another part of it in each round. What is measured at food and Redis is the write gap: the longest time that
one of four clients waited between two acknowledgements. Stateful has no writes: what is measured there is Pacemaker's
own share, until the promote has ended. redis-server comes from Debian's package and keeps its configuration but for
the lines that make it as durable as it can be (appendfsync always, min-replicas-to-write 1), and one that helps it: a
new replica is served at once, not after five seconds (repl-diskless-sync-delay 0). Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "deploy")]

from bench.throughput import machine, spread, turned
from testbed import Lab, LabError, floors, packages, plot
from testbed.clone import Operator

EVENTS = {"move": "pcs resource move --promoted", "kill": "kill -9 of the promoted server"}
MONITOR_S = 10
BEFORE_S = 2.0
WRITERS, RATE = 4, 100
END_TIMEOUT_S = 60.0
POLL_S = 0.1
SETTLE_TIMEOUT_S = 60.0
REDIS_PORT = 6379
REDIS_CONFIG = "/etc/redis/bench.conf"
REDIS_DIRECTORY = "/var/log/redis/data"  # on the node's own disk, as all of /var/log
REDIS_LINES = f"""
include /etc/redis/redis.conf
bind * -::*
protected-mode no
dir {REDIS_DIRECTORY}
logfile /var/log/redis/server.log
save ""
appendonly yes
appendfsync always
min-replicas-to-write 1
repl-diskless-sync-delay 0
"""


class Contestant:
    """A promotable clone of the lab. `watch_s`: how long after each event its write gap is looked for."""

    name = ""
    resource = ""
    watch_s: ClassVar[Mapping[str, float]] = {"move": 4.0, "kill": 5.0}

    def __init__(self, lab: Lab):
        self.lab = lab

    @property
    def clone(self) -> str:
        return f"{self.resource}-clone"

    # What follows is each one's own; Stateful, which holds no data, is only created and moved, by its floor functions.

    def create(self) -> None:
        raise NotImplementedError

    def load(self, history: Path) -> list[str]:
        raise NotImplementedError

    def load_env(self, history: Path) -> dict[str, str]:
        return {}

    def verdict(self, history: Path, said: str) -> dict[str, int]:
        """Acknowledged and lost, of one load."""
        raise NotImplementedError

    def pcs(self, *words: str) -> None:
        self.lab.run(self.lab.nodes[0], ["pcs", *words], timeout_s=60)

    def settle(self) -> str:
        """The promoted node."""
        return floors.settle(self.lab, self.resource)

    def trigger(self, event: str, node: str) -> None:
        if event == "move":
            # Its exit code says nothing of the gap: with Redis's scores, the role goes back once pcs lets it.
            self.lab.run(node, ["pcs", "resource", "move", self.clone, "--promoted"], check=False, timeout_s=60)
        else:
            self.lab.run(node, ["kill", "-KILL", str(self.pid(node))])

    def pid(self, node: str) -> int:
        raise NotImplementedError

    @contextlib.contextmanager
    def enabled(self) -> Iterator[None]:
        self.pcs("resource", "enable", self.clone)
        self.settle()
        yield
        self.pcs("resource", "disable", self.clone)
        self.lab.run(self.lab.nodes[0], ["crm_resource", "--wait", "--timeout=60"], timeout_s=70)

    def gaps(self, number: int, rounds: int, directory: Path, tell: Callable[[str], object]) -> dict[str, float]:
        """One round: a write gap for each event, in milliseconds."""
        import load as loads

        path = directory / f"{self.resource}-{number}.jsonl"
        spans = {}
        with self.enabled():
            with path.with_suffix(".log").open("w") as output:
                process = self.lab.popen_client(self.load(path), env=self.load_env(path), stdout=output, stderr=output)
                try:
                    for event in EVENTS:
                        node = self.settle()
                        time.sleep(BEFORE_S + (number + 0.5) / rounds * MONITOR_S * (event == "kill"))
                        began = time.monotonic()
                        self.trigger(event, node)
                        # pcs starts slowly, and ends when the role has moved.
                        spans[event] = began, time.monotonic() - began + self.watch_s[event]
                        time.sleep(self.watch_s[event])
                    self.settle()
                    process.terminate()
                    process.wait(END_TIMEOUT_S)
                finally:
                    process.kill()
            self.pcs("resource", "cleanup", self.resource)
        history, _ = loads.read_history(path)
        tell(f"{self.name}: {json.dumps(self.verdict(path, path.with_suffix('.log').read_text()))}")
        return {event: loads.write_gap_ms(history, at, 1, after) for event, (at, after) in spans.items()}


class Food(Contestant):
    name = "food"
    resource = "food"

    def create(self) -> None:
        self.pcs("resource", "create", self.resource, "ocf:food:food", "promotable", "notify=true")

    def load(self, history: Path) -> list[str]:
        endpoints = ",".join(f"{self.lab.address(node)}:10001" for node in self.lab.nodes)
        argv = [packages.PYTHON, str(ROOT / "tests/load.py"), "--endpoints", endpoints, "--seconds", "600"]
        argv += ["--out", str(history), "--writers", str(WRITERS), "--readers", "0", "--rate", str(RATE)]
        argv += ["--name", history.stem]  # a second load under one name finds the keys of the first: that is no loss
        key = history.with_suffix(".key")
        key.touch(0o600)
        key.write_text(self.lab.run(self.lab.nodes[0], ["foodctl", "client-key"]).stdout)
        argv += ["--key-file", str(key)]
        return argv

    def load_env(self, history: Path) -> dict[str, str]:
        return Operator(self.lab, resource=self.resource).client_env(history.parent)

    def pid(self, node: str) -> int:
        text = self.lab.run(node, ["cat", f"/run/food/{self.resource}/daemon.lock"]).stdout
        return int(text.split()[0])

    def verdict(self, history: Path, said: str) -> dict[str, int]:
        report = json.loads(said.splitlines()[-1])
        if report["lost"] or report["duplicated"]:
            raise LabError(f"food lost {report['lost']}, duplicated {report['duplicated']}: {report['problems']}")
        return {"acknowledged": report["acknowledged"], "lost": report["lost"]}


class Redis(Contestant):
    name = "ocf:heartbeat:redis"
    resource = "redis"
    watch_s: ClassVar[Mapping[str, float]] = {"move": 4.0, "kill": 12.0}

    def create(self) -> None:
        for node in self.lab.nodes:
            self.lab.run(node, ["tee", REDIS_CONFIG], input=REDIS_LINES)
            self.lab.run(node, ["install", "-d", "-o", "redis", "-g", "redis", "/var/log/redis", REDIS_DIRECTORY])
        argv = ["resource", "create", self.resource, "ocf:heartbeat:redis", f"config={REDIS_CONFIG}"]
        argv += ["op", "monitor", f"interval={MONITOR_S}s", "role=Promoted"]
        argv += ["monitor", f"interval={MONITOR_S + 1}s", "role=Unpromoted", "promotable", "notify=true"]
        self.pcs(*argv)

    def load(self, history: Path) -> list[str]:
        endpoints = ",".join(f"{self.lab.address(node)}:{REDIS_PORT}" for node in self.lab.nodes)
        argv = [packages.PYTHON, str(ROOT / "tests/bench/redis_writer.py"), endpoints, "--out", str(history)]
        return [*argv, "--writers", str(WRITERS), "--rate", str(RATE)]

    def pid(self, node: str) -> int:
        return int(self.lab.run(node, ["cat", "/run/redis/redis-server.pid"]).stdout)

    def settle(self) -> str:
        """Promoted, and both others follow."""
        node = super().settle()
        self.lab.wait(lambda: self._replicas(node) == len(self.lab.nodes) - 1, SETTLE_TIMEOUT_S, "Redis's replicas")
        return node

    def _replicas(self, node: str) -> int:
        asked = ["redis-cli", "-h", self.lab.address(node), "INFO", "replication"]
        return self.lab.run_client(asked, check=False).stdout.count("state=online")

    def verdict(self, history: Path, said: str) -> dict[str, int]:
        report: dict[str, int] = json.loads(said.splitlines()[-1])
        return report


class Stateful(Contestant):
    """What an agent that does nothing costs. A kill is its score deleted: what food's guardian does at a death."""

    name = "Pacemaker alone"
    resource = "floor"

    def create(self) -> None:
        floors.create(self.lab, self.resource)

    def gaps(self, number: int, rounds: int, directory: Path, tell: Callable[[str], object]) -> dict[str, float]:
        with self.enabled():
            # An operator's command has its own start; what Pacemaker takes begins with its first action.
            moved = floors.floor_move(self.lab, self.resource).actions_ms
            return {"move": moved, "kill": floors.floor_score_deleted(self.lab, self.resource).ms}


CONTESTANTS = (Food, Redis, Stateful)


def measure(rounds: int, name: str, tell: Callable[[str], object]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by contestant and event, a value for each round."""
    found: dict[str, dict[str, list[float]]] = {kind.name: {event: [] for event in EVENTS} for kind in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="food-bench-") as directory, Lab(name, 3, install=True) as lab:
        contestants: list[Contestant] = [kind(lab) for kind in CONTESTANTS]
        for contestant in contestants:
            contestant.create()
            contestant.settle()
            contestant.pcs("resource", "disable", contestant.clone)
        lab.run("n1", ["crm_resource", "--wait", "--timeout=60"], timeout_s=70)
        tell("the clones are made")
        for number in range(rounds):
            for contestant in turned(contestants, number):
                gaps = contestant.gaps(number, rounds, Path(directory), tell)
                for event, gap in gaps.items():
                    found[contestant.name][event].append(round(gap))
                cells = "   ".join(f"{event} {gap:>6.0f} ms" for event, gap in gaps.items())
                tell(f"round {number + 1} of {rounds}  {contestant.name:<20} {cells}")
    return found


# --- What it comes to ---


def summary(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """A map for each event: the spread of each, and of food's ratio to ocf:heartbeat:redis, pair by pair."""
    rows = []
    for event in EVENTS:
        pairs = zip(found[Food.name][event], found[Redis.name][event], strict=True)
        rows.append(
            {
                "event": event,
                "ms": {name: spread(values[event], 0) for name, values in found.items()},
                "ratio": spread([ours / theirs for ours, theirs in pairs], 3),
            }
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    names = [kind.name for kind in CONTESTANTS]
    lines = [f"| write gap, ms | {' | '.join(names)} | food ÷ redis |", "|---|" + "---:|" * (len(names) + 1)]
    for row in report["summary"]:
        cells = [f"{ms['median']:,.0f} ({ms['least']:,.0f} to {ms['most']:,.0f})" for ms in map(row["ms"].get, names)]
        lines.append(f"| {row['event']} | {' | '.join(cells)} | 1/{1 / row['ratio']['median']:.1f} |")
    return "\n".join(lines)


def picture(report: dict[str, Any]) -> str:
    """SVG."""
    colours = dict(zip((kind.name for kind in CONTESTANTS), (plot.BLUE, plot.OCHRE, plot.GREY), strict=True))
    groups = []
    for row in report["summary"]:
        bars = {
            name: plot.Bar(*(max(1, ms[part]) / 1000 for part in ("median", "least", "most")))
            for name, ms in row["ms"].items()
        }
        note = f"food: 1/{1 / row['ratio']['median']:.0f} of ocf:heartbeat:redis"
        groups.append(plot.Group(EVENTS[row["event"]], bars, [note]))
    found = report["machine"]
    return plot.bars(
        "Failover: how long nothing was acknowledged",
        f"Three Pacemaker nodes in one lab, monitors every {MONITOR_S} s; {found['processors']} processors, "
        f"{found['memory_gib']:.0f} GiB; rounds: {report['rounds']}, {report['date'][:10]}",
        "seconds",
        colours,
        [plot.Panel("Write gap", groups)],
        [
            "food, ocf:heartbeat:redis (WAIT 1): the longest wait of one of four clients between two acknowledgements.",
            "Pacemaker alone (ocf:pacemaker:Stateful): until the promote has ended. "
            "Bars: medians, on a logarithmic scale; lines: least and most.",
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="bench", help="of the lab")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as SVG")
    options = parser.parse_args()
    try:
        packages.require_root()
        packages.ensure((*packages.LAB, *packages.FOOD, "redis-server"))
        if sys.executable != packages.PYTHON:
            return subprocess.run([packages.PYTHON, *sys.argv], check=False).returncode
        report: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(Path("/var/tmp")),
            "rounds": options.rounds,
        }
        began = time.monotonic()
        found = measure(
            options.rounds,
            options.name,
            lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True),
        )
    except LabError as error:
        print(f"failover: {error}", file=sys.stderr)
        return 1
    report |= {"summary": summary(found), "ms": found}
    print(f"\n{table(report)}")
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(picture(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
