"""The log in memory: entries behind a compacted base, and the member lists among them.

Knows nothing of roles, promises or the disk. Invariant: entries are dense, indexes rise by one from
`base.index` + 1, epochs never fall; the last member list in the log rules, committed or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgpack

from .message import START, Entry, Kind, Member, MemberList, Position
from .packed import is_whole, unpacked

MEMBERS_MOST = 1_000  # what is read; Corosync names far fewer
ENTRY_BYTES = 160  # of memory that an entry takes beside its data


def pack_members(members: MemberList) -> bytes:
    """The data of an entry of kind MEMBERS."""
    packed: bytes = msgpack.packb([members.number, members.cluster, [list(m) for m in members.members]])
    return packed


def unpack_members(data: bytes) -> MemberList:
    """Raises ValueError when `data` is not a member list."""
    match unpacked(data, MEMBERS_MOST):
        case [number, str(cluster), [*members]] if is_whole(number):
            return MemberList(number, cluster, tuple(map(_member, members)))
    raise ValueError("not a member list")


def _member(value: Any) -> Member:
    match value:
        case [str(node), str(store)]:
            return Member(node, store)
    raise ValueError("not a member list: a member is [node, store]")


class Log:
    """Entries (base.index, last.index], newest member list included. Indexes start at 1."""

    def __init__(self, base: Position = START, members: MemberList | None = None, entries: Iterable[Entry] = ()):
        self.base = base
        self._entries: list[Entry] = []
        self.appended = self._dropped = 0  # bytes of memory, about
        # (index, list), ascending; index 0..base.index for the one that the compacted part ended with.
        self._lists: list[tuple[int, MemberList]] = [(base.index, members)] if members else []
        self.append(entries)

    @property
    def last(self) -> Position:
        if not self._entries:
            return self.base
        entry = self._entries[-1]
        return Position(entry.epoch, entry.index)

    @property
    def members(self) -> MemberList | None:
        """The list that rules; None before the founding."""
        return self._lists[-1][1] if self._lists else None

    @property
    def members_index(self) -> int:
        """Index of the entry that set the ruling list."""
        return self._lists[-1][0] if self._lists else 0

    @property
    def size(self) -> int:
        """Bytes of memory that the entries take, about."""
        return self.appended - self._dropped

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> Entry:
        assert self.base.index < index <= self.last.index, f"entry {index} is not in the log"
        return self._entries[index - self.base.index - 1]

    def position(self, index: int) -> Position:
        """Position of an entry that is here, or of the base."""
        return self.base if index == self.base.index else Position(self.entry(index).epoch, index)

    def members_at(self, index: int) -> MemberList | None:
        """The list that rules once entry `index` is the last one."""
        return next((members for at, members in reversed(self._lists) if at <= index), None)

    def has(self, position: Position) -> bool:
        """Log matching (Raft 5.3): an equal position means an equal prefix."""
        return self.base.index <= position.index <= self.last.index and self.position(position.index) == position

    def after(self, index: int, most_bytes: int) -> tuple[Entry, ...]:
        """Entries behind `index`, as many as fit in `most_bytes` of data, at least one if there is one."""
        start = index - self.base.index
        size = 0
        stop = start
        while stop < len(self._entries):
            size += len(self._entries[stop].data) + 16
            if size > most_bytes and stop > start:
                break
            stop += 1
        return tuple(self._entries[start:stop])

    def append(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            last = self.last
            assert entry.index == last.index + 1, f"entry {entry.index} behind {last.index}: a hole"
            assert entry.epoch >= last.epoch, f"entry {entry.index}: epoch {entry.epoch} behind {last.epoch}"
            self._entries.append(entry)
            self.appended += ENTRY_BYTES + len(entry.data)
            if entry.kind == Kind.MEMBERS:
                self._lists.append((entry.index, unpack_members(entry.data)))

    def truncate(self, index: int) -> None:
        """Drops entry `index` and all behind it; member lists among them are undone."""
        assert self.base.index < index, f"cannot cut at {index}: compacted up to {self.base.index}"
        self._drop(index - self.base.index - 1, len(self._entries))
        while self._lists and self._lists[-1][0] >= index:
            self._lists.pop()

    def compact(self, index: int) -> None:
        """Forgets entries up to `index`; the state holds their effect."""
        position, members = self.position(index), self.members_at(index)
        assert members is not None, "what is forgotten was committed, and so founded"
        self._drop(0, index - self.base.index)
        self.base = position
        self._lists = [(index, members), *((at, later) for at, later in self._lists if at > index)]

    def _drop(self, start: int, stop: int) -> None:
        self._dropped += sum(ENTRY_BYTES + len(entry.data) for entry in self._entries[start:stop])
        del self._entries[start:stop]

    def beyond(self, most_bytes: int, most_entries: int) -> int:
        """Up to which index entries are to go so that the others take at most `most_bytes`; so many at most."""
        index, size = self.base.index, self.size
        for entry in islice(self._entries, most_entries):
            if size <= most_bytes:
                break
            index, size = entry.index, size - ENTRY_BYTES - len(entry.data)
        return index

    def reset(self, base: Position, members: MemberList) -> Sequence[Entry]:
        """Starts again behind a snapshot at `base`; keeps and returns a suffix that continues it."""
        suffix: list[Entry] = []
        if self.has(base):
            suffix = self._entries[base.index - self.base.index :]
        self.__init__(base, members, suffix)  # type: ignore[misc]  # the constructor is the definition of empty
        return suffix
