#!/usr/bin/env python3
"""Whether clients saw one store that does one thing at a time: checks histories, and knows nothing of food's code.

    tests/linear.py FILE…        JSON lines, one operation a line; FILE.msgpack: the same as a stream of arrays;
                                 or what tests/load.py wrote, once it has ended: a write under way is in no file.
                                 Exit codes: 0 linearizable, 1 not, 2 unreadable

An operation is a plain tuple (client, op, key, argument, result, invoked_at, returned_at), in any order, times of one
clock. A result of None means that the outcome is unknown: a write may take effect at any later time, or never.

    op    argument              result                                  does
    put   value                 revision                                sets the key
    get   None                  (value, revision); absent: (None, 0)    reads it
    del   None                  revision; 0: it was absent              removes it
    cas   (expected, value)     revision, or ("compare", found)         sets the key if it is at revision `expected`

A key is absent, revision 0, before its first write. Revisions are the whole store's and rise with each change (README,
"Revision"), so they say much about the order: `_narrow` applies that to all keys together, then each key is judged by
itself, which is enough (Herlihy and Wing, "Linearizability", 1990: it is local; Horn and Kroening, "Faster
linearizability checking via P-compositionality", 2015). The search is Wing and Gong's ("Testing and verifying
concurrent objects", 1993) as Lowe does it ("Testing for linearizability", 2017): just in time, that is, an operation
is given its place only when one that returns needs it, and equal configurations are kept once. Only the
configurations of the present moment are kept, so memory is bounded by what is outstanding, not by the history.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

CONFIGURATIONS_MOST = 200_000  # at one moment, of one key
SHOWN_MOST = 30  # lines of a window
THIN_TRIES_MOST = 100  # until its needless looks are left in


class Undecided(Exception):
    """So many writes of unknown outcome wait for one key that the search would not end."""


class Op(NamedTuple):
    client: Any
    op: str
    key: Any
    argument: Any
    result: Any
    invoked: float
    returned: float | None

    def __str__(self) -> str:
        until = "…" if self.returned is None else f"{self.returned:.6f}".rstrip("0").rstrip(".")
        since = f"{self.invoked:.6f}".rstrip("0").rstrip(".")
        argument = "" if self.argument is None else f" {self.argument!r:.60}"
        result = "unknown" if self.result is None else f"{self.result!r:.80}"
        return f"[{since}, {until}] {self.client} {self.op} {self.key!r}{argument} -> {result}"


class _Any:
    """A value that fits every other: whoever is told a revision only says nothing of the value."""


ANY = _Any()
PRESENT = -1  # some revision that nobody was told


@dataclass(slots=True, eq=False)
class Step:
    """An operation as the search sees it. A change makes the key `value` (None: absent) at `revision` (None: unknown
    outcome), if it was at revision `needs` (None: at any; PRESENT: not absent). A look saw `value` at `revision`."""

    number: int
    source: Op
    change: bool
    revision: int | None
    value: Any
    needs: int | None
    invoked: float
    returned: float

    def allows(self, revision: int) -> bool:
        """Whether a change can be made at that revision of its key."""
        return self.needs is None or self.needs == revision or (self.needs == PRESENT and revision != 0)

    def saw(self, revision: int, value: Any) -> bool:
        return self.revision == revision and (self.value is ANY or value is ANY or bool(self.value == value))


class Configuration(NamedTuple):
    """What may be so: the key's state, and which of the operations that still wait for their return are done."""

    passed: int  # revisions that were told to anybody and are reached
    revision: int
    value: Any
    done: frozenset[int]  # of known outcome
    used: frozenset[int]  # of unknown outcome


class Mismatch(NamedTuple):
    """The operation at whose return no configuration was left, or whose revision contradicts another's."""

    step: Step
    why: str
    others: tuple[Step, ...] = ()


# --- From operations to steps ---


