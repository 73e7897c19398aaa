"""The core's bounds, made small, so that a short run meets compaction, snapshots of many pieces and full batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from food.core import donor, leading, local, snapshot

SMALL = {
    (local, "FLUSH_ENTRIES"): 6,
    (local, "FLUSH_MS"): 200,
    (local, "KEEP_ENTRIES"): 8,
    (local, "KEEP_BYTES"): 2_000,
    (local, "HOLD_BYTES"): 60_000,
    (local, "COMPACT_MOST_ENTRIES"): 20,
    (local, "MARK_ENTRIES"): 4,
    (snapshot, "CHUNK_MOST_BYTES"): 250,
    (donor, "RANGE_MOST_BYTES"): 40,
    (donor, "PACE_BYTES_PER_MS"): 200,
    (donor, "PACE_BURST_BYTES"): 1_000,
    (leading, "APPEND_MOST_BYTES"): 120,
}
ROOMY = {
    (local, "FLUSH_ENTRIES"): 30,
    (local, "FLUSH_MS"): 500,
    (local, "KEEP_ENTRIES"): 100,
    (local, "COMPACT_MOST_ENTRIES"): 200,
    (local, "MARK_ENTRIES"): 25,
    (snapshot, "CHUNK_MOST_BYTES"): 1_500,
    (donor, "RANGE_MOST_BYTES"): 2_000,
    (leading, "APPEND_MOST_BYTES"): 1_000,
}


@contextmanager
def limited(small: bool) -> Iterator[None]:
    wanted = SMALL if small else ROOMY
    before = {(module, name): getattr(module, name) for module, name in wanted}
    for (module, name), value in wanted.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
