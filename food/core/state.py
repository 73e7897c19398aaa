"""The replicated state: what a committed command does, and what a reader sees.

Deterministic: the same commands in the same order give the same state on every node, so nothing here knows of
roles, epochs, time or chance. One interface: `check` before a command enters the log, `apply` once it is
committed, `get` and `find` for readers, `view` and `restore` for snapshots, `take_changes` for the store.

A command is msgpack [session, seq, done, op, args…] (README, "Clients").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import msgpack
from sortedcontainers import SortedList

from .packed import is_whole, unpacked

KEY_MOST_BYTES = 1024
VALUE_MOST_BYTES = 1024 * 1024
SESSIONS_MOST = 10_000
SESSION_RESULTS_MOST = 256
RANGE_MOST = 10_000
COMMAND_PARTS_MOST = 16
RANGE_MOST_BYTES = 1024 * 1024


class Result(NamedTuple):
    """What a command or a query answers: status 0 and a value, or a code and a map with a text."""

    status: int | str
    value: Any


class Row(bytes):
    """What a key has: its hash (8 bytes), revision (8 bytes, big-endian) and value, as one object. Among a million keys
    a write costs as much as it touches memory.

    The hash, the key's share of the state's, is compared between members, so it is part of the protocol: another sum
    needs another version of the wire.
    """

    __slots__ = ()

    @classmethod
    def of(cls, key: bytes, value: bytes, revision: int) -> Row:
        digest = blake2b(b"%d %d " % (len(key), revision), digest_size=8)
        digest.update(key)
        digest.update(value)
        return cls(digest.digest() + revision.to_bytes(8, "big") + value)

    @property
    def hash(self) -> int:
        return int.from_bytes(self[:8], "big")

    @property
    def revision(self) -> int:
        return int.from_bytes(self[8:16], "big")

    @property
    def value(self) -> bytes:
        return self[16:]

    @property
    def size(self) -> int:
        """The value's bytes, without a copy of it."""
        return len(self) - 16


class BadCommand(ValueError):
    """A command that must not enter the log; `code` is the answer's status."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Session:
    """Exactly-once table of one client: `seq` is the last one applied, `used` the index that used it last."""

    seq: int = 0
    used: int = 0
    results: dict[int, Result] = field(default_factory=dict)

    def pack(self) -> bytes:
        rows = [[seq, result.status, result.value] for seq, result in self.results.items()]
        packed: bytes = msgpack.packb([self.seq, self.used, rows])
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Session:
        """Raises ValueError."""
        match unpacked(data, SESSION_RESULTS_MOST):
            case [seq, used, [*rows]] if is_whole(seq) and is_whole(used):
                return cls(seq, used, dict(map(_result, rows)))
        raise ValueError("not a session")


def _result(row: Any) -> tuple[int, Result]:
    """One of a session's: what `State.apply` gives."""
    match row:
        case [number, 0, None | int() as value] if is_whole(number):
            return number, Result(0, value)
        case [number, str(status), {"text": str()} as fields] if is_whole(number) and _is_flat(fields):
            return number, Result(status, fields)
    raise ValueError("not a session: a result is [seq, status, value]")


def _is_flat(fields: dict[Any, Any]) -> bool:
    return all(type(name) is str and type(value) in (str, int) for name, value in fields.items())


class Changes(NamedTuple):
    """What changed since the last `take_changes`, for the store's tables; None is a deletion.

    `live` are all rows at `applied`, `live_bytes` in keys and values: to be looked at while these are saved, not later.
    """

    applied: int
    revision: int
    hash: int
    rows: dict[bytes, Row | None]
    sessions: dict[int, bytes | None]
    live: Mapping[bytes, Row]
    live_bytes: int


