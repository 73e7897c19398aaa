"""Bytes to values and back, for frames that come from elsewhere: msgpack within bounds.

Knows msgpack and nothing of what a frame means; whoever unpacks checks the shape. A fresh decoder for every
frame: msgpack's Unpacker is not to be used again once it has raised.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any, NoReturn

import msgpack

from .core.packed import unpackb

FRAME_MOST_BYTES = 2 * 1024 * 1024  # of a client's or control request, and of its reply
# Items of one array or map. The header alone makes msgpack lay it out, up to a thousand of them inside each other:
# without these bounds a frame of 2 MiB took Debian's msgpack 1.0.3 five seconds [tried].
REQUEST_ITEMS_MOST = 1_000
ITEMS_MOST = 16 * 1024  # of a reply: more than the rows of a range
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


class BadFrame(ValueError):
    """A frame that is too large, torn, or not the msgpack that food speaks."""


def pack(value: Any) -> bytes:
    """Raises BadFrame for a value that msgpack cannot carry (an int above 64 bits, a set, …)."""
    try:
        packed: bytes = msgpack.packb(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BadFrame(f"cannot be packed: {_text(error)}") from None
    return packed


def unpack(frame: bytes, limit_bytes: int, items_most: int = ITEMS_MOST) -> Any:
    """The one value in `frame`: nil, bool, int, float, str, bytes, list, or a map whose keys are str or
    bytes, each once. Raises BadFrame otherwise.

    Memory while decoding is bounded by the frame: at worst (a frame of empty maps) some 72 times its bytes.
    """
    if len(frame) > limit_bytes:
        raise BadFrame(f"frame of {len(frame)} bytes, the limit is {limit_bytes}")
    try:
        return unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_array_len=items_most,
            max_map_len=items_most,
            max_ext_len=0,
            ext_hook=_no_ext,
            object_pairs_hook=_unique,
        )
    except BadFrame:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadFrame(f"frame of {len(frame)} bytes is not what food speaks: {_text(error)}") from None


def shown(value: Any, most_chars: int = 40) -> str:
    """A value for a refusal, cut short. What is nested a thousand times `repr` cannot show: it raises."""
    return _SHORT.repr(value)[:most_chars]


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
