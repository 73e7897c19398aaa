"""Seeded defects of food/storage.py, for which the simulator has a disk of its own: the real store's tests notice them.

A defect names the test, which holds without it and fails with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import test_storage as of_store
from sim.defects import replaced

from food import storage, wal
from food.core.entries import pack_members
from food.core.message import Position
from food.core.ready import Save
from food.core.snapshot import Piece
from food.storage import Store, StoreBroken

Check = Callable[[Path], None]


def acknowledged_before_fsync(original: Any, self: Store, db: sqlite3.Connection) -> None:
    original(self, db)
    db.execute("PRAGMA synchronous=OFF")


def saved_in_many_transactions(original: Any, self: Store, save: Save) -> None:
    try:
        self._write(save)
    except sqlite3.Error as error:
        raise StoreBroken(str(error)) from error


def went_on_after_a_failed_save(original: Any, self: Store, save: Save) -> None:
    with suppress(StoreBroken):
        original(self, save)


def snapshot_installed_as_it_comes(original: Any, self: Store, piece: Piece) -> None:
    original(self, piece)
    self._segment, _ = self._add_segments("segments", self._segment, piece.rows)


def sessions_outside_the_snapshot(original: Any, self: Store, sessions: Any, table: str = "sessions") -> None:
    original(self, sessions if table == "sessions" else [], table)


def snapshots_mixed(original: Any, self: Store, piece: Piece) -> None:
    if piece.number == 0 and self._staged != [0, 0]:
        self._staged = [0, 0]  # and what was put aside stays
    else:
        original(self, piece)


def snapshot_that_is_not_whole_taken(original: Any, self: Store, snapshot: Any) -> None:
    self._staged = [snapshot.sessions, snapshot.keys]
    original(self, snapshot)


def suffix_behind_a_snapshot_lost(original: Any, self: Store, save: Save) -> None:
    if save.snapshot:
        save.entries = []
    original(self, save)


def cut_takes_the_row_s_front_too(original: Any, self: Store, index: int, commit: int) -> None:
    self._sql("DELETE FROM log WHERE last >= ?", index)


def cut_and_its_replacement_apart(original: Any, self: Store, index: int, commit: int) -> None:
    original(self, index, commit)
    self._sql("COMMIT")
    self._sql("BEGIN IMMEDIATE")


def compaction_keeps_another_list(original: Any, self: Store, name: str, value: Any) -> None:
    if name == "base" and value[1]:
        value = [value[0], pack_members(of_store.MEMBERS._replace(number=7))]
    original(self, name, value)


def start_not_counted(original: Any, self: Store, name: str, value: Any) -> None:
    if name != "starts" or value == 0:
        original(self, name, value)


def promise_not_saved(original: Any, self: Store, name: str, value: Any) -> None:
    if name != "promise" or not value[0]:
        original(self, name, value)


def swept_with_what_is_alive(original: Any, self: Store, changes: Any) -> list[Any]:
    original(self, changes)
    return []


def deletions_not_flushed(original: Any, self: Store, table: str, number: int, rows: Any) -> Any:
    return original(self, table, number, [row for row in rows if row[1] is not None])


def checksums_not_compared(original: Any, *args: Any) -> None:
    return None


def write_ahead_log_not_scanned(original: Any, *args: Any) -> None:
    return None


def cut_short_leaves_nothing(tmp_path: Path) -> None:
    """A cut and its replacement are one transaction: where the replacement fails, the old tail is still there."""
    with closing(Store(tmp_path, "n1")) as store:
        store.save(Save(entries=of_store.commands(1, 5), promise=of_store.ONE))
        with pytest.raises(StoreBroken):
            store.save(Save(truncate_from=4, entries=of_store.commands(1, 1, of_store.TWO), promise=of_store.TWO))
    assert of_store.entries(of_store.reopen(tmp_path).log) == of_store.commands(1, 5)


def keys_that_are_gone(tmp_path: Path) -> None:
    """What was put aside of a snapshot with more keys does not come up in the next."""
    pieces, _ = of_store.staged(of_store.applied(9)[0], Position(of_store.TWO, 9))
    donor, _ = of_store.applied(7)
    others, snapshot = of_store.staged(donor, Position(of_store.TWO, 7))
    with closing(Store(tmp_path, "n1")) as store:
        for save in [*pieces, *others]:
            store.save(save)
        store.save(Save(snapshot=snapshot, promise=of_store.TWO, commit=7))
    assert of_store.reopen(tmp_path).state.rows == donor.rows


def flipped_checksum(tmp_path: Path) -> None:
    statement = "UPDATE log SET data = CAST(data || x'00' AS BLOB)"
    of_store.test_rows_that_food_did_not_write_are_noticed(tmp_path, statement, "checksum of log entries 1 to 10")


def flipped_frame(tmp_path: Path) -> None:
    of_store.test_damage_in_the_middle_of_the_write_ahead_log_is_corruption(tmp_path, 0.3)


def segments(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        of_store.test_segments_hold_the_state_and_not_much_more(tmp_path, monkeypatch, 0)


def cut_inside_a_row(tmp_path: Path) -> None:
    of_store.test_truncation_inside_a_row_keeps_its_front(tmp_path, 500)


WHOLE_SNAPSHOT: Check = of_store.test_a_snapshot_replaces_everything_in_one_transaction
DEFECTS: tuple[tuple[Callable[..., Any], Any, str, Check], ...] = (
    (acknowledged_before_fsync, Store, "_configure", of_store.test_the_pragmas_are_in_force),
    (saved_in_many_transactions, Store, "save", cut_short_leaves_nothing),
    (went_on_after_a_failed_save, Store, "save", of_store.test_a_full_disk_is_fatal_and_named),
    (snapshot_installed_as_it_comes, Store, "_stage", WHOLE_SNAPSHOT),
    (sessions_outside_the_snapshot, Store, "_insert_sessions", WHOLE_SNAPSHOT),
    (suffix_behind_a_snapshot_lost, Store, "_write", WHOLE_SNAPSHOT),
    (snapshots_mixed, Store, "_stage", keys_that_are_gone),
    (snapshot_that_is_not_whole_taken, Store, "_install", of_store.test_a_snapshot_that_is_not_whole_is_not_taken),
    (cut_takes_the_row_s_front_too, Store, "_truncate", cut_inside_a_row),
    (cut_and_its_replacement_apart, Store, "_truncate", cut_short_leaves_nothing),
    (compaction_keeps_another_list, Store, "_put", of_store.test_a_compaction_keeps_the_list_that_ruled_there),
    (start_not_counted, Store, "_put", of_store.test_a_new_store_is_blank_and_keeps_its_id),
    (promise_not_saved, Store, "_put", of_store.test_log_promise_commit_and_what_is_remembered_come_back),
    (swept_with_what_is_alive, Store, "_sweep", segments),
    (deletions_not_flushed, Store, "_add_segments", segments),
    (checksums_not_compared, storage, "_check", flipped_checksum),
    (write_ahead_log_not_scanned, wal, "damage", flipped_frame),
)


@pytest.mark.parametrize(("defect", "target", "name", "check"), DEFECTS, ids=[row[0].__name__ for row in DEFECTS])
def test_a_defect_of_the_store_is_noticed(
    tmp_path: Path, defect: Callable[..., Any], target: Any, name: str, check: Check
) -> None:
    for directory in ("without", "with"):
        (tmp_path / directory).mkdir()
    check(tmp_path / "without")
    with replaced(target, name, defect), pytest.raises((AssertionError, StoreBroken, pytest.fail.Exception)):
        check(tmp_path / "with")
