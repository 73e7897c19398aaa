"""The node's store: SQLite, one transaction a turn, durable on return (WAL, synchronous=FULL).

The log is the durable truth, a row a batch, each with a checksum; the state tables trail it and are replayed at
start. Only this file knows SQL. Any failure to save is fatal to the process: what was published may not be here.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import uuid
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack

from .core.entries import Log, pack_members, unpack_members
from .core.local import Recovered
from .core.message import NO_EPOCH, START, Entry, Epoch, Member, Position
from .core.ready import Save
from .core.state import Row, State
from .wire import pack_runs, unpack_runs

FORMAT = 1
BATCH_MOST_ENTRIES = 1_000

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE log (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, data BLOB NOT NULL, sum BLOB NOT NULL);
CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE remembers (store TEXT PRIMARY KEY, starts INTEGER NOT NULL, life TEXT NOT NULL) WITHOUT ROWID;
"""


class StoreBroken(Exception):
    """The disk failed; the text names the file and what happened."""


class StoreCorrupt(StoreBroken):
    """What is on the disk cannot be trusted: this node must not vote with it."""


class Store:
    """One open store; `recovered` is what it held. Exclusive: a second process cannot open it."""

    def __init__(self, directory: Path, node: str):
        self.path = directory / "food.db"
        try:
            # Before SQLite opens it: SQLite would silently drop everything behind a bad frame.
            check_wal(self.path.with_name("food.db-wal"))
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5, check_same_thread=False)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-16384")
            self.recovered = self._open(node)
        except sqlite3.OperationalError as error:
            raise StoreBroken(f"{self.path}: {error}") from error
        except OSError as error:
            raise StoreBroken(f"{error.filename or self.path}: {error.strerror}") from error
        except (sqlite3.DatabaseError, ValueError, TypeError, AssertionError, msgpack.UnpackException) as error:
            self._db.close()
            raise StoreCorrupt(f"{self.path} holds what food did not write: {error}") from error

    # --- Opening ---

    def _open(self, node: str) -> Recovered:
        db = self._db
        db.execute("BEGIN EXCLUSIVE")
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in SCHEMA.strip().split("\n"):
                db.execute(statement)
            self._put("format", FORMAT)
            self._put("store", uuid.uuid4().hex)
            _sync_directory(self.path.parent)
        if (found := self._get("format", None)) != FORMAT:
            raise ValueError(f"format {found}, this version of food reads {FORMAT}")
        starts = self._get("starts", 0) + 1
        self._put("starts", starts)
        recovered = self._recover(Member(node, self._get("store", "")), starts)
        db.execute("COMMIT")
        return recovered

    def _recover(self, member: Member, starts: int) -> Recovered:
        base_fields, base_members = self._get("base", [START, None])
        base = Position(Epoch(*base_fields[0]), base_fields[1])
        log = Log(base, unpack_members(base_members) if base_members else None)
        for first, last, data, stored_sum in self._db.execute("SELECT first, last, data, sum FROM log ORDER BY first"):
            if _sum(first, data) != stored_sum:
                raise ValueError(f"the checksum of log entries {first} to {last} does not fit")
            entries = unpack_runs(first - 1, msgpack.unpackb(data))
            log.append(entry for entry in entries if entry.index > base.index)
        state = State()
        applied, revision, state_hash = self._get("state", [0, 0, "0"])
        rows = {key: Row(value, at) for key, value, at in self._db.execute("SELECT key, value, revision FROM state")}
        sessions = dict(self._db.execute("SELECT id, data FROM sessions").fetchall())
        state.restore(applied, revision, int(state_hash, 16), rows, sessions)
        promise = Epoch(*self._get("promise", NO_EPOCH))
        remembers = {s: (n, life) for s, n, life in self._db.execute("SELECT store, starts, life FROM remembers")}
        return Recovered(member, starts, promise, log, self._get("commit", 0), state, remembers)

    # --- Saving ---

    def save(self, save: Save) -> None:
        """One transaction, durable on return. Raises StoreBroken; the caller must not go on."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._write(save)
            self._db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise StoreBroken(f"{self.path}: saving failed: {error}") from error

    def _write(self, save: Save) -> None:
        db = self._db
        if snapshot := save.snapshot:
            for table in ("log", "state", "sessions"):
                db.execute(f"DELETE FROM {table}")
            rows = ((key, row.value, row.revision) for key, row in snapshot.rows.items())
            db.executemany("INSERT INTO state VALUES (?, ?, ?)", rows)
            db.executemany("INSERT INTO sessions VALUES (?, ?)", snapshot.sessions.items())
            self._put("state", [snapshot.at.index, snapshot.revision, f"{snapshot.hash:x}"])
            self._put("base", [snapshot.at, pack_members(snapshot.members)])
        if save.truncate_from is not None:
            self._truncate(save.truncate_from)
        for start in range(0, len(save.entries), BATCH_MOST_ENTRIES):
            self._append(save.entries[start : start + BATCH_MOST_ENTRIES])
        if save.promise:
            self._put("promise", save.promise)
        for store, (starts, life) in save.remembers.items():
            db.execute("INSERT OR REPLACE INTO remembers VALUES (?, ?, ?)", (store, starts, life))
        if changes := save.changes:
            gone = [(key,) for key, row in changes.rows.items() if row is None]
            kept = [(key, row.value, row.revision) for key, row in changes.rows.items() if row]
            db.executemany("DELETE FROM state WHERE key = ?", gone)
            db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", kept)
            db.executemany(
                "DELETE FROM sessions WHERE id = ?", [(n,) for n, d in changes.sessions.items() if d is None]
            )
            db.executemany(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?)", [i for i in changes.sessions.items() if i[1]]
            )
            self._put("state", [changes.applied, changes.revision, f"{changes.hash:x}"])
        if save.compact:
            position, members = save.compact
            db.execute("DELETE FROM log WHERE last <= ?", (position.index,))
            self._put("base", [position, pack_members(members)])
        self._put("commit", save.commit)

    def _append(self, entries: list[Entry]) -> None:
        first, data = entries[0].index, msgpack.packb(pack_runs(entries))
        row = (first, entries[-1].index, data, _sum(first, data))
        self._db.execute("INSERT INTO log VALUES (?, ?, ?, ?)", row)

    def _truncate(self, index: int) -> None:
        """Drops entries from `index` on; a batch that straddles it keeps its front."""
        self._db.execute("DELETE FROM log WHERE first >= ?", (index,))
        for first, data in self._db.execute("SELECT first, data FROM log WHERE last >= ?", (index,)).fetchall():
            self._db.execute("DELETE FROM log WHERE first = ?", (first,))
            front = [entry for entry in unpack_runs(first - 1, msgpack.unpackb(data)) if entry.index < index]
            self._append(front)

    def _get(self, name: str, default: Any) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return msgpack.unpackb(row[0]) if row else default

    def _put(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, msgpack.packb(value)))

    def close(self) -> None:
        self._db.close()


def set_aside(directory: Path, why: str, stamp: str) -> Path:
    """Moves a store that must not vote any more out of the way, for a human to look at. Returns where it went.

    The next start creates an empty store with a new id: a learner, until the member list names it.
    """
    target = directory / f"set-aside-{stamp}"
    target.mkdir(mode=0o700)
    for name in ("food.db", "food.db-wal", "food.db-shm"):
        if (directory / name).exists():
            os.rename(directory / name, target / name)
    (target / "why").write_text(why + "\n")
    _sync_directory(directory)
    return target


def _sum(first: int, data: bytes) -> bytes:
    return blake2b(data, digest_size=8, key=first.to_bytes(8, "big")).digest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- The write-ahead log's own check (https://www.sqlite.org/fileformat2.html#the_write_ahead_log) ---

_WAL_HEADER = struct.Struct(">8I")
_WAL_MAGIC = (0x377F0682, 0x377F0683)


def check_wal(path: Path) -> None:
    """Raises StoreCorrupt when a frame is bad and a later one of the same generation is good.

    A crash tears the tail: bad frames up to the end. A bad frame with a good one behind it is corruption, and
    SQLite would take the frames in front of it for the whole log, silently.
    """
    if not path.exists() or path.stat().st_size < _WAL_HEADER.size:
        return
    wal = path.read_bytes()
    magic, _, page, _, salt1, salt2, sum1, sum2 = _WAL_HEADER.unpack_from(wal)
    order = ">" if magic == _WAL_MAGIC[1] else "<"
    if magic not in _WAL_MAGIC or not 512 <= page <= 65536:
        raise StoreCorrupt(f"{path}: the header is damaged")
    if _wal_sum(order, wal[:24], (0, 0)) != (sum1, sum2):
        return  # a torn header: nothing of this generation was ever synced
    running = (sum1, sum2)
    bad_at: int | None = None
    for at in range(_WAL_HEADER.size, len(wal) - page - 24 + 1, page + 24):
        _, _, frame_salt1, frame_salt2, frame_sum1, frame_sum2 = struct.unpack_from(">6I", wal, at)
        ours = (frame_salt1, frame_salt2) == (salt1, salt2)
        if bad_at is None and not ours:
            bad_at = at  # the log ends here, unless a frame of this generation follows
        elif bad_at is None:
            computed = _wal_sum(order, wal[at : at + 8], running)
            running = _wal_sum(order, wal[at + 24 : at + 24 + page], computed)
            if running != (frame_sum1, frame_sum2):
                bad_at = at
        elif ours:
            # The sum of a frame builds on the frame before: this one's own stored sum is where it starts.
            before = struct.unpack_from(">2I", wal, at - page - 24 + 16)
            computed = _wal_sum(order, wal[at : at + 8], before)
            if _wal_sum(order, wal[at + 24 : at + 24 + page], computed) == (frame_sum1, frame_sum2):
                raise StoreCorrupt(f"{path}: damaged at byte {bad_at}, with good frames behind it")


def _wal_sum(order: str, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    s0, s1 = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + even + s1) & 0xFFFFFFFF
        s1 = (s1 + odd + s0) & 0xFFFFFFFF
    return s0, s1