def _step(number: int, op: Op) -> Step | None:
    """None for what says nothing. Raises ValueError for what no client can have seen."""

    def made(change: bool, revision: int | None, value: Any, needs: int | None = None) -> Step:
        known = op.result is not None
        if known and (op.returned is None or op.returned < op.invoked):
            raise ValueError(f"a known result with no time of return behind its invocation: {op}")
        returned = op.returned if known and op.returned is not None else inf
        return Step(number, op, change, revision, value, needs, op.invoked, returned)

    match op.op, op.argument, op.result:
        case "get", _, None:
            return None
        case "get", None, (None, 0):
            return made(False, 0, None)
        case "get", None, (value, int(revision)) if value is not None and revision > 0:
            return made(False, revision, value)
        case "put", value, None | int() as revision if value is not None and (revision is None or revision > 0):
            return made(True, revision, value)
        case "del", None, 0:
            return made(False, 0, None)
        case "del", None, None | int() as revision if revision is None or revision > 0:
            return made(True, revision, None, PRESENT)
        case "cas", (int(expected), value), None | int() as revision if revision is None or revision > 0:
            return made(True, revision, value, expected)
        case "cas", (int(expected), _), ("compare", int(found)):
            # A failed compare that found what it expected is never right: no state has such a revision.
            return made(False, found if found != expected else -2, ANY)
    raise ValueError(f"not an operation and its result: {tuple(op)!r:.300}")


def _narrow(steps: list[Step]) -> Mismatch | None:
    """Moves each step into the time that the revisions of all keys together leave it; or says which two contradict.

    A change was made before every change with a later revision, so at the latest when anybody had been told of one,
    and not before any with an earlier revision was invoked. Where it was a write of unknown outcome, a look is added,
    as by somebody who saw it just then.
    """
    owner: dict[int, Step] = {}
    told: dict[int, Step] = {}  # by revision: the first that returned and knew of it
    for step in steps:
        if step.revision is None or step.revision <= 0:
            continue
        known = told.setdefault(step.revision, step)
        if known.source.key != step.source.key:
            return Mismatch(step, f"revision {step.revision} belongs to two keys", (known,))
        if step.change and (other := owner.setdefault(step.revision, step)) is not step:
            return Mismatch(step, f"revision {step.revision} belongs to two changes", (other,))
        if step.returned < known.returned:
            told[step.revision] = step
    revisions = sorted(told)
    last: Step | None = None
    begun: dict[int, float] = {}
    for revision in revisions:
        change = owner.get(revision)
        if change and (last is None or change.invoked > last.invoked):
            last = change
        begun[revision] = last.invoked if last else -inf
        if last and told[revision].returned < last.invoked:
            why = f"revision {revision} was known before the change to revision {last.revision} began"
            return Mismatch(told[revision], why, (last,))
    first = inf
    until: dict[int, float] = {}
    for revision in reversed(revisions):
        first = until[revision] = min(first, told[revision].returned)
    for step in steps:
        if step.revision is not None and step.revision > 0:
            step.invoked = max(step.invoked, begun[step.revision])
            if step.change:
                step.returned = min(step.returned, until[step.revision])
    for revision in [revision for revision in revisions if revision not in owner]:
        source = told[revision].source
        steps.append(Step(-revision, source, False, revision, ANY, None, begun[revision], until[revision]))
    return None


# --- The search, one key at a time ---


