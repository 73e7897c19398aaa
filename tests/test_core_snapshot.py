"""Snapshots in pieces: named by the position they end at; pieces of two never mix."""

from __future__ import annotations

import msgpack
import pytest

from food.core import snapshot as snapshot_module
from food.core.message import Chunk, Epoch, Member, MemberList, Position
from food.core.snapshot import Assembly, Snapshot, Source
from food.core.state import Draft, Session, State

EPOCH = Epoch(3, "a")
AT = Position(EPOCH, 12)
MEMBERS = MemberList(2, "c", (Member("n1", "a"),))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "CHUNK_MOST_BYTES", 60)


def filled(keys: int = 12) -> State:
    state = State()
    state.apply(1, msgpack.packb([0, 0, 0, "open"]))
    for number in range(keys):
        state.apply(number + 2, msgpack.packb([1, number + 1, number, "put", b"key %02d" % number, b"value"]))
    return state


def source_of(state: State) -> Source:
    return Source(AT, MEMBERS, state.open_view())


def give(source: Source, number: int) -> Chunk:
    chunk = source.chunk(EPOCH, number)
    assert chunk
    return chunk


def pieces(source: Source) -> list[Chunk]:
    found = [give(source, 0)]
    while not found[-1].final:
        found.append(give(source, len(found)))
    return found


def put_together(chunks: list[Chunk]) -> State:
    assembly = Assembly("donor", AT, chunks[0].data)
    for chunk in chunks[1:]:
        assembly.add(chunk)
    return assembly.finish()


def test_a_snapshot_survives_its_pieces() -> None:
    state = filled()
    chunks = pieces(source_of(state))
    assert len(chunks) > 4
    assert all(chunk.at == AT for chunk in chunks)
    found = put_together(chunks)
    assert found.rows == state.rows
    assert list(found.keys) == list(state.keys)
    assert found.sessions == state.sessions
    assert (found.applied, found.revision, found.hash) == (AT.index, state.revision, state.hash)


def test_its_pieces_can_be_put_aside_one_by_one() -> None:
    state = filled()
    chunks = pieces(source_of(state))
    assembly = Assembly("donor", AT, chunks[0].data)
    aside = [assembly.begin(), *(assembly.add(chunk) for chunk in chunks[1:])]
    assert [(piece.at, piece.number) for piece in aside] == [(AT, number) for number in range(len(chunks))]
    rows = [(key, row.value, row.revision) for key, row in sorted(state.rows.items())]
    assert [row for piece in aside for row in piece.rows] == rows
    assert [session for piece in aside for session in piece.sessions] == [(1, state.sessions[1].pack())]
    assert assembly.snapshot == Snapshot(AT, MEMBERS, state.revision, state.hash, 1, len(state.rows))
    assert assembly.received_keys == len(state.rows)


def test_an_empty_state_has_a_snapshot() -> None:
    assert not put_together(pieces(source_of(State()))).rows


def test_a_lost_piece_is_given_again_and_no_other() -> None:
    source = source_of(filled())
    give(source, 0)
    first = give(source, 1)
    assert give(source, 1) == first
    assert source.chunk(EPOCH, 0) is None
    assert source.chunk(EPOCH, 3) is None
    assert give(source, 2) != first


def test_at_one_index_every_node_gives_the_same_pieces() -> None:
    """A restarted donor holds its rows in another order."""
    state, again = filled(), State()
    draft = Draft()
    for key, row in reversed(state.rows.items()):
        draft.add(key, row.value, row.revision)
    draft.sessions[1] = state.sessions[1].pack()
    again.restore(state.applied, state.revision, state.hash, draft)
    assert pieces(source_of(state)) == pieces(source_of(again))


def test_the_view_is_closed_with_the_last_piece() -> None:
    state = filled()
    source = source_of(state)
    last = pieces(source)[-1]
    assert source.ended
    assert state.view is None
    assert give(source, last.number) == last


def test_pieces_that_are_missing_are_noticed() -> None:
    chunks = pieces(source_of(filled()))
    shorter = [*chunks[:2], *(chunk._replace(number=chunk.number - 1) for chunk in chunks[3:])]
    with pytest.raises(ValueError, match="announced"):
        put_together(shorter)


