"""What a member holds: every change is in memory at once and in the turn's Save, and invariants are kept."""

from __future__ import annotations

import msgpack
import pytest

from food.core import local as local_module
from food.core.entries import ENTRY_BYTES, Log, pack_members
from food.core.local import Local, Recovered, blank
from food.core.message import NO_EPOCH, START, Entry, Epoch, Kind, Member, MemberList, Position
from food.core.ready import STAGE_PIECES, Save
from food.core.snapshot import Piece, Snapshot
from food.core.state import State

ME, OTHER = Member("n1", "a"), Member("n2", "b")
ONE, TWO, THREE = Epoch(1, "a"), Epoch(2, "b"), Epoch(3, "a")
LIST = MemberList(1, "c", (ME, OTHER))
FOUNDING = Entry(1, ONE, Kind.MEMBERS, pack_members(LIST))


def put(index: int, epoch: Epoch = ONE, value: bytes = b"v") -> Entry:
    return Entry(index, epoch, Kind.COMMAND, msgpack.packb([0, 0, 0, "put", b"k", value]))


@pytest.fixture
def local() -> Local:
    """Holds list, two puts of epoch 1; committed up to 2."""
    own = Local(blank(ME), "life", ["n1", "n2", "n3"])
    own.promise_epoch(ONE)
    own.append([FOUNDING, put(2), put(3)])
    own.advance(2)
    own.take_ready(0)
    return own


def saved(local: Local, now_ms: int = 0) -> Save:
    save = local.take_ready(now_ms).save
    assert save
    return save


def test_the_promised_number_rises(local: Local) -> None:
    local.promise_epoch(THREE)
    assert saved(local).promise == THREE
    for epoch in (THREE, Epoch(3, "z"), TWO):
        with pytest.raises(AssertionError):
            local.promise_epoch(epoch)


def test_nothing_to_save_is_no_save(local: Local) -> None:
    assert local.take_ready(0).save is None


def test_the_commit_index_alone_is_not_worth_a_save(local: Local) -> None:
    local.take_ready(5_000)
    local.commit = 3
    assert local.take_ready(0).save is None


def test_merge_appends_behind_an_equal_position(local: Local) -> None:
    assert local.merge(Position(ONE, 3), [put(4), put(5)], matched=2) == 5
    save = saved(local)
    assert [entry.index for entry in save.entries] == [4, 5]
    assert save.truncate_from is None


def test_merge_refuses_a_gap(local: Local) -> None:
    assert local.merge(Position(ONE, 5), [put(6)], matched=2) is None
    assert local.merge(Position(TWO, 3), [put(4, TWO)], matched=2) is None
    assert local.take_ready(0).save is None


def test_merge_takes_what_is_here_already(local: Local) -> None:
    assert local.merge(START, [FOUNDING, put(2), put(3)], matched=2) == 3
    assert local.take_ready(0).save is None


def test_merge_without_entries_shows_how_far_the_logs_are_equal(local: Local) -> None:
    assert local.merge(Position(ONE, 3), [], matched=2) == 3


def test_merge_keeps_a_longer_tail_that_does_not_conflict(local: Local) -> None:
    assert local.merge(Position(ONE, 1), [put(2)], matched=2) == 2
    assert local.log.last == Position(ONE, 3)


def test_merge_cuts_only_at_a_conflict_in_the_transaction_that_replaces(local: Local) -> None:
    assert local.merge(Position(ONE, 2), [put(3, TWO), put(4, TWO)], matched=2) == 4
    save = saved(local)
    assert save.truncate_from == 3
    assert [(entry.index, entry.epoch) for entry in save.entries] == [(3, TWO), (4, TWO)]


def test_merge_never_cuts_at_or_below_the_commit_index(local: Local) -> None:
    with pytest.raises(AssertionError, match="below commit"):
        local.merge(Position(ONE, 1), [put(2, TWO)], matched=2)


def test_a_late_answer_cannot_cut_what_is_matched(local: Local) -> None:
    assert local.merge(Position(ONE, 2), [put(3, TWO)], matched=3) is None
    assert local.log.last == Position(ONE, 3)
    ready = local.take_ready(0)
    assert ready.save is None
    assert "ignored" in ready.events[0]


def test_a_cut_within_the_turn_takes_what_was_not_saved_yet(local: Local) -> None:
    local.merge(Position(ONE, 3), [put(4), put(5)], matched=2)
    local.merge(Position(ONE, 3), [put(4, TWO)], matched=3)
    save = saved(local)
    assert save.truncate_from == 4
    assert [(entry.index, entry.epoch) for entry in save.entries] == [(4, TWO)]


