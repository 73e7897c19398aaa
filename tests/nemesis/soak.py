"""Rounds of faults on a cluster under load, until the role was taken over often enough; then the verdict.

A failover is a node's "role: candidate -> primary" in food's own log. A round's write gap is the longest time that one
of the load's writers waited between two acknowledgements, from the round's first fault to its end.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import linear
import load
from cluster.operations import FOOD_LOG, PACEMAKER_LOG, Cluster, Load, Verdict, judge
from testbed import LabError, plot

from nemesis import plan
from nemesis.faults import CLEANED_UP, OFF_AND_ON, Fault, Faults

WRITERS, WRITES_A_SECOND = 8, 20
READERS = 2
CONTENDERS, CALLS_A_SECOND, KEYS = 200, 1.0, 32
BEFORE_S = 0.2  # a gap is not counted from before
ROUNDS_MOST = 3  # for each failover wanted: else the faults do not do what they are for
ROUNDS_SPARE = 20
SERVES_WITHIN_S = 0.3  # the load tells of acknowledgements every 100 ms
COROSYNC_LOG = "/var/log/corosync/corosync.log"
_PROMOTED = re.compile(r"role: candidate -> primary in epoch (\d+)")


class Tail:
    """The lines that were added to a file since the last look; a torn one waits for its end."""

    def __init__(self, path: Path, end: bool = False):
        self.path = path
        self._at = path.stat().st_size if end and path.exists() else 0

    def lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


class Gaps:
    """The longest time between two acknowledgements to one writer, while the load runs."""

    def __init__(self, lines: Callable[[], list[str]]):
        self._lines = lines
        self._last: dict[str, float] = {}
        self._begin = 0.0
        self._longest = (0.0, 0.0)

    def begin(self, at: float) -> None:
        self._read()
        self._begin = at - BEFORE_S
        self._longest = (self._begin, self._begin)

    def end(self, at: float) -> tuple[float, float]:
        """From when to when, since `begin`; who waits at the end has waited until then."""
        self._read()
        for last in self._last.values():
            self._gap(last, at)
        return self._longest

    def acknowledged(self) -> float:
        """When something was acknowledged last."""
        self._read()
        return max(self._last.values(), default=0.0)

    def _read(self) -> None:
        for line in self._lines():
            if line.startswith('["w"'):
                write = load.Write(*json.loads(line)[1:])
                if write.outcome == "ack":
                    self._gap(self._last.get(write.writer, self._begin), write.end)
                    self._last[write.writer] = write.end

    def _gap(self, since: float, until: float) -> None:
        found = max(since, self._begin), until
        self._longest = max(self._longest, found, key=lambda gap: gap[1] - gap[0])


@dataclass
class Done:
    """A round that was run."""

    round: plan.Round
    at: float  # monotonic seconds, when the first fault began
    notes: list[str]
    begun: int = 0  # faults that found something to break
    failovers: int = 0
    gap: tuple[float, float] = (0.0, 0.0)
    took_s: float = 0.0

    @property
    def gap_s(self) -> float:
        return self.gap[1] - self.gap[0]

    @property
    def kind(self) -> str:
        if len(self.round.faults) > 1:
            return "several at once"
        return self.round.faults[0].words


@dataclass
class Report:
    seed: int
    nodes: int
    began: float
    rounds: list[Done] = field(default_factory=list)
    took_s: float = 0.0
    verdict: Verdict | None = None
    touches: Counter[str] = field(default_factory=Counter)
    keys: int = 0
    operations: int = 0
    not_linearizable: str = ""  # why
    state: str = ""

    @property
    def failovers(self) -> int:
        return sum(done.failovers for done in self.rounds)

    @property
    def clean(self) -> bool:
        found = self.verdict
        return found is not None and not (found.lost or found.duplicated or found.stale or self.not_linearizable)


class Soak:
    """One run on a cluster that is whole. `tell` takes progress lines."""

    def __init__(self, cluster: Cluster, seed: int, kinds: Sequence[str] = (), tell: Callable[[str], object] = print):
        self.cluster = cluster
        self.faults = Faults(cluster)
        wanted = kinds or plan.KINDS
        self.kinds = tuple(kind for kind in wanted if cluster.lab.settings.disk_mib or not plan.KINDS[kind].small_disk)
        self.report = Report(seed, len(cluster.lab.nodes), time.monotonic())
        self.history: Path | None = None
        self.stop = False  # set: the round under way is the last one
        self._tell = tell
        self._logs = [Tail(cluster.lab.path(node, FOOD_LOG), end=True) for node in cluster.hosts]

    def run(self, failovers: int, first: int = 0) -> Report:
        """LabError when the cluster does not come back, or when the faults cause no failovers."""
        load_options = ["--contenders", str(CONTENDERS), "--contender-rate", str(CALLS_A_SECOND), "--keys", str(KEYS)]
        running: Load
        with (
            self._in_a_hurry(),
            self.cluster.load(*load_options, writers=WRITERS, readers=READERS, rate=WRITES_A_SECOND) as running,
        ):
            self.history = running.path
            gaps = Gaps(Tail(running.path).lines)
            number = first
            while self.report.failovers < failovers and not self.stop:
                if number - first >= ROUNDS_MOST * failovers + ROUNDS_SPARE:
                    raise LabError(f"{number - first} rounds made only {self.report.failovers} failovers")
                self._round(plan.plan(self.report.seed, number, self.kinds), gaps)
                number += 1
            self._from_disk(number, gaps)
            self.say("the load ends, and everything is read back")
        self.judge(running)
        self.report.took_s = time.monotonic() - self.report.began
        return self.report

    @contextlib.contextmanager
    def _in_a_hurry(self) -> Iterator[None]:
        """Pacemaker's controller does one thing at a time on a machine as busy as one that carries a whole cluster."""
        option = ["crm_attribute", "--type", "crm_config", "--name", "load-threshold"]
        self.cluster.lab.run(self.cluster.on()[0], [*option, "--update", "3000%"])
        try:
            yield
        finally:
            with contextlib.suppress(LabError, IndexError):
                self.cluster.lab.run(self.cluster.on()[0], [*option, "--delete"])

    def say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self.report.began:7.1f} s  {text}")

    # --- Rounds ---

    def _round(self, wanted: plan.Round, gaps: Gaps) -> None:
        if any(plan.KINDS[fault.kind].alone for fault in wanted.faults):
            self.faults.recover()
        done = Done(wanted, time.monotonic(), [])
        self.faults.notes = done.notes
        gaps.begin(done.at)
        self._break(done)
        self._afterwards(wanted.hasty, gaps)
        done.took_s = time.monotonic() - done.at
        done.gap = gaps.end(time.monotonic())
        done.failovers = self._promotions()
        self.report.rounds.append(done)
        self.say(
            f"round {wanted.number}: {'; '.join(done.notes)}. {count(done.failovers, 'failover')} "
            f"({self.report.failovers} so far), write gap {done.gap_s:.1f} s, "
            f"{'serves' if wanted.hasty else 'whole'} after {done.took_s:.1f} s"
        )

    def _break(self, done: Done) -> None:
        """Begins each fault in its time, and ends them in the order of their ends; last those that wait for others."""
        pending: list[tuple[bool, float, Fault]] = []
        for fault in done.round.faults:
            time.sleep(max(0.0, done.at + fault.after_s - time.monotonic()))
            try:
                begun = self.faults.begin(fault)
            except LabError as error:
                done.notes.append(f"not done: {first_line(error)}")
                continue
            done.begun += 1
            pending.append((plan.KINDS[fault.kind].waits, time.monotonic() + fault.hold_s, begun))
        for _, until, begun in sorted(pending, key=lambda entry: entry[:2]):
            time.sleep(max(0.0, until - time.monotonic()))
            try:
                next(begun, None)
            except LabError as error:
                done.notes.append(f"not ended: {first_line(error)}")

    def _afterwards(self, hasty: bool, gaps: Gaps) -> None:
        """Until something is acknowledged that was begun after all faults had ended, and mostly until all is whole."""
        ended = time.monotonic()

        def serves() -> bool:
            return gaps.acknowledged() > ended + SERVES_WITHIN_S and (hasty or self.cluster.whole())

        self.faults.recover(serves, "the cluster to serve again" if hasty else "the cluster to be whole")

    def _from_disk(self, number: int, gaps: Gaps) -> None:
        """Last of all every node loses its power: what is compared is what the disks hold."""
        self.faults.recover()
        fault = plan.Fault("all_off", plan.PRIMARY, 0.0, 0.0, 0)
        self._round(plan.Round(number, (fault,), False), gaps)

    def _promotions(self) -> int:
        return sum(bool(_PROMOTED.search(line)) for log in self._logs for line in log.lines())

    # --- The verdict ---

    def judge(self, running: Load) -> None:
        report = self.report
        report.verdict = judge(running)
        touches = load.read_history(running.path)[0].touches
        report.touches = Counter(touch.op for touch in touches)
        report.keys = len({touch.key for touch in touches})
        history = linear.read(running.path)
        report.operations = len(history)
        try:
            report.not_linearizable = linear.check(history) or ""
        except linear.Undecided as error:
            report.not_linearizable = f"not decided: {error}"
        self.faults.recover()
        report.state = self.cluster.assert_converged()

    def keep(self, directory: Path) -> None:
        """The history and every node's logs, for who looks for the reason."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.history:
            shutil.copy(self.history, directory / "history.jsonl")
        for node in self.cluster.lab.nodes:
            for log in (FOOD_LOG, PACEMAKER_LOG, COROSYNC_LOG):
                path = self.cluster.lab.path(node, log)
                if path.exists():
                    shutil.copy(path, directory / f"{node}-{path.name}")


def first_line(error: LabError) -> str:
    return str(error).splitlines()[0][:160]


def count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


# --- The report as text ---


def by_hand(rounds: Sequence[Done]) -> str:
    """What did not go by itself."""
    planned, begun = sum(len(done.round.faults) for done in rounds), sum(done.begun for done in rounds)
    notes = Counter(note for done in rounds for note in done.notes)
    off_and_on = sum(number for note, number in notes.items() if note.endswith(OFF_AND_ON))
    return (
        f"faults {begun}, and {planned - begun} that found nothing to break; afterwards by hand: "
        f"{count(notes[CLEANED_UP], 'cleanup')}, {count(off_and_on, 'node')} switched off and on"
    )


def table(rounds: Sequence[Done]) -> list[str]:
    """A row a kind, most failovers first."""
    kinds: dict[str, list[Done]] = defaultdict(list)
    for done in rounds:
        kinds[done.kind].append(done)
    head = f"{'what':<36}{'rounds':>7}{'failovers':>10}   {'write gap: median':>17}{'p99':>8}{'worst':>8}"
    lines = [f"{head}   {'over after: median':>18}{'worst':>8}"]
    for kind, found in sorted(kinds.items(), key=lambda entry: -sum(done.failovers for done in entry[1])):
        lines.append(row(kind, found))
    return [*lines, row("all", rounds)]


def row(name: str, rounds: Sequence[Done]) -> str:
    gaps = sorted(done.gap_s for done in rounds)
    took = sorted(done.took_s for done in rounds)
    failovers = sum(done.failovers for done in rounds)
    waited = f"{part(gaps, 0.5):>15.1f} s{part(gaps, 0.99):>6.1f} s{gaps[-1]:>6.1f} s"
    return f"{name:<36}{len(rounds):>7}{failovers:>10}   {waited}   {part(took, 0.5):>16.1f} s{took[-1]:>6.1f} s"


def picture(path: Path, report: Report) -> str:
    """Acknowledged writes over time, as SVG."""
    marks = [
        plot.Mark("+".join(fault.kind for fault in done.round.faults), done.at, done.gap, "; ".join(done.notes))
        for done in report.rounds
    ]
    return plot.strips(
        f"Acknowledged writes through {count(report.failovers, 'failover')}",
        f"food on {report.nodes} Pacemaker nodes, {WRITERS} writers of {WRITES_A_SECOND} a second each (shown) and "
        f"{CONTENDERS} other clients; seed {report.seed}",
        [write.end for write in load.read_history(path)[0].writes if write.outcome == "ack"],
        marks,
        ["Red: the round's first fault; shaded: the longest time that one writer waited between two acknowledgements."],
    )


def part(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]


def text(report: Report) -> str:
    verdict = report.verdict
    done = f"{count(report.failovers, 'failover')} in {count(len(report.rounds), 'round')}"
    lines = [
        f"food soak: {done}, {report.nodes} nodes, {report.took_s / 60:.1f} minutes, seed {report.seed}",
        "",
        *(table(report.rounds) if report.rounds else ()),
        "",
        by_hand(report.rounds),
    ]
    if verdict:
        calls = ", ".join(f"{number} {op}" for op, number in sorted(report.touches.items()))
        lines += [
            f"writes acknowledged {verdict.acknowledged}, unknown {verdict.unknown}, reads {verdict.reads}",
            f"{CONTENDERS} clients on {report.keys} common keys: {calls}",
            f"lost {verdict.lost}, duplicated {verdict.duplicated}, stale {verdict.stale}",
            *verdict.problems,
            f"{report.operations} operations: "
            + (f"NOT linearizable: {report.not_linearizable}" if report.not_linearizable else "linearizable"),
        ]
    return "\n".join([*lines, report.state, ""])
