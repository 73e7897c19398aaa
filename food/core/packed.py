"""What entries and snapshots hold, from msgpack to values: bounded, and refused with ValueError, whatever the bytes.

An array's header alone makes msgpack lay it out, up to a thousand of them inside each other: so their sizes have
bounds. Refusals name kinds and no values: what is nested a thousand times cannot even be printed.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import msgpack

NUMBER_MOST = 2**63 - 1  # SQLite's


def unpacked(data: bytes, items_most: int) -> Any:
    """The one value in `data`, no array or map of which has more items. Raises ValueError."""
    try:
        return msgpack.unpackb(data, max_array_len=items_most, max_map_len=items_most, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(str(error) or type(error).__name__) from None  # msgpack's StackError has no text


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a number as food counts with, and the store keeps."""
    return type(value) is int and 0 <= value <= NUMBER_MOST
