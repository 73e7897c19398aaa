"""A backup's side: Commit and Ack go up to what is matched, never to what is merely held."""

from __future__ import annotations

import msgpack
import pytest

from food.core import snapshot as snapshot_module
from food.core.entries import pack_members
from food.core.following import FETCH_RETRY_MS, Following
from food.core.local import Local, blank
from food.core.message import (
    START,
    Ack,
    Append,
    Chunk,
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
)
from food.core.snapshot import Source
from food.core.state import State

ME, PRIMARY = Member("n2", "b"), Member("n1", "a")
ONE, TWO = Epoch(1, "a"), Epoch(2, "a")
LIST = MemberList(1, "c", (PRIMARY, ME))
FOUNDING = Entry(1, ONE, Kind.MEMBERS, pack_members(LIST))


def put(index: int, epoch: Epoch = ONE) -> Entry:
    return Entry(index, epoch, Kind.COMMAND, msgpack.packb([0, 0, 0, "put", b"k%d" % index, b"v"]))


@pytest.fixture
def local() -> Local:
    """Committed up to 1; holds 2 and 3 of epoch 1, of which nobody knows whether they are wanted."""
    own = Local(blank(ME), "life", ["n1", "n2"])
    own.append([FOUNDING, put(2), put(3)])
    own.advance(1)
    own.promise_epoch(TWO)
    own.take_ready(0)
    return own


@pytest.fixture
def following(local: Local) -> Following:
    return Following(local, PRIMARY, TWO, 0)


def sent(local: Local) -> list[Message]:
    return [message for _, message in local.take_ready(0).send]


def acked(local: Local, following: Following) -> Ack:
    following.finish_turn()
    found = [message for message in sent(local) if isinstance(message, Ack)]
    assert len(found) == 1
    return found[0]


def test_a_new_epoch_resets_matched_to_the_commit_index(following: Following) -> None:
    assert following.matched == 1


def test_an_append_behind_an_equal_position_is_matched(local: Local, following: Following) -> None:
    following.on_append(Append(TWO, Position(ONE, 3), (put(4, TWO),), 3), 0)
    assert acked(local, following) == Ack(TWO, 4, 0)
    assert local.commit == 3


def test_commit_goes_up_to_matched_only(local: Local, following: Following) -> None:
    following.on_append(Append(TWO, Position(ONE, 1), (put(2),), 9), 0)
    assert (following.matched, local.commit) == (2, 2)
    assert local.log.last.index == 3


def test_a_gap_is_fetched_from_above_what_is_matched(local: Local, following: Following) -> None:
    following.on_append(Append(TWO, Position(TWO, 7), (put(8, TWO),), 7), 0)
    assert sent(local) == [Fetch(TWO, 1)]
    assert following.behind == 7


def test_one_bounded_range_is_outstanding(local: Local, following: Following) -> None:
    for now_ms in (0, 10, FETCH_RETRY_MS - 1):
        following.on_append(Append(TWO, Position(TWO, 7), (put(8, TWO),), 7), now_ms)
    assert sent(local) == [Fetch(TWO, 1)]
    following.on_append(Append(TWO, Position(TWO, 7), (put(8, TWO),), 7), FETCH_RETRY_MS)
    assert sent(local) == [Fetch(TWO, 1)]


def test_the_next_range_is_asked_for_at_once(local: Local, following: Following) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 5), 0, 0), 0)
    following.on_append(Range(TWO, Position(ONE, 1), (put(2),), 1), 1)
    assert [message for message in sent(local) if isinstance(message, Fetch)] == [Fetch(TWO, 1), Fetch(TWO, 2)]


def test_a_heartbeat_shows_a_gap_at_the_tail(local: Local, following: Following) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 4), 1, 0), 0)
    following.finish_turn()
    assert sent(local) == [Fetch(TWO, 1), Ack(TWO, 1, 0)]


def test_a_heartbeat_over_an_old_tail_matches_nothing(local: Local, following: Following) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 3), 3, 0), 0)
    assert acked(local, following).matched == 1
    assert local.commit == 1


def test_a_heartbeat_that_ends_where_we_do_matches_everything(local: Local, following: Following) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(ONE, 3), 2, 0), 0)
    assert acked(local, following).matched == 3
    assert local.commit == 2
    assert following.behind == 0


def test_rounds_are_echoed_and_never_go_back(local: Local, following: Following) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(ONE, 3), 1, 5), 0)
    assert acked(local, following).round == 5
    following.on_heartbeat(Heartbeat(TWO, Position(ONE, 3), 1, 4), 1)
    assert acked(local, following).round == 5


def test_one_ack_a_turn(local: Local, following: Following) -> None:
    for index in (4, 5, 6):
        epoch = ONE if index == 4 else TWO
        following.on_append(Append(TWO, Position(epoch, index - 1), (put(index, TWO),), 1), 0)
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 6), 1, 1), 0)
    assert acked(local, following) == Ack(TWO, 6, 1)
    following.finish_turn()
    assert sent(local) == []


