"""Peers' messages to frames and back. Knows their shapes, not their meaning.

A frame is msgpack [version, cluster, node, store, code, fields…]; cluster is "" before the founding. Entries travel
as runs of one epoch, [[number, candidate], [[kind, data]…]], since most of a log repeats the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any, NamedTuple

from .codec import BadFrame, pack, shown, unpack
from .core.entries import unpack_members
from .core.message import (
    NO_EPOCH,
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
    Message,
    Position,
    Range,
    Refused,
    Seal,
    Sealed,
)
from .core.packed import is_whole

VERSION = 1
_KINDS = {int(kind): kind for kind in Kind}  # looked up: calling an enum costs as much as all the rest of an entry
HASH_MOST = 2**64 - 1
MARKS_MOST = 64
PEER_FRAME_MOST_BYTES = 8 * 1024 * 1024
PEER_ITEMS_MOST = 36 * 1024  # more than the entries of one Append (food/core/leading.py)


class Envelope(NamedTuple):
    cluster: str
    sender: Member
    message: Message


def encode(cluster: str, sender: Member, message: Message) -> bytes:
    code = _CODES[type(message)]
    fields: Iterable[Any] = message
    if isinstance(message, Append | Range):
        fields = (message.epoch, message.prev, pack_runs(message.entries), message.commit)
    return pack([VERSION, cluster, sender.node, sender.store, code, *fields])


def decode(frame: bytes) -> Envelope:
    """Raises BadFrame, saying what is wrong with it."""
    match unpack(frame, PEER_FRAME_MOST_BYTES, PEER_ITEMS_MOST):
        case [int(version), *_] if version != VERSION:
            raise BadFrame(f"protocol version {version}, this node speaks {VERSION}: update the older one")
        case [_, str(cluster), str(node), str(store), int(code), *fields] if code in _READERS:
            try:
                return Envelope(cluster, Member(node, store), _READERS[code](fields))
            except (ValueError, TypeError, LookupError) as error:
                raise BadFrame(f"message {code} of {node!r:.40}: {error!s:.200}") from None
    raise BadFrame("not a message between food's daemons")


def pack_runs(entries: Iterable[Entry]) -> list[Any]:
    return [[epoch, [[e.kind, e.data] for e in run]] for epoch, run in groupby(entries, key=lambda e: e.epoch)]


def unpack_runs(prev: int, runs: Any) -> tuple[Entry, ...]:
    """Entries behind index `prev`. Raises ValueError or TypeError."""
    entries: list[Entry] = []
    index, epoch = prev, NO_EPOCH
    for epoch_fields, run in runs:
        before, epoch = epoch, _epoch(epoch_fields)
        if epoch < before:
            raise ValueError(f"an entry of epoch {epoch.number} behind one of {before.number}")
        for kind, data in run:
            index += 1
            if type(data) is not bytes:
                raise ValueError("an entry's data is bytes")
            if kind == Kind.MEMBERS:
                unpack_members(data)
            entries.append(Entry(index, epoch, _KINDS[kind], data))
    return tuple(entries)


def _whole(value: Any) -> int:
    if not is_whole(value):
        raise ValueError(f"{shown(value)} where a whole number belongs")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{shown(value)} where text belongs")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{shown(value)} where true or false belongs")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError(f"{shown(value)} where bytes belong")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(name) for name in value)


def _epoch(value: Any) -> Epoch:
    number, candidate = value
    return Epoch(_whole(number), _text(candidate))


def _position(value: Any) -> Position:
    epoch, index = value
    return Position(_epoch(epoch), _whole(index))


def _seen(value: Any) -> tuple[int, str] | None:
    if value is None:
        return None
    starts, life = value
    return _whole(starts), _text(life)


def _marks(value: Any) -> tuple[tuple[int, int], ...]:
    if len(value) > MARKS_MOST:
        raise ValueError(f"{len(value)} marks: at most {MARKS_MOST}")
    return tuple((_whole(index), _hash(found)) for index, found in value)


def _hash(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= HASH_MOST:
        raise ValueError(f"{shown(value)} where a hash belongs")
    return value


def _optional_whole(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _append(fields: list[Any]) -> Append:
    epoch_fields, prev, runs, commit = fields
    epoch, position = _epoch(epoch_fields), _position(prev)
    entries = unpack_runs(position.index, runs)
    if entries and not position.epoch <= entries[0].epoch <= entries[-1].epoch <= epoch:
        raise ValueError("entries of an epoch that they cannot have")
    return Append(epoch, position, entries, _whole(commit))


def _range(fields: list[Any]) -> Range:
    return Range(*_append(fields))


def _reader(kind: Callable[..., Message], *parts: Callable[[Any], Any]) -> Callable[[list[Any]], Message]:
    def read(fields: list[Any]) -> Message:
        return kind(*(part(field) for part, field in zip(parts, fields, strict=True)))

    return read


_READERS: dict[int, Callable[[list[Any]], Message]] = {
    1: _reader(Ask, _text, _whole),
    2: _reader(
        Answer,
        _text,
        _whole,
        _epoch,
        _position,
        _whole,
        _whole,
        _names,
        _text,
        _optional_whole,
        _truth,
        _whole,
        _whole,
        _text,
        _seen,
    ),
    3: _reader(Seal, _epoch),
    4: _reader(Sealed, _epoch, _position, _whole, _names),
    5: _reader(Refused, _epoch, _truth),
    6: _append,
    7: _reader(Heartbeat, _epoch, _position, _whole, _whole),
    8: _reader(Ack, _epoch, _whole, _whole),
    9: _reader(Fetch, _epoch, _whole),
    10: _range,
    11: _reader(FetchChunk, _epoch, _position, _whole),
    12: _reader(Chunk, _epoch, _position, _whole, _truth, _bytes),
    13: _reader(Digest, _marks, _truth),
}
_CODES: dict[type, int] = {
    Ask: 1,
    Answer: 2,
    Seal: 3,
    Sealed: 4,
    Refused: 5,
    Append: 6,
    Heartbeat: 7,
    Ack: 8,
    Fetch: 9,
    Range: 10,
    FetchChunk: 11,
    Chunk: 12,
    Digest: 13,
}
