"""The store gives back what it was given, or says that it cannot: never something else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from food import storage
from food.core.entries import Log, pack_members
from food.core.local import Recovered
from food.core.message import NO_EPOCH, START, Entry, Epoch, Kind, Member, MemberList, Position
from food.core.ready import Save
from food.core.snapshot import Piece, Snapshot
from food.core.state import Session, State
from food.storage import FOLD_BYTES, ROW_MOST_ENTRIES, Store, StoreBroken, StoreCorrupt, _sum, set_aside
from food.wire import pack_runs

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO = Epoch(1, "a"), Epoch(2, "b")
MEMBERS = MemberList(1, "cluster", (Member("n1", "a"), Member("n2", "b")))


def put(key: bytes, value: bytes) -> bytes:
    packed: bytes = msgpack.packb([0, 0, 0, "put", key, value])
    return packed


def delete(key: bytes) -> bytes:
    packed: bytes = msgpack.packb([0, 0, 0, "del", key])
    return packed


def commands(first: int, count: int, epoch: Epoch = ONE) -> list[Entry]:
    return [Entry(i, epoch, Kind.COMMAND, put(b"k%d" % i, b"v%d" % i)) for i in range(first, first + count)]


def founding() -> Entry:
    return Entry(1, ONE, Kind.MEMBERS, pack_members(MEMBERS))


def entries(log: Log) -> list[Entry]:
    return list(log.after(log.base.index, 1 << 40))


def reopen(directory: Path) -> Recovered:
    with closing(Store(directory, "n1")) as store:
        return store.recovered


def saved(directory: Path, *saves: Save) -> Recovered:
    with closing(Store(directory, "n1")) as store:
        for save in saves:
            store.save(save)
    return reopen(directory)


def applied(count: int) -> tuple[State, Save]:
    """A founded log of `count` entries in one Save, with the state after it."""
    state = State()
    state.skip(1)
    log = [founding(), *commands(2, count - 1)]
    for entry in log[1:]:
        state.apply(entry.index, entry.data)
    return state, Save(entries=log, promise=ONE, changes=state.take_changes(), commit=count)


# --- What is saved comes back ---


def test_a_new_store_is_blank_and_keeps_its_id(tmp_path: Path) -> None:
    first, second = reopen(tmp_path), reopen(tmp_path)
    assert (first.starts, second.starts) == (1, 2)
    assert len(first.member.store) == 32 and first.member == second.member == Member("n1", first.member.store)
    assert first.promise == NO_EPOCH and first.log.last == START and first.commit == 0 and not first.remembers
    assert first.log.members is None


def test_log_promise_commit_and_what_is_remembered_come_back(tmp_path: Path) -> None:
    log = [founding(), *commands(2, 4), Entry(6, TWO, Kind.BARRIER, b"")]
    found = saved(
        tmp_path,
        Save(entries=log[:2], promise=ONE, commit=1),
        Save(entries=log[2:], promise=TWO, remembers={"b": (3, "life"), "c": (1, "x")}, commit=5),
        Save(remembers={"b": (4, "other")}, commit=5),
    )
    assert entries(found.log) == log and found.promise == TWO and found.commit == 5
    assert found.log.members == MEMBERS
    assert found.remembers == {"b": (4, "other"), "c": (1, "x")}
    assert found.state.applied == 0  # the state tables trail the log


def test_the_commit_index_travels_with_the_entries(tmp_path: Path) -> None:
    old, new = commands(1, 6), commands(5, 2, TWO)
    found = saved(
        tmp_path,
        Save(entries=old[:3], promise=ONE, commit=0),
        Save(entries=old[3:], commit=3),
        Save(truncate_from=5, entries=new, promise=TWO, commit=4),
    )
    assert entries(found.log) == old[:4] + new and found.commit == 4
    assert saved(tmp_path, Save(truncate_from=5, commit=4)).commit == 4
    assert saved(tmp_path, Save(truncate_from=5, entries=new, commit=4), Save(truncate_from=6, commit=5)).commit == 5


def test_a_store_of_the_first_format_is_read(tmp_path: Path) -> None:
    """It kept the commit index beside the log only."""
    log = commands(1, 6)
    with closing(Store(tmp_path, "n1")) as store:
        store.save(Save(entries=log[:3], promise=ONE))
        as_before_segments(store, State(), 1)
        for batch in (log[:3], log[3:]):
            first, data = batch[0].index, msgpack.packb(pack_runs(batch))
            row = (first, batch[-1].index, data, _sum(first, data))
            store._sql("INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?)", *row)
        store._put("commit", 4)
    for _ in range(2):
        found = reopen(tmp_path)
        assert entries(found.log) == log and found.commit == 4
    assert saved(tmp_path, Save(entries=commands(7, 1), commit=6)).commit == 6


def test_a_store_of_the_second_format_is_read(tmp_path: Path) -> None:
    """It had a row a key, also in what was put aside or discarded."""
    state, save = applied(3_000)
    with closing(Store(tmp_path, "n1")) as store:
        store.save(save)
        as_before_segments(store, state, 2)
        for name in ("staged_state", "discarded_1"):
            store._sql(f"CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)")
            store._sql(f"INSERT INTO {name} SELECT * FROM state")
        store._sql("CREATE TABLE staged_sessions (id INTEGER PRIMARY KEY, data BLOB NOT NULL, sum BLOB NOT NULL)")
    for _ in range(2):
        found = reopen(tmp_path)
        assert found.state.rows == state.rows and list(found.state.keys) == list(state.keys)
    with closing(Store(tmp_path, "n1")) as store:
        names = {name for (name,) in store._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"meta", "log", "segments", "sessions"}
    (more,) = commands(3_001, 1)
    state.apply(3_001, more.data)
    found = saved(tmp_path, Save(entries=[more], changes=state.take_changes(), commit=3_001))
    assert found.state.rows == state.rows


def as_before_segments(store: Store, state: State, number: int) -> None:
    """Makes it a store of an older format."""
    store._sql("DROP TABLE segments")
    store._sql("CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)")
    rows = [(key, row.value, row.revision) for key, row in state.rows.items()]
    store._many("INSERT INTO state VALUES (?, ?, ?)", rows)
    store._put("format", number)


# --- Segments ---


def held(store: Store) -> int:
    found: int = store._sql("SELECT total(length(data)) FROM segments").fetchone()[0]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_segments_hold_the_state_and_not_much_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Writes and deletes by chance, over few keys and many, of all sizes, with restarts: the state comes back."""
    monkeypatch.setattr(storage, "HELD_SLACK_BYTES", 2_000)
    monkeypatch.setattr(storage, "SEGMENT_MOST_ROWS", 7)
    monkeypatch.setattr(storage, "SEGMENT_MOST_BYTES", 3_000)
    rng, state, index = Random(seed), State(), 0
    keys, most = rng.choice((3, 100, 1_000)), rng.choice((1, 40, 900))
    store = Store(tmp_path, "n1")
    for _ in range(150):
        log = []
        for _ in range(rng.randrange(60)):
            index += 1
            key, value = b"%d" % rng.randrange(keys), rng.randbytes(rng.randrange(most))
            command = delete(key) if rng.random() < 0.3 else put(key, value)
            log.append(Entry(index, ONE, Kind.COMMAND, command))
            state.apply(index, command)
        store.save(Save(entries=log, promise=ONE, changes=state.take_changes(), commit=index))
        bound = storage.HELD_MOST * (state.bytes + storage.ROW_BYTES * len(state.rows)) + storage.HELD_SLACK_BYTES
        brought = sum(len(entry.data) + storage.ROW_BYTES for entry in log)
        heads = 8 * len(list(store._rows("SELECT number FROM segments")))
        assert store._held_bytes == held(store) <= bound + brought + heads
        if rng.random() < 0.1:
            store.close()
            store = Store(tmp_path, "n1")
            assert store.recovered.state.rows == state.rows and store._held_bytes == held(store)
    store.close()
    assert index > 1_000