def test_committed_positions_are_taken_as_equal(local: Local) -> None:
    local.append([put(4), put(5)])
    local.advance(5)
    local.log.compact(4)
    assert local.merge(Position(ONE, 2), [put(3), put(4), put(5), put(6)], matched=5) == 6


def test_advance_applies_in_order_and_answers(local: Local) -> None:
    assert [(index, result.status) for index, result in local.advance(3)] == [(3, 0)]
    assert local.commit == local.state.applied == 3
    assert local.advance(2) == []
    with pytest.raises(AssertionError, match="behind the log's end"):
        local.advance(4)


def test_a_restart_replays_up_to_the_saved_commit_and_no_further() -> None:
    log = Log(entries=[FOUNDING, put(2, value=b"2"), put(3, value=b"3")])
    own = Local(Recovered(ME, 2, ONE, log, 2, State(), {}), "life", ["n1"])
    assert own.commit == own.state.applied == 2
    assert own.state.rows[b"k"].value == b"2"


def install(local: Local, at: Position) -> None:
    """A snapshot of one row, put aside and taken."""
    state = State()
    state.apply(at.index, msgpack.packb([0, 0, 0, "put", b"k", b"s"]))
    local.stage(Piece(at, 0, [], []))
    local.stage(Piece(at, 1, [], [(b"k", b"s", 1)]))
    local.install(Snapshot(at, LIST, state.revision, state.hash, 0, 1), state)


def test_a_snapshot_replaces_state_and_log(local: Local) -> None:
    install(local, Position(TWO, 9))
    save = saved(local)
    assert save.snapshot
    assert not save.entries
    assert (local.commit, local.log.base, local.log.last) == (9, Position(TWO, 9), Position(TWO, 9))
    assert local.log.members == LIST


def test_a_snapshot_keeps_a_suffix_whose_entry_there_has_its_epoch(local: Local) -> None:
    local.append([put(4), put(5)])
    install(local, Position(ONE, 4))
    save = saved(local)
    assert [entry.index for entry in save.entries] == [5]
    assert local.log.last == Position(ONE, 5)


def test_a_snapshot_drops_a_suffix_of_another_epoch(local: Local) -> None:
    local.append([put(4), put(5)])
    install(local, Position(TWO, 4))
    assert not saved(local).entries
    assert local.log.last == Position(TWO, 4)


def test_a_snapshot_only_above_the_commit_index(local: Local) -> None:
    with pytest.raises(AssertionError, match="not above commit"):
        install(local, Position(ONE, 2))


def test_what_is_put_aside_changes_nothing_else(local: Local) -> None:
    for number in range(STAGE_PIECES):
        assert local.take_ready(0).save is None
        local.stage(Piece(Position(TWO, 9), number, [], []))
    save = saved(local)
    assert len(save.staged) == STAGE_PIECES and not save.snapshot and not save.entries
    assert (local.commit, local.log.last) == (2, Position(ONE, 3))


def test_pieces_put_aside_of_two_snapshots_never_mix(local: Local) -> None:
    local.stage(Piece(Position(TWO, 9), 0, [], []))
    for other in (Piece(Position(TWO, 10), 1, [], []), Piece(Position(TWO, 9), 2, [], [])):
        with pytest.raises(AssertionError, match="put aside behind"):
            local.stage(other)
    local.stage(Piece(Position(TWO, 10), 0, [], []))
    local.stage(Piece(Position(TWO, 10), 1, [], []))
    local.promise_epoch(THREE)
    assert [(piece.at.index, piece.number) for piece in saved(local).staged] == [(10, 0), (10, 1)]
    state = State()
    state.skip(9)
    with pytest.raises(AssertionError, match="what was put aside"):
        local.install(Snapshot(Position(TWO, 9), LIST, 0, 0, 0, 0), state)


def test_what_was_put_aside_goes_when_entries_overtake_it(local: Local) -> None:
    local.stage(Piece(Position(ONE, 3), 0, [], []))
    local.stage(Piece(Position(ONE, 3), 1, [], [(b"k", b"s", 1)]))
    local.advance(3)
    assert saved(local, 10_000).staged == [Piece(START, 0, [], [])]
    assert local.take_ready(20_000).save is None


