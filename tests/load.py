"""A load that shows what a cluster loses, does twice, or reads too late; and the checker of its history.

    python tests/load.py --endpoints host:port,… --seconds 600 --writers 4 --readers 2 --out load.jsonl
    python tests/load.py --check load.jsonl …

Every writer has one write outstanding and takes turns between
  - a key never written before: put, or cas from "absent". At the end each acknowledged one must be there, with its
    value, at exactly the revision that was acknowledged: a later one means that it was applied again;
  - its counter: cas from the revision acknowledged last. Nobody else writes it, so a failed compare is a lost write
    (an older revision) or one applied twice (a newer one).
The first and the last write of the run are marks. Between their revisions there is one for each change, so the
number of changes is known even where the key alone would hide that it was written twice.
Readers read the counters: never older than what was acknowledged, or read, before they asked.
Contenders (--contenders) work on a few keys that all of them share: get, put, cas from the revision that they saw last,
delete, and adding one to a number. What each call answered is for a linearizability checker; the numbers must end as
large as there were acknowledged additions.

A write of unknown outcome is left alone, its session closed through the log, before its writer goes on: from then
on it is there or it will never be, and the checker looks which. The history goes to the file as it happens.

It may start before the cluster serves. SIGTERM or SIGINT end it early and in good order; the second one at once.
Exit codes: 0 nothing wrong, 1 something lost, twice, or stale (or worse), 3 the final state could not be read.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from food.calls import CompareFailed, FoodError, Outcome, Request
from food.client import Client, split_endpoints
from food.fleet import Fleet, Member

PROBE_EVERY_S = 0.025  # a failover is measured here: look for the new primary more often than a client would
FLUSH_EVERY_S = 0.1
DRAIN_S = 30.0  # for what is outstanding at the end; then its outcome is unknown
FINAL_S = 120.0  # for reading the final state
READ_TIMEOUT_S = 5.0
BLOCK = 1000  # keys read at once at the end
PROBLEMS_SHOWN_MOST = 20
NUMBER = "+"  # ends the key of a number
LAST_LOOK = "last look"  # ends the name of the client that reads the contended keys when all others have ended
CAS_AFTER_GET = 0.8
TOUCHES = ("get",) * 5 + ("put",) * 4 + ("del",)


# --- History ---


class Write(NamedTuple):
    """`counter`: a cas on the writer's counter, else a key of its own. Times are CLOCK_MONOTONIC of this host.

    outcome: ack (at `revision`), unknown, failed (certainly not executed), compare (found `revision`). `expected`
    is the revision that a cas asked for, None for a put.
    """

    writer: str
    key: str
    value: str
    start: float
    end: float
    outcome: str
    revision: int
    expected: int | None
    counter: bool


class Read(NamedTuple):
    """A counter as a reader saw it (revision 0: absent), or as its writer did after a write of unknown outcome."""

    reader: str
    key: str
    value: str | None
    start: float
    end: float
    outcome: str
    revision: int


class Touch(NamedTuple):
    """A contender's call. `op`: get, put, cas, del. `value`: what it wrote, or what a get found (None: absent).

    outcome: ack (at `revision`; of a get or a del 0 for absent), unknown, compare (found `revision`). A call that was
    certainly not executed is not recorded: whoever reads its value shows that it was.
    """

    client: str
    op: str
    key: str
    value: str | None
    expected: int
    outcome: str
    revision: int
    start: float
    end: float

    @property
    def changes(self) -> bool:
        """Whether it has, or may have, a revision of its own."""
        return self.op != "get" and self.outcome != "compare" and (self.outcome == "unknown" or self.revision > 0)


@dataclass
class History:
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    touches: list[Touch] = field(default_factory=list)
    end: float = 0.0  # when the last of them ended


@dataclass
class Final:
    """All rows of the run's keys, and the revisions of its marks (None: others wrote to the store meanwhile)."""

    rows: dict[str, tuple[str, int]] = field(default_factory=dict)
    span: tuple[int, int] | None = None