def test_a_damaged_snapshot_becomes_no_state() -> None:
    chunks = pieces(source_of(filled()))
    damaged = [chunk._replace(data=chunk.data.replace(b"value", b"valve")) for chunk in chunks]
    with pytest.raises(ValueError, match="state hash"):
        put_together([*chunks[:-2], *damaged[-2:]])


def test_items_out_of_order_are_refused() -> None:
    chunks = pieces(source_of(filled()))
    assembly = Assembly("donor", AT, chunks[0].data)
    assembly.add(chunks[1])
    assembly.add(chunks[2])
    with pytest.raises(ValueError, match="not the next item"):
        assembly.add(chunks[2]._replace(number=3))


# The last ones are numbers that the store could not keep.
NO_ITEMS = [[1, 2], [b"k", b"v"], "text", [b"k", "v", 1], [1, b"s", 3]]
NO_ITEMS += [[b"k", b"v", 2**63], [b"k", b"v", -1], [-1, b"s"], [2**63, b"s"]]


@pytest.mark.parametrize("item", NO_ITEMS)
def test_an_item_that_is_none_is_refused(item: object) -> None:
    header = pieces(source_of(State()))[0].data
    assembly = Assembly("donor", AT, header)
    with pytest.raises(ValueError, match="not the next item"):
        assembly.add(Chunk(EPOCH, AT, 1, True, msgpack.packb(item)))


def test_pieces_of_another_snapshot_are_a_bug() -> None:
    assembly = Assembly("donor", AT, pieces(source_of(State()))[0].data)
    with pytest.raises(AssertionError, match="never mix"):
        assembly.add(Chunk(EPOCH, Position(EPOCH, 13), 1, True, b""))


@pytest.mark.parametrize("data", [b"\xc1", b"\x91" * 1_015 + b"\xc0", b"\x91" * 5_000, b"\xdd\x00\x00\xff\xff"])
def test_a_piece_that_is_no_msgpack_is_refused_in_words(data: bytes) -> None:
    assembly = Assembly("donor", AT, pieces(source_of(State()))[0].data)
    with pytest.raises(ValueError, match=r"\w{5}"):
        assembly.add(Chunk(EPOCH, AT, 1, True, data))
    with pytest.raises(ValueError, match=r"\w{5}"):
        Assembly("donor", AT, data)


@pytest.mark.parametrize("number", [-1, 2**63, True, 1.0])
@pytest.mark.parametrize("field", [1, 3, 4])
def test_a_header_counts_as_the_store_does(field: int, number: object) -> None:
    header = msgpack.unpackb(pieces(source_of(State()))[0].data)
    header[field] = number
    with pytest.raises(ValueError, match="not a header"):
        Assembly("donor", AT, msgpack.packb(header))


NO_SESSIONS = [7, [1], [1, 2, 3], [-1, 0, []], [0, 0, [[1, 0]]], [0, 0, [[1, "code", {}]]], [0, 0, [[1, 0, b"x"]]]]
NO_SESSIONS += [[0, 0, [[1, "code", {"text": "t", "more": [1]}]]], [0, 0, [["1", 0, 0]]], [2**63, 0, []]]


@pytest.mark.parametrize("session", NO_SESSIONS)
def test_a_session_that_is_none_becomes_no_state(session: object) -> None:
    header = [*msgpack.unpackb(pieces(source_of(State()))[0].data)[:3], 1, 0]
    assembly = Assembly("donor", AT, msgpack.packb(header))
    assembly.add(Chunk(EPOCH, AT, 1, True, msgpack.packb([7, msgpack.packb(session)])))
    with pytest.raises(ValueError, match="not a session"):
        assembly.finish()


def test_a_session_survives_with_every_kind_of_result() -> None:
    state = State()
    for index, body in enumerate(([0, 0, 0, "open"], [1, 1, 0, "put", b"k", b"v"], [1, 2, 0, "cas", b"k", 9, b""]), 1):
        state.apply(index, msgpack.packb(body))
    state.apply(4, msgpack.packb([1, 3, 0, "close", 7]))
    session = state.sessions[1]
    assert [result.status for result in session.results.values()] == [0, "compare", 0]
    assert Session.unpack(session.pack()) == session