def rows_of(store: Store) -> dict[bytes, Any]:
    return store._recover_rows().rows


def mostly_deleted(store: Store) -> State:
    """Saves forty large values; then thirty of them are deleted, which is not saved."""
    state = State()
    for key in range(1, 41):
        state.apply(key, put(b"%d" % key, bytes(500_000)))
    store.save(Save(changes=state.take_changes(), promise=ONE))
    for key in range(1, 31):
        state.apply(40 + key, delete(b"%d" % key))
    return state


def test_what_was_deleted_makes_room_by_itself(tmp_path: Path) -> None:
    """Flushes that bring nothing sweep on until most that is void is gone; while the disk is short, almost all."""
    with closing(Store(tmp_path, "n1")) as store:
        state = mostly_deleted(store)
        assert not store.sweep_due
        flushes = 0
        for store.short, most in ((False, 11_100_000), (True, 5_700_000)):
            store.save(Save(changes=state.take_changes()))
            while store.sweep_due:
                store.save(Save(changes=state.take_changes()))
                flushes += 1
            assert held(store) < most
        assert flushes >= 2
        assert rows_of(store) == state.rows
        store.save(Save(changes=state.take_changes()))
        assert not store.sweep_due


def test_a_save_sweeps_little_unless_the_disk_is_short(tmp_path: Path) -> None:
    """Who writes waits for it: a segment, not all that is void."""
    with closing(Store(tmp_path, "n1")) as store:
        state = mostly_deleted(store)
        store.save(Save(changes=state.take_changes()))
        swept = []
        for store.short in (False, True):
            before = held(store)
            store.save(Save(changes=state.take_changes()))
            swept.append(before - held(store))
        assert 0 < swept[0] < 2_000_000 < 3_000_000 < swept[1]


