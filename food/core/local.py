"""What this member holds: promise, log, commit index and state. Every durable change goes through here.

Each change is made in memory at once and noted in the Save of the turn, so that memory is never behind the disk
and nothing leaves the node before the disk has caught up. Invariants: the promise only rises; commit <= last;
applied <= commit; nothing at or below the commit index is ever cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .entries import Log, unpack_members
from .message import NO_EPOCH, START, Entry, Epoch, Kind, Member, MemberList, Message, Position
from .ready import Ready, Save
from .snapshot import Piece, Snapshot
from .state import Result, State

FLUSH_ENTRIES = 2_000  # state tables trail the log by at most about this much: what a start replays
FLUSH_MS = 1_000
KEEP_ENTRIES = 20_000  # entries kept behind the state for backups that fell behind
KEEP_BYTES = 64 * 1024 * 1024  # at most so much memory for them
HOLD_BYTES = 512 * 1024 * 1024  # and so much while one is receiving a snapshot
COMPACT_MOST_ENTRIES = 2_000  # forgotten at a time, beside as many as were flushed
MARK_ENTRIES = 1_000  # at multiples of so many the state's hash is kept, to be compared with the others'
MARKS_KEPT = 64


class Recovered(NamedTuple):
    """What the store gave back at the start of this process."""

    member: Member
    starts: int  # this start included
    promise: Epoch
    log: Log
    commit: int
    state: State  # at its own applied index, at most `commit`
    remembers: dict[str, tuple[int, str]]


class Local:
    def __init__(self, recovered: Recovered, life: str, nodes: Sequence[str]):
        self.member = recovered.member
        self.life = life
        self.nodes = tuple(sorted(nodes))  # Corosync's
        self.founders: tuple[str, ...] | None = None  # told by command, for this process's life: `founding_nodes`
        self.starts = recovered.starts
        self.promise = recovered.promise
        self.log = recovered.log
        self.state = recovered.state
        self.remembers = recovered.remembers
        self.sweep_due = False  # whether the store holds much that is void, which only a flush sweeps out
        self.no_space = ""  # why nothing that needs room is taken now; the disk is looked at elsewhere
        self._voters_of: MemberList | None = None
        self._voters: tuple[str, ...] = ()
        self.hold: int | None = None  # somebody is about to fetch what is behind this index
        # After a restart the state is replayed up to the saved commit index, never past it.
        self.commit = self.state.applied
        self._save = Save()
        self._staged: tuple[Position, int] | None = None  # which snapshot, up to which piece
        self._flushed_ms = 0
        self._flushed_index = self.state.applied
        self.marks: dict[int, int] = {}  # applied index: the state's hash there, ascending
        # Durable before anybody hears of this life: whoever remembers one that is not noted here remembers another
        # history of this disk. A count alone is outrun by an older copy that is restarted often enough.
        self._note(f"{self.store} {self.starts}", self.starts, life)
        self.ready = Ready()
        self.advance(recovered.commit)

    @property
    def store(self) -> str:
        return self.member.store

    @property
    def listed(self) -> bool:
        """Whether this store votes under the ruling list."""
        return self.store in self.voters

    @property
    def voters(self) -> tuple[str, ...]:
        """Stores of the ruling list; empty before the founding. Asked several times a message, so kept at hand."""
        if self.log.members is not self._voters_of:
            self._voters_of = self.log.members
            self._voters = self._voters_of.stores if self._voters_of else ()
        return self._voters

    @property
    def founding_nodes(self) -> tuple[str, ...]:
        """Whom it takes to found the cluster: every node of Corosync's list, or those that an operator named."""
        return self.founders if self.founders and {*self.founders} <= {*self.nodes} else self.nodes

    @property
    def held_part(self) -> float:
        """How much is taken of the memory for entries that somebody is about to fetch: at 1 the oldest go."""
        return (self.log.size - KEEP_BYTES) / (HOLD_BYTES - KEEP_BYTES)

    def peers(self) -> list[str]:
        """Every other node worth talking to: those that Corosync names and those that vote."""
        listed = {member.node for member in self.log.members.members} if self.log.members else set()
        return sorted((set(self.nodes) | listed) - {self.member.node})

    # --- Changes ---

    def promise_epoch(self, epoch: Epoch) -> None:
        """Refuse everything older than `epoch` from now on. The number rises: first come for a number."""
        assert epoch.number > self.promise.number, f"promise {epoch} after {self.promise}"
        self.promise = self._save.promise = epoch

    def append(self, entries: Iterable[Entry]) -> None:
        added = list(entries)
        self.log.append(added)
        self._save.entries += added

    def merge(self, prev: Position, entries: Sequence[Entry], matched: int) -> int | None:
        """Makes the log equal the sender's up to the last of `entries`, which follow `prev` there.

        Returns that index, or None when `prev` is not here (a gap). Cuts only at a conflicting entry in hand, in
        the transaction that appends its replacement (Raft 5.3), never at or below the commit index, nor what is
        `matched` already: a late answer to Fetch cannot cut that.
        """
        if prev.index > self.log.last.index or (prev.index > self.commit and not self.log.has(prev)):
            return None
        for offset, entry in enumerate(entries):
            if entry.index <= self.log.base.index:
                continue
            if entry.index <= self.log.last.index:
                if self.log.position(entry.index).epoch == entry.epoch:
                    continue
                assert entry.index > self.commit, f"entry {entry.index} conflicts below commit {self.commit}"
                if entry.index <= matched:
                    self.event(f"entry {entry.index} conflicts with what was matched up to {matched}: ignored")
                    return None
                self.log.truncate(entry.index)
                self._save.truncate(entry.index)
            self.append(entries[offset:])
            break
        return entries[-1].index if entries else prev.index

    def advance(self, commit: int) -> list[tuple[int, Result]]:
        """Raises the commit index and applies up to it; returns what each command, and each member list, answers."""
        assert commit <= self.log.last.index, f"commit {commit} behind the log's end {self.log.last.index}"
        results: list[tuple[int, Result]] = []
        for index in range(self.commit + 1, commit + 1):
            entry = self.log.entry(index)
            if entry.kind == Kind.COMMAND:
                results.append((index, self.state.apply(index, entry.data)))
            else:
                self.state.skip(index)
            if entry.kind == Kind.MEMBERS:
                results.append((index, Result(0, unpack_members(entry.data))))
            if index % MARK_ENTRIES == 0:
                self._mark(index)
        self.commit = max(self.commit, commit)
        assert self.state.applied == self.commit
        return results

    def _mark(self, index: int) -> None:
        self.marks[index] = self.state.hash
        if len(self.marks) > MARKS_KEPT:
            del self.marks[next(iter(self.marks))]

    @property
    def installing(self) -> bool:
        """Whether this turn's save takes what was put aside: until it is done nothing else can be put there."""
        return self._save.snapshot is not None

    def stage(self, piece: Piece) -> None:
        """Puts a piece of a snapshot aside. The first voids those of any other, so that two never mix."""
        assert not self.installing, "what is put aside next would be void with what is being taken"
        if piece.number == 0:
            self._save.staged.clear()
        else:
            assert self._staged == (piece.at, piece.number - 1), f"piece {piece.number} put aside behind {self._staged}"
        self._save.staged.append(piece)
        self._staged = piece.at, piece.number

    def install(self, snapshot: Snapshot, state: State) -> None:
        """Replaces the state by the one put aside, which is above the commit index, in one transaction."""
        at = snapshot.at
        assert at.index > self.commit, f"snapshot at {at.index} is not above commit {self.commit}"
        assert self._staged and self._staged[0] == at == Position(at.epoch, state.applied), "what was put aside is this"
        suffix = self.log.reset(at, snapshot.members)
        self._save.install(snapshot, list(suffix))
        self.state, self.commit, self._flushed_index, self._staged = state, at.index, at.index, None
        self.marks = {}  # were of the state that is gone

    def remember(self, store: str, starts: int, life: str) -> None:
        """A store's start count, so that an older copy of it is recognised. Late words of a former life do not
        count, and of two lives with one count the first one known is the store's own."""
        if starts > self.remembers.get(store, (0, ""))[0]:
            self._note(store, starts, life)

    def lived(self, starts: int, life: str) -> bool:
        """Whether the process of that start was this one, or one before it on this disk."""
        return self.remembers.get(f"{self.store} {starts}") == (starts, life)

    def _note(self, key: str, starts: int, life: str) -> None:
        self.remembers[key] = self._save.remembers[key] = (starts, life)

    # --- Effects ---

    def send(self, node: str, message: Message) -> None:
        self.ready.send.append((node, message))

    def event(self, text: str) -> None:
        self.ready.events.append(text)

    def take_ready(self, now_ms: int) -> Ready:
        """Everything wanted since the last call."""
        self._flush(now_ms)
        if self._staged and self._staged[0].index <= self.commit:
            self.stage(Piece(START, 0, [], []))  # overtaken by entries: nobody will want it
            self._staged = None
        ready, self.ready = self.ready, Ready()
        if self._save.needed:
            ready.save, self._save = self._save, Save()
            ready.save.commit = self.commit
        return ready

    def _flush(self, now_ms: int) -> None:
        """The state tables follow the log in strides; then old entries can go."""
        behind = self.state.applied - self._flushed_index
        if behind < FLUSH_ENTRIES and now_ms - self._flushed_ms < FLUSH_MS:
            return
        self._flushed_ms = now_ms
        if behind or self.sweep_due:
            self._flushed_index = self.state.applied
            self._save.changes = self.state.take_changes()
        self._compact(COMPACT_MOST_ENTRIES + behind)

    def _compact(self, most: int) -> None:
        """Forgets entries that nobody is likely to fetch, so few at a time that no turn takes long."""
        log = self.log
        keep_from = max(self._flushed_index - KEEP_ENTRIES, log.beyond(KEEP_BYTES, most))
        if self.hold is not None:
            keep_from = min(keep_from, max(self.hold, log.beyond(HOLD_BYTES, most)))
        keep_from = min(keep_from, self._flushed_index, log.base.index + most)
        if keep_from > log.base.index:
            log.compact(keep_from)
            members = log.members_at(keep_from)
            assert members is not None, "what was committed was founded"
            self._save.compact = (log.base, members)


def blank(member: Member) -> Recovered:
    """A store that was just created."""
    return Recovered(member, 1, NO_EPOCH, Log(), 0, State(), {})
