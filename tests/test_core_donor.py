"""Pieces of the log, or a snapshot for one reader at a time, with the log behind it held."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from food.core import donor as donor_module
from food.core import local as local_module
from food.core import snapshot as snapshot_module
from food.core.donor import READER_PATIENCE_MS, SOURCE_IDLE_MS, Donor
from food.core.entries import pack_members
from food.core.local import Local, blank
from food.core.message import Chunk, Entry, Epoch, Fetch, FetchChunk, Kind, Member, MemberList, Position, Range

ME, B, C, D = (Member(f"n{number}", store) for number, store in enumerate("abcd", 1))
EPOCH = Epoch(1, "a")
LIST = MemberList(1, "x", (ME, B, C))
AT = Position(EPOCH, 20)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Local:
    """Twenty committed entries, of which 1 to 10 were compacted away; snapshots have many pieces."""
    monkeypatch.setattr(snapshot_module, "CHUNK_MOST_BYTES", 30)
    own = Local(blank(ME), "life", ["n1", "n2", "n3"])
    puts = [
        Entry(index, EPOCH, Kind.COMMAND, msgpack.packb([0, 0, 0, "put", b"%d" % index, b"v"]))
        for index in range(2, 23)
    ]
    own.append([Entry(1, EPOCH, Kind.MEMBERS, pack_members(LIST)), *puts])
    own.advance(20)
    own.log.compact(10)
    return own


@pytest.fixture
def donor(local: Local) -> Donor:
    return Donor(local)


def given(local: Local) -> list[tuple[str, Any]]:
    return local.take_ready(0).send


def chunk_for(local: Local, node: str) -> Chunk | None:
    """What that node was just given, None when nothing was."""
    sent = given(local)
    if not sent:
        return None
    assert [target for target, _ in sent] == [node]
    found = sent[0][1]
    assert isinstance(found, Chunk)
    return found


def test_entries_that_are_here(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 10), 0)
    ((node, piece),) = given(local)
    assert node == "n2"
    assert isinstance(piece, Range)
    assert (piece.prev, piece.commit) == (Position(EPOCH, 10), 20)
    assert [entry.index for entry in piece.entries] == list(range(11, 23))


def test_pieces_of_the_log_are_bounded(local: Local, donor: Donor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donor_module, "RANGE_MOST_BYTES", 1)
    donor.on_fetch(B, Fetch(EPOCH, 12), 0)
    ((_, piece),) = given(local)
    assert len(piece.entries) == 1


def test_what_is_beyond_the_log_is_not_answered(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 23), 0)
    assert not given(local)


def test_a_snapshot_where_entries_were_compacted(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 9), 0)
    first = chunk_for(local, "n2")
    assert first
    assert (first.at, first.number, first.final) == (AT, 0, False)
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 0)
    second = chunk_for(local, "n2")
    assert second
    assert second.number == 1


def test_one_reader_at_a_time(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    given(local)
    donor.on_fetch(C, Fetch(EPOCH, 0), 10)
    assert chunk_for(local, "n3") is None
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 20)
    assert chunk_for(local, "n2")


def read_to_the_end(local: Local, donor: Donor, reader: Member, now_ms: int) -> None:
    donor.on_fetch(reader, Fetch(EPOCH, 0), now_ms)
    chunk = chunk_for(local, reader.node)
    while chunk and not chunk.final:
        donor.on_fetch_chunk(reader, FetchChunk(EPOCH, chunk.at, chunk.number + 1), now_ms)
        chunk = chunk_for(local, reader.node)
    assert chunk


def test_who_was_turned_away_first_comes_next(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    given(local)
    donor.on_fetch(C, Fetch(EPOCH, 0), 1)
    donor.on_fetch(D, Fetch(EPOCH, 0), 2)
    assert not given(local)
    read_to_the_end(local, donor, B, 3)
    for impatient in (B, D):
        donor.on_fetch(impatient, Fetch(EPOCH, 0), 4)
        assert not given(local)
    read_to_the_end(local, donor, C, 5)
    read_to_the_end(local, donor, D, 6)


def test_a_silent_reader_loses_its_turn(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    given(local)
    donor.on_fetch(C, Fetch(EPOCH, 0), READER_PATIENCE_MS)
    assert chunk_for(local, "n3")


def test_a_reader_that_lost_the_last_piece_gets_it_again(local: Local, donor: Donor) -> None:
    read_to_the_end(local, donor, B, 0)
    number = 1
    while True:
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, number), 1)
        chunk = chunk_for(local, "n2")
        assert chunk
        if chunk.final:
            break
        number = chunk.number + 1


def test_a_reader_that_is_somewhere_else_begins_anew(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    for number in (1, 2, 3):
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, number), 0)
    given(local)
    for wanted in (FetchChunk(EPOCH, AT, 1), FetchChunk(EPOCH, AT, 9), FetchChunk(EPOCH, Position(EPOCH, 15), 2)):
        donor.on_fetch_chunk(B, wanted, 1)
        chunk = chunk_for(local, "n2")
        assert chunk
        assert (chunk.at, chunk.number) == (AT, 0)
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 1)
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 2), 1)
        given(local)


def test_the_log_behind_a_snapshot_is_held_until_it_was_fetched(local: Local, donor: Donor) -> None:
    assert local.hold is None
    read_to_the_end(local, donor, B, 0)
    assert local.hold == 20
    donor.on_fetch(B, Fetch(EPOCH, 21), 10)
    assert local.hold == 21
    donor.tick(10 + SOURCE_IDLE_MS)
    assert local.hold == 21
    donor.tick(11 + SOURCE_IDLE_MS)
    assert local.hold is None


def test_the_slowest_reader_is_held_for(local: Local, donor: Donor) -> None:
    read_to_the_end(local, donor, B, 0)
    local.advance(22)
    read_to_the_end(local, donor, C, 10)
    assert local.hold == 20
    donor.on_fetch(B, Fetch(EPOCH, 22), 20)
    assert local.hold == 22


# --- Pace ---


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donor_module, "PACE_BYTES_PER_MS", 10)
    monkeypatch.setattr(donor_module, "PACE_BURST_BYTES", 100)


def served(local: Local, donor: Donor, now_ms: int) -> list[str]:
    """Who is given something once the turn has come."""
    for sender, fetch in donor.due():
        if isinstance(fetch, Fetch):
            donor.on_fetch(sender, fetch, now_ms)
        else:
            donor.on_fetch_chunk(sender, fetch, now_ms)
    return [node for node, _ in given(local)]


def test_a_primary_gives_entries_at_its_pace(local: Local, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donor_module, "RANGE_MOST_BYTES", 1)
    donor = Donor(local)
    donor.on_fetch(B, Fetch(EPOCH, 12), 0)
    assert [node for node, _ in given(local)] == ["n2"]
    donor.on_fetch(B, Fetch(EPOCH, 13), 1)  # 110 bytes or so were given, of 100
    donor.on_fetch(C, Fetch(EPOCH, 12), 1)
    assert served(local, donor, 1) == []
    assert served(local, donor, 3) == ["n2"]  # who asked first
    assert served(local, donor, 4) == []
    assert served(local, donor, 30) == ["n3"]
    assert not donor.due()


def test_a_primary_gives_pieces_of_a_snapshot_at_its_pace(local: Local, slow: None) -> None:
    donor = Donor(local)
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 0)
    assert len(given(local)) == 2
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 2), 0)
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 2), 0)  # asked again meanwhile: counts once
    assert served(local, donor, 0) == []
    assert served(local, donor, 5) == ["n2"]
    assert served(local, donor, 10) == []


def test_what_was_not_given_does_not_add_up(local: Local, slow: None) -> None:
    donor = Donor(local)
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    given(local)
    for number in (1, 2):
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, number), 1_000_000)
    assert len(given(local)) == 1


def test_what_is_written_is_given_beside_the_pace(local: Local, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a backup would never be level with a fast writer."""
    monkeypatch.setattr(donor_module, "RANGE_MOST_BYTES", 1)
    donor = Donor(local)
    donor.on_fetch(B, Fetch(EPOCH, 12), 0)
    given(local)
    donor.on_fetch(B, Fetch(EPOCH, 13), 0)
    assert served(local, donor, 0) == []
    local.append([Entry(23, EPOCH, Kind.COMMAND, msgpack.packb([0, 0, 0, "put", b"k", b"v"]))])
    assert served(local, donor, 0) == ["n2"]


