"""Snapshots in pieces: read out at a donor, put together at a receiver.

Piece 0 is the header (member list, revision, state hash, how many sessions and keys); the others carry items in
the order of View.items. A snapshot is named by the position it ends at and its donor; pieces of two never mix.
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from .entries import pack_members, unpack_members
from .message import Chunk, Epoch, MemberList, Position
from .packed import is_whole, unpacked, unpacked_all
from .state import Draft, State, View

CHUNK_MOST_BYTES = 256 * 1024
ITEM_PARTS_MOST = 8
ITEM_BYTES = 100  # what an item costs beside its bytes, in the time of so many


class Snapshot(NamedTuple):
    """What a whole state is beside its items, and how many of those: the pieces before it made them up."""

    at: Position
    members: MemberList
    revision: int
    hash: int
    sessions: int
    keys: int


class Piece(NamedTuple):
    """Items of the snapshot that ends at `at`, put aside until it is whole. Number 0 has none and voids all others."""

    at: Position
    number: int
    sessions: list[tuple[int, bytes]]
    rows: list[tuple[bytes, bytes, int]]


class Source:
    """A snapshot being read out for one receiver at a time; remembers the last piece, for a lost answer."""

    def __init__(self, at: Position, members: MemberList, view: View):
        self.at = at
        self._items = view.items()
        self._packer = msgpack.Packer(autoreset=False)
        self._view = view
        header = [pack_members(members), view.revision, view.hash, *view.size]
        self._number, self._data, self._final = 0, msgpack.packb(header), False
        self.cost = 0  # of the piece last given, in bytes
        self.given_keys, self.keys = 0, view.size[1]

    def chunk(self, epoch: Epoch, number: int) -> Chunk | None:
        """Piece `number`; None when it is neither the last one given nor the next."""
        if number == self._number + 1 and not self._final:
            self._number, (self._data, self._final) = number, self._next()
        if number != self._number:
            return None
        return Chunk(epoch, self.at, number, self._final, self._data)

    def _next(self) -> tuple[bytes, bool]:
        """At least one item, unless none is left: a piece is final when nothing follows, so the last may be empty."""
        size, final = 0, True
        for item in self._items:
            self._packer.pack(item)
            self.given_keys += type(item[0]) is bytes
            size += ITEM_BYTES + sum(len(field) for field in item if type(field) is bytes)
            if size >= CHUNK_MOST_BYTES:
                final = False
                break
        if final:
            self.close()
        data = self._packer.bytes()
        self._packer.reset()
        self.cost = size
        return data, final

    @property
    def ended(self) -> bool:
        """Whether the final piece was given."""
        return self._final

    def close(self) -> None:
        """Nothing more is read out: rows that change need not be kept any more."""
        self._view.close()


class Assembly:
    """A snapshot being received from `donor`, to be put aside a piece at a time and to become a state at the end.

    Raises ValueError when a piece is not what it should be.
    """

    def __init__(self, donor: str, at: Position, header: bytes):
        self.donor, self.at = donor, at
        self.next = 1
        match unpacked(header, ITEM_PARTS_MOST):
            case [bytes(members), revision, int(state_hash), sessions, keys] if all(
                map(is_whole, (revision, sessions, keys))
            ):
                self.snapshot = Snapshot(at, unpack_members(members), revision, state_hash, sessions, keys)
            case _:
                raise ValueError("not a header of a snapshot")
        self._draft = Draft()
        self._last = b""

    @property
    def received_keys(self) -> int:
        return self._draft.added

    def begin(self) -> Piece:
        """What voids all that was put aside before."""
        return Piece(self.at, 0, [], [])

    def add(self, chunk: Chunk) -> Piece:
        """Takes the next piece; returns what is to be put aside."""
        assert chunk.number == self.next and chunk.at == self.at, "pieces of different snapshots never mix"
        self.next += 1
        piece = Piece(self.at, chunk.number, [], [])
        for item in unpacked_all(chunk.data, ITEM_PARTS_MOST):
            match item:
                case [bytes(key), bytes(value), revision] if key > self._last and is_whole(revision):
                    self._last = key
                    self._draft.add(key, value, revision)
                    piece.rows.append((key, value, revision))
                case [number, bytes(packed)] if is_whole(number) and number not in self._draft.sessions:
                    self._draft.sessions[number] = packed
                    piece.sessions.append((number, packed))
                case _:
                    raise ValueError("not the next item of a snapshot")
        return piece

    def finish(self) -> State:
        """The state, once the final piece was added."""
        draft, snapshot = self._draft, self.snapshot
        if (len(draft.sessions), draft.added) != (snapshot.sessions, snapshot.keys):
            raise ValueError(
                f"{len(draft.sessions)} sessions and {draft.added} keys,"
                f" announced: {snapshot.sessions} and {snapshot.keys}"
            )
        state = State()
        state.restore(self.at.index, snapshot.revision, snapshot.hash, draft)
        return state