class Draft:
    """A state being put together, a few rows at a time, best in the order of keys: no step takes long."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.sessions: dict[int, bytes] = {}
        self.added = self.bytes = 0
        self.hash = 0

    def add(self, key: bytes, value: bytes, revision: int) -> None:
        row = self.rows[key] = Row.of(key, value, revision)
        self.hash ^= row.hash
        self.bytes += len(key) + len(value)
        self.added += 1


VIEW_STRIDE_KEYS = 1_000


class View:
    """The state as it was at one index, read out in the order of keys while writes go on.

    Copy on write: a row that changes before it was read out is put aside first. So a view costs the rows that change
    ahead of it, and opening it costs the sessions; keys are listed a stride at a time.
    """

    def __init__(self, state: State):
        self.revision, self.hash = state.revision, state.hash
        self.size = len(state.sessions), len(state.rows)  # how many sessions and keys `items` gives
        self._state = state
        self._sessions = {number: session.pack() for number, session in state.sessions.items()}
        self._keys, self._rows = state.keys, state.rows
        self._read = b""  # keys up to this one were read out; no key is empty
        self._kept: dict[bytes, Row | None] = {}  # None: was not there
        self._were = SortedList()  # keys in `_kept` that were there: they may have left `_keys`

    def close(self) -> None:
        """Nobody reads on: no row needs to be put aside any more."""
        if self._state.view is self:
            self._state.view = None

    def keep(self, key: bytes) -> None:
        """`key` is about to change."""
        if key > self._read and key not in self._kept:
            row = self._kept[key] = self._rows.get(key)
            if row:
                self._were.add(key)

    def items(self) -> Iterator[tuple[int, bytes] | tuple[bytes, bytes, int]]:
        """(id, packed) of each session, then (key, value, revision) of each key."""
        yield from self._sessions.items()
        while stride := self._stride():
            for key in stride:
                self._read = key
                row = self._kept.pop(key) if key in self._kept else self._rows[key]
                if row:
                    yield key, row.value, row.revision

    def _stride(self) -> list[bytes]:
        """The next keys that are there or were."""
        ahead = (False, True)
        keys = list(islice(self._keys.irange(self._read, inclusive=ahead), VIEW_STRIDE_KEYS))
        to = keys[-1] if len(keys) == VIEW_STRIDE_KEYS else None
        return sorted({*keys, *self._were.irange(self._read, to, inclusive=ahead)})


# op: (types of its arguments), beside the three numbers in front.
_OPS: dict[str, list[type]] = {
    "open": [],
    "close": [int],
    "put": [bytes, bytes],
    "del": [bytes],
    "cas": [bytes, int, bytes],
}


def decode(command: bytes) -> tuple[int, int, int, str, list[Any]]:
    """Splits a command into session, seq, done, op, args. Raises BadCommand, saying what is wrong."""
    try:
        parts = unpacked(command, COMMAND_PARTS_MOST)
    except ValueError as error:
        raise BadCommand("bad_request", f"the command is not msgpack: {error}") from None
    match parts:
        case [int(session), int(seq), int(done), str(op), *args] if op in _OPS:
            pass
        case _:
            ops = ", ".join(_OPS)
            raise BadCommand("bad_request", f"a command is [session, seq, done, op, args…], op one of {ops}")
    types = _OPS[op]
    if list(map(type, args)) != types:
        raise BadCommand("bad_request", f"{op} takes {', '.join(t.__name__ for t in types) or 'no arguments'}")
    return session, seq, done, op, args


def needs_room(command: bytes) -> bool:
    """Whether a command that was checked may make the state larger; the rest goes on while the disk is short."""
    return decode(command)[3] not in ("open", "close", "del")


class State:
    """Invariants: `revision` rises by one for each command that changes a key, and only then; `keys` is `rows`
    sorted; `bytes` are all keys' and values'; `hash` is the exclusive-or over all rows, so it does not depend on the
    order of writing."""

    def __init__(self) -> None:
        self.applied = 0
        self.revision = 0
        self.hash = 0
        self.rows: dict[bytes, Row] = {}
        self.bytes = 0
        self.keys = SortedList()
        self.sessions: dict[int, Session] = {}  # least recently used first
        self.view: View | None = None  # at most one snapshot is read out at a time
        self._changed_rows: dict[bytes, Row | None] = {}
        self._changed_sessions: set[int] = set()

    # --- Commands ---

    def check(self, command: bytes) -> None:
        """Raises BadCommand when the command must not enter the log. Says nothing about its outcome."""
        session, seq, done, op, args = decode(command)
        if op in ("put", "del", "cas"):
            if not 1 <= len(args[0]) <= KEY_MOST_BYTES:
                raise BadCommand(
                    "too_large" if args[0] else "bad_request",
                    f"key of {len(args[0])} bytes: a key has 1 to {KEY_MOST_BYTES}",
                )
            if op != "del" and len(args[-1]) > VALUE_MOST_BYTES:
                raise BadCommand(
                    "too_large", f"value of {len(args[-1])} bytes: a value has at most {VALUE_MOST_BYTES}; split it"
                )
        if session and not (0 <= done < seq):
            raise BadCommand("bad_request", f"seq {seq} with done {done}: seq counts from 1, done stays below it")

    def apply(self, index: int, command: bytes) -> Result:
        """Applies the committed command of entry `index`; what it answers is the same on every node."""
        assert index > self.applied, f"entry {index} applied twice, or out of order behind {self.applied}"
        self.applied = index
        number, seq, done, op, args = decode(command)
        if number == 0:
            return self._execute(index, op, args)
        session = self.sessions.pop(number, None)
        if session is None:
            return Result("session", {"text": f"session {number} is not known or was evicted: outcome unknown"})
        self.sessions[number] = session  # most recently used goes last
        session.used = index
        self._changed_sessions.add(number)
        for old in [old for old in session.results if old <= done]:
            del session.results[old]
        if seq <= session.seq:
            text = f"the result of seq {seq} is no longer kept: outcome unknown"
            return session.results.get(seq) or Result("unknown", {"text": text})
        if seq != session.seq + 1:
            return Result("order", {"text": f"seq {seq} behind {session.seq}: send those between first"})
        session.seq = seq
        result = session.results[seq] = self._execute(index, op, args)
        if len(session.results) > SESSION_RESULTS_MOST:
            del session.results[min(session.results)]
        return result

    def skip(self, index: int) -> None:
        """Entry `index` is committed and changes nothing here (barrier, member list)."""
        assert index > self.applied
        self.applied = index

    def _execute(self, index: int, op: str, args: list[Any]) -> Result:
        if op == "put":
            return Result(0, self._write(args[0], args[1]))
        if op == "del":
            return Result(0, self._write(args[0], None) if args[0] in self.rows else 0)
        if op == "cas":
            key, expected, value = args
            row = self.rows.get(key)
            found = row.revision if row else 0
            if found != expected:
                text = f"the key is at revision {found}, not {expected}"
                return Result("compare", {"text": text, "revision": found})
            return Result(0, self._write(key, value))
        if op == "open":
            if len(self.sessions) >= SESSIONS_MOST:
                self._drop_session(next(iter(self.sessions)))
            self.sessions[index] = Session(used=index)
            self._changed_sessions.add(index)
            return Result(0, index)
        assert op == "close", op
        self._drop_session(args[0])
        return Result(0, None)

    def _drop_session(self, number: int) -> None:
        if self.sessions.pop(number, None):
            self._changed_sessions.add(number)

    def _write(self, key: bytes, value: bytes | None) -> int:
        """Sets or deletes a key; returns the new revision."""
        if self.view:
            self.view.keep(key)
        self.revision += 1
        old = self.rows.get(key)
        if old:
            self.hash ^= old.hash
            self.bytes -= len(key) + old.size
        row = None
        if value is None:
            del self.rows[key]
            self.keys.remove(key)
        else:
            row = self.rows[key] = Row.of(key, value, self.revision)
            self.hash ^= row.hash
            self.bytes += len(key) + len(value)
            if not old:
                self.keys.add(key)
        self._changed_rows[key] = row
        return self.revision

    # --- Readers ---

    def query(self, op: object, args: list[Any]) -> Result:
        """Answers "get" [key] with [value, revision] or None, and "range" [prefix, limit] with a list of
        [key, value, revision], cut at RANGE_MOST rows and RANGE_MOST_BYTES."""
        match op, args:
            case "get", [bytes(key)]:
                row = self.rows.get(key)
                return Result(0, [row.value, row.revision] if row else None)
            case "range", [bytes(prefix), int(limit)]:
                return Result(0, self._range(prefix, min(limit, RANGE_MOST)))
        return Result("bad_request", {"text": "a query is get [key] or range [prefix, limit]"})

    def _range(self, prefix: bytes, limit: int) -> list[list[Any]]:
        found: list[list[Any]] = []
        size = 0
        for key in self.keys.irange(prefix):
            if len(found) >= limit or size > RANGE_MOST_BYTES or not key.startswith(prefix):
                break
            row = self.rows[key]
            found.append([key, row.value, row.revision])
            size += len(key) + row.size
        return found

    # --- Snapshots and the store ---

    def open_view(self) -> View:
        """Starts reading the state out; replaces a view that is still open."""
        self.view = View(self)
        return self.view

    def restore(self, applied: int, revision: int, state_hash: int, draft: Draft) -> None:
        """Replaces everything; the draft is used up. Raises ValueError when the hash does not fit the rows."""
        if draft.hash != state_hash:
            raise ValueError(f"state hash {draft.hash:016x} of {draft.added} rows, expected {state_hash:016x}")
        if draft.added != len(draft.rows):
            raise ValueError(f"{len(draft.rows)} keys of {draft.added} rows")
        self.applied, self.revision, self.hash = applied, revision, state_hash
        self.rows, self.bytes, self.view = draft.rows, draft.bytes, None
        self.keys = SortedList(draft.rows)  # quick when the rows are in order
        unpacked = ((number, Session.unpack(data)) for number, data in draft.sessions.items())
        self.sessions = dict(sorted(unpacked, key=lambda item: (item[1].used, item[0])))
        self._changed_rows.clear()
        self._changed_sessions.clear()

    def take_changes(self) -> Changes:
        """What the store's tables lack; the caller saves it in one transaction or dies."""
        rows = self._changed_rows
        sessions = {n: s.pack() if (s := self.sessions.get(n)) else None for n in self._changed_sessions}
        self._changed_rows, self._changed_sessions = {}, set()
        return Changes(self.applied, self.revision, self.hash, rows, sessions, self.rows, self.bytes)
