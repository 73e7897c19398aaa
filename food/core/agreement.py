"""Whether this store's state is the others': hashes of it, compared at indexes that all pass.

Every state is the fold of one log: two hashes at one index are equal, or one of the two states is wrong (a tampered
disk, a flipped bit of memory, a bug). A majority that agrees outvotes who differs, the primary too: its store must not
be used any more. The majority is a full one, answers now, and so holds all that was ever committed: without the odd
store nothing is lost. Where no majority is there to decide, the primary's state counts, which clients have seen: a
backup that differs from it keeps its store, for an operator to look at, and stops voting.
"""

from __future__ import annotations

from typing import NamedTuple

from . import quorum
from .local import Local
from .message import Digest, Member

MARKS_TOLD = 8  # of the newest: whoever is a little behind finds one that it has passed, too
RECENT_MS = 1_500  # who has not said it since does not count
PATIENCE_MS = 1_000  # so long a third member has to decide between a backup and its primary
# A process is given the time to be reported as started: the end of one that only begins is a start that failed, and for
# that the cluster manager does not start it again, as an empty learner, before an operator says so.
START_MS = 2_000


class Told(NamedTuple):
    sender: Member
    marks: dict[int, int]
    at_ms: int


class Difference(NamedTuple):
    """At the newest index that both have passed."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    here: int
    there: int


class Agreement:
    def __init__(self, local: Local, now_ms: int):
        self._local = local
        self._began_ms = now_ms
        self.odd = ""  # why this member does not vote
        self.differing: dict[str, Difference] = {}  # by node
        self._told: dict[str, Told] = {}  # by node, which has one store at a time; lately
        self._differs_ms: int | None = None

    def digest(self) -> Digest:
        marks = list(self._own().items())
        return Digest(tuple(marks[-MARKS_TOLD - 1 :]), not self.odd)

    def on_digest(self, sender: Member, digest: Digest, primary: Member | None, now_ms: int) -> str | None:
        """`primary` is the one that is followed. Returns why this store must not be used any more, or None."""
        told = Told(sender, dict(digest.marks), now_ms)
        self._told[sender.node] = told
        self._told = {node: told for node, told in self._told.items() if now_ms - told.at_ms <= RECENT_MS}
        own = self._own()
        self._look(told, own)
        known = {index for told in self._told.values() for index in told.marks}
        for index in sorted(own.keys() & known, reverse=True):
            here = own[index]
            there = {told.sender: told.marks[index] for told in self._told.values() if index in told.marks}
            if self._majority({**there, self._local.member: here}, here):
                self._agrees()
                return None
            for found in sorted({*there.values()}):
                if self._majority(there, found):
                    if now_ms - self._began_ms < START_MS:
                        return None
                    names = ", ".join(sorted(member.node for member, their in there.items() if their == found))
                    return f"the state differs from that of {names} {_at(Difference(index, here, found))}"
            if primary in there:
                difference = Difference(index, here, there[primary])
                if difference.here == difference.there:
                    self._agrees()
                else:
                    self._differs(primary, difference, now_ms)
                return None
        return None

    def _own(self) -> dict[int, int]:
        """In the order of indexes; before the first entry there is nothing to compare."""
        state = self._local.state
        return {**self._local.marks, state.applied: state.hash} if state.applied else {}

    def _majority(self, said: dict[Member, int], value: int) -> bool:
        return quorum.holds(self._local.voters, {member.store for member, found in said.items() if found == value})

    def _look(self, told: Told, own: dict[int, int]) -> None:
        """Keeps in mind who differs, and says so once."""
        self.differing = {node: found for node, found in self.differing.items() if node in self._told}
        index, node = max(own.keys() & told.marks.keys(), default=None), told.sender.node
        if index is None:
            return
        difference = Difference(index, own[index], told.marks[index])
        if difference.here == difference.there:
            self.differing.pop(node, None)
        else:
            if node not in self.differing:
                self._local.event(f"the state of {node} differs {_at(difference)}")
            self.differing[node] = difference

    def _agrees(self) -> None:
        self._differs_ms = None
        if self.odd:
            self._local.event("the state differs no more: this member votes again")
            self.odd = ""

    def _differs(self, primary: Member, difference: Difference, now_ms: int) -> None:
        if self._differs_ms is None:
            self._differs_ms = now_ms
        elif now_ms - self._differs_ms >= PATIENCE_MS and not self.odd:
            remedy = f"move the data directory away, then foodctl member replace {self._local.member.node}"
            self.odd = f"the state differs from {primary.node}'s {_at(difference)}: not voting; {remedy}"
            self._local.event(self.odd)


def _at(difference: Difference) -> str:
    return f"at entry {difference.index}: here {difference.here:016x}, there {difference.there:016x}"
