"""The cluster under test: an operator's view of it, loads with a verdict, the times that Pacemaker's log tells.

Waits for outcomes with generous bounds; how long something took is a figure, and not what a test stands on.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import load
from testbed import LabError, layout, packages
from testbed.clone import CLONE, RESOURCE, Operator

AGENT = "/usr/lib/ocf/resource.d/food/food"
PACEMAKER_LOG = "/var/log/pacemaker/pacemaker.log"
FOOD_LOG = f"/var/log/food/{RESOURCE}.log"
FIRST_ACKS, FIRST_ACKS_S = 50, 60.0
BEFORE_S = 1.2  # an event's write gap is looked for from 1 s before it
LONG = os.environ.get("FOOD_LONG") == "yes"  # tests/run --long
WAIT_S = 60.0
LOAD_END_S = 240.0
LOG_LINES_SHOWN = 40
THROTTLE_LINES = 2_000  # of Pacemaker's log: a minute or two of a failover
_STAMP = re.compile(
    r"(\w{3} \d\d [\d:.]+) (\S+) pacemaker-controld .*?Requesting local execution of (\w+) operation for (\S+)"
)


class Action(NamedTuple):
    """An action of Pacemaker's: when it was asked for (wall clock, seconds), on which node."""

    at: float
    node: str
    name: str


class Verdict(NamedTuple):
    acknowledged: int
    unknown: int
    lost: int
    duplicated: int
    stale: int
    reads: int
    problems: list[str]

    def __str__(self) -> str:
        return (
            f"acknowledged {self.acknowledged}, unknown {self.unknown}, lost {self.lost}, duplicated "
            f"{self.duplicated}, stale {self.stale} of {self.reads} reads"
        )


