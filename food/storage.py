"""The node's store: SQLite, one transaction a turn, durable on return (WAL, synchronous=FULL).

The log is the durable truth, a row a batch; the state trails it and is replayed at start. It is kept in segments, each
what one flush brought: later ones win, and the oldest are swept, so that a write to any of a million keys costs what a
write to one of a few does, not a page of a tree (Rosenblum and Ousterhout, The Design and Implementation of a
Log-Structured File System, 1992). SQLite's pages have no checksums, so every row here has one, and the keys a hash.
Only this file knows SQL. Any failure to save is fatal to the process: what was published may not be here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from . import wal
from .core.entries import Log, pack_members, unpack_members
from .core.local import Recovered
from .core.message import NO_EPOCH, START, Entry, Epoch, Member, Position
from .core.ready import Save
from .core.snapshot import Piece, Snapshot
from .core.state import Changes, Draft, State
from .wire import pack_runs, unpack_runs

FILES = ("food.db", "food.db-wal", "food.db-shm", "food.db-journal")
FORMAT = 3
FORMATS_READ = (1, 2, 3)  # 1 has no commit index in the log's rows; 1 and 2 have a row a key instead of segments
ROW_MOST_ENTRIES = 1_000  # of the log in one row
ROW_MOST_BYTES = 4 * 1024 * 1024
READ_BYTES = 1024 * 1024  # of a file, between two signs of life
SEGMENT_MOST_ROWS = 1_000
SEGMENT_MOST_BYTES = 1024 * 1024
ROW_BYTES = 16  # what a segment has of a row beside key and value, about
# Segments may hold so many times the bytes that are alive, and some: of what is swept then about a fifth is.
HELD_MOST, HELD_MOST_SHORT = 2.0, 1.1  # the latter while the disk is short
HELD_SLACK_BYTES, HELD_SLACK_SHORT_BYTES = 1024 * 1024, 64 * 1024
# In one save, beside twice what it brings: more would be felt by those who write.
SWEEP_MOST_BYTES, SWEEP_MOST_SHORT_BYTES = 256 * 1024, 4 * 1024 * 1024
# The write-ahead log is folded into the database outside of any save: two more fsyncs that no answer waits for.
FOLD_BYTES = 8 * 1024 * 1024
FOLD_SHORT_BYTES = 1024 * 1024  # while the disk is short: what is not folded counts as used
SAVE_LEAST_BYTES = 8 * 1024  # a page or two, however little is in them
WAL_KEPT_MOST_BYTES = 2 * FOLD_BYTES
# Writes stop while so much is still free: for deletes, elections, what is under way, and the state tables, which trail
# the log by a second. Of a small file system an eighth.
RESERVE_BYTES = 256 * 1024 * 1024
RESERVE_PART = 8
RELIEF = 17 / 16

SEGMENTS = "segments (number INTEGER PRIMARY KEY, data BLOB NOT NULL, sum BLOB NOT NULL)"
SESSIONS = "sessions (id INTEGER PRIMARY KEY, data BLOB NOT NULL, sum BLOB NOT NULL)"
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, sum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE log (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, data BLOB NOT NULL, sum BLOB NOT NULL);
CREATE TABLE {SEGMENTS};
CREATE TABLE {SESSIONS};
"""
# What was put aside of a snapshot: becomes the two tables above when it is whole, and is void at the next start.
STAGED = f"""
CREATE TABLE staged_{SEGMENTS};
CREATE TABLE staged_{SESSIONS};
"""
DISCARDED = "discarded_"  # begins the name of a former table of segments, which are deleted little by little
TIDY_ROWS = 100  # of those, with each save
TIDY_BYTES = 1024 * 1024
TIDY_FOLD_BYTES = 64 * 1024  # about what deleting them writes
StateRow = tuple[bytes, bytes | None, int]  # key, value or None for a deletion, revision
SEEN = "seen "  # meta: what is remembered of a store, by its id

