"""A store whose state was changed so that no checksum tells: a row, and the stored hash to match it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgpack

from food.core.state import Row
from food.core.state import _row_hash as row_hash
from food.storage import _sum as checksum


def tamper(database: Path, key: bytes, value: bytes) -> None:
    """`key` has another value in the state's tables of a store that nobody has open; it must be there."""
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        old = Row(*db.execute("SELECT value, revision FROM state WHERE key = ?", (key,)).fetchone())
        new = Row(value, old.revision)
        (packed,) = db.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()
        applied, revision, state_hash = msgpack.unpackb(packed)
        changed = int(state_hash, 16) ^ row_hash(key, old) ^ row_hash(key, new)
        packed = msgpack.packb([applied, revision, f"{changed:x}"])
        db.execute("UPDATE state SET value = ? WHERE key = ?", (value, key))
        db.execute(
            "UPDATE meta SET value = ?, sum = ? WHERE name = 'state'",
            (packed, checksum("state", packed)),
        )