class Load:
    """One run of the load. `history` may be read while it runs."""

    def __init__(self, path: Path, process: subprocess.Popen[Any], name: str):
        self.path = path
        self.name = name
        self._process = process

    def history(self) -> load.History:
        return load.read_history(self.path)[0]

    def acknowledged(self, since: float = 0.0, until: float = math.inf) -> int:
        """Writes acknowledged in that time, monotonic seconds. Written to the file every 100 ms."""
        return sum(write.outcome == "ack" and since <= write.end < until for write in self.history().writes)

    def gap_ms(self, event: float) -> int:
        return round(load.write_gap_ms(self.history(), event))

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(LOAD_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode not in (0, 1):
            log = self.path.with_suffix(".log").read_text()[-500:]
            raise LabError(f"load {self.name} ended with {self._process.returncode}: {log}")


def judge(*loads: Load) -> Verdict:
    """The checker's verdict on loads that have ended, taken together."""
    final, histories = load.Final(), []
    for one in loads:
        history, rest = load.read_history(one.path)
        if rest is None:
            raise LabError(f"load {one.name} did not read the final state")
        histories.append(history)
        final.rows |= rest.rows
        final.span = rest.span if len(loads) == 1 else None
    found = load.check(load.merge(histories), final)
    wrong = found["lost"], found["duplicated"] + found["phantom"] + found["out_of_order"], found["stale_reads"]
    return Verdict(found["acknowledged"], found["unknown"], *wrong, found["reads"], found["problems"])


class Cluster(Operator):
    loads = 0
    directory: Path

    # --- Loads ---

    @contextlib.contextmanager
    def load(
        self,
        *more: str,
        host: str = layout.CLIENT,
        nodes: Sequence[str] = (),
        writers: int = 4,
        readers: int = 2,
        rate: int = 100,
        at: str = "",
    ) -> Iterator[Load]:
        """Exactly-once writes and linearizable reads while the body runs, which begins after the first of them.

        `at`: the only address that the clients are given.
        """
        Cluster.loads += 1
        name = f"load{Cluster.loads}-{os.getpid()}"  # the store may have seen an earlier session's
        path = self.directory / f"{name}.jsonl"
        addresses = [at] if at else [self.lab.address(node) for node in nodes or self.hosts]
        endpoints = ",".join(f"{address}:{self.client_port}" for address in addresses)
        argv = [packages.PYTHON, str(load.__file__), "--endpoints", endpoints, "--name", name, "--out", str(path)]
        argv += ["--seconds", "3600", "--writers", str(writers), "--readers", str(readers), "--rate", str(rate), *more]
        path.touch()
        with path.with_suffix(".log").open("w") as log:
            process = self.lab.popen(host, argv, env=self.client_env(self.directory), stdout=log, stderr=log)
            running = Load(path, process, name)
            try:
                self.lab.wait(lambda: running.acknowledged() >= FIRST_ACKS, FIRST_ACKS_S, f"{name}'s first writes")
                time.sleep(BEFORE_S)
                yield running
            except BaseException:
                process.kill()
                process.wait()
                raise
            running.end()

    @contextlib.contextmanager
    def by_hand(self, name: str, port: int) -> Iterator[dict[str, str]]:
        """A food of another name on all nodes, which Pacemaker does not know; the environment of its agent."""
        env = {"OCF_RESOURCE_INSTANCE": name, "OCF_RESKEY_port": str(port), "OCF_ROOT": "/usr/lib/ocf"}
        try:
            for node in self.lab.nodes:
                self.lab.run(node, [AGENT, "start"], env=env)
            yield env
        finally:
            for node in self.lab.nodes:
                self.lab.run(node, [AGENT, "stop"], env=env)

    # --- What can be seen ---

    def backups(self) -> list[str]:
        primary = self.primary()
        return [node for node in self.hosts if node != primary]

    def score(self, node: str) -> int | None:
        argv = ["crm_attribute", f"--promotion={self.resource}", "-N", node, "-l", "reboot", "-G", "-q"]
        text = self.lab.run(self.on()[0], argv, check=False).stdout.strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    def status(self, node: str) -> dict[str, Any]:
        """What the node's daemon says of itself and of the members."""
        done = self.lab.run(node, ["foodctl", "--id", self.resource, "--output", "json", "status"], check=False)
        answers = json.loads(done.stdout or "{}").get("answers", {})
        found: dict[str, Any] = next((a for a in answers.values() if a and a["node"] == node), {})
        return found

    def assert_converged(self) -> str:
        """All nodes hold the same, log, revision and the state's hash: in words."""
        seen: list[tuple[Any, ...]] = []

        def equal() -> bool:
            statuses = [self.status(node) for node in self.hosts]
            seen[:] = [(s["last"], s["applied"], s["revision"], s["self"]["state_hash"]) for s in statuses if s]
            return len(seen) == len(self.hosts) and len(set(seen)) == 1

        self.wait(equal, "the same state on every node")
        text = f"every node holds: entry {seen[0][0]}, revision {seen[0][2]}, state {seen[0][3]}"
        print(text)
        return text

    def epoch(self, node: str) -> int:
        return int(self.status(node)["epoch"][0])

    def reasons(self) -> list[str]:
        """The failures in crm_mon, printed; each must say why."""
        found = self.failures()
        for failure in found:
            self.say(f"crm_mon: {failure.operation} on {failure.node}: {failure.status}: {failure.reason}")
            assert failure.reason, f"a failure without an exit reason: {failure}"
        return [f"{failure.node}: {failure.reason}" for failure in found]

    # --- Waiting ---

    def wait(self, predicate: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> float:
        return self.lab.wait(predicate, timeout_s, what)

    def wait_primary_not(self, *nodes: str) -> str:
        """Waits until another node has the role; which one."""

        def elsewhere() -> bool:
            with contextlib.suppress(LabError):
                return self.primary() not in nodes
            return False

        self.wait(elsewhere, f"the role on another node than {', '.join(nodes)}")
        return self.primary()

    def wait_restarted(self, node: str, pid: int) -> int:
        """Waits until a node's daemon is another process than `pid`; its pid."""

        def new() -> int | None:
            with contextlib.suppress(LabError):
                found = self.daemon(node)
                if found != pid and self.status(node):
                    return found
            return None

        self.wait(new, f"another daemon on {node}")
        return self.daemon(node)

    def repair(self) -> None:
        """Whatever a test left: everything healed, switched on, managed, and settled."""
        self.lab.heal()
        off = [node for node in self.lab.nodes if not self.lab.on(node)]
        if off and len(off) < len(self.lab.nodes) and self.lab.settings.fencing:
            for node in off:
                self.lab.wait_fenced(node)
        if off:
            self.lab.start(*off)
        self.lab.wait_online()
        self.settle()
        if self.failures():
            self.lab.run(self.on()[0], ["pcs", "resource", "cleanup", self.resource], timeout_s=60)
            self.wait(lambda: not self.failures(), "a clean crm_mon")
            self.settle()

    # --- Pacemaker's log ---

    def mark(self) -> dict[str, int]:
        """Where every node's Pacemaker log ends now, for `actions`."""
        paths = {node: self.lab.path(node, PACEMAKER_LOG) for node in self.lab.nodes}
        return {node: path.stat().st_size if path.exists() else 0 for node, path in paths.items()}

    def actions(self, mark: dict[str, int], *names: str) -> list[Action]:
        """The clone's actions that Pacemaker asked for since the mark, oldest first."""
        found = []
        year = datetime.datetime.now().year
        for node, offset in mark.items():
            with self.lab.path(node, PACEMAKER_LOG).open("rb") as file:
                file.seek(offset)
                text = file.read().decode(errors="replace")
            for stamp, _, name, resource in _STAMP.findall(text):
                if resource == self.resource and name in names:
                    at = datetime.datetime.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S.%f").timestamp()
                    found.append(Action(at, node, name))
        return sorted(found)

    def throttled(self) -> bool:
        """Whether Pacemaker has lately limited itself on some node, as its log says every 30 s while it does."""
        paths = [self.lab.path(node, PACEMAKER_LOG) for node in self.lab.nodes]
        lately = [line for path in paths for line in path.read_text(errors="replace").splitlines()[-THROTTLE_LINES:]]
        return any("High CPU load detected" in line for line in lately)

    def picture(self) -> Iterator[str]:
        """What crm_mon says, and the end of every node's logs, of food and of Pacemaker: for a test that failed."""
        on = self.on()
        yield self.lab.run(on[0], ["crm_mon", "-A1"], check=False).stdout if on else "all nodes are off"
        for node in self.lab.nodes:
            for path in sorted(self.lab.path(node, "/var/log/food").glob("*.log")):
                yield f"--- {node}: {path}"
                yield from path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
            path = self.lab.path(node, PACEMAKER_LOG)
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            yield f"--- {node}: {path}, without what is mere information"
            yield from [line for line in lines if "info:" not in line][-LOG_LINES_SHOWN:]


def assert_clean(*loads: Load) -> Verdict:
    """Nothing lost, nothing twice, nothing stale, and there was a load at all."""
    verdict = judge(*loads)
    print(verdict)
    assert (verdict.lost, verdict.duplicated, verdict.stale) == (0, 0, 0), verdict.problems
    assert verdict.acknowledged > FIRST_ACKS
    assert verdict.reads > 0
    return verdict


def now() -> tuple[float, float]:
    """(monotonic, wall clock) seconds: the load's time and that of Pacemaker's log."""
    return time.monotonic(), time.time()


__all__ = ["AGENT", "CLONE", "RESOURCE", "Action", "Cluster", "Load", "Verdict", "assert_clean", "judge", "now"]