DIRECTORY_REMEDY = "the directory must be there, and be the daemon's to write"
DISK_REMEDY = "the kernel's log (dmesg) says more: make room, or replace the disk"
REMEDIES = {  # by SQLite's names of errors, without the last parts, and the system's
    "SQLITE_BUSY": "another process has it open",
    "SQLITE_CANTOPEN": DIRECTORY_REMEDY,
    "SQLITE_CORRUPT": DISK_REMEDY,
    "SQLITE_FULL": "make room",
    "SQLITE_READONLY": DISK_REMEDY,
    "SQLITE_IOERR": DISK_REMEDY,
    "SQLITE_IOERR_LOCK": f"its files must be the daemon's to write: chown them to `user`; else {DISK_REMEDY}",
    "EACCES": DIRECTORY_REMEDY,
    "EDQUOT": "make room",
    "EIO": DISK_REMEDY,
    "ENOENT": DIRECTORY_REMEDY,
    "ENOSPC": "make room",
    "EROFS": DISK_REMEDY,
}


class StoreBroken(Exception):
    """The disk failed; the text names the file and what happened."""


class StoreCorrupt(StoreBroken):
    """What is on the disk cannot be trusted: this node must not vote with it."""


class Room(NamedTuple):
    """Bytes that the data directory may still grow by, and how many of them are not for writes."""

    left: int
    reserve: int

    def short(self, before: bool) -> bool:
        """Whether only what frees space may go on. Ends a little above where it began, so that it does not flap."""
        return self.left < (self.reserve * RELIEF if before else self.reserve)