def test_forgetting_the_oldest_entries_reads_only_them(tmp_path: Path) -> None:
    """They are found by the table's key: else each time all that is held for a backup would be read."""
    with closing(Store(tmp_path, "n1")) as store:
        assert store._db
        said: list[str] = []
        store._db.set_trace_callback(said.append)
        store.save(Save(entries=[Entry(n, ONE, Kind.COMMAND, b"") for n in (1, 2)], promise=ONE))
        store.save(Save(compact=(Position(ONE, 1), MEMBERS)))
        store._db.set_trace_callback(None)
        (forget,) = (text for text in said if text.startswith("DELETE FROM log"))
        plan = [row[3] for row in store._sql(f"EXPLAIN QUERY PLAN {forget}")]
        assert plan == ["SEARCH log USING INTEGER PRIMARY KEY (rowid<?)"]


def test_a_segment_damaged_meanwhile_is_noticed_when_it_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "HELD_SLACK_BYTES", 0)
    state, save = applied(300)
    with closing(Store(tmp_path, "n1")) as store:
        store.save(save)
        store._sql("UPDATE segments SET data = x'90' WHERE number = 1")
        with pytest.raises(StoreCorrupt, match="the checksum of segment 1 of the state does not fit"):
            for index in range(301, 1_500):
                state.apply(index, put(b"k7", b"%d" % index))
                store.save(Save(changes=state.take_changes(), commit=300))


def test_state_and_sessions_come_back_and_what_was_deleted_does_not(tmp_path: Path) -> None:
    state = State()
    state.skip(1)
    state.apply(2, msgpack.packb([0, 0, 0, "open"]))
    state.apply(3, msgpack.packb([2, 1, 0, "put", b"k", b"v"]))
    state.apply(4, msgpack.packb([0, 0, 0, "open"]))
    state.apply(5, put(b"gone", b"soon"))
    log = [founding(), *commands(2, 6)]
    before = Save(entries=log, promise=ONE, changes=state.take_changes(), commit=5)
    state.apply(6, msgpack.packb([0, 0, 0, "close", 4]))
    state.apply(7, msgpack.packb([0, 0, 0, "del", b"gone"]))
    found = saved(tmp_path, before, Save(changes=state.take_changes(), commit=7))
    assert found.state.rows == state.rows and list(found.state.rows) == [b"k"]
    assert (found.state.applied, found.state.revision, found.state.hash) == (7, 3, state.hash)
    assert found.state.sessions == state.sessions and list(found.state.sessions) == [2]


def test_a_compaction_keeps_the_list_that_ruled_there(tmp_path: Path) -> None:
    state, save = applied(10)
    found = saved(tmp_path, save, Save(compact=(Position(ONE, 7), MEMBERS), commit=10))
    assert found.log.base == Position(ONE, 7) and found.log.members == MEMBERS
    assert [entry.index for entry in entries(found.log)] == [8, 9, 10]
    assert found.state.hash == state.hash


