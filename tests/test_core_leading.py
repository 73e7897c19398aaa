"""A primary's side of an epoch: append, publish, count, answer."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from food.core import leading as leading_module
from food.core.entries import pack_members
from food.core.leading import HEARTBEAT_MS, READ_MOST_MS, Leading
from food.core.local import Local, blank
from food.core.message import Ack, Append, Entry, Epoch, Heartbeat, Kind, Member, MemberList, Position
from food.core.ready import Ready

MEMBERS = tuple(Member(f"n{number}", store) for number, store in enumerate("abcde", 1))
ONE, TWO = Epoch(1, "b"), Epoch(2, "a")


def list_of(stores: str, number: int = 1) -> MemberList:
    return MemberList(number, "c", tuple(member for member in MEMBERS if member.store in stores))


def put(key: bytes = b"k", value: bytes = b"v") -> bytes:
    data: bytes = msgpack.packb([0, 0, 0, "put", key, value])
    return data


class Primary:
    """Store a leads epoch 2 over a log of epoch 1 that ends with an entry nobody committed."""

    def __init__(self, stores: str = "abc") -> None:
        self.local = Local(blank(MEMBERS[0]), "life", ["n1", "n2", "n3"])
        founding = Entry(1, ONE, Kind.MEMBERS, pack_members(list_of(stores)))
        self.local.append([founding, Entry(2, ONE, Kind.COMMAND, put(b"old"))])
        self.local.advance(1)
        self.local.promise_epoch(TWO)
        self.local.take_ready(0)
        self.leading = Leading(self.local, TWO, None, 0)
        self.answers: list[tuple[Any, Any]] = []

    def ready(self, now_ms: int = 0) -> Ready:
        """One round of the driver's order, without the save."""
        self.leading.finish_turn(now_ms)
        ready = self.local.take_ready(now_ms)
        self.answers += [(whose, result.status) for whose, result in ready.answers]
        return ready

    def turn(self, now_ms: int = 0) -> list[Ready]:
        """The driver's whole order."""
        found = [self.ready(now_ms)]
        while found[-1].save:
            self.leading.on_saved(now_ms)
            found.append(self.ready(now_ms))
        return found

    def ack(self, store: str, matched: int, round_: int = 0, now_ms: int = 0) -> None:
        self.leading.on_ack(store, Ack(TWO, matched, round_), now_ms)

    def serve(self) -> Primary:
        self.turn()
        self.ack("b", 3)
        self.turn()
        assert self.leading.serving
        return self


@pytest.fixture
def primary() -> Primary:
    return Primary().serve()


# --- The barrier ---


def test_the_first_entry_is_the_barrier() -> None:
    primary = Primary()
    published = primary.ready().publish[0]
    assert published == Append(TWO, Position(ONE, 2), (Entry(3, TWO, Kind.BARRIER, b""),), 1)
    assert not primary.leading.serving


def test_entries_of_older_epochs_are_never_counted() -> None:
    primary = Primary()
    primary.turn()
    for store in "bc":
        primary.ack(store, 2)
    assert primary.local.commit == 1
    primary.ack("b", 3)
    assert primary.local.commit == 3
    assert primary.local.state.rows[b"old"].value == b"v"


def test_nothing_is_served_before_the_barrier_commits() -> None:
    primary = Primary()
    primary.turn()
    primary.leading.propose("w", put())
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready()
    assert primary.answers == [("w", "not_primary"), ("r", "not_primary")]


def test_without_space_only_what_frees_some_is_taken(primary: Primary) -> None:
    primary.local.no_space = "no space"
    for op in (["put", b"k", b"v"], ["cas", b"k", 0, b"v"], ["open"], ["del", b"k"], ["close", 3]):
        primary.leading.propose(op[0], msgpack.packb([0, 0, 0, *op]))
    primary.turn()
    assert primary.answers == [("put", "no_space"), ("cas", "no_space")]
    primary.ack("b", 6)
    primary.turn()
    assert primary.answers[2:] == [("open", 0), ("del", 0), ("close", 0)]


# --- Counting ---


def test_it_counts_itself_only_after_its_save() -> None:
    primary = Primary()
    assert primary.ready().save
    primary.ack("b", 3)
    assert primary.local.commit == 1
    primary.leading.on_saved(0)
    assert primary.local.commit == 3


def test_others_alone_may_be_a_majority() -> None:
    primary = Primary()
    primary.ready()
    primary.ack("b", 3)
    primary.ack("c", 3)
    assert primary.local.commit == 3