class Store:
    """One open store; `recovered` is what it held. Exclusive: a second process cannot open it."""

    def __init__(self, directory: Path, node: str, alive: Callable[[], None] = lambda: None):
        """`alive` is called now and then during a long save. Raises StoreBroken, StoreCorrupt."""
        self.path = directory / "food.db"
        self._wal = directory / "food.db-wal"
        self._alive: Callable[[], None] = lambda: None  # not while it opens: the first beat ends a start
        self._unfolded_bytes = 0
        self.written_bytes = 0  # of log entries, in this life
        self._flushed_bytes = 0  # of those, what the state tables know
        self.short = False  # whether the disk is: then what is void goes sooner
        self._segment = self._held_bytes = 0  # number of the last one; what all hold
        self._live_bytes = 0  # of those at the last flush, what the state needs
        self._staged = [0, 0]  # sessions and keys that were put aside
        self._staged_segment = self._staged_bytes = 0
        self._discarded: list[str] = []
        self._db: sqlite3.Connection | None = None
        self.recovered = self._start(node)
        self._alive = alive

    def _start(self, node: str) -> Recovered:
        try:
            return self._try_to_start(node)
        except StoreCorrupt:
            pass  # its frames must go: their cursors hold the lock
        # SQLite also calls it corruption when a read fails (SQLITE_IOERR_CORRUPTFS). What cannot be read may be whole,
        # and on every node at once: only what was read, twice, is corrupt.
        self._read_through()
        return self._try_to_start(node)

    def _try_to_start(self, node: str) -> Recovered:
        try:
            # Before SQLite opens it: SQLite would silently drop everything behind a bad frame.
            self._check_header()
            self._check_wal()
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=1)
            self._configure(self._db)
            return self._open(self._db, node)
        except Exception as error:
            self.close()
            raise self._judged(error) from error

    def _check_header(self) -> None:
        """SQLite takes a database of a later "write version" for one that is not to be written, whatever happens."""
        if self.path.exists():
            with self.path.open("rb", buffering=0) as file:
                head = file.read(20)
            version = head[18:19]
            if head.startswith(b"SQLite format 3\0") and version > b"\2":  # else SQLite finds better words
                raise StoreCorrupt(f"{self.path}: its header names write version {version.hex()}")

    def _check_wal(self) -> None:
        path = self._wal
        try:
            damaged_at = wal.damage(path)
        except OSError as error:
            raise StoreBroken(_text(path, error)) from error
        if damaged_at is not None:
            raise StoreCorrupt(f"{path}: damaged at byte {damaged_at}, with good frames behind it")

    def _read_through(self) -> None:
        """Raises StoreBroken when anything of the store cannot be read. Gives up this process's locks on it."""
        for name in FILES:
            path = self.path.with_name(name)
            try:
                with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                    while file.read(READ_BYTES):
                        self._alive()
            except OSError as error:
                raise StoreBroken(_text(path, error)) from error

    def _judged(self, error: Exception) -> Exception:
        """Whether the disk failed, or answers what food did not write."""
        if isinstance(error, StoreBroken):
            return error
        if isinstance(error, OSError):
            return StoreBroken(self._text(error))
        # SQLITE_ERROR: no such table, and the like.
        if isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorname", "") not in (
            "",
            "SQLITE_ERROR",
        ):
            return StoreBroken(self._text(error))
        if isinstance(error, sqlite3.Error | ValueError | TypeError | LookupError | AssertionError | ArithmeticError):
            return StoreCorrupt(f"{self.path} holds what food did not write: {error}")
        return error

    # --- Opening ---

    def _configure(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        db.execute("PRAGMA synchronous=FULL")
        level = db.execute("PRAGMA synchronous").fetchone()[0]
        if (mode, level) != ("wal", 2):
            raise StoreBroken(f"{self.path}: this SQLite or file system offers no WAL ({mode}, {level})")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA journal_size_limit={WAL_KEPT_MOST_BYTES}")
        db.execute("PRAGMA cache_size=-16384")
        # Debian's SQLite overwrites what is deleted with zeros: dropping 1 GiB writes 1 GiB [tried: 16 s, without 0.5].
        db.execute("PRAGMA secure_delete=OFF")
        try:
            wal.rewrite(self._wal)  # under SQLite's lock
        except OSError as error:
            raise StoreBroken(_text(self._wal, error)) from error
        # Begins with an empty log: a transaction cut short in a former life leaves no frames that look like ours.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _open(self, db: sqlite3.Connection, node: str) -> Recovered:
        db.execute("BEGIN EXCLUSIVE")
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._create()
        found = self._get("format")
        if found not in FORMATS_READ:  # a version's mistake, not the disk's: nothing is set aside
            raise StoreBroken(
                f"{self.path} has format {found}, this food reads 1 to {FORMAT}: install the food that wrote it"
            )
        if found < FORMAT:
            self._convert()
        self._put("format", FORMAT)
        self._discard_staged()
        starts = self._get("starts") + 1
        self._put("starts", starts)
        recovered = self._recover(Member(node, self._get("store")), starts)
        db.execute("COMMIT")
        _sync_directory(self.path.parent)  # SQLite does it for a new write-ahead log, and passes over a failure
        return recovered

    def _create(self) -> None:
        self._create_tables(SCHEMA)
        first = {"format": FORMAT, "store": uuid.uuid4().hex, "starts": 0, "promise": NO_EPOCH, "commit": 0}
        for name, value in (first | {"base": [START, None], "state": [0, 0, "0"]}).items():
            self._put(name, value)
        with contextlib.suppress(PermissionError):
            _sync_directory(self.path.parent.parent)

    def _convert(self) -> None:
        """From a table with a row a key to segments."""
        names = {name for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for name in names - {"meta", "log", "state", "sessions"}:  # what was put aside, and what was discarded
            self._sql(f"DROP TABLE {name}")
        self._sql(f"CREATE TABLE {SEGMENTS}")
        self._segment, self._held_bytes = self._add_segments("segments", 0, self._rows("SELECT * FROM state"))
        self._sql("DROP TABLE state")

    def _create_tables(self, schema: str) -> None:
        for statement in schema.strip().split("\n"):
            self._sql(statement)

    def _recover(self, member: Member, starts: int) -> Recovered:
        self._check_pages()
        (base_epoch, base_index), base_members = self._get("base")
        log = Log(Position(Epoch(*base_epoch), base_index), unpack_members(base_members) if base_members else None)
        promise, commit = Epoch(*self._get("promise")), self._get("commit")
        for first, last, data, stored in self._rows("SELECT first, last, data, sum FROM log ORDER BY first"):
            _check(stored, _sum(first, data), f"log entries {first} to {last}")
            known, entries = _unpacked(first, data)
            if entries[-1].index != last:
                raise ValueError(f"log entries {first} to {entries[-1].index} are filed as {first} to {last}")
            commit = max(commit, known)
            log.append(entry for entry in entries if entry.index > base_index)
        state = State()
        applied, revision, state_hash = self._get("state")
        draft = self._recover_rows()
        for number, data, stored in self._rows("SELECT id, data, sum FROM sessions"):
            _check(stored, _sum(number, data), f"client session {number}")
            draft.sessions[number] = data
        state.restore(applied, revision, int(state_hash, 16), draft)
        if not base_index <= applied <= commit <= log.last.index or promise.number < log.last.epoch.number:
            raise ValueError(f"base {base_index}, applied {applied}, commit {commit}, {log.last}, promise {promise}")
        meta = {name: self._get(name) for (name,) in self._rows("SELECT name FROM meta")}  # every name has its sum
        remembers = {name.removeprefix(SEEN): tuple(at) for name, at in meta.items() if name.startswith(SEEN)}
        return Recovered(member, starts, promise, log, commit, state, remembers)

    def _check_pages(self) -> None:
        """A row that its page does not list any more is missed by no sum: SQLite accounts for each page's bytes.

        The state's segments are missed by its hash.
        """
        for table in ("meta", "log", "sessions"):
            found = self._sql(f"PRAGMA quick_check({table})").fetchone()[0]
            if found != "ok":
                raise ValueError(f"table {table}: {found}")

    def _recover_rows(self) -> Draft:
        """Of each key what the newest segment has."""
        draft, gone = Draft(), set[bytes]()
        self._held_bytes = 0
        for number, data, stored in self._rows("SELECT number, data, sum FROM segments ORDER BY number DESC"):
            self._segment = max(self._segment, number)
            self._held_bytes += len(data)
            for key, value, revision in _segment_rows(number, data, stored):
                if key in draft.rows or key in gone:
                    continue
                if value is None:
                    gone.add(key)
                else:
                    draft.add(key, value, revision)
            self._alive()
        self._live_bytes = draft.bytes + ROW_BYTES * len(draft.rows)
        return draft

    # --- Saving ---

    def save(self, save: Save) -> None:
        """One transaction, durable on return. Raises StoreBroken; the caller must not go on."""
        try:
            self._sql("BEGIN IMMEDIATE")
            self._write(save)
            self._sql("COMMIT")
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise self._failed("saving", error) from error
        except ValueError as error:
            raise self._judged(error) from error
        self._unfolded_bytes += SAVE_LEAST_BYTES

    def fold(self) -> None:
        """Moves the write-ahead log into the database when it has grown. Raises StoreBroken."""
        if self._unfolded_bytes < (FOLD_SHORT_BYTES if self.short else FOLD_BYTES):
            return
        try:
            self._sql("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise self._failed("folding the write-ahead log", error) from error
        self._unfolded_bytes = 0

    def _failed(self, doing: str, error: Exception) -> StoreBroken:
        """What ends this process. Damage that no start sees, as of an index, would end the next one, too."""
        text = f"{doing} failed: {self._text(error)}"
        if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
            return StoreBroken(text)
        try:
            self._read_through()
            if self._db and self._db.in_transaction:
                self._sql("ROLLBACK")
            found = self._sql("PRAGMA integrity_check(1)").fetchone()[0]
        except (StoreBroken, sqlite3.Error) as further:
            return StoreBroken(f"{text}; {further}")
        return StoreBroken(text) if found == "ok" else StoreCorrupt(f"{text}: {found}")

    def _write(self, save: Save) -> None:
        for piece in save.staged:
            self._stage(piece)
        if save.snapshot:
            self._install(save.snapshot)
        if save.truncate_from is not None:
            self._truncate(save.truncate_from, save.commit)
        for row in _log_rows(save.entries):
            self._append(row, save.commit)
        if save.promise:
            self._put("promise", save.promise)
        for store, seen in save.remembers.items():
            self._put(SEEN + store, seen)
        if changes := save.changes:
            self._flush(changes)
        if save.compact:
            position, members = save.compact
            # Rows do not overlap: one that ends there begins there, and only `first` has an index.
            self._sql("DELETE FROM log WHERE first <= ?1 AND last <= ?1", position.index)
            self._put("base", [position, pack_members(members)])
        if save.changes or not save.entries:  # else it went with them: a page less to write for most transactions
            self._put("commit", save.commit)
        self._tidy()

    # --- The state, in segments ---

    def _flush(self, changes: Changes) -> None:
        """What changed, behind all that is there, and with it what is still alive of the oldest."""
        swept = self._sweep(changes)
        changed = ((key, row.value, row.revision) if row else (key, None, 0) for key, row in changes.rows.items())
        self._segment, added = self._add_segments("segments", self._segment, chain(swept, changed))
        self._held_bytes += added
        self._delete_sessions(number for number, data in changes.sessions.items() if data is None)
        self._insert_sessions((number, data) for number, data in changes.sessions.items() if data is not None)
        self._flushed_bytes = self.written_bytes
        self._put("state", [changes.applied, changes.revision, f"{changes.hash:x}"])

    @property
    def sweep_due(self) -> bool:
        """Whether the segments hold more than they should."""
        most, slack = (HELD_MOST_SHORT, HELD_SLACK_SHORT_BYTES) if self.short else (HELD_MOST, HELD_SLACK_BYTES)
        return self._held_bytes > most * self._live_bytes + slack

    def _sweep(self, changes: Changes) -> list[StateRow]:
        """Deletes the oldest segments while all of them hold too much; returns what was alive in them.

        A row is alive if it is the state's own, by its revision: then no other segment has it, and it is not among
        what changed. A deletion has nothing older left that it would have to hide.
        """
        live = changes.live
        self._live_bytes = changes.live_bytes + ROW_BYTES * len(live)
        most = SWEEP_MOST_SHORT_BYTES if self.short else SWEEP_MOST_BYTES
        may_sweep = most + 2 * (self.written_bytes - self._flushed_bytes)
        kept: list[StateRow] = []
        while self.sweep_due and may_sweep > 0:
            oldest = self._sql("SELECT number, data, sum FROM segments ORDER BY number LIMIT 1").fetchone()
            kept += [
                row
                for row in _segment_rows(*oldest)
                if (found := live.get(row[0])) and found.revision == row[2] and row[0] not in changes.rows
            ]
            self._sql("DELETE FROM segments WHERE number = ?", oldest[0])
            self._held_bytes -= len(oldest[1])
            may_sweep -= len(oldest[1])
            self._alive()
        return kept

    def _add_segments(self, table: str, number: int, rows: Iterable[StateRow]) -> tuple[int, int]:
        """Behind `number`: returns the last one's, and the bytes of all."""
        total = 0
        for data in _segments(rows):
            number += 1
            self._sql(f"INSERT INTO {table} VALUES (?, ?, ?)", number, data, _sum(number, data))
            total += len(data)
            self._alive()  # a large save may take longer than the watchdog waits
        self._unfolded_bytes += total
        return number, total

    def _insert_sessions(self, sessions: Iterable[tuple[int, bytes]], table: str = "sessions") -> None:
        rows = [(number, data, _sum(number, data)) for number, data in sessions]
        self._many(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", rows)
        self._unfolded_bytes += sum(len(data) for _, data, _ in rows)

    def _delete_sessions(self, numbers: Iterable[int]) -> None:
        self._many("DELETE FROM sessions WHERE id = ?", ((number,) for number in numbers))

    # --- The log ---

    def _append(self, entries: list[Entry], commit: int) -> None:
        first, data = entries[0].index, msgpack.packb([commit, pack_runs(entries)])
        self.written_bytes += len(data)
        self._sql("INSERT INTO log VALUES (?, ?, ?, ?)", first, entries[-1].index, data, _sum(first, data))
        self._unfolded_bytes += len(data)

    def _truncate(self, index: int, commit: int) -> None:
        """Drops entries from `index` on; a row that straddles it keeps its front."""
        self._sql("DELETE FROM log WHERE first >= ?", index)
        for first, data in self._sql("SELECT first, data FROM log WHERE last >= ?", index).fetchall():
            self._sql("DELETE FROM log WHERE first = ?", first)
            self._append([entry for entry in _unpacked(first, data)[1] if entry.index < index], commit)

    # --- Snapshots, a piece a transaction ---

    def _stage(self, piece: Piece) -> None:
        if piece.number == 0:
            self._discard_staged()
            self._create_tables(STAGED)
            self._staged, self._staged_segment, self._staged_bytes = [0, 0], 0, 0
        self._staged_segment, added = self._add_segments("staged_segments", self._staged_segment, piece.rows)
        self._staged_bytes += added
        self._insert_sessions(piece.sessions, "staged_sessions")
        self._staged[0] += len(piece.sessions)
        self._staged[1] += len(piece.rows)

    def _install(self, snapshot: Snapshot) -> None:
        """What was put aside becomes the state, by its tables' names: that takes as long for many rows as for few."""
        assert self._staged == [snapshot.sessions, snapshot.keys], f"put aside {self._staged}, announced {snapshot}"
        self._sql("DELETE FROM log")
        self._discard("segments")
        self._sql("DROP TABLE sessions")
        for table in ("segments", "sessions"):
            self._sql(f"ALTER TABLE staged_{table} RENAME TO {table}")
        self._segment = self._staged_segment
        self._held_bytes = self._live_bytes = self._staged_bytes
        self._put("state", [snapshot.at.index, snapshot.revision, f"{snapshot.hash:x}"])
        self._put("base", [snapshot.at, pack_members(snapshot.members)])

    def _discard_staged(self) -> None:
        """What was put aside counts for nothing any more."""
        names = [name for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        self._discarded = [name for name in names if name.startswith(DISCARDED)]
        if "staged_segments" in names:
            self._discard("staged_segments")
            self._sql("DROP TABLE staged_sessions")

    def _discard(self, table: str) -> None:
        number = max((int(name.removeprefix(DISCARDED)) for name in self._discarded), default=0) + 1
        self._sql(f"ALTER TABLE {table} RENAME TO {DISCARDED}{number}")
        self._discarded.append(f"{DISCARDED}{number}")

    def _tidy(self) -> None:
        """Deletes some of what was discarded. All at once could take longer than the watchdog waits."""
        if not self._discarded:
            return
        table, size = self._discarded[0], 0
        last = None
        query = f"SELECT number, coalesce(length(data), 0) FROM {table} LIMIT {TIDY_ROWS}"
        for number, length in self._sql(query).fetchall():
            last, size = number, size + length
            if size >= TIDY_BYTES:
                break
        if last is None:
            self._sql(f"DROP TABLE {table}")
            self._discarded.pop(0)
        else:
            self._sql(f"DELETE FROM {table} WHERE number <= ?", last)
        self._unfolded_bytes += TIDY_FOLD_BYTES

    def room(self) -> Room:
        """What is left once the write-ahead log is folded and the state tables have caught up with the log.

        Pages that the database holds unused are room, too: SQLite does not give them back. But the write-ahead log
        grows outside of it, so they count for no more than the file system's own space. Raises StoreBroken.
        """
        try:
            found = os.statvfs(self.path.parent)
            unused = self._sql("PRAGMA freelist_count").fetchone()[0] * self._sql("PRAGMA page_size").fetchone()[0]
        except (OSError, sqlite3.Error) as error:
            raise StoreBroken(f"looking for free space failed: {self._text(error)}") from error
        free = found.f_bavail * found.f_frsize
        owed = self._unfolded_bytes + 2 * (self.written_bytes - self._flushed_bytes)
        left = max(0, free + min(free, unused) - owed)
        return Room(left, min(RESERVE_BYTES, found.f_blocks * found.f_frsize // RESERVE_PART))

    # --- SQL ---

    def _sql(self, statement: str, *values: Any) -> sqlite3.Cursor:
        assert self._db is not None
        return self._db.execute(statement, values)

    def _many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        assert self._db is not None
        self._db.executemany(statement, rows)

    def _rows(self, query: str) -> Iterator[Any]:
        return iter(self._sql(query))

    def _get(self, name: str) -> Any:
        row = self._sql("SELECT value, sum FROM meta WHERE name = ?", name).fetchone()
        if row is None:
            raise ValueError(f"{name} is missing")
        _check(row[1], _sum(name, row[0]), name)
        return msgpack.unpackb(row[0])

    def _put(self, name: str, value: Any) -> None:
        data = msgpack.packb(value)
        self._sql("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", name, data, _sum(name, data))

    def _text(self, error: Exception) -> str:
        return _text(self.path, error)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()


def set_aside(directory: Path, why: str, stamp: str) -> Path:
    """Moves a store that must not vote any more out of the way, for a human to look at. Returns where it went.

    The next start creates an empty store with a new id: a learner, until the member list names it. Raises StoreBroken.
    """
    try:
        target = next(place for n in range(100) if not (place := directory / f"set-aside-{stamp}-{n}").exists())
        target.mkdir(mode=0o700)
        # The database first, and on the disk: without its write-ahead log it would be an older store, and vote. Nor
        # may a new one find the old one's journals.
        for name in FILES:
            if (directory / name).exists():
                os.rename(directory / name, target / name)
                _sync_directory(directory)
        (target / "why").write_text(why + "\n")
    except (OSError, StopIteration) as error:
        raise StoreBroken(f"{why}; and it cannot be set aside: {_text(directory, error)}") from error
    return target


def _text(path: Path, error: Exception) -> str:
    """The file, what happened to it, and what is to be done."""
    if isinstance(error, OSError):
        name, path, what = errno.errorcode.get(error.errno or 0, ""), error.filename or path, error.strerror
    else:
        name, what = getattr(error, "sqlite_errorname", ""), str(error)
    remedy = REMEDIES.get(name) or REMEDIES.get("_".join(name.split("_")[:2]))
    return f"{path}: {what}" + (f": {remedy}" if remedy else "")


def _log_rows(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Cuts them into rows: SQLite's values and one row's rewriting have their limits."""
    row: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.data)
        if row and (size > ROW_MOST_BYTES or len(row) >= ROW_MOST_ENTRIES):
            yield row
            row, size = [], len(entry.data)
        row.append(entry)
    if row:
        yield row


def _unpacked(first: int, data: bytes) -> tuple[int, tuple[Entry, ...]]:
    """What a row of the log holds: the commit index of its transaction, and entries."""
    found = msgpack.unpackb(data)
    commit, runs = found if type(found[0]) is int else (0, found)
    return commit, unpack_runs(first - 1, runs)


def _segments(rows: Iterable[StateRow]) -> Iterator[bytes]:
    """Packed, each with as many rows as one may have."""
    batch: list[StateRow] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[0]) + len(row[1] or b"")
        if size >= SEGMENT_MOST_BYTES or len(batch) >= SEGMENT_MOST_ROWS:
            yield msgpack.packb(batch)
            batch, size = [], 0
    if batch:
        yield msgpack.packb(batch)


def _segment_rows(number: int, data: bytes, stored: bytes) -> tuple[StateRow, ...]:
    _check(stored, _sum(number, data), f"segment {number} of the state")
    found: tuple[StateRow, ...] = msgpack.unpackb(data, use_list=False)
    return found


def _sum(key: int | str, data: bytes) -> bytes:
    """Of a row's data and its key, so that rows which change places do not fit either."""
    return blake2b(data, digest_size=8, key=str(key).encode()[:64]).digest()


def _check(stored: bytes, computed: bytes, what: str) -> None:
    if stored != computed:
        raise ValueError(f"the checksum of {what} does not fit")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
