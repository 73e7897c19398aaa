"""Every message survives the way; whatever else comes off the network is refused in words, and nothing breaks."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from food.codec import BadFrame, pack, unpack
from food.core.entries import pack_members
from food.core.message import (
    Ack,
    Answer,
    Append,
    Ask,
    Chunk,
    Digest,
    Entry,
    Epoch,
    Fetch,
    FetchChunk,
    Heartbeat,
    Kind,
    Member,
    MemberList,
    Message,
    Position,
    Range,
    Refused,
    Seal,
    Sealed,
)
from food.core.packed import NUMBER_MOST
from food.wire import VERSION, decode, encode, pack_runs, unpack_runs

ME = Member("n1", "store1")
E1, E2, E3 = Epoch(1, "a"), Epoch(2, "b"), Epoch(3, "store1")
LIST = pack_members(MemberList(2, "c", (Member("n1", "store1"), Member("n2", "b"))))
ENTRIES = (
    Entry(5, E1, Kind.COMMAND, b""),
    Entry(6, E2, Kind.BARRIER, b""),
    Entry(7, E2, Kind.COMMAND, b"\x00\xff" * 50),
    Entry(8, E3, Kind.MEMBERS, LIST),
)
P4, P8 = Position(E1, 4), Position(E3, 8)
ANSWER = Answer("life", 7, E2, P8, 3, 2, ("n1", "n2"), "backup", 100, True, 12, 4, "own", (3, "former"))
MESSAGES: list[Message] = [
    Ask("life", 1),
    ANSWER,
    ANSWER._replace(score=None, remembers=None, nodes=()),
    Seal(E3),
    Sealed(E3, P8, 2, ("n1", "n2", "n3")),
    Refused(E3, True),
    Append(E3, P4, ENTRIES, 4),
    Append(E3, P8, (), 8),
    Heartbeat(E3, P8, 8, NUMBER_MOST),
    Ack(E3, 8, 2),
    Fetch(E3, 0),
    Range(E3, P4, ENTRIES, 4),
    FetchChunk(E3, P8, 3),
    Chunk(E3, P8, 3, True, bytes(1000)),
    Digest(((1_000, 0), (1_007, 2**64 - 1)), False),
    Digest((), True),
]
NAMES = [type(message).__name__ for message in MESSAGES]


def test_every_kind_of_message_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(Message.__args__)


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_a_message_survives_the_way(message: Message) -> None:
    envelope = decode(encode("cluster", ME, message))
    assert envelope == ("cluster", ME, message)
    assert type(envelope.message) is type(message)
    for before, after in zip(_leaves(message), _leaves(envelope.message), strict=True):
        assert type(before) is type(after)  # an Epoch that came back as a list would be equal to nothing


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]


def test_entries_of_one_epoch_share_its_name() -> None:
    many = [Entry(i, E1, Kind.COMMAND, b"x") for i in range(1, 1001)]
    assert len(msgpack.packb(pack_runs(many))) < 5_100
    assert list(unpack_runs(0, msgpack.unpackb(msgpack.packb(pack_runs(many))))) == many


def frame(*fields: Any, version: int = VERSION, code: Any = 6) -> bytes:
    return pack([version, "cluster", "n1", "store1", code, *fields])


REFUSED = {
    "version": (frame(version=2), "protocol version 2, this node speaks 1: update the older one"),
    "code": (frame(code=99), "not a message between food's daemons"),
    "a map": (pack({"a": 1}), "not a message"),
    "nothing": (b"", "not what food speaks"),
    "too few fields": (frame(E1, code=8), "message 8 of 'n1'"),
    "too many fields": (frame(E1, 1, 2, 3, code=8), "message 8 of 'n1'"),
    "a negative index": (frame(E1, -1, 0, code=8), "-1 where a whole number belongs"),
    "true for one": (frame(E1, True, 0, code=8), "True where a whole number belongs"),
    "a list a thousand deep": (frame(E1, 1, code=8)[:-1] + b"\x91" * 1_015 + b"\xc0", "a whole number belongs"),
    "a member list of numbers": (
        frame(E1, [E1, 0], [[E1, [[2, pack([1, "c", [[1, 2]]])]]]], 0),
        "a member is [node, store]",
    ),
    "a fraction": (frame(E1, 1.0, 0, code=8), "1.0 where a whole number belongs"),
    "beyond what the store holds": (frame(E1, 2**63, 0, code=8), "where a whole number belongs"),
    "an epoch without candidate": (frame([1], 1, 0, code=8), "message 8"),
    "entries that are none": (frame(E1, [E1, 0], 7, 0), "message 6"),
    "an entry of text": (frame(E1, [E1, 0], [[E1, [[0, "text"]]]], 0), "an entry's data is bytes"),
    "an entry of an unknown kind": (frame(E1, [E1, 0], [[E1, [[9, b""]]]], 0), "message 6"),
    "a kind that is a list": (frame(E1, [E1, 0], [[E1, [[[], b""]]]], 0), "message 6"),
    "epochs that fall": (frame(E2, [E1, 0], [[E2, [[1, b""]]], [E1, [[1, b""]]]], 0), "epoch 1 behind one of 2"),
    "an epoch older than what it follows": (frame(E2, [E2, 4], [[E1, [[1, b""]]]], 0), "an epoch that they cannot"),
    "an epoch newer than the sender's": (frame(E1, [E1, 4], [[E2, [[1, b""]]]], 0), "an epoch that they cannot"),
    "a hash that is none": (frame([[1, 2**64 - 1], [2, -1]], True, code=13), "-1 where a hash belongs"),
    "a hash of text": (frame([[1, "0"]], True, code=13), "where a hash belongs"),
    "more marks than anybody keeps": (frame([[1, 1]] * 65, True, code=13), "65 marks: at most 64"),
    "a member list that is none": (frame(E1, [E1, 0], [[E1, [[2, b"\x01"]]]], 0), "not a member list"),
    "a member list of noise": (frame(E1, [E1, 0], [[E1, [[2, b"\xc1"]]]], 0), "message 6"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_words(name: str) -> None:
    sent, words = REFUSED[name]
    with pytest.raises(BadFrame) as caught:
        decode(sent)
    assert words in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    _decode_or_refuse(noise)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 14), st.lists(VALUES, max_size=14))
def test_fields_of_any_shape_never_raise_anything_else(code: int, fields: list[Any]) -> None:
    _decode_or_refuse(frame(*fields, code=code))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_one_part_exchanged_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    whole = unpack(encode("cluster", ME, message), 1 << 20)
    _exchange(whole, data)
    _decode_or_refuse(pack(whole))


def _exchange(value: list[Any], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(value) - 1))
    if isinstance(value[at], list) and value[at] and data.draw(st.booleans()):
        _exchange(value[at], data)
    else:
        value[at] = data.draw(VALUES)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_a_frame_with_bytes_exchanged_never_raises_anything_else(message: Message, data: st.DataObject) -> None:
    noisy = bytearray(encode("cluster", ME, message))
    for _ in range(data.draw(st.integers(1, 4))):
        noisy[data.draw(st.integers(0, len(noisy) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(noisy[: data.draw(st.integers(0, len(noisy)))] if data.draw(st.booleans()) else noisy))


def _decode_or_refuse(sent: bytes) -> None:
    try:
        envelope = decode(sent)
    except BadFrame as refused:
        assert len(str(refused)) < 500
        return
    assert encode(envelope.cluster, envelope.sender, envelope.message)  # what came in can go out