@pytest.mark.parametrize(("stores", "needed"), [("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2)])
def test_w_members_must_hold_it(stores: str, needed: int) -> None:
    primary = Primary(stores)
    primary.turn()
    for count, store in enumerate(stores[1:], 1):
        primary.ack(store, 3)
        assert (primary.local.commit == 3) == (count >= needed)


def test_learners_do_not_count(primary: Primary) -> None:
    primary.leading.propose("w", put())
    primary.turn()
    primary.ack("d", 4)
    primary.ack("e", 4)
    assert primary.local.commit == 3


def test_an_ack_of_what_was_never_appended_is_ignored(primary: Primary) -> None:
    primary.ack("b", 99)
    assert primary.local.commit == 3
    assert "never appended" in primary.ready().events[0]


def test_late_acks_do_not_take_back(primary: Primary) -> None:
    primary.leading.propose("w", put())
    primary.turn()
    primary.ack("b", 4)
    primary.ack("b", 3)
    assert primary.leading._matched["b"] == 4


# --- Writes ---


def test_a_write_is_answered_once_committed_and_applied(primary: Primary) -> None:
    primary.leading.propose("w", put())
    primary.turn()
    assert primary.answers == []
    primary.ack("c", 4)
    primary.turn()
    assert primary.answers == [("w", 0)]
    assert primary.local.state.rows[b"k"].value == b"v"


def test_writes_of_one_turn_go_out_together(primary: Primary) -> None:
    for number in range(3):
        primary.leading.propose(number, put())
    ready = primary.ready()
    assert [len(m.entries) for m in ready.publish if isinstance(m, Append)] == [3]
    assert ready.save
    assert len(ready.save.entries) == 3


def test_appends_are_bounded(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading_module, "APPEND_MOST_BYTES", 100)
    for number in range(3):
        primary.leading.propose(number, put(value=b"x" * 80))
    appends = [m for m in primary.ready().publish if isinstance(m, Append)]
    assert [len(append.entries) for append in appends] == [1, 1, 1]
    assert [append.prev.index for append in appends] == [3, 4, 5]


def test_a_bad_command_never_enters_the_log(primary: Primary) -> None:
    primary.leading.propose("w", b"\xc1")
    primary.ready()
    assert primary.answers == [("w", "bad_request")]
    assert primary.local.log.last.index == 3


def test_waiting_writes_are_bounded(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading_module, "PENDING_MOST", 2)
    for number in range(3):
        primary.leading.propose(number, put())
    primary.ready()
    assert primary.answers == [(2, "busy")]


def test_waiting_reads_are_bounded_over_all_rounds(primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading_module, "PENDING_MOST", 2)
    for number in range(3):
        primary.leading.read(number, "get", [b"k"], 0)
        primary.ready()
    assert primary.answers == [(2, "busy")]
    primary.ack("b", 3, round_=2)
    primary.leading.read(3, "get", [b"k"], 0)
    primary.ready()
    assert primary.answers == [(2, "busy"), (0, 0), (1, 0)]


def test_a_draining_primary_takes_no_writes_and_still_commits(primary: Primary) -> None:
    primary.leading.propose("w", put())
    primary.turn()
    primary.leading.draining = True
    primary.leading.propose("late", put())
    primary.ack("b", 4)
    primary.turn()
    assert primary.answers == [("late", "not_primary"), ("w", 0)]


def test_what_was_in_flight_at_the_end_may_or_may_not_happen(primary: Primary) -> None:
    primary.leading.propose("w", put())
    primary.turn()
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready()
    primary.leading.read("q", "get", [b"k"], 0)
    primary.leading.end()
    primary.ready()
    assert primary.answers == [("w", "unknown"), ("r", "not_primary"), ("q", "not_primary")]


# --- Reads ---


def test_a_read_waits_for_a_round_that_began_after_it(primary: Primary) -> None:
    primary.leading.read("r", "get", [b"k"], 0)
    beat = primary.ready().publish[-1]
    assert isinstance(beat, Heartbeat)
    assert beat.round == 1
    assert primary.answers == []
    primary.ack("b", 3, round_=1)
    primary.ready()
    assert primary.answers == [("r", 0)]


def test_a_read_does_not_join_a_round_in_flight(primary: Primary) -> None:
    primary.leading.read("first", "get", [b"k"], 0)
    primary.ready()
    primary.leading.read("second", "get", [b"k"], 0)
    primary.ack("b", 3, round_=1)
    beat = primary.ready().publish[-1]
    assert primary.answers == [("first", 0)]
    assert isinstance(beat, Heartbeat)
    assert beat.round == 2
    primary.ack("b", 3, round_=2)
    primary.ready()
    assert primary.answers == [("first", 0), ("second", 0)]


def test_reads_of_one_turn_share_a_round(primary: Primary) -> None:
    for number in range(3):
        primary.leading.read(number, "get", [b"k"], 0)
    primary.ready()
    primary.ack("c", 3, round_=1)
    primary.ready()
    assert primary.answers == [(0, 0), (1, 0), (2, 0)]


def test_echoes_count_from_w_members() -> None:
    primary = Primary("abcde")
    primary.turn()
    primary.ack("b", 3)
    primary.ack("c", 3)
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready()
    primary.ack("b", 3, round_=1)
    primary.ack("x", 3, round_=1)
    primary.ready()
    assert primary.answers == []
    primary.ack("c", 3, round_=1)
    primary.ready()
    assert primary.answers == [("r", 0)]


def test_a_read_is_not_served_once_a_newer_epoch_is_promised(primary: Primary) -> None:
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready()
    primary.local.promise_epoch(Epoch(3, "b"))
    primary.ack("b", 3, round_=1)
    primary.ready()
    assert primary.answers == []


def test_a_read_that_no_majority_confirms_says_so(primary: Primary) -> None:
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready(0)
    primary.ready(READ_MOST_MS)
    assert primary.answers == []
    primary.ready(READ_MOST_MS + 1)
    assert primary.answers == [("r", "no_quorum")]


def test_alone_a_read_needs_nobody() -> None:
    primary = Primary("a")
    primary.turn()
    primary.leading.read("r", "get", [b"k"], 0)
    primary.ready()
    assert primary.answers == [("r", 0)]


# --- Heartbeats ---


def test_heartbeats_carry_the_tail_and_the_commit_index(primary: Primary) -> None:
    assert not primary.ready(1).publish
    beats = [m for m in primary.ready(HEARTBEAT_MS + 1).publish if isinstance(m, Heartbeat)]
    assert beats == [Heartbeat(TWO, Position(TWO, 3), 3, 0)]


def test_in_sync_is_who_was_heard_lately_and_lacks_the_newest_entries_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leading_module, "LEVEL_ENTRIES", 1)
    primary = Primary()
    assert primary.leading.in_sync(1_000) == ["a"], "nobody else was heard"
    primary.ack("b", 1, now_ms=1_001)
    primary.ack("c", 2, now_ms=1_001)
    assert primary.local.log.last.index == 3
    assert primary.leading.in_sync(1_000) == ["a", "c"]
    assert primary.leading.in_sync(1_001) == ["a"], "it fell silent"
    primary.ack("b", 3, now_ms=1_002)
    assert primary.leading.in_sync(1_001) == ["a", "b"]


def test_when_a_majority_was_last_heard() -> None:
    primary = Primary("abcde")
    primary.ack("b", 0, now_ms=100)
    assert primary.leading.contact_ms(500) == 0
    primary.ack("c", 0, now_ms=300)
    assert primary.leading.contact_ms(500) == 100
    primary.ack("d", 0, now_ms=400)
    assert primary.leading.contact_ms(500) == 300


# --- Member list ---


def test_a_list_rules_from_its_append_and_is_saved_before_it_is_published(primary: Primary) -> None:
    assert primary.leading.change_members(list_of("abcd", 2)) is None
    primary.leading.propose("w", put())
    assert primary.local.voters == ("a", "b", "c", "d")
    ready = primary.ready(1)
    assert not [m for m in ready.publish if isinstance(m, Append)]
    assert [len(m.entries) for m in ready.publish_saved if isinstance(m, Append)] == [2]
    assert ready.save


def test_a_list_differs_by_one_store(primary: Primary) -> None:
    for wrong in (
        list_of("abcde", 2),
        list_of("abc", 2),
        list_of("abd", 2),
        list_of("abcd", 3),
        list_of("abcd", 1),
        MemberList(2, "other", list_of("abcd").members),
        MemberList(2, "c", (*list_of("abc").members, Member("n9", "a"))),
        MemberList(2, "c", (*list_of("abc").members, MEMBERS[1])),
    ):
        assert primary.leading.change_members(wrong)
    assert primary.local.log.last.index == 3


def test_a_list_waits_for_the_former_one(primary: Primary) -> None:
    assert primary.leading.change_members(list_of("abcd", 2)) is None
    refused = primary.leading.change_members(list_of("abcde", 3))
    assert refused
    assert "not committed" in refused
    primary.turn()
    primary.ack("b", 4)
    assert primary.leading.change_members(list_of("abcde", 3))
    primary.ack("d", 4)
    assert primary.leading.change_members(list_of("abcde", 3)) is None


def test_a_list_waits_for_the_barrier() -> None:
    primary = Primary()
    primary.turn()
    refused = primary.leading.change_members(list_of("ab", 2))
    assert refused
    assert "barrier" in refused


def test_the_primary_does_not_remove_itself(primary: Primary) -> None:
    refused = primary.leading.change_members(list_of("bc", 2))
    assert refused
    assert "cannot remove itself" in refused


def test_removing_may_complete_a_majority(primary: Primary) -> None:
    assert primary.leading.change_members(list_of("ab", 2)) is None
    primary.turn()
    primary.ack("b", 4)
    assert primary.local.commit == 4
    assert primary.leading.change_members(list_of("a", 3)) is None
    primary.turn()
    assert primary.local.commit == 5


def test_only_its_own_epoch_is_led() -> None:
    primary = Primary()
    with pytest.raises(AssertionError):
        Leading(primary.local, Epoch(3, "a"), None, 0)
    primary.local.promise_epoch(Epoch(3, "b"))
    with pytest.raises(AssertionError):
        Leading(primary.local, Epoch(3, "b"), None, 0)
