"""Defects of the store, each of which the trials must notice: a rule left out on purpose, by its name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from food import storage, wal
from food.core.ready import Save
from food.storage import Store, StoreBroken

Patches = dict[tuple[Any, str], Any]  # (where, name): what stands there instead
_configure, _save = Store._configure, Store.save


def _after_configure(*statements: str) -> Callable[[Store, sqlite3.Connection], None]:
    def configure(store: Store, db: sqlite3.Connection) -> None:
        _configure(store, db)
        for statement in statements:
            db.execute(statement).fetchall()

    return configure


def _save_and_go_on(store: Store, save: Save) -> None:
    try:
        _save(store, save)
    except StoreBroken:
        assert store._db
        if store._db.in_transaction:
            store._db.execute("ROLLBACK")


def _save_in_two(store: Store, save: Save) -> None:
    entries, save.entries = save.entries, []
    if save.snapshot or save.truncate_from is not None or not entries:
        save.entries = entries
    else:
        _save(store, Save(entries=entries, promise=save.promise, commit=save.commit))
    _save(store, save)


def _fold_into_a_shorter_log(store: Store, short: bool = False) -> None:
    """Unsynced, and the write-ahead log forgotten."""
    assert store._db
    store._db.execute("PRAGMA synchronous=OFF")
    store._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    store._db.execute("PRAGMA synchronous=FULL")


def _every_tail_is_damage(path: Path) -> int | None:
    """As if nothing could be torn."""
    if not path.exists() or path.stat().st_size <= 32:
        return None
    found = wal._Wal(path.read_bytes())
    frames = range(32, len(found._wal) - found._frame_size + 1, found._frame_size)
    return next((at for at in frames if not found._good(at)), None)


def _nothing(*_: object) -> None:
    pass


# Name: what is patched, and by which trial it is noticed.
DEFECTS: dict[str, tuple[str, Patches]] = {
    "saved_without_a_sync": (
        "power_losses",
        {(Store, "_configure"): _after_configure("PRAGMA synchronous=OFF")},
    ),
    "synced_at_folding_only": (
        "power_losses",
        {(Store, "_configure"): _after_configure("PRAGMA synchronous=NORMAL")},
    ),
    "folded_without_a_sync": ("power_losses", {(Store, "fold"): _fold_into_a_shorter_log}),
    "a_save_is_two_transactions": ("power_losses", {(Store, "save"): _save_in_two}),
    "the_log_is_set_aside_first": ("power_losses", {(storage, "FILES"): tuple(reversed(storage.FILES))}),
    "a_torn_tail_is_called_damage": ("power_losses", {(wal, "damage"): _every_tail_is_damage}),
    "a_failed_save_is_passed_over": ("fault_each", {(Store, "save"): _save_and_go_on}),
    "what_was_not_synced_is_built_upon": ("fault_each", {(wal, "rewrite"): _nothing}),
    "a_failed_sync_of_the_directory_is_passed_over": ("fault_each", {(storage, "_sync_directory"): _nothing}),
    "a_failed_read_is_called_corruption": ("fault_each", {(Store, "_read_through"): _nothing}),
    "sums_are_not_looked_at": ("flips", {(storage, "_check"): _nothing}),
    "the_write_ahead_log_is_not_looked_at": ("flips", {(wal, "damage"): _nothing}),
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    with ExitStack() as stack:
        for (where, attribute), instead in DEFECTS[name][1].items() if name else ():
            target = where if not isinstance(where, str) else __import__(where, fromlist=["x"])
            stack.enter_context(patch.object(target, attribute, instead))
        yield
