"""A candidate's way: ask without promising, seal, adopt the best log, count again. Real nodes, hand-driven."""

from __future__ import annotations

import pytest
from sim.limits import limited
from sim.stage import Stage, Wired, founded

from food.core.entries import pack_members
from food.core.following import FETCH_RETRY_MS
from food.core.local import Local, blank
from food.core.message import (
    Answer,
    Ask,
    Chunk,
    Entry,
    Epoch,
    Fetch,
    FetchChunk,
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
from food.core.promotion import DONOR_PATIENCE_MS, RESEND_MS, Promotion


def order(stage: Stage, name: str, ms: int = 5_000) -> None:
    stage.node(name).running.promote(stage.now, stage.now + ms)
    stage.turn(name)


def failure(stage: Stage, name: str) -> str:
    return stage.node(name).running.failure or ""


def promise(stage: Stage, name: str) -> int:
    return stage.node(name).running.local.promise.number


# --- Founding ---


def test_founding_needs_every_node_once() -> None:
    stage = Stage(3)
    stage.run(1_000, "n1", "n2")
    assert "awaiting n3" in stage.node("n1").running.wish.why
    order(stage, "n1", 1_000)
    stage.run(1_500, "n1", "n2")
    assert stage.role("n1") == "backup"
    assert "no answer from n3 (asking)" in failure(stage, "n1")
    assert promise(stage, "n1") == promise(stage, "n2") == 0


def test_founding_makes_list_one_of_those_who_answered() -> None:
    stage = founded(3)
    members = stage.node("n3").running.local.log.members
    assert members
    assert members.number == 1
    assert members.stores == ("n1.1", "n2.1", "n3.1")
    assert all(node.running.local.log.members == members for node in stage.nodes)


def test_a_promise_does_not_end_blankness() -> None:
    stage = Stage(2)
    stage.run(1_000)
    order(stage, "n1", 300)
    stage.flow_until("n1", "n2", Seal)
    stage.pass_on("n1", "n2", Seal)
    stage.drop()
    stage.tick("n1", ms=400)
    assert promise(stage, "n2") == 1
    stage.promote("n2")
    stage.run(200)
    assert stage.role("n2") == "primary"


def test_nodes_of_two_minds_do_not_found() -> None:
    stage = Stage(2)
    stage.node("n2").running.local.nodes = ("n1", "n2", "n3")
    order(stage, "n1")
    stage.run(300)
    assert "n2 has another node list" in failure(stage, "n1")


def test_a_node_whose_disk_was_replaced_midway_founds_nothing_with_both() -> None:
    stage = Stage(3)
    stage.run(1_000)
    order(stage, "n1", 1_000)
    stage.flow_until("n1", "n2", Seal)
    stage.pass_on("n1", "n2", Seal)
    sealed = stage.take_off("n2", "n1", Sealed)
    assert isinstance(sealed.message, Sealed)
    stage.node("n1").take((sealed.sender._replace(store="n2.2"), sealed.message))
    stage.late(sealed)
    stage.run(1_500, "n1", "n3")
    assert stage.node("n1").running.local.log.members is None
    assert failure(stage, "n1") == "no promotion in the time given: waiting for a majority (sealing)"


def test_a_store_that_came_to_a_log_since_it_answered_founds_nothing() -> None:
    stage = Stage(2)
    stage.run(1_000)
    order(stage, "n1", 1_000)
    stage.flow_until("n1", "n2", Seal)
    stage.pass_on("n1", "n2", Seal)
    sealed = stage.take_off("n2", "n1", Sealed)
    assert isinstance(sealed.message, Sealed)
    sealed.message = sealed.message._replace(last=Position(Epoch(1, "n2.1"), 3))
    stage.late(sealed)
    assert stage.node("n1").running.local.log.members is None
    assert stage.pass_on("n1", "n2", Fetch) == Fetch(Epoch(1, "n1.1"), 0)
    stage.run(1_500, "n1")
    assert failure(stage, "n1") == "no promotion in the time given: the log of n2 is better and did not arrive"


def test_a_cluster_of_one() -> None:
    stage = founded(1)
    stage.propose("n1", b"a")
    assert stage.answer_to(b"a") == 0
    number = stage.ask("n1")
    answer = stage.read_answer(number)
    assert answer
    assert answer.value == [b"a", 1]


# --- Step 0 ---


def test_asking_promises_nothing() -> None:
    stage = founded(3)
    order(stage, "n3")
    asked = [wired for wired in stage.wire if isinstance(wired.message, Ask)]
    assert asked
    stage.flow_only_questions()
    assert promise(stage, "n2") == 1


def test_an_isolated_candidate_does_not_outbid_a_healthy_primary() -> None:
    stage = founded(3)
    order(stage, "n3", 1_000)
    stage.run(1_500, "n3")
    assert stage.role("n3") == "backup"
    assert failure(stage, "n3") == "no promotion in the time given: no answer from n1, n2 (asking)"
    assert promise(stage, "n3") == 1
    stage.run(500)
    assert stage.role("n1") == "primary"


def test_answers_to_a_former_life_do_not_count() -> None:
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3")
    stage.pass_on("n3", "n1", Ask)
    late = stage.take_off("n1", "n3", Answer)
    stage.restart("n3")
    stage.drop()
    order(stage, "n3")
    stage.drop()
    stage.late(late)
    assert promise(stage, "n3") == 1


def test_answers_of_an_earlier_round_do_not_count() -> None:
    stage = founded(3)
    stage.tick("n3", ms=300)
    stage.pass_on("n3", "n2", Ask)
    late = stage.take_off("n2", "n3", Answer)
    order(stage, "n3")
    stage.drop()
    stage.late(late)
    assert promise(stage, "n3") == 1


def test_questions_are_repeated() -> None:
    stage = founded(3)
    order(stage, "n3")
    stage.drop()
    stage.tick("n3", ms=RESEND_MS)
    assert [w.target for w in stage.wire if isinstance(w.message, Ask)][:2] == ["n1", "n2"]


# --- Sealing ---


def test_the_own_promise_is_durable_before_a_seal_leaves() -> None:
    stage = founded(3)
    order(stage, "n3")
    stage.flow_until("n3", "n1", Seal)
    assert stage.node("n3").disk.promise == Epoch(2, "n3.1")


def test_the_number_is_above_every_promise_heard() -> None:
    stage = founded(3)
    stage.promote("n2", "n1", "n2")
    stage.run(300, "n1", "n2")
    assert promise(stage, "n3") == 1
    stage.promote("n3")
    assert promise(stage, "n3") == 3
    assert stage.role("n3") == "primary"


def test_seals_are_repeated_to_the_silent_only() -> None:
    stage = founded(5)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3")
    stage.flow_until("n3", "n1", Seal)
    stage.pass_on("n3", "n1", Seal)
    stage.pass_on("n1", "n3", Sealed)
    stage.drop()
    stage.tick("n3", ms=RESEND_MS)
    assert {w.target for w in stage.wire if isinstance(w.message, Seal)} == {"n2", "n4", "n5"}


def test_a_candidate_that_is_outbid_retries_higher() -> None:
    stage = founded(3)
    stage.node("n1").crash()
    stage.drop()
    order(stage, "n2")
    order(stage, "n3")
    stage.flow()
    stage.run(500)
    roles = sorted(stage.role(name) for name in ("n2", "n3"))
    assert roles == ["backup", "primary"]
    assert promise(stage, "n2") == promise(stage, "n3") == 3


def test_a_seal_of_an_older_epoch_does_not_count() -> None:
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3", 200)
    stage.flow_until("n3", "n1", Seal)
    stage.pass_on("n3", "n1", Seal)
    late = stage.take_off("n1", "n3", Sealed)
    stage.drop()
    stage.run(300, "n3")
    order(stage, "n3")
    stage.flow_until("n3", "n1", Seal)
    stage.drop()
    stage.late(late)
    assert stage.role("n3") == "candidate"
    assert stage.node("n3").running.leading is None


def test_a_failed_promotion_names_whom_it_missed_while_sealing() -> None:
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3", 500)
    stage.flow_until("n3", "n1", Seal)
    stage.run(600, "n3")
    assert failure(stage, "n3") == "no promotion in the time given: no answer from n1, n2 (sealing)"
    assert stage.node("n3").running.wish.score is None


# --- Adopting ---


def lagging_n3() -> Stage:
    """n3 lacks what n1 and n2 committed; n1 is dead."""
    stage = founded(3)
    for value in (b"a", b"b", b"c"):
        stage.propose("n1", value)
        stage.flow("n1", "n2")
    stage.node("n1").crash()
    stage.drop()
    return stage


def test_the_best_log_is_adopted_and_all_of_it() -> None:
    stage = lagging_n3()
    stage.promote("n3", "n2", "n3")
    assert stage.role("n3") == "primary"
    assert stage.values("n3") == ["list", b"a", b"b", b"c", "barrier"]


def test_a_half_filled_log_is_saved_and_valid() -> None:
    stage = lagging_n3()
    with limited(small=True):
        order(stage, "n3")
        stage.flow_until("n3", "n2", Fetch, "n2", "n3")
        stage.pass_on("n3", "n2", Fetch)
        stage.flow_until("n3", "n2", Fetch, "n2", "n3")
    assert stage.role("n3") == "candidate"
    assert stage.node("n3").disk.last.index == 2
    stage.restart("n3")
    stage.start("n1")
    stage.promote("n3")
    assert stage.values("n3") == ["list", b"a", b"b", b"c", "barrier"]


def test_the_greatest_epoch_beats_the_longest_log() -> None:
    stage = founded(3)
    for value in (b"old", b"older", b"oldest"):
        stage.propose("n1", value)
    stage.node("n1").crash()
    stage.drop()
    stage.promote("n2", "n2", "n3")
    assert stage.role("n2") == "primary"
    stage.node("n3").crash()
    stage.start("n1")
    stage.demote("n2")
    stage.drop()
    stage.promote("n1", "n1", "n2")
    assert stage.values("n1") == ["list", "barrier", "barrier"]
    assert stage.epochs("n1") == [1, 2, 3]


def test_another_donor_is_asked_when_one_falls_silent() -> None:
    stage = founded(5)
    for value in (b"a", b"b"):
        stage.propose("n1", value)
        stage.flow("n1", "n2", "n4")
    stage.node("n1").crash()
    stage.drop()
    order(stage, "n3", 10_000)
    while not (asked := [wired for wired in stage.wire if isinstance(wired.message, Fetch)]):
        stage.deliver(stage.wire[0])
    stage.node(asked[0].target).crash()
    stage.drop(target=asked[0].target)
    stage.run(DONOR_PATIENCE_MS + 500)
    assert stage.role("n3") == "primary"
    assert stage.values("n3")[:3] == ["list", b"a", b"b"]


def fetching_n3() -> tuple[Stage, Wired]:
    """n3 has asked n2 for its log; the answer, not delivered."""
    stage = lagging_n3()
    order(stage, "n3")
    stage.flow_until("n3", "n2", Fetch, "n2", "n3")
    stage.pass_on("n3", "n2", Fetch)
    return stage, stage.take_off("n2", "n3", Range)


def test_a_piece_that_does_not_fit_what_was_matched_is_not_adopted() -> None:
    with limited(small=True):  # one entry a piece
        stage, first = fetching_n3()
        stage.late(first)
        stage.pass_on("n3", "n2", Fetch)
        piece = stage.take_off("n2", "n3", Range)
        assert isinstance(piece.message, Range)
        stage.node("n3").take((piece.sender, piece.message._replace(prev=Position(Epoch(1, "n2.1"), 2))))
        stage.turn("n3")
        assert stage.values("n3") == ["list", b"a"]
        assert stage.role("n3") == "candidate"
        stage.flow("n2", "n3")
    assert stage.values("n3") == ["list", b"a", b"b", b"c", "barrier"]


def test_pieces_count_from_the_donor_that_was_asked_only() -> None:
    stage, piece = fetching_n3()
    other = stage.node("n1").disk.member
    assert isinstance(piece.message, Range)
    epoch, at = piece.message.epoch, Position(Epoch(1, "n1.1"), 9)
    for forged in (piece.message, Chunk(epoch, at, 0, True, b"")):
        stage.node("n3").take((other, forged))
    stage.turn("n3")
    assert stage.values("n3") == ["list"]
    assert not [line for line in stage.log if "snapshot" in line]
    stage.late(piece)
    assert stage.values("n3") == ["list", b"a", b"b", b"c", "barrier"]


def test_a_donor_that_compacted_gives_a_snapshot() -> None:
    with limited(small=True):
        stage = founded(3)
        for number in range(30):
            stage.propose("n1", b"%d" % number)
            stage.run(50, "n1", "n2")
        stage.node("n1").crash()
        stage.drop()
        assert stage.node("n2").running.local.log.base.index > 1
        order(stage, "n3")
        stage.flow_until("n3", "n2", FetchChunk, "n2", "n3")
        stage.flow("n2", "n3")
        assert stage.role("n3") == "primary"
        assert stage.node("n3").running.local.state.rows[b"k"].value == b"29"


def test_a_learner_cannot_be_primary_and_says_so_before_it_disturbs() -> None:
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.run(500)
    order(stage, "n3")
    stage.run(200)
    assert "not in member list 2" in failure(stage, "n3")
    assert stage.role("n1") == "primary"
    assert promise(stage, "n1") == 1


def test_a_candidate_that_finds_itself_removed_fails() -> None:
    stage = founded(4)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1") is None
    stage.flow("n1", "n2", "n3")
    stage.demote("n1")
    stage.drop()
    stage.promote("n4")
    stage.run(500)
    assert "not in member list 2" in failure(stage, "n4")


def test_an_empty_store_beside_a_founded_cluster_does_not_disturb() -> None:
    stage = founded(3)
    stage.node("n3").wipe()
    stage.start("n3")
    stage.drop()
    order(stage, "n3")
    stage.flow_only_questions()
    assert "must catch up first" in failure(stage, "n3")
    assert promise(stage, "n1") == 1


def test_the_barrier_is_the_first_entry_and_nothing_is_served_before_it_commits() -> None:
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3")
    stage.flow_until("n3", "n1", Seal)
    stage.pass_on("n3", "n1", Seal)
    stage.pass_on("n1", "n3", Sealed)
    assert stage.values("n3")[-1] == "barrier"
    assert stage.role("n3") == "candidate"
    stage.propose("n3", b"too early")
    assert stage.answer_to(b"too early") == "not_primary"
    read = stage.read_answer(stage.ask("n3"))
    assert read
    assert read.status == "not_primary"
    stage.flow()
    assert stage.role("n3") == "primary"


def test_a_barrier_that_nobody_confirms_in_time_fails_the_promote() -> None:
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    order(stage, "n3", 1_000)
    stage.flow_until("n3", "n1", Seal)
    stage.pass_on("n3", "n1", Seal)
    stage.pass_on("n1", "n3", Sealed)
    stage.run(1_500, "n3")
    assert failure(stage, "n3") == "no majority confirmed the barrier in the time given"
    assert stage.node("n3").running.wish.score is None


@pytest.mark.parametrize("size", range(1, 8))
def test_every_size_elects_and_writes_and_elects_again(size: int) -> None:
    stage = founded(size)
    stage.propose("n1", b"a")
    stage.run(300)
    assert stage.answer_to(b"a") == 0
    stage.demote("n1")
    stage.run(300)
    last = stage.names[-1]
    stage.promote(last)
    stage.propose(last, b"b")
    stage.run(300)
    assert stage.answer_to(b"b") == 0
    assert len({node.running.local.state.hash for node in stage.nodes}) == 1


def test_a_list_in_a_half_adopted_log_decides_nothing() -> None:
    """It may be undone in the other half."""
    with limited(small=True):  # one entry a piece
        stage = founded(4)
        stage.node("n4").crash()
        for stores in (("n1.1", "n2.1", "n3.1"), ("n1.1", "n2.1", "n3.1", "n4.1")):
            assert stage.change("n1", *stores) is None
            stage.run(200, "n1", "n2", "n3")
        stage.node("n1").crash()
        stage.drop()
        stage.start("n4")
        stage.promote("n4", "n2", "n3", "n4")
        assert stage.role("n4") == "primary"
        assert stage.values("n4") == ["list", "list", "list", "barrier"]


# --- One candidate, driven by hand ---

FIVE = [Member(f"n{number}", store) for number, store in enumerate("abcde", 1)]
A, B, C, D, E = FIVE
E1, E2, E3, E4 = (Epoch(number, "e") for number in (1, 2, 3, 4))
OWN = Epoch(5, "a")
DEADLINE_MS = 10_000
ISOLATION_MS = 1_500
START_MS = 1_000


def barrier(index: int, epoch: Epoch) -> Entry:
    return Entry(index, epoch, Kind.BARRIER, b"")


class Candidate:
    """Store a of five: entry 1 committed, further ones not; epoch 4 was promised to e. It has asked."""

    def __init__(self, *entries: Entry) -> None:
        self.local = Local(blank(A), "life", [member.node for member in FIVE])
        founding = Entry(1, E1, Kind.MEMBERS, pack_members(MemberList(1, "c", tuple(FIVE))))
        self.local.append([founding, *entries])
        self.local.advance(1)
        self.local.promise_epoch(E4)
        self.promotion = Promotion(self.local, 1, START_MS, DEADLINE_MS, ISOLATION_MS)
        self.sent()

    def answer(self, *members: Member, now_ms: int = START_MS) -> None:
        for member in members:
            said = Answer("life", 1, E4, Position(E1, 1), 1, 1, (), "backup", 10, True, 0, 1, "own", None)
            self.promotion.on_answer(member, said, now_ms)

    def sealing(self) -> Candidate:
        """Two others have answered; its own promise is durable."""
        self.answer(B, C)
        assert self.promotion.epoch == OWN
        self.promotion.on_saved(START_MS)
        self.sent()
        return self

    def sealed(self, member: Member, last: Position, now_ms: int = START_MS) -> None:
        self.promotion.on_sealed(member, Sealed(OWN, last, 1, ()), now_ms)

    def piece(self, donor: Member, prev: Position, *entries: Entry, now_ms: int = START_MS) -> None:
        self.promotion.on_range(donor, Range(OWN, prev, entries, 1), now_ms)

    def sent(self) -> list[tuple[str, Message]]:
        return self.local.take_ready(0).send

    def fetched(self) -> list[tuple[str, int]]:
        """Whom it asked for what is behind which index."""
        return [(node, message.after) for node, message in self.sent() if isinstance(message, Fetch)]


def test_nothing_counts_towards_a_promise_that_is_not_durable_here() -> None:
    """Not even the answers of all others, which then speak of something that this candidate may forget."""
    own = Candidate()
    own.answer(B, C)
    for member in (B, C, D, E):
        own.sealed(member, Position(E1, 1))
    assert not own.promotion.won
    own.promotion.on_saved(START_MS)
    assert own.promotion.won


def test_a_refusal_is_outbid_whoever_answers_then() -> None:
    own = Candidate().sealing()
    for _ in range(2):  # the second one comes when it asks already
        own.promotion.on_refused(Refused(Epoch(8, "e"), False), START_MS)
    assert own.promotion.epoch is None
    own.answer(B, C)  # they know nothing of number 8
    assert own.promotion.epoch == Epoch(9, "a")


def test_a_refusal_by_an_older_promise_is_late_and_says_nothing() -> None:
    own = Candidate().sealing()
    own.promotion.on_refused(Refused(E4, False), START_MS)
    assert own.promotion.epoch == OWN


def test_of_two_that_refuse_each_other_the_greater_store_asks_again_at_once() -> None:
    for candidate, asks in (("Z", True), ("e", False)):
        own = Candidate().sealing()
        own.promotion.on_refused(Refused(Epoch(5, candidate), False), START_MS + 50)
        assert any(isinstance(message, Ask) for _, message in own.sent()) == asks
        own.promotion.tick(START_MS + 50 + RESEND_MS)
        assert any(isinstance(message, Ask) for _, message in own.sent())


def gives_up(own: Candidate, at_ms: int, why: str) -> None:
    """At that time, and not before."""
    own.promotion.tick(at_ms - 1)
    assert own.promotion.failed is None
    own.promotion.tick(at_ms)
    assert own.promotion.failed == why


def test_it_repeats_itself_as_long_as_it_has_time() -> None:
    own = Candidate().sealing()
    for member in (B, C):
        own.sealed(member, Position(E2, 3))
    own.fetched()
    for now_ms, seals in ((START_MS + RESEND_MS - 1, False), (START_MS + RESEND_MS, True), (DEADLINE_MS - 1, True)):
        own.promotion.tick(now_ms)
        assert any(isinstance(message, Seal) for _, message in own.sent()) == seals
        assert own.promotion.failed is None
    own.promotion.tick(DEADLINE_MS)
    assert own.promotion.failed == "no promotion in the time given: the log of n3 is better and did not arrive"


def test_who_loses_its_majority_while_it_seals_has_no_more_time_either() -> None:
    """Two of three daemons that die in a promote are started again once it has ended."""
    own = Candidate().sealing()
    own.sealed(B, Position(E2, 3))
    gives_up(own, START_MS + ISOLATION_MS, "isolated: no answer from n3, n4, n5 (sealing)")


def test_a_list_that_arrives_late_has_that_time_for_its_majority() -> None:
    own = Candidate().sealing()
    for member in (B, C):
        own.sealed(member, Position(E2, 3))
    late_ms = START_MS + 2 * ISOLATION_MS
    own.promotion.tick(late_ms)
    assert own.promotion.failed is None
    own.promotion._sealed.pop(C.store)  # as a list that needs more than these would
    gives_up(own, late_ms + ISOLATION_MS, "isolated: no answer from n3, n4, n5 (sealing)")


def test_who_reaches_no_majority_has_no_more_time_than_it_takes_to_be_isolated() -> None:
    """The cluster manager can do something about it only once this has ended."""
    own = Candidate()
    own.answer(B)
    gives_up(own, START_MS + ISOLATION_MS, "isolated: no answer from n3, n4, n5 (asking)")


def test_who_was_refused_has_that_time_again() -> None:
    own = Candidate().sealing()
    for member in (B, C):
        own.sealed(member, Position(E2, 3))  # of the former epoch: counts no more
    own.promotion.on_refused(Refused(Epoch(5, "Z"), False), START_MS + 900)
    gives_up(own, START_MS + 900 + ISOLATION_MS, "isolated: no answer from n2, n3, n4, n5 (asking)")


def test_of_two_better_logs_the_best_is_fetched() -> None:
    own = Candidate()
    own.answer(B, C)
    own.sealed(B, Position(E3, 5))
    own.sealed(C, Position(E4, 3))
    own.promotion.on_saved(START_MS)
    assert own.fetched() == [("n3", 1)]


def test_a_donor_is_kept_until_its_log_is_here_and_then_the_next_better_one_follows() -> None:
    own = Candidate().sealing()
    own.sealed(B, Position(E2, 3))
    assert own.fetched() == [("n2", 1)]
    own.sealed(C, Position(E4, 2), now_ms=START_MS + FETCH_RETRY_MS)
    assert own.fetched() == [("n2", 1)], "what was matched with it is not begun anew with another"
    own.piece(B, Position(E1, 1), barrier(2, E2))
    assert own.fetched() == [("n2", 2)]
    own.piece(B, Position(E2, 2), barrier(3, E2))
    assert own.fetched() == [("n3", 1)]
    own.piece(C, Position(E1, 1), barrier(2, E4))
    assert own.promotion.won
    assert own.local.log.last == Position(E4, 2)


def test_a_piece_that_comes_twice_asks_for_nothing_twice() -> None:
    own = Candidate().sealing()
    own.sealed(B, Position(E2, 4))
    own.piece(B, Position(E1, 1), barrier(2, E2))
    assert own.fetched() == [("n2", 1), ("n2", 2)]
    own.piece(B, Position(E1, 1), barrier(2, E2))
    assert own.fetched() == []


def test_a_donor_has_its_time_to_answer() -> None:
    own = Candidate().sealing()
    own.sealed(B, Position(E2, 3))
    own.sealed(C, Position(E2, 2))
    own.promotion.tick(START_MS + DONOR_PATIENCE_MS - 1)
    assert own.fetched() == [("n2", 1), ("n2", 1)]
    own.sealed(C, Position(E2, 2), now_ms=START_MS + DONOR_PATIENCE_MS)
    assert own.fetched() == [("n3", 1)]
    own.piece(C, Position(E1, 1), barrier(2, E2), now_ms=START_MS + DONOR_PATIENCE_MS)
    assert own.fetched() == [("n2", 1)], "it is the only better one: it is asked once more"


def test_a_piece_that_nobody_asked_for_is_ignored() -> None:
    own = Candidate().sealing()
    own.piece(B, Position(E1, 1), barrier(2, E2))
    own.promotion.on_chunk(B, Chunk(OWN, Position(E2, 9), 0, False, b""), START_MS)
    assert own.local.log.last == Position(E1, 1)
    assert own.sent() == []


def test_a_candidate_does_not_take_itself_for_a_donor() -> None:
    """A half-filled log may be worse than the own one that it replaces, and is still the own one."""
    own = Candidate(barrier(2, E3)).sealing()
    own.sealed(B, Position(E4, 3))
    own.sealed(C, Position(E1, 1))
    own.piece(B, Position(E1, 1), barrier(2, E2))
    assert own.local.log.last == Position(E2, 2)
    for late_ms in range(START_MS, START_MS + 3 * DONOR_PATIENCE_MS, RESEND_MS):
        own.promotion.tick(late_ms)
    assert {node for node, _ in own.fetched()} == {"n2"}


def test_whoever_has_won_or_failed_fetches_nothing_more() -> None:
    later_ms = START_MS + FETCH_RETRY_MS
    own = Candidate().sealing()
    own.sealed(B, Position(E4, 9))
    assert own.fetched() == [("n2", 1)]
    own.sealed(C, Position(E1, 1))
    own.sealed(D, Position(E1, 1), now_ms=later_ms)
    assert own.promotion.won and own.fetched() == []

    own = Candidate().sealing()
    own.sealed(B, Position(E4, 9))
    own.sealed(C, Position(E2, 2))
    without = Entry(2, E2, Kind.MEMBERS, pack_members(MemberList(2, "c", (B, C, D))))
    own.piece(B, Position(E1, 1), without)
    own.fetched()
    own.sealed(D, Position(E1, 1), now_ms=later_ms)
    assert own.promotion.failed == "this store is not in member list 2: it cannot be primary"
    assert own.fetched() == []
