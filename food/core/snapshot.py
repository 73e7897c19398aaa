"""Snapshots in pieces: read out at a donor, put together at a receiver.

Piece 0 is the header (member list, revision, state hash, how many sessions and keys); the others carry items in
the order of View.items. A snapshot is named by the position it ends at and its donor; pieces of two never mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from .entries import pack_members, unpack_members
from .message import Chunk, Epoch, MemberList, Position
from .state import Row, View

CHUNK_MOST_BYTES = 256 * 1024


class Snapshot(NamedTuple):
    """A whole state, ready to be installed in one transaction."""

    at: Position
    members: MemberList
    revision: int
    hash: int
    rows: dict[bytes, Row]
    sessions: dict[int, bytes]


class Source:
    """A snapshot being read out for one receiver at a time; remembers the last piece, for a lost answer."""

    def __init__(self, at: Position, members: MemberList, view: View):
        self.at = at
        self._items: Iterator[list[Any]] = view.items()
        self._view = view
        header = [pack_members(members), view.revision, view.hash, *view.size]
        self._number, self._data, self._final = 0, msgpack.packb(header), False

    def chunk(self, epoch: Epoch, number: int) -> Chunk | None:
        """Piece `number`; None when it is neither the last one given nor the next."""
        if number == self._number + 1 and not self._final:
            self._number, (self._data, self._final) = number, self._next()
        if number != self._number:
            return None
        return Chunk(epoch, self.at, number, self._final, self._data)

    def _next(self) -> tuple[bytes, bool]:
        items: list[bytes] = []
        size = 0
        for item in self._items:
            items.append(msgpack.packb(item))
            size += len(items[-1])
            if size >= CHUNK_MOST_BYTES:
                return b"".join(items), False
        self.close()
        return b"".join(items), True

    @property
    def ended(self) -> bool:
        """Whether the final piece was given."""
        return self._final

    def close(self) -> None:
        """Nothing more is read out: rows that change need not be kept any more."""
        self._view.close()


class Assembly:
    """A snapshot being received from `donor`. `add` raises ValueError when a piece is not what it should be."""

    def __init__(self, donor: str, at: Position, header: bytes):
        self.donor, self.at = donor, at
        self.next = 1
        packed, self._revision, self._hash, *self._size = msgpack.unpackb(header)
        self._members = unpack_members(packed)
        self._rows: dict[bytes, Row] = {}
        self._sessions: dict[int, bytes] = {}

    def add(self, chunk: Chunk) -> Snapshot | None:
        """Takes the next piece; returns the snapshot with the final one."""
        assert chunk.number == self.next and chunk.at == self.at, "pieces of different snapshots never mix"
        self.next += 1
        unpacker = msgpack.Unpacker(max_buffer_size=len(chunk.data) + 1)
        unpacker.feed(chunk.data)
        for item in unpacker:
            match item:
                case [int(number), bytes(packed)]:
                    self._sessions[number] = packed
                case [bytes(key), bytes(value), int(revision)]:
                    self._rows[key] = Row(value, revision)
                case other:
                    raise ValueError(f"not an item of a snapshot: {other!r:.100}")
        if not chunk.final:
            return None
        if [len(self._sessions), len(self._rows)] != self._size:
            raise ValueError(f"{len(self._sessions)} sessions and {len(self._rows)} keys, announced: {self._size}")
        return Snapshot(self.at, self._members, self._revision, self._hash, self._rows, self._sessions)