def test_an_old_heartbeat_does_not_take_back(local: Local, following: Following) -> None:
    following.on_append(Append(TWO, Position(ONE, 3), (put(4, TWO),), 4), 0)
    following.on_heartbeat(Heartbeat(TWO, Position(ONE, 3), 2, 0), 0)
    assert (following.matched, local.commit) == (4, 4)


# --- Snapshots ---


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[Chunk]:
    """A snapshot at 9 of four pieces or more."""
    monkeypatch.setattr(snapshot_module, "CHUNK_MOST_BYTES", 10)
    state = State()
    for index in range(1, 9):
        state.apply(index, put(index).data)
    source = Source(Position(TWO, 9), LIST, state.open_view())
    found: list[Chunk] = []
    while not found or not found[-1].final:
        chunk = source.chunk(TWO, len(found))
        assert chunk
        found.append(chunk)
    assert len(found) > 4
    return found


def test_pieces_are_asked_for_one_by_one_and_installed_whole(
    local: Local, following: Following, pieces: list[Chunk]
) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 9), 9, 0), 0)
    sent(local)
    assert following.received is None
    for chunk in pieces[:-1]:
        following.on_chunk(chunk, 1)
        assert sent(local) == [FetchChunk(TWO, chunk.at, chunk.number + 1)]
        assert local.commit == 1
        assert following.received == (chunk.number, 8), "a key a piece, the header before"
    following.on_chunk(pieces[-1], 2)
    assert following.received is None
    assert local.commit == following.matched == 9
    assert len(local.state.rows) == 8


def test_a_piece_that_comes_twice_or_early_is_ignored(local: Local, following: Following, pieces: list[Chunk]) -> None:
    for number in (0, 1, 1, 3, 2, 2):
        following.on_chunk(pieces[number], 1)
    assert [message.number for message in sent(local) if isinstance(message, FetchChunk)] == [1, 2, 3]


def test_a_source_that_begins_anew_is_followed(local: Local, following: Following, pieces: list[Chunk]) -> None:
    for number in (0, 1, 2, 0):
        following.on_chunk(pieces[number], 1)
    for chunk in pieces[1:]:
        following.on_chunk(chunk, 1)
    assert local.commit == 9


def test_a_newer_snapshot_that_begins_in_the_turn_of_an_installation_waits(
    local: Local, following: Following, pieces: list[Chunk]
) -> None:
    """The save of that turn takes what was put aside: it must still be there."""
    for chunk in pieces:
        following.on_chunk(chunk, 1)
    following.on_chunk(pieces[0]._replace(at=Position(TWO, 12)), 1)
    save = local.take_ready(1).save
    assert save and save.snapshot
    assert [(piece.at.index, piece.number) for piece in save.staged] == [(9, n) for n in range(len(pieces))]
    following.on_chunk(pieces[0]._replace(at=Position(TWO, 12)), 2)
    assert sent(local)[-1] == FetchChunk(TWO, Position(TWO, 12), 1)


def test_a_piece_of_another_snapshot_is_not_mixed_in(local: Local, following: Following, pieces: list[Chunk]) -> None:
    other = pieces[1]._replace(at=Position(TWO, 10))
    following.on_chunk(pieces[0], 1)
    following.on_chunk(other, 1)
    for chunk in pieces[1:]:
        following.on_chunk(chunk, 1)
    assert local.commit == 9


def test_entries_that_overtake_a_snapshot_end_it(local: Local, following: Following, pieces: list[Chunk]) -> None:
    following.on_chunk(pieces[0], 1)
    entries = tuple(put(index, TWO) for index in range(4, 11))
    following.on_append(Append(TWO, Position(ONE, 3), entries, 10), 2)
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 20), 10, 0), FETCH_RETRY_MS + 2)
    assert Fetch(TWO, 10) in sent(local)
    following.on_chunk(pieces[1], 3)
    assert local.commit == 10


def test_a_damaged_snapshot_is_asked_for_again(local: Local, following: Following, pieces: list[Chunk]) -> None:
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 9), 9, 0), 0)
    for chunk in [*pieces[:2], pieces[2]._replace(data=b"\xc1")]:
        following.on_chunk(chunk, 1)
    sent(local)
    following.on_heartbeat(Heartbeat(TWO, Position(TWO, 9), 9, 0), FETCH_RETRY_MS + 1)
    assert Fetch(TWO, 1) in sent(local)
    assert local.commit == 1


def test_a_header_that_is_none_is_refused(local: Local, following: Following) -> None:
    following.on_chunk(Chunk(TWO, Position(TWO, 9), 0, False, b"\x01"), 0)
    assert any("refused" in event for event in local.take_ready(0).events)
    assert following.matched == 1


def test_a_blank_backup_begins_at_the_start(following: Following) -> None:
    own = Local(blank(ME), "life", ["n1", "n2"])
    own.promise_epoch(TWO)
    fresh = Following(own, PRIMARY, TWO, 0)
    fresh.on_append(Append(TWO, START, (FOUNDING,), 1), 0)
    assert (fresh.matched, own.commit) == (1, 1)
    assert own.listed