def read_history(path: str | Path) -> tuple[History, Final | None]:
    """The history so far, and the final state if the run has ended well. A torn last line is left out."""
    history, final, complete = History(), Final(), False
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            match json.loads(line):
                case ["w", *fields]:
                    history.writes.append(Write(*fields))
                    history.end = max(history.end, history.writes[-1].end)
                case ["r", *fields]:
                    history.reads.append(Read(*fields))
                    history.end = max(history.end, history.reads[-1].end)
                case ["x", *fields]:
                    history.touches.append(Touch(*fields))
                case ["state", str(key), str(value), int(revision)]:
                    final.rows[key] = (value, revision)
                case ["end", span]:
                    complete = True
                    final.span = (span[0], span[1]) if span else None
    return history, final if complete else None


def merge(histories: Iterable[History]) -> History:
    """Several loads on one cluster, from one host."""
    merged = History()
    for history in histories:
        merged.writes += history.writes
        merged.reads += history.reads
        merged.touches += history.touches
        merged.end = max(merged.end, history.end)
    return merged


def write_gap(history: History, event_time: float, before_s: float = 1, after_s: float = 30) -> tuple[float, float]:
    """From when to when the longest time between two acknowledgements to one writer lasted, around the event.

    What began before the window counts from its beginning; what goes on at its end counts until it was over, or as
    far as the history goes.
    """
    begin, end = event_time - before_s, event_time + after_s
    acks: dict[str, list[float]] = defaultdict(list)
    for write in history.writes:
        if write.outcome == "ack":
            acks[write.writer].append(write.end)
        elif write.start < end:
            acks[write.writer] += []  # one that never got an acknowledgement has a gap, too
    gaps = [(begin, begin)]
    for times in acks.values():
        last = begin
        for ack in sorted(times):
            if last >= end:
                break
            if ack > last:
                gaps.append((last, ack))
                last = ack
        if last < end:
            gaps.append((last, max(last, min(end, history.end))))
    return max(gaps, key=lambda gap: gap[1] - gap[0])


def write_gap_ms(history: History, event_time: float, before_s: float = 1, after_s: float = 30) -> float:
    """How long `write_gap` was."""
    began, over = write_gap(history, event_time, before_s, after_s)
    return (over - began) * 1000


# --- The checker ---


@dataclass
class Report:
    """`phantom`: executed although the client was told that it was not, or read although never written.
    `out_of_order`: acknowledged at a revision that is not after those acknowledged before it began."""

    acknowledged: int = 0
    unknown: int = 0
    failed: int = 0
    lost: int = 0
    duplicated: int = 0
    stale_reads: int = 0
    reads: int = 0
    phantom: int = 0
    out_of_order: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, name: str, text: str) -> None:
        setattr(self, name, getattr(self, name) + 1)
        if len(self.problems) < PROBLEMS_SHOWN_MOST:
            self.problems.append(f"{name}: {text}")

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.stale_reads or self.phantom or self.out_of_order)


def check(history: History, final: Final) -> dict[str, Any]:
    """Pure. Counts acknowledged, unknown, lost, duplicated, stale_reads and more (Report), `problems` in words."""
    report = Report()
    for write in history.writes:
        if write.outcome == "ack":
            report.acknowledged += 1
        elif write.outcome == "unknown":
            report.unknown += 1
        elif write.outcome == "failed":
            report.failed += 1
    applied = sum(_check_key(report, write, final) for write in history.writes if not write.counter)
    chains: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.counter:
            chains[write.key].append(write)
    looks = defaultdict(list)
    for read in history.reads:
        if read.outcome == "ack":
            looks[read.key].append(read)
    for key, chain in chains.items():
        chain.sort(key=lambda write: write.start)
        applied += _check_counter(report, chain, looks[key], final.rows.get(key))
    for key, reads in looks.items():
        _check_reads(report, reads, chains[key])
    changes = [touch for touch in history.touches if touch.changes]
    acked = [_Change(*w[1:5], w.revision) for w in history.writes if w.outcome == "ack"]
    acked += [
        _Change(t.key, f"{t.client} {t.op} {t.key} {t.value}", t.start, t.end, t.revision)
        for t in changes
        if t.outcome == "ack"
    ]
    _check_order(report, acked)
    _check_numbers(report, history.touches)
    if final.span:
        _check_span(report, applied, changes, final.span)
    return dict(vars(report))


