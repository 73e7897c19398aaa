"""A store whose state was changed so that no checksum tells: a row, and the stored hash to match it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgpack

from food.core.state import Row
from food.storage import _sum as checksum


def tamper(database: Path, key: bytes, value: bytes) -> None:
    """`key` has another value in the state of a store that nobody has open; it must be there."""
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        for number, data in db.execute("SELECT number, data FROM segments ORDER BY number").fetchall():
            rows = {found: (held, at) for found, held, at in msgpack.unpackb(data)}
            if key in rows:
                where, kept = number, rows
        old = Row.of(key, *kept[key])
        new = Row.of(key, value, old.revision)
        kept[key] = value, old.revision
        (packed,) = db.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()
        applied, revision, state_hash = msgpack.unpackb(packed)
        changed = int(state_hash, 16) ^ old.hash ^ new.hash
        packed = msgpack.packb([applied, revision, f"{changed:x}"])
        data = msgpack.packb([(found, *row) for found, row in kept.items()])
        db.execute("UPDATE segments SET data = ?, sum = ? WHERE number = ?", (data, checksum(where, data), where))
        db.execute(
            "UPDATE meta SET value = ?, sum = ? WHERE name = 'state'",
            (packed, checksum("state", packed)),
        )