def test_a_reader_that_would_have_to_begin_anew_gets_all_it_can_take(
    local: Local, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_module, "KEEP_BYTES", 0)
    monkeypatch.setattr(local_module, "HOLD_BYTES", 10 * local.log.size)
    donor = Donor(local)
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    for number in (1, 2, 3):
        donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, number), 0)
    # A tenth of the memory is taken, so two of nineteen keys are given at once; from there on the pace holds.
    assert len(given(local)) == 3
    monkeypatch.setattr(local_module, "HOLD_BYTES", 2 * local.log.size)
    assert served(local, donor, 0) == ["n2"]


def test_what_was_given_in_haste_is_not_waited_for(local: Local, slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donor_module, "RANGE_MOST_BYTES", 1)
    donor = Donor(local)
    for _ in range(1_000):
        donor.on_fetch(B, Fetch(Epoch(2, B.store), 12), 0)
    given(local)
    donor.on_fetch(C, Fetch(EPOCH, 12), 0)
    assert served(local, donor, 5) == []
    assert served(local, donor, 11) == ["n3"]


def test_a_candidate_gets_all_it_can_take(local: Local, slow: None) -> None:
    donor = Donor(local)
    epoch = Epoch(2, B.store)
    donor.on_fetch(B, Fetch(epoch, 0), 0)
    for number in range(1, 6):
        donor.on_fetch_chunk(B, FetchChunk(epoch, AT, number), 0)
    assert len(given(local)) == 6
    assert not donor.due()


def test_how_much_of_a_snapshot_was_given(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    assert donor.given("b") == (0, 19)
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 0)
    assert donor.given("b") == (1, 19)
    assert donor.given("c") is None
    given(local)
    read_to_the_end(local, donor, B, 0)
    assert donor.given("b") is None


def test_who_never_needed_a_snapshot_holds_nothing(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 15), 0)
    assert local.hold is None


def test_an_abandoned_snapshot_is_closed(local: Local, donor: Donor) -> None:
    donor.on_fetch(B, Fetch(EPOCH, 0), 0)
    assert local.state.view
    donor.tick(SOURCE_IDLE_MS)
    assert local.state.view
    donor.tick(SOURCE_IDLE_MS + 1)
    assert local.state.view is None


def test_a_store_without_a_past_has_no_snapshot() -> None:
    own = Local(blank(ME), "life", ["n1"])
    donor = Donor(own)
    donor.on_fetch_chunk(B, FetchChunk(EPOCH, AT, 1), 0)
    assert not given(own)
