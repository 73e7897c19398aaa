"""What the state must be: a second, naive fold of the log, written from README and sharing no code with food.

Used as the measure for every node's state, for every answer to a write and for every read.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack


class Version(NamedTuple):
    """What a key was from ledger entry `index` on; None: absent."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    value: bytes | None
    revision: int


ABSENT = Version(0, None, 0)


class Session:
    def __init__(self, index: int) -> None:
        self.seq = 0
        self.used = index
        self.results: dict[int, tuple[Any, Any]] = {}


class Model:
    """The fold of all committed entries so far, with the history of every key."""

    def __init__(self, sessions_most: int = 10_000, results_most: int = 256) -> None:
        self._sessions_most, self._results_most = sessions_most, results_most
        self.index = 0
        self.revision = 0
        self.rows: dict[bytes, tuple[bytes, int]] = {}
        self.sessions: dict[int, Session] = {}
        self.history: dict[bytes, list[Version]] = {}
        self.executed: dict[tuple[int, int], tuple[Any, Any]] = {}  # (session, seq): status and value, once and for all
        self.prints: list[bytes] = [self._print()]  # by index

    def skip(self) -> None:
        self.index += 1
        self.prints.append(self.prints[-1])

    def apply(self, command: bytes) -> None:
        self.index += 1
        number, seq, done, op, *args = msgpack.unpackb(command)
        if number == 0:
            self._execute(op, args)
        elif session := self.sessions.get(number):
            session.used = self.index
            session.results = {old: result for old, result in session.results.items() if old > done}
            if seq == session.seq + 1:
                session.seq = seq
                assert (number, seq) not in self.executed
                session.results[seq] = self.executed[number, seq] = self._execute(op, args)
                if len(session.results) > self._results_most:
                    del session.results[min(session.results)]
        self.prints.append(self._print())

    def _execute(self, op: str, args: list[Any]) -> tuple[Any, Any]:
        if op == "open":
            if len(self.sessions) == self._sessions_most:
                del self.sessions[min(self.sessions, key=lambda number: self.sessions[number].used)]
            self.sessions[self.index] = Session(self.index)
            return 0, self.index
        if op == "close":
            self.sessions.pop(args[0], None)
            return 0, None
        key = args[0]
        old = self.rows.get(key)
        if op == "cas" and (old[1] if old else 0) != args[1]:
            return "compare", None
        if op == "del" and not old:
            return 0, 0
        self.revision += 1
        if op == "del":
            del self.rows[key]
            version = Version(self.index, None, self.revision)
        else:
            self.rows[key] = (args[-1], self.revision)
            version = Version(self.index, args[-1], self.revision)
        self.history.setdefault(key, []).append(version)
        return 0, self.revision

    def range_at(self, prefix: bytes, index: int) -> list[list[Any]]:
        """The keys that begin so, as they were when entry `index` was the last one."""
        found: list[list[Any]] = []
        for key in sorted(self.history):
            if key.startswith(prefix):
                version = next((v for v in reversed(self.history[key]) if v.index <= index), ABSENT)
                if version.value is not None:
                    found.append([key, version.value, version.revision])
        return found

    def _print(self) -> bytes:
        return fingerprint(
            self.revision,
            [[key, *self.rows[key]] for key in sorted(self.rows)],
            [
                [number, s.seq, s.used, [[q, r, v if r == 0 else None] for q, (r, v) in s.results.items()]]
                for number, s in sorted(self.sessions.items())
            ],
        )


def fingerprint(revision: int, rows: list[list[Any]], sessions: list[list[Any]]) -> bytes:
    return blake2b(msgpack.packb([revision, rows, sessions]), digest_size=16).digest()