class Search:
    """All configurations that may be so, from event to event."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.owner = {s.revision: s for s in steps if s.change and s.revision is not None}
        told = {s.revision for s in steps if s.revision and s.revision > 0}
        told |= {s.needs for s in steps if s.needs and s.needs > 0 and s.revision is not None}
        # What only a compare of unknown outcome expects may have been, or not.
        guessed = {s.needs for s in steps if s.needs and s.needs > 0} - told
        self.revisions: list[int] = sorted(told | guessed)
        self.told = told
        self.values = {s.revision: s.value for s in steps if not s.change and s.value is not ANY}
        self.values |= {revision: s.value for revision, s in self.owner.items()}
        self._known: dict[int, Step] = {}  # changes invoked and not returned, by revision
        self._unknown: dict[Any, list[Step]] = defaultdict(list)  # by what they write
        self._looks: dict[int | None, dict[int, Step]] = defaultdict(dict)  # by the revision they saw

    def run(self, starts: Iterable[Configuration] = ()) -> Step | None:
        """The first step at whose return nothing is left. The key is absent at first, or as any of `starts` says."""
        events = [(s.invoked, 0, s.number, s) for s in self.steps]
        events += [(s.returned, 1, s.number, s) for s in self.steps if s.returned < inf]
        events.sort(key=lambda event: event[:3])
        frontier = set(starts) or {Configuration(0, 0, None, frozenset(), frozenset())}
        for _, returns, number, step in events:
            if not returns:
                self._invoke(step)
                if not step.change:
                    frontier = {self._settled(*c) if step.saw(c.revision, c.value) else c for c in frontier}
                continue
            found: set[Configuration] = set()
            for c in frontier:
                reached = {c} if number in c.done else self._reach(c, step)
                found.update(r._replace(done=r.done - {number}) for r in reached)
                self._bounded(found, step)
            if not found:
                return step
            self._forget(step)
            frontier = _least(found) if len(found) > 1 else found
        return None

    def _invoke(self, step: Step) -> None:
        if not step.change:
            self._looks[step.revision][step.number] = step
        elif step.revision is None:
            self._unknown[step.value].append(step)
        else:
            self._known[step.revision] = step

    def _forget(self, step: Step) -> None:
        if step.change:
            self._known.pop(step.revision, None)  # type: ignore[arg-type]  # what returns has one
        else:
            del self._looks[step.revision][step.number]

    def _reach(self, start: Configuration, step: Step) -> set[Configuration]:
        """Every configuration in which `step` was the last to be done."""
        found: set[Configuration] = set()
        seen, ahead = {start}, [start]
        while ahead:
            for after in self._moves(ahead.pop()):
                if after not in seen:
                    seen.add(after)
                    if step.number in after.done:
                        found.add(after)
                    else:
                        ahead.append(after)
            self._bounded(seen, step)
        return found

    @staticmethod
    def _bounded(configurations: set[Configuration], step: Step) -> None:
        if len(configurations) > CONFIGURATIONS_MOST:
            raise Undecided(f"more than {CONFIGURATIONS_MOST} orders are possible at: {step.source}")

    def _moves(self, c: Configuration) -> Iterator[Configuration]:
        """One change more. Looks are no moves: they are done as soon as the state is what they saw, which costs nobody
        anything. A change of unknown outcome is made only where somebody could tell."""
        for at in range(c.passed, len(self.revisions)):
            revision = self.revisions[at]
            change = self.owner.get(revision)
            if change is None:
                for u in self._waiting(c, self.values.get(revision, ANY)):
                    if u.allows(c.revision):
                        yield self._settled(at + 1, revision, u.value, c.done, c.used | {u.number})
            elif revision in self._known:
                done, now = c.done | {change.number}, revision if change.value is not None else 0
                if change.allows(c.revision):
                    yield self._settled(at + 1, now, change.value, done, c.used)
                elif change.needs == PRESENT:  # absent: something of unknown outcome must have come before
                    for u in self._waiting(c, ANY):
                        if u.allows(0):
                            yield self._settled(at + 1, now, change.value, done, c.used | {u.number})
            if revision in self.told:
                break
        if c.revision != 0:
            for u in self._waiting(c, None):
                yield self._settled(c.passed, 0, None, c.done, c.used | {u.number})

    def _waiting(self, c: Configuration, value: Any) -> Iterator[Step]:
        """Changes of unknown outcome that may yet write that value. Of those that do the same, one is enough."""
        for of_value in [value] if value is not ANY else [value for value in self._unknown if value is not None]:
            seen = set()
            for u in self._unknown.get(of_value, ()):
                if u.number not in c.used and u.needs not in seen:
                    seen.add(u.needs)
                    yield u

    def _settled(
        self, passed: int, revision: int, value: Any, done: frozenset[int], used: frozenset[int]
    ) -> Configuration:
        looks = self._looks.get(revision)
        if looks:
            done = done.union(number for number, look in looks.items() if look.saw(revision, value))
        return Configuration(passed, revision, value, done, used)

    def anything(self, steps: Sequence[Step], since: float) -> Iterator[Configuration]:
        """Every state that the key may have had at `since`, in whatever order `steps` before were done."""
        made = {s.revision for s in steps if s.change and s.revision is not None and s.invoked <= since}
        might = [s.value for s in steps if s.change and s.revision is None and s.invoked <= since]
        for passed in range(len(self.revisions) + 1):
            reached = [s for s in map(self.owner.get, self.revisions[:passed]) if s]
            if any(s.invoked > since for s in reached):
                break  # it was not made yet
            done = frozenset(s.number for s in reached)
            states = [(0, None), (PRESENT, ANY)] if since > -inf else [(0, None)]
            if passed:
                revision = self.revisions[passed - 1]
                value = self.values.get(revision, ANY)
                if revision in made or (might and value is ANY) or value in might:
                    states.append((revision, value))
            for revision, value in states:
                yield Configuration(passed, revision, value, done, frozenset())


def _least(found: set[Configuration]) -> set[Configuration]:
    """Leaves out what differs from another only by more writes of unknown outcome that were used up."""
    groups: dict[tuple[Any, ...], list[Configuration]] = defaultdict(list)
    for c in found:
        groups[c[:4]].append(c)
    return {c for group in groups.values() for c in group if len(group) == 1 or not any(o.used < c.used for o in group)}


# --- What is told of a violation ---


def _between(steps: Sequence[Step], since: float, end: Step) -> list[Step]:
    """What may have been done after `since` and up to the return of `end`. Looks under way at `since` are left out,
    since anything before may have satisfied them."""
    return [s for s in steps if s.returned >= since and s.invoked <= end.returned and (s.change or s.invoked > since)]


def _impossible(window: Sequence[Step], steps: Sequence[Step], since: float) -> bool:
    """Whether the window cannot be so, whatever state `steps` before it had led to."""
    search = Search(window)
    try:
        return search.run(search.anything(steps, since)) is not None
    except Undecided:
        return False


def _window(steps: Sequence[Step], end: Step) -> list[Step]:
    """The operations of the shortest time that ends with the return of `end` and that no state before can explain."""
    times = [-inf, *sorted({s.invoked for s in steps if s.invoked <= end.returned})]

    def possible(since: float) -> bool:
        return not _impossible(_between(steps, since, end), steps, since)

    back = 1
    while back < len(times) and possible(times[-back]):
        back *= 2
    first = max(0, len(times) - back)
    since = times[max(first, bisect_left(times, True, first, key=possible) - 1)]
    return _thinned(_between(steps, since, end), steps, since)


def _thinned(window: list[Step], steps: Sequence[Step], since: float) -> list[Step]:
    """Without the looks that it does not take, sought in ever smaller pieces."""
    looks = [s for s in window if not s.change]
    size, tries = len(looks), 0
    while size and tries < THIN_TRIES_MOST:
        for at in range(0, len(looks), size):
            without, tries = set(looks[at : at + size]), tries + 1
            if _impossible(fewer := [s for s in window if s not in without], steps, since):
                window = fewer
        looks = [s for s in window if not s.change]
        size //= 2
    return window


def _told(mismatch: Mismatch, window: Iterable[Step]) -> str:
    ops = sorted({id(step.source): step.source for step in window}.values(), key=lambda op: op.invoked)
    told = [f"key {mismatch.step.source.key!r}: {mismatch.why}", *map(str, ops[-SHOWN_MOST:])]
    if len(ops) > SHOWN_MOST:
        told.insert(1, f"({len(ops) - SHOWN_MOST} operations before these belong to it)")
    return "\n    ".join(told)


def check(history: Iterable[Sequence[Any]], *, whole: bool = False) -> str | None:
    """None when the history is linearizable; else what is wrong, with the smallest window that shows it.

    `whole`: it holds every change ever made to the store, so each revision must be somebody's.
    """
    steps = [step for number, op in enumerate(history) if (step := _step(number, Op(*op)))]
    if mismatch := _narrow(steps) or (_counted(steps) if whole else None):
        return _told(mismatch, [mismatch.step, *mismatch.others])
    keys: dict[Any, list[Step]] = defaultdict(list)
    for step in steps:
        keys[step.source.key].append(step)
    for of_key in keys.values():
        if end := Search(of_key).run():
            why = "no order explains what was seen up to the return of " + str(end.source)
            return _told(Mismatch(end, why), _window(of_key, end))
    return None


def _counted(steps: Sequence[Step]) -> Mismatch | None:
    """Every change that was made is known, or one of unknown outcome."""
    told = [step for step in steps if step.revision and step.revision > 0]
    known = {step.revision for step in told if step.change}
    unknown = [step for step in steps if step.change and step.revision is None]
    last = max(told, key=lambda step: step.revision or 0, default=None)
    if last and last.revision and last.revision - len(known) > len(unknown):
        why = f"{last.revision} changes were made: {len(known)} known, {len(unknown)} of unknown outcome"
        return Mismatch(last, why + ": something was done twice")
    return None


# --- The command line ---


def read(path: Path) -> list[tuple[Any, ...]]:
    """The history in a file. A torn last line is left out."""
    if path.suffix == ".msgpack":
        with path.open("rb") as file:
            return [_plain(row) for row in msgpack.Unpacker(file)]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
    if rows and rows[0] and rows[0][0] in ("w", "r", "x", "state", "end") and len(rows[0]) != 7:
        return list(_of_load(rows))
    return [_plain(row) for row in rows]


def _plain(row: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(field) if isinstance(field, list) else field for field in row)


def _of_load(rows: Iterable[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """What tests/load.py writes; its final state counts as read by somebody after the end."""
    keys: dict[str, tuple[str | None, int]] = {}
    end, final = 0.0, False
    for row in rows:
        match row:
            case ["w", client, key, value, start, returned, outcome, revision, expected, _]:
                keys[key], end = (None, 0), max(end, returned)
                op = "put" if expected is None else "cas"
                argument = value if expected is None else (expected, value)
                result = {"ack": revision, "compare": ("compare", revision), "unknown": None}
                if outcome != "failed":
                    known = outcome != "unknown"
                    yield client, op, key, argument, result[outcome], start, returned if known else None
            case ["r", client, key, value, start, returned, "ack", revision]:
                end = max(end, returned)
                yield client, "get", key, None, (value, revision), start, returned
            case ["x", client, op, key, value, expected, outcome, revision, start, returned]:
                argument = {"cas": (expected, value), "put": value}.get(op)
                told = (value, revision) if op == "get" else ("compare", revision) if outcome == "compare" else revision
                known, end = outcome != "unknown", max(end, returned)
                yield client, op, key, argument, told if known else None, start, returned if known else None
            case ["state", key, value, revision]:
                keys[key] = (value, revision)
            case ["end", _]:
                final = True
    if final:
        for key, seen in keys.items():
            yield "the end", "get", key, None, seen, end + 1, end + 2


def main(paths: Sequence[str]) -> int:
    if not paths or paths[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    history: list[tuple[Any, ...]] = []
    try:
        for path in paths:
            history += read(Path(path))
        wrong = check(history)
    except (OSError, ValueError, TypeError, KeyError, Undecided) as error:
        print(f"linear: {error}", file=sys.stderr)
        return 2
    print(f"{len(history)} operations: " + (f"NOT linearizable\n{wrong}" if wrong else "linearizable"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
