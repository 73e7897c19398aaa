"""Bytes to values for what comes from elsewhere: msgpack, bounded, and refused with ValueError whatever the bytes.

Debian's msgpack 1.0.3 never frees what it had built when it refuses bytes in the middle of nested values [tried: 8 MB
of a frame of 3000 bytes]. There bytes are first passed over, which builds nothing and finds all that is torn, too deep
or too much. What may still be refused later is little, and counted: at LEAK_MOST_BYTES msgpack's slow form takes over.
Refusals name kinds and no values: what is nested a thousand times cannot even be printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import msgpack
from msgpack import fallback

NUMBER_MOST = 2**63 - 1  # SQLite's
LEAK_MOST_BYTES = 128 * 1024 * 1024
LEVEL_BYTES, LEVELS_MOST, ITEM_BYTES = 80, 1024, 8  # what a refusal costs: by level, and by byte (of empty maps more)

# 1.2.4 frees it [tried: tests/test_core_packed.py]; which version before it was the first to is not known.
keeps_refused = msgpack.version < (1, 2, 4)
_leaked_bytes = 0  # by this process, about; decides how something is decoded, never what comes out


def unpackb(data: bytes, **options: Any) -> Any:
    """msgpack's, of exactly one value. Raises what msgpack raises, above all ValueError."""
    if not keeps_refused:
        return msgpack.unpackb(data, **options)
    probe = _probe(data)
    probe.skip()
    if probe.tell() != len(data):
        raise ValueError("received extra data")
    if _leaked_bytes >= LEAK_MOST_BYTES:
        return fallback.unpackb(data, **options)
    try:
        return msgpack.unpackb(data, **options)
    except Exception:  # whatever it was: the frame is counted, and refused as before
        _count(data)
        raise


def unpacked(data: bytes, items_most: int) -> Any:
    """The one value in `data`, no array or map of which has more items. Raises ValueError."""
    try:
        return unpackb(data, **_limits(items_most))
    except _REFUSALS as error:
        raise _refusal(error) from None


def unpacked_all(data: bytes, items_most: int) -> Iterator[Any]:
    """The values in `data`, one after the other. Raises ValueError."""
    try:
        probe = _probe(data)  # with every msgpack: what iterates takes a torn end for the end
        while probe.tell() < len(data):
            probe.skip()
        kind = fallback.Unpacker if _leaked_bytes >= LEAK_MOST_BYTES else msgpack.Unpacker
        unpacker = kind(max_buffer_size=len(data) + 1, **_limits(items_most))
        unpacker.feed(data)
        yield from unpacker
    except _REFUSALS as error:
        _count(data)
        raise _refusal(error) from None


_REFUSALS = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


def _refusal(error: Exception) -> ValueError:
    return ValueError(str(error) or type(error).__name__)  # msgpack's StackError has no text


def _limits(items_most: int) -> dict[str, int]:
    return {"max_array_len": items_most, "max_map_len": items_most, "max_ext_len": 0}


def _probe(data: bytes) -> Any:
    probe = msgpack.Unpacker(max_buffer_size=len(data) + 1)
    probe.feed(data)
    return probe


def _count(data: bytes) -> None:
    global _leaked_bytes
    _leaked_bytes += LEVELS_MOST * LEVEL_BYTES + ITEM_BYTES * len(data)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a number as food counts with, and the store keeps."""
    return type(value) is int and 0 <= value <= NUMBER_MOST