def _check_key(report: Report, write: Write, final: Final) -> bool:
    """A key written once. Returns whether it took effect, lost since or not."""
    row = final.rows.get(write.key)
    if write.outcome == "compare":
        # Its key was absent and belongs to nobody else: found there, it was executed before.
        report.problem("duplicated", f"{write.key} was executed again: compare found revision {write.revision}")
    if row is None:
        if write.outcome == "ack":
            report.problem("lost", f"{write.key}, acknowledged at revision {write.revision}, is not there")
        return write.outcome == "ack"
    value, revision = row
    if write.outcome == "failed":
        report.problem("phantom", f"{write.key} is there at revision {revision}, but was refused")
    elif value != write.value:
        report.problem("lost", f"{write.key} holds {value!r} instead of {write.value!r}")
    elif write.outcome == "ack" and revision != write.revision:
        name = "duplicated" if revision > write.revision else "lost"
        report.problem(name, f"{write.key} is at revision {revision}, acknowledged at {write.revision}")
    return True


def _check_counter(report: Report, chain: list[Write], reads: list[Read], row: tuple[str, int] | None) -> int:
    """A counter's writes in order. Returns how many of them took effect."""
    applied = 0
    seen = {read.value for read in reads} | ({row[0]} if row else set())
    for write in chain:
        if write.outcome == "ack":
            applied += 1
        elif write.outcome == "compare":
            assert write.expected is not None
            newer = write.revision > write.expected
            text = f"{write.key}: compare found revision {write.revision}, expected {write.expected}"
            report.problem("duplicated" if newer else "lost", text)
            # The value is unique: whoever saw it saw this write, though the answer was "not executed".
            applied += write.value in seen
        elif write.value in seen:
            applied += 1
            if write.outcome == "failed":
                report.problem("phantom", f"{write.key} was seen as {write.value!r}, but that was refused")
    acked = [write for write in chain if write.outcome == "ack"]
    if not acked:
        return applied
    last, key = acked[-1], acked[-1].key
    value, revision = row or ("nothing", 0)
    if value == last.value:
        if revision != last.revision:
            name = "duplicated" if revision > last.revision else "lost"
            report.problem(name, f"{key} is at revision {revision}, acknowledged at {last.revision}")
        return applied
    later = {write.value for write in chain if write.start >= last.end}  # whether they should be is judged above
    if value in later:
        return applied
    order = [write.value for write in acked]
    gone = order[order.index(value) + 1 :] if value in order else order[-1:]
    for lost in gone:
        report.problem("lost", f"{key} holds {value!r}: {lost!r} was acknowledged and is gone")
    return applied


def _check_reads(report: Report, reads: list[Read], chain: list[Write]) -> None:
    """Whoever asks after a write was acknowledged, or read, must not get anything older."""
    report.reads += len(reads)
    known = sorted(
        [(write.end, write.revision) for write in chain if write.outcome == "ack"]
        + [(read.end, read.revision) for read in reads]
    )
    ends, least = _running_most(known)
    begun = {write.value: write.start for write in chain}
    for read in reads:
        needed = least[bisect_left(ends, read.start)]
        if read.revision < needed:
            text = f"{read.reader} read {read.key} at revision {read.revision}, {needed} was known {read.start:.6f}"
            report.problem("stale_reads", text)
        if read.value is not None and chain and not begun.get(read.value, read.end) < read.end:
            report.problem("phantom", f"{read.reader} read {read.value!r} in {read.key}: nobody had written it")


class _Change(NamedTuple):
    """An acknowledged change of any client's."""

    key: str
    value: str
    start: float
    end: float
    revision: int