@pytest.mark.parametrize("cut", [1, 2, 500, ROW_MOST_ENTRIES, ROW_MOST_ENTRIES + 1, ROW_MOST_ENTRIES + 500])
def test_truncation_inside_a_row_keeps_its_front(tmp_path: Path, cut: int) -> None:
    old = commands(1, 2 * ROW_MOST_ENTRIES)
    new = commands(cut, 3, TWO)
    found = saved(
        tmp_path, Save(entries=old, promise=ONE), Save(truncate_from=cut, entries=new, promise=TWO, commit=cut)
    )
    assert entries(found.log) == old[: cut - 1] + new


def test_large_entries_are_cut_into_rows_that_sqlite_takes(tmp_path: Path) -> None:
    log = [Entry(i, ONE, Kind.COMMAND, put(b"k", bytes(1024 * 1024))) for i in range(1, 31)]
    found = saved(tmp_path, Save(entries=log, promise=ONE))
    assert entries(found.log) == log
    with closing(sqlite3.connect(tmp_path / "food.db")) as db:
        assert db.execute("SELECT max(length(data)) FROM log").fetchone()[0] < 5 * 1024 * 1024


def staged(state: State, at: Position, commit: int = 0) -> tuple[list[Save], Snapshot]:
    """Saves that put `state` aside, three rows each; and what takes it."""
    sessions = [(number, session.pack()) for number, session in state.sessions.items()]
    rows = [(key, row.value, row.revision) for key, row in sorted(state.rows.items())]
    pieces = [Piece(at, 0, [], []), Piece(at, 1, sessions, [])]
    pieces += [Piece(at, number, [], rows[3 * number - 6 :][:3]) for number in range(2, len(rows) // 3 + 3)]
    snapshot = Snapshot(at, MEMBERS, state.revision, state.hash, len(sessions), len(rows))
    return [Save(staged=[piece], commit=commit) for piece in pieces], snapshot


def test_a_snapshot_replaces_everything_in_one_transaction(tmp_path: Path) -> None:
    _, before = applied(5)
    donor, _ = applied(9)
    donor.sessions[3] = Session(1, 3)
    at = Position(TWO, 9)
    pieces, snapshot = staged(donor, at, 5)
    suffix = commands(10, 2, TWO)
    found = saved(tmp_path, before, *pieces)
    assert (found.log.base.index, found.commit, found.state.sessions) == (0, 5, {})
    assert found.state.rows == applied(5)[0].rows  # what was put aside counts for nothing
    found = saved(tmp_path, *pieces, Save(snapshot=snapshot, entries=suffix, promise=TWO, commit=9))
    assert found.log.base == at and entries(found.log) == suffix and found.log.members == MEMBERS
    assert found.state.rows == donor.rows and found.state.applied == found.commit == 9
    assert list(found.state.sessions) == [3]


def test_what_was_put_aside_of_another_snapshot_is_void(tmp_path: Path) -> None:
    other, _ = applied(7)
    donor, _ = applied(9)
    pieces, snapshot = staged(donor, Position(TWO, 9))
    with closing(Store(tmp_path, "n1")) as store:
        for save in [*staged(other, Position(TWO, 7))[0][:3], *pieces]:
            store.save(save)
        store.save(Save(snapshot=snapshot, promise=TWO, commit=9))
    assert reopen(tmp_path).state.rows == donor.rows


def test_a_snapshot_that_is_not_whole_is_not_taken(tmp_path: Path) -> None:
    donor, _ = applied(9)
    pieces, snapshot = staged(donor, Position(TWO, 9))
    with closing(Store(tmp_path, "n1")) as store:
        for save in pieces[:-1]:
            store.save(save)
        with pytest.raises(AssertionError, match="put aside"):
            store.save(Save(snapshot=snapshot, promise=TWO, commit=9))


def test_former_rows_are_deleted_little_by_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that a former life left, and what was put aside and never taken."""
    monkeypatch.setattr(storage, "TIDY_ROWS", 2)
    monkeypatch.setattr(storage, "TIDY_BYTES", 1)
    donor, before = applied(9)
    pieces, snapshot = staged(donor, Position(TWO, 9))
    with closing(Store(tmp_path, "n1")) as store:
        for save in [before, *pieces, Save(snapshot=snapshot, promise=TWO, commit=9), *staged(donor, START, 9)[0][:-1]]:
            store.save(save)
    assert discarded(tmp_path)
    with closing(Store(tmp_path, "n1")) as store:
        for starts in range(40):
            store.save(Save(remembers={"b": (starts, "x")}, commit=9))
    assert not discarded(tmp_path)
    assert reopen(tmp_path).state.rows == donor.rows


def discarded(directory: Path) -> list[str]:
    with closing(sqlite3.connect(directory / "food.db")) as db:
        names = db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'discarded%' OR name LIKE 'staged%'")
        return [name for (name,) in names]


def test_a_long_save_gives_signs_of_life(tmp_path: Path) -> None:
    state = State()
    for index in range(1, 10_001):
        state.apply(index, put(b"%d" % index, b""))
    signs: list[int] = []
    with closing(Store(tmp_path, "n1", lambda: signs.append(1))) as store:
        store.save(Save(changes=state.take_changes(), promise=ONE, commit=10_000))
    assert len(signs) >= 5


def test_a_save_cut_short_leaves_nothing(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        store.save(Save(entries=commands(1, 2), promise=ONE))
        with pytest.raises(StoreBroken):  # an index that is there already
            store.save(Save(remembers={"b": (1, "x")}, entries=commands(1, 1), promise=TWO))
    found = reopen(tmp_path)
    assert entries(found.log) == commands(1, 2) and found.promise == ONE


# --- The disk ---


def test_the_pragmas_are_in_force(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("locking_mode", "exclusive")):
            assert store._sql(f"PRAGMA {pragma}").fetchone()[0] == value


def test_every_save_is_synced(tmp_path: Path) -> None:
    """As strace sees it: one fsync or more for each save."""
    program = (
        "import sys; from pathlib import Path; from food.storage import Store; from food.core.ready import Save;"
        "store = Store(Path(sys.argv[1]), 'n1'); print('open', flush=True); sys.stdin.readline();"
        "[store.save(Save(remembers={'b': (n, 'x')})) for n in range(50)]"
    )
    strace = shutil.which("strace")
    assert strace, "tests/run installs strace"
    trace = tmp_path / "trace"
    argv = [strace, "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync", sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(argv, input=b"\n", check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    assert trace.read_text().count("sync(") >= 50


def test_a_second_process_cannot_open_it(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")):
        program = (
            "import sys; from pathlib import Path; from food.storage import Store\n"
            "try: Store(Path(sys.argv[1]), 'n1')\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
        )
    assert run.stdout.startswith("StoreBroken") and "another process has it open" in run.stdout


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreBroken, match=r"gone/food\.db: unable to open database file: the directory must be there"):
        Store(tmp_path / "gone", "n1")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may write anywhere: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_is_not_ours_to_write_is_named(tmp_path: Path) -> None:
    directory = Path(f"/tmp/food-read-only-{os.getpid()}")  # tmp_path itself is closed to others
    directory.mkdir()
    try:
        directory.chmod(0o555)
        with nobody(), pytest.raises(StoreBroken, match="unable to open database file: the directory must be there"):
            Store(directory, "n1")
    finally:
        directory.rmdir()


def test_a_full_disk_is_fatal_and_named(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        pages = store._sql("PRAGMA page_count").fetchone()[0]
        store._sql(f"PRAGMA max_page_count={pages + 1}")
        with pytest.raises(StoreBroken, match=r"saving failed: .*food\.db: database or disk is full: make room"):
            store.save(Save(entries=[Entry(1, ONE, Kind.COMMAND, bytes(100_000))]))


def test_a_failed_fold_is_fatal(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        store._unfolded_bytes = FOLD_BYTES
        store.close()
        with pytest.raises(StoreBroken, match="folding the write-ahead log failed"):
            store.fold()


def test_the_write_ahead_log_is_folded_and_stays_small(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        for index in range(1, 61):
            store.save(Save(entries=[Entry(index, ONE, Kind.COMMAND, bytes(1024 * 1024))], promise=ONE))
            store.fold()
        assert (tmp_path / "food.db-wal").stat().st_size < 3 * FOLD_BYTES
        assert (tmp_path / "food.db").stat().st_size > 40 * 1024 * 1024


# --- Damage ---


def corrupt(directory: Path) -> str:
    with pytest.raises(StoreCorrupt) as caught:
        Store(directory, "n1")
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE log SET data = CAST(data || x'00' AS BLOB)", "checksum of log entries 1 to 10"),
        ("UPDATE log SET first = 2", "checksum of log entries 2"),
        ("UPDATE log SET last = 2", "log entries 1 to 10 are filed as 1 to 2"),
        ("DELETE FROM log", "commit 10"),
        ("UPDATE segments SET data = x'90'", "checksum of segment 1 of the state"),
        ("UPDATE segments SET number = 2", "checksum of segment 2 of the state"),
        ("DELETE FROM segments", "state hash"),
        ("UPDATE meta SET value = x'92ff' WHERE name = 'promise'", "checksum of promise"),
        ("DELETE FROM meta WHERE name = 'promise'", "promise is missing"),
        ("UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'starts') WHERE name = 'commit'", "of commit"),
        ("INSERT INTO sessions VALUES (7, x'930107', x'00')", "client session 7"),
        ("DROP TABLE sessions", "no such table"),
        ("UPDATE meta SET name = 'sofn b' WHERE name LIKE 'seen%'", "checksum of sofn b"),
        ("UPDATE meta SET name = 7 WHERE name LIKE 'seen%'", "checksum of 7"),
    ],
)
def test_rows_that_food_did_not_write_are_noticed(tmp_path: Path, statement: str, says: str) -> None:
    saved(tmp_path, applied(10)[1], Save(remembers={"b": (1, "x")}, commit=10))
    with closing(sqlite3.connect(tmp_path / "food.db")) as db:
        db.execute(statement)
        db.commit()
    assert says in corrupt(tmp_path)


def test_a_promise_older_than_the_log_is_noticed(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        store.save(Save(entries=commands(1, 1, TWO), promise=ONE))
    assert "promise" in corrupt(tmp_path)


@pytest.mark.parametrize("number", range(24))
def test_a_flipped_byte_in_the_database_is_noticed_or_harmless(tmp_path: Path, number: int) -> None:
    """Wherever it is: what is read is what was saved, or the store is refused."""
    state, save = applied(300)
    before = saved(tmp_path, save)
    path = tmp_path / "food.db"
    data = bytearray(path.read_bytes())
    at = number * 1627 % len(data)
    data[at] ^= 0xFF
    path.write_bytes(data)
    try:
        found = reopen(tmp_path)
    except StoreBroken:  # StoreCorrupt is one
        return
    assert entries(found.log) == entries(before.log) and found.state.rows == state.rows
    assert (found.promise, found.commit, found.member) == (before.promise, before.commit, before.member)


def with_byte(path: Path, at: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([value]))


def test_a_row_that_its_page_does_not_list_any_more_is_missed(tmp_path: Path) -> None:
    """It takes its checksum along."""
    state = State()
    for index in range(1, 4):
        state.apply(index, msgpack.packb([0, 0, 0, "open"]))
    saved(tmp_path, Save(entries=commands(1, 3), promise=ONE, changes=state.take_changes(), commit=3))
    with closing(sqlite3.connect(tmp_path / "food.db")) as db:
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sessions'").fetchone()[0]
    with_byte(tmp_path / "food.db", (page - 1) * 4096 + 4, 2)  # so many cells, of three
    assert "table sessions: " in corrupt(tmp_path)


def test_a_write_version_that_is_not_ours_is_corruption_and_no_read_only_disk(tmp_path: Path) -> None:
    saved(tmp_path, applied(3)[1])
    with_byte(tmp_path / "food.db", 18, 66)
    assert "its header names write version 42" in corrupt(tmp_path)


def fails_as_corrupt(*_: Any) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorname = "SQLITE_CORRUPT"
    raise error


def test_damage_that_only_a_save_sees_is_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would end every life to come. But SQLite says the same of a read that failed: it is looked for."""
    saved(tmp_path, applied(3)[1])
    monkeypatch.setattr(Store, "_write", fails_as_corrupt)
    with (
        closing(Store(tmp_path, "n1")) as store,
        pytest.raises(StoreBroken, match=r"malformed: .*replace the disk") as e,
    ):
        store.save(Save(commit=3))
    assert not isinstance(e.value, StoreCorrupt)
    with_byte(tmp_path / "food.db", 39, 7)  # so many free pages
    with closing(Store(tmp_path, "n1")) as store, pytest.raises(StoreCorrupt, match="reelist"):
        store.save(Save(commit=3))


def test_another_format_is_refused_in_words(tmp_path: Path) -> None:
    with closing(Store(tmp_path, "n1")) as store:
        store._put("format", 99)
    with pytest.raises(
        StoreBroken, match="has format 99, this food reads 1 to 3: install the food that wrote it"
    ) as caught:
        Store(tmp_path, "n1")
    assert not isinstance(caught.value, StoreCorrupt), "nothing is wrong with it"


def test_files_of_another_user_are_named() -> None:
    directory = Path(f"/tmp/food-read-only-{os.getpid()}")  # tmp_path itself is closed to others
    directory.mkdir()
    try:
        Store(directory, "n1").close()
        (directory / "food.db").chmod(0o444)
        directory.chmod(0o777)
        with nobody(), pytest.raises(StoreBroken, match="disk I/O error: its files must be the daemon's to write"):
            Store(directory, "n1")
    finally:
        shutil.rmtree(directory)


def killed_after(directory: Path, saves: int) -> None:
    """A process that saves and is killed: its write-ahead log stays behind."""
    program = (
        "import os, sys; from pathlib import Path; from food.storage import Store; from food.core.ready import Save\n"
        "from food.core.message import Entry, Epoch\n"
        "store = Store(Path(sys.argv[1]), 'n1'); first = store.recovered.log.last.index + 1\n"
        "for n in range(first, first + int(sys.argv[2])):\n"
        "    log = [Entry(n, Epoch(1, 'a'), 0, b'%d' % n * 9000)]\n"
        "    store.save(Save(entries=log, promise=Epoch(1, 'a'), commit=n))\n"
        "os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(directory), str(saves)], cwd=ROOT)
    assert run.returncode == -signal.SIGKILL


def wal(directory: Path) -> bytearray:
    return bytearray((directory / "food.db-wal").read_bytes())


def frames(data: bytearray) -> list[tuple[int, bool]]:
    """(offset, whether it is a commit) of each frame."""
    size = int.from_bytes(data[8:12], "big") + 24
    return [(at, data[at + 4 : at + 8] != bytearray(4)) for at in range(32, len(data) - size + 1, size)]


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    killed_after(tmp_path, 20)
    killed_after(tmp_path, 20)
    assert reopen(tmp_path).log.last.index == 40


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6])
def test_damage_in_the_middle_of_the_write_ahead_log_is_corruption(tmp_path: Path, part: float) -> None:
    killed_after(tmp_path, 20)
    data = wal(tmp_path)
    data[32 + int((len(data) - 32) * part) + 1000] ^= 1
    (tmp_path / "food.db-wal").write_bytes(data)
    assert "with good frames behind it" in corrupt(tmp_path)


@pytest.mark.parametrize("place", [2000, 23])  # in the page; in the sum, which the next frame's sum continues
def test_damage_of_the_only_commit_in_front_is_corruption(tmp_path: Path, place: int) -> None:
    """Its frame is bad, but says that it was one, and what stands behind it was written after it was synced."""
    killed_after(tmp_path, 1)
    data = wal(tmp_path)
    first, second = [at for at, commit in frames(data) if commit]
    assert first < second
    data[first + place] ^= 1
    (tmp_path / "food.db-wal").write_bytes(data)
    assert f"damaged at byte {first}, with good frames behind it" in corrupt(tmp_path)


@pytest.mark.parametrize("at", [0, 9, 17, 25])
def test_a_damaged_header_in_front_of_frames_is_corruption(tmp_path: Path, at: int) -> None:
    killed_after(tmp_path, 3)
    data = wal(tmp_path)
    data[at] ^= 1
    (tmp_path / "food.db-wal").write_bytes(data)
    assert "damaged at byte 0" in corrupt(tmp_path)


@pytest.mark.parametrize("page", [0, 1, 100, 740, 4097, 2**31])
def test_a_log_of_pages_that_no_database_has_is_corruption(tmp_path: Path, page: int) -> None:
    """Though its header's sum fits."""
    saved(tmp_path, applied(3)[1])
    words = [0x377F0682, 3007000, page, 0, 7, 9]
    first = second = 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + int.from_bytes(one.to_bytes(4, "big"), "little") + second) % 2**32
        second = (second + int.from_bytes(other.to_bytes(4, "big"), "little") + first) % 2**32
    header = b"".join(word.to_bytes(4, "big") for word in (*words, first, second))
    (tmp_path / "food.db-wal").write_bytes(header + bytes(1_000))
    assert "damaged at byte 0" in corrupt(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 32])
