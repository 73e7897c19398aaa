"""A store that keeps what was saved and nothing else: the order of Save's fields, and how a start reads it back.

A second implementation of what food/storage.py promises, over plain lists.
"""

from __future__ import annotations

from food.core.entries import Log, unpack_members
from food.core.local import Recovered
from food.core.message import NO_EPOCH, START, Entry, Epoch, Kind, Member, MemberList, Position
from food.core.ready import Save
from food.core.snapshot import Piece
from food.core.state import Draft, Row, State


class Disk:
    def __init__(self, member: Member) -> None:
        self.member = member
        self.starts = 0
        self.damaged = False  # torn or flipped where no crash tears: food/storage.py and food/wal.py refuse it
        self.promise: Epoch = NO_EPOCH
        self.base: Position = START
        self.base_members: MemberList | None = None
        self.entries: list[Entry] = []
        self.commit = 0
        self.remembers: dict[str, tuple[int, str]] = {}
        self.applied, self.revision, self.hash = 0, 0, 0
        self.rows: dict[bytes, Row] = {}
        self.sessions: dict[int, bytes] = {}
        self.staged: list[Piece] = []  # of a snapshot that is not whole

    @property
    def members(self) -> MemberList | None:
        """The list that rules in the saved log."""
        found = [entry for entry in self.entries if entry.kind == Kind.MEMBERS]
        return unpack_members(found[-1].data) if found else self.base_members

    def copy(self) -> Disk:
        """An image of it, for a rollback later."""
        found = Disk(self.member)
        for name, value in vars(self).items():
            setattr(found, name, value.copy() if isinstance(value, list | dict) else value)
        return found

    @property
    def last(self) -> Position:
        return Position(self.entries[-1].epoch, self.entries[-1].index) if self.entries else self.base

    def entry(self, index: int) -> Entry | None:
        offset = index - self.base.index - 1
        return self.entries[offset] if 0 <= offset < len(self.entries) else None

    def position(self, index: int) -> Position | None:
        if index == self.base.index:
            return self.base
        entry = self.entry(index)
        return Position(entry.epoch, index) if entry else None

    def staged_after(self, save: Save) -> list[Piece]:
        """What is put aside once this is saved."""
        staged = self.staged
        for piece in save.staged:
            staged = [*staged, piece] if piece.number else [piece]
        return staged

    def save(self, save: Save) -> None:
        """One transaction, in the order of the fields."""
        self.staged = self.staged_after(save)
        if save.snapshot:
            snapshot = save.snapshot
            self.base, self.base_members, self.entries = snapshot.at, snapshot.members, []
            self.applied, self.revision, self.hash = snapshot.at.index, snapshot.revision, snapshot.hash
            draft = drafted(self.staged)
            self.rows, self.sessions, self.staged = draft.rows, draft.sessions, []
            self.commit = max(self.commit, snapshot.at.index)
        if save.truncate_from is not None:
            assert save.truncate_from > self.base.index
            del self.entries[save.truncate_from - self.base.index - 1 :]
        for entry in save.entries:
            assert entry.index == self.last.index + 1, f"the store would have a hole before entry {entry.index}"
            self.entries.append(entry)
        if save.promise:
            self.promise = save.promise
        self.remembers.update(save.remembers)
        if save.changes:
            changes = save.changes
            self.applied, self.revision, self.hash = changes.applied, changes.revision, changes.hash
            for key, row in changes.rows.items():
                if row is None:
                    self.rows.pop(key, None)
                else:
                    self.rows[key] = row
            for number, packed in changes.sessions.items():
                if packed is None:
                    self.sessions.pop(number, None)
                else:
                    self.sessions[number] = packed
        if save.compact:
            self._compact(*save.compact)
        self.commit = save.commit

    def _compact(self, position: Position, members: MemberList) -> None:
        assert position.index <= self.applied, "compacting what the tables do not hold"
        assert self.position(position.index) == position, "a compaction names an entry that is here"
        ruling = self.base_members
        for entry in self.entries[: position.index - self.base.index]:
            if entry.kind == Kind.MEMBERS:
                ruling = unpack_members(entry.data)
        assert members == ruling, "a compaction names the list that ruled there"
        del self.entries[: position.index - self.base.index]
        self.base, self.base_members = position, members

    def recover(self) -> Recovered:
        """What the next process starts from; the start is counted, durably."""
        self.starts += 1
        self.staged = []
        state, draft = State(), Draft()
        for key, row in self.rows.items():
            draft.add(key, row.value, row.revision)
        draft.sessions = {number: self.sessions[number] for number in sorted(self.sessions)}
        state.restore(self.applied, self.revision, self.hash, draft)
        log = Log(self.base, self.base_members, self.entries)
        return Recovered(self.member, self.starts, self.promise, log, self.commit, state, dict(self.remembers))


def drafted(pieces: list[Piece]) -> Draft:
    draft = Draft()
    for piece in pieces:
        draft.sessions.update(piece.sessions)
        for row in piece.rows:
            draft.add(*row)
    return draft