def test_entries_applied_behind_a_snapshot_do_not_show_in_what_is_saved_of_it(local: Local) -> None:
    install(local, Position(TWO, 9))
    local.append([put(10, TWO, b"later")])
    local.advance(10)
    save = saved(local)
    assert save.snapshot
    assert [row for piece in save.staged for row in piece.rows] == [(b"k", b"s", 1)]
    assert local.state.rows[b"k"].value == b"later"


def test_a_snapshot_voids_what_the_turn_would_have_saved_before(local: Local) -> None:
    local.promise_epoch(THREE)
    local.merge(Position(ONE, 2), [put(3, TWO)], matched=2)
    install(local, Position(TWO, 9))
    save = saved(local)
    assert (save.truncate_from, save.entries) == (None, [])
    assert save.promise == THREE


def test_state_tables_follow_in_strides(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "FLUSH_ENTRIES", 3)
    began = saved(local, 10_000).changes
    assert began
    assert began.applied == 2
    local.advance(3)
    local.append([put(4)])
    local.advance(4)
    assert saved(local, 10_010).changes is None
    local.append([put(5)])
    local.advance(5)
    changes = saved(local, 10_020).changes
    assert changes
    assert changes.applied == 5
    local.append([put(6)])
    local.advance(6)
    assert saved(local, 10_030).changes is None
    late = saved(local, 10_030 + local_module.FLUSH_MS).changes
    assert late
    assert late.applied == 6


def test_old_entries_go_once_the_tables_hold_their_effect(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FLUSH_ENTRIES", 1), ("KEEP_ENTRIES", 4)):
        monkeypatch.setattr(local_module, name, value)
    local.append([put(index) for index in range(4, 21)])
    local.advance(20)
    save = saved(local)
    assert save.compact == (Position(ONE, 16), LIST)
    assert save.changes
    assert local.log.base == Position(ONE, 16)


def test_what_somebody_is_about_to_fetch_is_held(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_bytes = ENTRY_BYTES + len(put(1).data)
    for name, value in (("FLUSH_ENTRIES", 1), ("KEEP_ENTRIES", 4), ("HOLD_BYTES", 30 * entry_bytes)):
        monkeypatch.setattr(local_module, name, value)
    local.hold = 10
    local.append([put(index) for index in range(4, 21)])
    local.advance(20)
    assert saved(local).compact == (Position(ONE, 10), LIST)
    local.append([put(index) for index in range(21, 61)])
    local.advance(60)
    assert saved(local).compact == (Position(ONE, 30), LIST)


def test_entries_kept_are_bounded_by_their_size(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "FLUSH_ENTRIES", 1)
    monkeypatch.setattr(local_module, "KEEP_BYTES", 5 * (ENTRY_BYTES + len(put(1).data)))
    local.append([put(index) for index in range(4, 21)])
    local.advance(10)
    assert saved(local).compact == (Position(ONE, 10), LIST)  # never what the tables do not hold
    local.advance(20)
    assert saved(local).compact == (Position(ONE, 15), LIST)


def test_many_entries_go_some_at_a_time_also_when_nothing_is_written(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FLUSH_ENTRIES", 1), ("KEEP_ENTRIES", 2), ("COMPACT_MOST_ENTRIES", 6)):
        monkeypatch.setattr(local_module, name, value)
    local.append([put(index) for index in range(4, 21)])
    local.advance(20)
    local.hold = 0  # for a backup that fetches, until now
    local.take_ready(0)
    assert local.log.base.index == 0
    local.hold = None
    local.append([put(index) for index in range(21, 25)])
    local.advance(24)
    bases = []
    for turn in range(1, 6):
        local.take_ready(turn * local_module.FLUSH_MS)
        bases.append(local.log.base.index)
    assert bases == [10, 16, 22, 22, 22], "six a turn, and as many as were flushed"


def test_start_counts_only_rise(local: Local) -> None:
    local.remember("b", 3, "third")
    assert saved(local).remembers == {"b": (3, "third")}
    local.remember("b", 2, "second")
    local.remember("b", 3, "a copy")
    assert local.take_ready(0).save is None
    assert local.remembers["b"] == (3, "third")


def test_peers_are_those_that_corosync_names_and_those_that_vote(local: Local) -> None:
    assert local.peers() == ["n2", "n3"]
    local.nodes = ("n1",)
    assert local.peers() == ["n2"]


def test_before_the_founding_nobody_votes() -> None:
    own = Local(blank(ME), "life", ["n1", "n2"])
    assert own.voters == ()
    assert not own.listed
    assert own.promise == NO_EPOCH
