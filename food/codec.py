"""Bytes to values and back, for frames that come from elsewhere: msgpack within bounds.

Knows msgpack and nothing of what a frame means; whoever unpacks checks the shape. A fresh decoder for every
frame: msgpack's Unpacker is not to be used again once it has raised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import msgpack

FRAME_MOST_BYTES = 2 * 1024 * 1024  # of a client's or control request, and of its reply


class BadFrame(ValueError):
    """A frame that is too large, torn, or not the msgpack that food speaks."""


def pack(value: Any) -> bytes:
    """Raises BadFrame for a value that msgpack cannot carry (an int above 64 bits, a set, …)."""
    try:
        packed: bytes = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadFrame(f"cannot be packed: {_text(error)}") from None
    return packed


def unpack(frame: bytes, limit_bytes: int) -> Any:
    """The one value in `frame`: nil, bool, int, float, str, bytes, list, or a map whose keys are str or
    bytes, each once. Raises BadFrame otherwise.

    Memory while decoding is bounded by the frame: at worst (a frame of empty maps) some 72 times its bytes.
    """
    if len(frame) > limit_bytes:
        raise BadFrame(f"frame of {len(frame)} bytes, the limit is {limit_bytes}")
    try:
        return msgpack.unpackb(
            frame, raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_no_ext, object_pairs_hook=_unique
        )
    except BadFrame:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadFrame(f"frame of {len(frame)} bytes is not what food speaks: {_text(error)}") from None


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """msgpack lets a later key win in silence; two readers of one frame could then differ."""
    items = list(pairs)  # its pure-Python form hands over a generator
    found = dict(items)
    if len(found) != len(items):
        raise BadFrame(f"a map has a key twice among its {len(items)}")
    if any(type(key) not in (str, bytes) for key in found):  # strict_map_key is not enough in that form
        raise BadFrame("a map's keys are str or bytes")
    return found


def _no_ext(code: int, data: bytes) -> NoReturn:
    # max_ext_len=0 refuses all but the empty ones.
    raise BadFrame(f"extension type {code}: food uses none")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__  # msgpack's StackError (nested too deeply) has no text