def _check_order(report: Report, acked: list[_Change]) -> None:
    """A revision belongs to one write, and is later than all acknowledged before the write began."""
    ends, least = _running_most(sorted((write.end, write.revision) for write in acked))
    owner: dict[int, str] = {}
    for write in acked:
        if write.revision <= least[bisect_left(ends, write.start)]:
            report.problem("out_of_order", f"{write.key} got revision {write.revision} after a later one")
        other = owner.setdefault(write.revision, write.value)
        if other != write.value:
            report.problem("out_of_order", f"{other} and {write.value} both got revision {write.revision}")


def _check_numbers(report: Report, touches: list[Touch]) -> None:
    """A number that everybody adds to is, in the end, what it was acknowledged to be; only what is unknown may be there
    beside. Judges where the run's last look at the number is there."""
    added: dict[str, list[str]] = defaultdict(list)
    last: dict[str, int] = {}
    for touch in touches:
        if touch.key.endswith(NUMBER):
            if touch.op == "cas" and touch.outcome != "compare":
                added[touch.key].append(touch.outcome)
            elif touch.client.endswith(LAST_LOOK):
                last[touch.key] = _number(touch.value)
    for key, found in last.items():
        least, most = added[key].count("ack"), len(added[key])
        if found < least:
            report.problem("lost", f"{key} is {found}: {least} additions were acknowledged")
        elif found > most:
            report.problem("duplicated", f"{key} is {found}: only {most} additions were sent")


def _check_span(report: Report, applied: int, touched: list[Touch], span: tuple[int, int]) -> None:
    """Between the marks there is one revision for each change, and no other. `touched`: contenders' changes, of which
    those of unknown outcome may be there or not."""
    changes = span[1] - span[0] - 1
    applied += sum(touch.outcome == "ack" for touch in touched)
    doubtful = sum(touch.outcome == "unknown" for touch in touched)
    extra = changes - applied - doubtful - report.duplicated
    if extra > 0:
        report.problem("duplicated", f"{changes} revisions for {applied} changes")
        report.duplicated += extra - 1
    missing = applied - report.lost - changes  # what is lost may have had its revision, or not
    if missing > 0:
        report.problem("lost", f"only {changes} revisions for {applied} changes")
        report.lost += missing - 1


