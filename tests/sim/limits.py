"""The core's bounds, made small, so that a short run meets compaction, snapshots of many pieces and full batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import NamedTuple

from food.core import donor, leading, local, snapshot, state

SMALL = {
    (local, "FLUSH_ENTRIES"): 6,
    (local, "FLUSH_MS"): 200,
    (local, "KEEP_ENTRIES"): 8,
    (local, "KEEP_BYTES"): 2_000,
    (local, "HOLD_BYTES"): 60_000,
    (local, "COMPACT_MOST_ENTRIES"): 14,
    (local, "MARK_ENTRIES"): 4,
    (snapshot, "CHUNK_MOST_BYTES"): 250,
    (donor, "RANGE_MOST_BYTES"): 40,
    (donor, "PACE_BYTES_PER_MS"): 200,
    (donor, "PACE_BURST_BYTES"): 1_000,
    (leading, "APPEND_MOST_BYTES"): 120,
    (state, "SESSIONS_MOST"): 4,
    (state, "SESSION_RESULTS_MOST"): 3,
}
ROOMY = {
    (local, "FLUSH_ENTRIES"): 30,
    (local, "FLUSH_MS"): 500,
    (local, "KEEP_ENTRIES"): 100,
    (local, "COMPACT_MOST_ENTRIES"): 170,
    (local, "MARK_ENTRIES"): 25,
    (snapshot, "CHUNK_MOST_BYTES"): 1_500,
    (donor, "RANGE_MOST_BYTES"): 2_000,
    (leading, "APPEND_MOST_BYTES"): 1_000,
    (state, "SESSIONS_MOST"): 12,
    (state, "SESSION_RESULTS_MOST"): 6,
}


# For a world that runs long: as ROOMY, with more of everything under way.
LARGE = ROOMY | {
    (local, "FLUSH_ENTRIES"): 500,
    (local, "KEEP_ENTRIES"): 2_000,
    (local, "COMPACT_MOST_ENTRIES"): 1_500,
    (donor, "RANGE_MOST_BYTES"): 20_000,
    (state, "SESSIONS_MOST"): 1_000,
    (state, "SESSION_RESULTS_MOST"): 256,
}
Limits = dict[tuple[ModuleType, str], int]


class Sessions(NamedTuple):
    """How many there are, and how many results each keeps."""

    most: int
    results: int


def sessions(wanted: Limits) -> Sessions:
    """What the model is told, too."""
    return Sessions(wanted[state, "SESSIONS_MOST"], wanted[state, "SESSION_RESULTS_MOST"])


@contextmanager
def bounded(wanted: Limits) -> Iterator[None]:
    before = {(module, name): getattr(module, name) for module, name in wanted}
    for (module, name), value in wanted.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def limited(small: bool) -> AbstractContextManager[None]:
    return bounded(SMALL if small else ROOMY)
