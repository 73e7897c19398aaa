"""What comes off the network is decoded within bounds, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from food.codec import BadFrame, pack, unpack

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**64 - 1,
    -(2**63),
    1.5,
    "text",
    "ä€",
    b"\x00\xff",
    [],
    [1, [2, [b"3"]]],
    {"a": 1, "b": {"c": None}},
    {b"k": b"v"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_survives(value: Any) -> None:
    assert unpack(pack(value), 1000) == value


def test_the_limit_counts_the_frame() -> None:
    frame = pack(b"x" * 10)
    assert unpack(frame, len(frame)) == b"x" * 10
    with pytest.raises(BadFrame, match="frame of 12 bytes, the limit is 11"):
        unpack(frame, len(frame) - 1)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",  # never used
        b"\xdd\xff\xff\xff\xff",  # an array of four milliards, torn
        b"\xdc\x00",
        b"\xc6\x7f\xff\xff\xff",
        b"\xc0\xc0",  # two values
        b"\xa2\xff\xff",  # text that is not UTF-8
        b"\x81\x01\x02",  # a number as a key
        b"\x81\x90\x02",  # a list as a key
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x91" * 100_000 + b"\xc0",  # too deep
        b"\xd4\x05a",  # extension types, the timestamp among them
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\x05",
    ],
    ids=lambda frame: frame[:6].hex(),
)
def test_what_is_not_a_frame_is_refused_in_words(frame: bytes) -> None:
    with pytest.raises(BadFrame, match=r"\w+ \w+"):
        unpack(frame, 1_000_000)
    assert unpack(pack(["fine"]), 100) == ["fine"], "a refused frame leaves nothing behind"


@pytest.mark.parametrize("value", [2**64, {1, 2}, object(), "\ud800"], ids=repr)
def test_what_cannot_be_packed_is_refused_in_words(value: Any) -> None:
    with pytest.raises(BadFrame, match="cannot be packed: "):
        pack(value)