def test_a_log_without_frames_is_none(tmp_path: Path, size: int) -> None:
    saved(tmp_path, applied(3)[1])
    (tmp_path / "food.db-wal").write_bytes(bytes(size))
    assert reopen(tmp_path).log.last.index == 3


def test_every_torn_tail_is_taken_for_one(tmp_path: Path) -> None:
    """Cut anywhere: what was synced in front of the cut is there, and nothing is called corrupt."""
    killed_after(tmp_path, 6)
    data, database = wal(tmp_path), (tmp_path / "food.db").read_bytes()
    commits = [at for at, commit in frames(data) if commit]
    size = len(data)
    for cut in [*range(32, size, size // 17), size - 1]:
        (tmp_path / "food.db").write_bytes(database)
        (tmp_path / "food.db-wal").write_bytes(data[:cut])
        whole = sum(at + 24 + 4096 <= cut for at in commits)
        if whole:  # the first commit creates the tables
            assert reopen(tmp_path).log.last.index == whole - 1


def test_a_last_transaction_that_was_written_out_of_order_is_a_torn_tail(tmp_path: Path) -> None:
    """The kernel writes back as it likes: the commit's frame may be there and one in front of it not."""
    killed_after(tmp_path, 6)
    data = wal(tmp_path)
    last = [at for at, commit in frames(data) if commit][-2]  # the commit in front of the last one
    lost = next(at for at, _ in frames(data) if at > last)
    data[lost : lost + 24 + 4096] = bytes(24 + 4096)
    (tmp_path / "food.db-wal").write_bytes(data)
    assert reopen(tmp_path).log.last.index == 5


def test_a_kill_in_the_middle_of_a_spilled_transaction_is_no_corruption(tmp_path: Path) -> None:
    """A transaction larger than the cache writes, and rewrites, frames before it commits."""
    killed_after(tmp_path, 3)
    program = (
        "import sys; from pathlib import Path; from food.storage import Store; from food.core.ready import Save\n"
        "from food.core.message import Entry, Epoch\n"
        "store = Store(Path(sys.argv[1]), 'n1', lambda: None); store._sql('PRAGMA cache_size=20'); n = 3\n"
        "while True:\n"
        "    log = [Entry(i, Epoch(1, 'a'), 0, b'x' * 3000) for i in range(n + 1, n + 5001)]\n"
        "    print('saving', flush=True); store.save(Save(entries=log, promise=Epoch(1, 'a'))); n += 5000"
    )
    for pause_s in (0.005, 0.02, 0.05):
        with subprocess.Popen(
            [sys.executable, "-c", program.replace("n = 3", "n = store.recovered.log.last.index"), str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as process:
            assert process.stdout and process.stdout.readline()
            time.sleep(pause_s)
            process.kill()
        assert (reopen(tmp_path).log.last.index - 3) % 5000 == 0


# --- Set aside ---


def test_a_store_set_aside_is_whole_and_the_next_one_is_new(tmp_path: Path) -> None:
    killed_after(tmp_path, 5)
    (tmp_path / "food.db-journal").write_bytes(b"hot")
    target = set_aside(tmp_path, "this store was copied", "20300101-000000")
    assert sorted(path.name for path in target.iterdir()) == ["food.db", "food.db-journal", "food.db-wal", "why"]
    assert (target / "why").read_text() == "this store was copied\n"
    (target / "food.db-journal").unlink()
    old, new = reopen(target), reopen(tmp_path)
    assert old.log.last.index == 5 and new.log.last == START
    assert old.member.store != new.member.store and new.starts == 1


def test_two_stores_are_set_aside_in_one_second(tmp_path: Path) -> None:
    places = set()
    for _ in range(3):
        reopen(tmp_path)
        places.add(set_aside(tmp_path, "why", "20300101-000000"))
    assert len(places) == 3


def test_a_disk_that_does_not_let_it_be_set_aside_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopen(tmp_path)

    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(StoreBroken, match="cannot be set aside"):
        set_aside(tmp_path, "why", "20300101-000000")