def _running_most(known: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """Times, and the highest revision before each of them (one more at the end)."""
    most, least = 0, [0]
    for _, revision in known:
        most = max(most, revision)
        least.append(most)
    return [when for when, _ in known], least


# --- The load ---


class Writer:
    """One member that writes. `revision` is its counter's; None: to be read before the counter is written again."""

    def __init__(self, load: Load, number: int):
        self.load = load
        self.name = f"{load.name}/{number}"
        self.prefix = f"{load.name}/w{number:03d}/"
        self.counter = counter_key(load.name, number)
        self.member = load.fleet.add(self._done)
        self.turn = 0
        self.revision: int | None = 0
        self.next_start = 0.0
        self.step = "idle"  # idle, write, close (the session of an unknown write), look (at the counter)
        self.now: tuple[str, str, float, int | None, bool] = ("", "", 0.0, None, False)

    def go(self, now: float) -> None:
        self.next_start = max(now, self.next_start + self.load.pause_s)
        if self.revision is None:
            self._fence(now)
            return
        self.turn += 1
        value = f"{self.name}:{self.turn}"
        counter = self.turn % 2 == 0
        key = self.counter if counter else f"{self.prefix}{self.turn // 2:09d}"
        expected = self.revision if counter else None if self.turn % 4 == 1 else 0
        self.now = (key, value, now, expected, counter)
        self.step = "write"
        if expected is None:
            request = Request("w", "put", (key.encode(), value.encode()))
        else:
            request = Request("w", "cas", (key.encode(), expected, value.encode()))
        self.member.submit(request, now, self.load.timeout_s)

    @property
    def idle(self) -> bool:
        return self.step == "idle"

    def closing(self) -> None:
        self.step = "close"

    def _fence(self, now: float) -> None:
        """After this the unknown write is there, or never will be."""
        self.step = "close"
        if not self.member.finish(now, self.load.timeout_s):
            self._look(now)

    def _look(self, now: float) -> None:
        self.step = "look"
        self.now = (self.counter, "", now, None, True)
        self.member.submit(Request("r", "get", (self.counter.encode(),)), now, self.load.timeout_s)

    def _done(self, member: Member, outcome: Outcome, now: float) -> None:
        step, self.step = self.step, "idle"
        if step == "close":
            if not outcome.error:
                self._look(now)
        elif step == "look":
            if not outcome.error:
                value, self.revision = _row(outcome.value)
                read = Read(self.name, self.counter, value, self.now[2], now, "ack", self.revision)
                self.load.record("r", read)
        else:
            self._written(outcome, now)

    def _written(self, outcome: Outcome, now: float) -> None:
        key, value, start, expected, counter = self.now
        error = outcome.error
        revision = 0
        if error is None:
            word, revision = "ack", outcome.value
            if counter:
                self.revision = revision
        elif isinstance(error, CompareFailed):
            word, revision = "compare", error.revision
            self.revision = None
        elif error.executed:
            word = "unknown"
            self.revision = None
        else:
            word = "failed"
        self.load.record("w", Write(self.name, key, value, start, now, word, revision, expected, counter))


class Reader:
    """One member that reads counters, in random order."""

    def __init__(self, load: Load, number: int, counters: Sequence[str]):
        self.load = load
        self.name = f"{load.name}/r{number}"
        self.counters = counters
        self.member = load.fleet.add(self._done)
        self.next_start = 0.0
        self.key = ""
        self.idle = True

    def go(self, now: float) -> None:
        self.next_start = max(now, self.next_start + self.load.pause_s)
        self.key = random.choice(self.counters)
        self.idle = False
        self.member.submit(Request("r", "get", (self.key.encode(),)), now, READ_TIMEOUT_S)

    def _done(self, member: Member, outcome: Outcome, now: float) -> None:
        self.idle = True
        value, revision = (None, 0) if outcome.error else _row(outcome.value)
        word = "failed" if outcome.error else "ack"
        self.load.record("r", Read(self.name, self.key, value, member.worker.started, now, word, revision))


class Contender:
    """One member that works on keys which others change, too."""

    def __init__(self, load: Load, number: int, keys: Sequence[str]):
        self.load = load
        self.name = f"{load.name}/x{number}"
        self.keys = keys
        self.member = load.fleet.add(self._done)
        self.turn = 0
        self.next_start = 0.0
        self.idle = True
        self.seen: dict[str, tuple[str | None, int]] = {}  # key: what a get found there last, not used by a cas yet
        self.now: tuple[str, str, str | None, int, float] = ("", "", None, 0, 0.0)

    def go(self, now: float) -> None:
        self.next_start = max(now, self.next_start + self.load.contender_pause_s)
        self.turn += 1
        key = random.choice(self.keys)
        op = self._choose(key)
        value, expected = f"{self.name}:{self.turn}", 0
        if op == "cas":
            found, expected = self.seen.pop(key)
            if key.endswith(NUMBER):
                value = f"{_number(found) + 1} {value}"
        self.now = (op, key, value if op in ("put", "cas") else None, expected, now)
        arguments = {"get": (), "del": (), "put": (value.encode(),), "cas": (expected, value.encode())}[op]
        self.idle = False
        request = Request("r" if op == "get" else "w", op, (key.encode(), *arguments))
        self.member.submit(request, now, self.load.timeout_s)

    def closing(self) -> None:
        self.idle, self.now = False, ("close", "", None, 0, 0.0)

    def _choose(self, key: str) -> str:
        """What was read is mostly followed by a cas from there; a number is only ever added to."""
        if key in self.seen and random.random() < CAS_AFTER_GET:
            return "cas"
        return "get" if key.endswith(NUMBER) else random.choice(TOUCHES)

    def _done(self, member: Member, outcome: Outcome, now: float) -> None:
        self.idle = True
        op, key, value, expected, start = self.now
        error, word, revision = outcome.error, "ack", 0
        if error is None and op == "get":
            value, revision = self.seen[key] = _row(outcome.value)
        elif op == "close":
            return
        elif error is None:
            revision = outcome.value
        elif isinstance(error, CompareFailed):
            word, revision = "compare", error.revision
        elif op != "get" and error.executed:
            word = "unknown"
        else:
            return
        self.load.record("x", Touch(self.name, op, key, value, expected, word, revision, start, now))


class Load:
    """Runs writers, readers and contenders until the time is over or `stop` is set; then reads what there is."""

    def __init__(self, options: argparse.Namespace, out: TextIO):
        self.name: str = options.name
        self.timeout_s: float = options.timeout
        self.pause_s = 1 / options.rate if options.rate else 0.0
        self.options = options
        self.endpoints = split_endpoints(options.endpoints)
        self.out = out
        self.stop = False
        self.key_file: str | None = options.key_file
        self.contender_pause_s = 1 / options.contender_rate
        members = options.writers + options.readers + options.contenders
        self.fleet = Fleet(self.endpoints, members, PROBE_EVERY_S, self.key_file)
        self.writers = [Writer(self, number) for number in range(options.writers)]
        name, count = options.read_counters or (self.name, options.writers)
        counters = [counter_key(name, number) for number in range(count)]
        self.readers = [Reader(self, number, counters) for number in range(options.readers if counters else 0)]
        self.contended = contended_keys(self.name, options.keys) if options.contenders else []
        self.contenders = [Contender(self, number, self.contended) for number in range(options.contenders)]
        self.changing: list[Writer | Contender] = [*self.writers, *self.contenders]
        self.clients: list[Writer | Reader | Contender] = [*self.changing, *self.readers]
        self._flushed = 0.0

    def record(self, kind: str, item: Write | Read | Touch) -> None:
        self.out.write(json.dumps([kind, *item]) + "\n")

    def run(self) -> bool:
        """False: the final state could not be read."""
        try:
            with Client(self.endpoints, timeout_s=1.0, key_file=self.key_file) as client:
                first = self._mark(client, "first", time.monotonic() + self.options.seconds)
            if first:
                self._work(time.monotonic() + self.options.seconds)
            self._settle()
        finally:
            self.fleet.close()
        with Client(self.endpoints, timeout_s=FINAL_S, key_file=self.key_file) as client:
            return self._finish(client, first)

    def _mark(self, client: Client, name: str, deadline: float) -> int:
        """The revision of a mark; 0 if it could not be set. One of unknown outcome is fenced by the client before
        it writes again, so it is before the one that is acknowledged."""
        while not self.stop and time.monotonic() < deadline:
            try:
                return client.put(f"{self.name}/{name}".encode(), b"mark")
            except FoodError:
                time.sleep(0.05)
        return 0

    def _work(self, deadline: float) -> None:
        now = time.monotonic()
        for client in self.clients:  # not all in step
            pause_s = self.contender_pause_s if isinstance(client, Contender) else self.pause_s
            client.next_start = now + pause_s * random.random()
        while now < deadline and not self.stop:
            for client in self.clients:
                if client.idle and now >= client.next_start:
                    client.go(now)
            self._round(min((c.next_start for c in self.clients if c.idle), default=deadline) - now)
            now = time.monotonic()

    def _settle(self) -> None:
        """Lets what is outstanding end; then closes all sessions, so that nothing can come later."""
        deadline = time.monotonic() + DRAIN_S
        while not all(c.idle for c in self.clients) and time.monotonic() < deadline:
            self._round(0.01)
        for client in self.changing:
            client.member.worker.deadline = 0.0  # unknown, if it is still outstanding
        self._round(0)
        time.sleep(0.02)
        self._round(0)
        deadline = time.monotonic() + FINAL_S
        while time.monotonic() < deadline:
            open_sessions = False
            for client in self.changing:
                if client.member.worker.busy:
                    open_sessions = True
                elif client.member.finish(time.monotonic(), 5.0):
                    client.closing()
                    open_sessions = True
            if not open_sessions:
                return
            self._round(0.01)

    def _round(self, wait_s: float) -> None:
        self.fleet.round(max(0.0, wait_s))
        now = time.monotonic()
        if now - self._flushed >= FLUSH_EVERY_S:
            self._flushed = now
            self.out.flush()

    def _finish(self, client: Client, first: int) -> bool:
        try:
            last = client.put(f"{self.name}/last".encode(), b"mark") if first else 0
            for key in self.contended:
                start = time.monotonic()
                value, revision = _row(client.get(key.encode()))
                look = Touch(f"{self.name}/{LAST_LOOK}", "get", key, value, 0, "ack", revision, start, time.monotonic())
                self.record("x", look)
            for key, value, revision in self._rows(client):
                self.out.write(json.dumps(["state", key, value, revision]) + "\n")
        except FoodError as error:
            print(f"load: the final state could not be read: {error}", file=sys.stderr)
            return False
        span = [first, last] if first and not self.options.shared else None
        self.out.write(json.dumps(["end", span]) + "\n")
        return True

    def _rows(self, client: Client) -> Iterator[tuple[str, str, int]]:
        for writer in self.writers:
            value, revision = _row(client.get(writer.counter.encode()))
            if value is not None:
                yield writer.counter, value, revision
            for block in range(writer.turn // 2 // BLOCK + 1):
                prefix = f"{writer.prefix}{block:06d}".encode()
                for row in client.range(prefix, BLOCK):
                    yield row.key.decode(), row.value.decode(), row.revision


def contended_keys(name: str, count: int) -> list[str]:
    """Every fourth of them is a number."""
    return [f"{name}/k{number:03d}{'' if number % 4 else NUMBER}" for number in range(count)]


def _number(value: str | None) -> int:
    """A number's value: how much it is, and who made it so."""
    return int(value.split()[0]) if value else 0


def counter_key(name: str, number: int) -> str:
    return f"{name}/c{number:03d}"


def _row(row: Any) -> tuple[str | None, int]:
    return (None, 0) if row is None else (row[0].decode(), row[1])


# --- The program ---


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.check:
        return _judge(options.check)
    if not options.endpoints or not options.out:
        print("load: --endpoints and --out are needed", file=sys.stderr)
        return 2
    with open(options.out, "w", encoding="utf-8") as out:
        load = Load(options, out)

        def stop(signum: int, frame: object) -> None:
            if load.stop:
                sys.exit(128 + signum)
            load.stop = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        complete = load.run()
    return _judge([options.out]) if complete else 3


def _judge(paths: Sequence[str]) -> int:
    """Prints the report of one run, or of several at once on one cluster."""
    found = [read_history(path) for path in paths]
    final = Final()
    for path, (_, rest) in zip(paths, found, strict=True):
        if rest is None:
            print(f"load: {path} has no final state", file=sys.stderr)
            return 3
        final.rows |= rest.rows
        final.span = rest.span if len(found) == 1 else None
    report = check(merge(history for history, _ in found), final)
    print(json.dumps(report))
    return 0 if Report(**report).clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", metavar="HOST:PORT,…")
    parser.add_argument("--key-file", metavar="FILE", help="of `foodctl client-key`; default: FOOD_KEY_FILE")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=200.0, help="of each writer and reader, a second; 0: no limit")
    parser.add_argument("--contenders", type=int, default=0, help="clients that share a few keys")
    parser.add_argument("--contender-rate", type=float, default=2.0, help="of each contender, a second")
    parser.add_argument("--keys", type=int, default=32, help="how many the contenders share")
    parser.add_argument("--timeout", type=float, default=120.0, help="until a write is given up as unknown, seconds")
    parser.add_argument("--name", default="load", help="begins all keys; two loads at once need two names")
    parser.add_argument("--shared", action="store_true", help="others write to the store, too: do not count revisions")
    parser.add_argument(
        "--read-counters", type=_named_count, metavar="NAME:WRITERS", help="read those of another load instead"
    )
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="only check histories written before")
    return parser


def _named_count(text: str) -> tuple[str, int]:
    name, _, count = text.rpartition(":")
    return name, int(count)


if __name__ == "__main__":
    sys.exit(main())
