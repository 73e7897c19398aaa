"""Scores: who may be promoted, as far as this node can tell; and stores that were copied or rolled back."""

from __future__ import annotations

from typing import Any

import pytest
from sim.stage import Stage, founded

from food.core.local import Local, blank
from food.core.message import NO_EPOCH, START, Answer, Ask, Member
from food.core.peers import ASK_EAGER_MS, ASK_MS, HOLD_MOST_MS, HOLD_MS, SETTLE_MS, Peers, Scores, Wish

ME, OTHER = Member("n1", "a"), Member("n2", "b")


def wish(stage: Stage, name: str) -> Wish:
    return stage.node(name).running.wish


# --- Another cluster's store ---


def test_the_store_of_another_cluster_is_that_of_the_fewer() -> None:
    peers = Peers(Local(blank(ME), "life", ["n1", "n2", "n3", "n4"]))
    peers.ask(1_000)
    assert peers.outnumbered(1_000, 1_500) is None
    peers.on_stranger("n9", 1_000)
    assert peers.outnumbered(1_000, 1_500) is None, "a node that nobody listed"
    peers.on_stranger("n3", 1_000)
    assert peers.outnumbered(1_000, 1_500) == "this store is of another cluster than that of n3"
    peers.on_answer(OTHER, answer(peers))
    assert peers.outnumbered(1_000, 1_500) is None, "two of ours beside one of theirs"
    peers.on_stranger("n4", 1_000)
    assert peers.outnumbered(2_500, 1_500) == "this store is of another cluster than that of n3, n4"
    assert peers.outnumbered(2_501, 1_500) is None, "they have gone"


# --- Round trips ---


def answer(peers: Peers, **more: Any) -> Answer:
    fields: dict[str, Any] = {
        "life": "life",
        "round": peers.round,
        "promise": NO_EPOCH,
        "last": START,
        "commit": 0,
        "list_number": 0,
        "nodes": ("n1", "n2"),
        "role": "backup",
        "score": None,
        "matched": False,
        "since_ms": 10_000,
        "starts": 1,
        "own_life": "other",
        "remembers": None,
    }
    return Answer(**(fields | more))


@pytest.fixture
def peers() -> Peers:
    recovered = blank(ME)._replace(starts=4, remembers={"a 3": (3, "before")})
    found = Peers(Local(recovered, "life", ["n1", "n2"]))
    found.ask(1_000)
    return found


def test_everybody_is_asked_soon_until_enough_have_answered(peers: Peers) -> None:
    peers._local.take_ready(0)
    peers.tick(1_000 + ASK_EAGER_MS - 1)
    assert not peers._local.take_ready(0).send
    peers.tick(1_000 + ASK_EAGER_MS)
    assert peers._local.take_ready(0).send == [("n2", Ask("life", 2))]


def test_everybody_is_asked_all_the_time(peers: Peers) -> None:
    peers.on_answer(OTHER, answer(peers))
    peers._local.take_ready(0)
    peers.tick(1_000 + ASK_MS - 1)
    assert not peers._local.take_ready(0).send
    peers.tick(1_000 + ASK_MS)
    assert peers._local.take_ready(0).send == [("n2", Ask("life", 2))]


def test_a_round_trip_is_as_recent_as_its_question(peers: Peers) -> None:
    peers.on_answer(OTHER, answer(peers))
    assert set(peers.recent(1_500, 500)) == {"b"}
    assert not peers.recent(1_501, 500)


def test_answers_to_another_life_or_to_no_question_do_not_count(peers: Peers) -> None:
    peers.on_answer(OTHER, answer(peers, life="former"))
    peers.on_answer(OTHER, answer(peers, round=99))
    assert not peers.heard


def test_a_node_has_one_store_at_a_time(peers: Peers) -> None:
    peers.on_answer(OTHER, answer(peers))
    peers.on_answer(Member("n2", "new disk"), answer(peers))
    assert set(peers.heard) == {"new disk"}


@pytest.mark.parametrize(
    ("remembers", "usable"),
    [
        (None, True),
        ((4, "life"), True),
        ((3, "before"), True),
        ((3, "another"), False),
        ((4, "a copy"), False),
        ((5, "later"), False),
        ((2, "never noted"), False),
    ],
)
def test_a_store_that_was_rolled_back_or_copied_is_recognised(
    peers: Peers, remembers: tuple[int, str] | None, usable: bool
) -> None:
    found = peers.on_answer(OTHER, answer(peers, remembers=remembers))
    assert (found is None) == usable
    assert usable or "n2 saw a start" in str(found)


def test_starts_are_remembered_durably(peers: Peers) -> None:
    peers.on_answer(OTHER, answer(peers, starts=7, own_life="x"))
    save = peers._local.take_ready(0).save
    assert save
    assert save.remembers == {"a 4": (4, "life"), "b": (7, "x")}


def test_a_life_is_noted_before_anybody_hears_of_it() -> None:
    stage = founded(3)
    stage.restart("n2")
    disk = stage.node("n2").disk
    assert disk.starts == 2
    assert set(disk.remembers) >= {"n2.1 1", "n2.1 2"}


@pytest.fixture
def older() -> Stage:
    """Three members, of which n2 has its store as it was a start ago, and is down."""
    stage = founded(3)
    stage.node("n2").image = stage.node("n2").disk.copy()
    stage.restart("n2")
    stage.run(500)
    stage.node("n2").roll_back()
    return stage


def test_an_older_copy_does_not_outrun_what_is_remembered_by_restarting(older: Stage) -> None:
    stage = older
    for _ in range(5):
        stage.node("n2").start()
        stage.tick("n2")
        stage.drop()
        stage.node("n2").crash()
    stage.start("n2")
    stage.tick("n2")
    assert stage.node("n2").disk.member.store == "n2.2"


def test_an_older_copy_that_answers_first_does_not_outrun_it_either(older: Stage) -> None:
    """It was started as often as it had lost starts, and is asked before it has heard anything."""
    stage = older
    for _ in range(5):
        stage.node("n2").start()
        stage.node("n2").crash()
    stage.node("n2").start()
    stage.drop()
    stage.tick("n1", "n3", ms=300)
    for asker in ("n1", "n3"):
        stage.pass_on(asker, "n2", Ask)
        assert stage.pass_on("n2", asker, Answer).starts == 0
    stage.run(1_000)
    assert stage.node("n2").disk.member.store == "n2.2"


def test_a_rolled_back_store_must_not_vote() -> None:
    stage = founded(3)
    stage.node("n3").image = stage.node("n3").disk.copy()
    stage.restart("n3")
    stage.run(1_000)
    stage.node("n3").roll_back()
    stage.node("n3").start()
    store = stage.node("n3").disk.member.store
    stage.tick("n3")
    stage.flow_only_questions()
    assert stage.node("n3").disk.member.store != store  # set aside: an empty one takes its place


# --- Wishes ---


def test_all_level_members_are_in_sync() -> None:
    stage = founded(3)
    stage.run(2_000)
    assert [wish(stage, name).score for name in stage.names] == [1000, 100, 100]


def test_the_incumbents_bonus_is_larger_than_any_difference() -> None:
    stage = founded(3)
    stage.run(2_000)
    assert (wish(stage, "n1").score or 0) > 2 * (wish(stage, "n2").score or 0)


def test_after_a_total_restart_there_are_candidates_although_no_primary_exists() -> None:
    stage = founded(3)
    for name in stage.names:
        stage.node(name).crash()
    for name in stage.names:
        stage.node(name).start()
    stage.run(300)
    assert all(wish(stage, name).score == 100 for name in stage.names)


def test_an_isolated_node_has_no_score() -> None:
    stage = founded(3)
    stage.run(1_000)
    stage.run(2_000, "n3")
    assert wish(stage, "n3") == Wish(None, "isolated: no answer from n1, n2")


def test_a_learner_has_no_score() -> None:
    stage = founded(3)
    stage.run(1_000)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.run(500)
    assert wish(stage, "n3") == Wish(None, "learner: this store is not in member list 2; foodctl member add n3")


def test_who_does_not_know_the_newest_list_has_no_score() -> None:
    stage = founded(4)
    stage.run(1_000)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1") is None
    stage.flow("n1", "n2", "n3")
    stage.drop()
    stage.now += 300
    for _ in range(2):
        stage.tick("n1", "n2", "n4", ms=300)
        stage.flow_only_questions()
        stage.drop()
    assert wish(stage, "n4").score is None
    assert "knows a newer member list" in wish(stage, "n4").why


def test_a_list_known_only_to_whom_it_leaves_out_does_not_block_everybody() -> None:
    """The primary published it to nobody else, and its disk is lost."""
    stage = founded(4)
    stage.run(1_000)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1") is None
    stage.flow("n1", "n4")
    stage.node("n1").crash()
    stage.run(SETTLE_MS + 2 * HOLD_MS + 1_000)
    assert wish(stage, "n4").score is None
    assert wish(stage, "n2").score
    stage.promote("n2")
    stage.run(500)
    assert stage.role("n2") == "primary"


def test_a_new_disk_is_a_learner_that_waits_for_the_log() -> None:
    stage = founded(3)
    stage.node("n3").wipe()
    stage.node("n3").start()
    stage.tick("n3")
    stage.flow_only_questions()
    stage.tick("n3")
    assert wish(stage, "n3").score is None
    assert "empty: waiting for the log" in wish(stage, "n3").why
    stage.run(500)
    assert "learner" in wish(stage, "n3").why
    assert stage.node("n3").running.local.commit == 1


def test_a_backup_that_catches_up_may_be_promoted_but_is_not_preferred() -> None:
    stage = founded(3)
    stage.run(1_000)
    for number in range(5):
        stage.propose("n1", b"%d" % number)
        stage.flow("n1", "n2")
    for _ in range(4):
        stage.tick(ms=300)
        stage.flow_only_questions()
        stage.drop()
    assert wish(stage, "n3").score == 10


def test_a_cut_off_primary_gives_its_score_up_only_while_another_shows_one() -> None:
    stage = founded(3)
    stage.run(1_000)
    stage.run(1_500, "n1")
    found = wish(stage, "n1")
    assert found.score is None
    assert found.unless_alone
    assert stage.role("n1") == "primary"


def test_before_the_founding_every_node_is_awaited_by_name() -> None:
    stage = Stage(3)
    stage.run(300, "n1", "n2")
    assert wish(stage, "n1") == Wish(
        None, "first start needs every node once: awaiting n3; with fewer: foodctl member found"
    )
    stage.run(300)
    assert wish(stage, "n1").score == 10


def test_before_the_founding_all_must_be_of_one_mind() -> None:
    stage = Stage(2)
    stage.node("n2").running.local.nodes = ("n1", "n2", "n9")
    stage.run(300)
    assert "another node list" in wish(stage, "n1").why


# --- Hysteresis ---

NONE, TEN, HUNDRED = Wish(None, "none"), Wish(10, "ten"), Wish(100, "hundred")


def test_the_first_score_of_a_process_comes_at_once() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=False)
    assert scores.wish == TEN


def test_a_score_is_lowered_at_once_and_raised_only_when_deserved_for_a_while() -> None:
    scores = Scores()
    scores.update(HUNDRED, 0, at_once=False)
    scores.update(TEN, 10, at_once=False)
    assert scores.wish == TEN
    scores.update(HUNDRED, 20, at_once=False)
    scores.update(HUNDRED, 20 + HOLD_MS - 1, at_once=False)
    assert scores.wish == TEN
    scores.update(HUNDRED, 20 + HOLD_MS, at_once=False)
    assert scores.wish == HUNDRED


def test_a_change_of_role_is_no_measurement() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=True)
    scores.update(HUNDRED, 1, at_once=True)
    assert scores.wish == HUNDRED


def test_what_is_deserved_only_now_and_then_is_not_given() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=False)
    for now_ms in range(10, 10 * HOLD_MS, HOLD_MS // 2):
        scores.update(HUNDRED, now_ms, at_once=False)
        scores.update(TEN, now_ms + 1, at_once=False)
    assert scores.wish == TEN


def test_a_wavering_score_is_raised_to_the_least_it_deserved() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=False)
    scores.update(NONE, 1, at_once=False)
    for now_ms in range(10, 2 * HOLD_MS + 10, 100):
        scores.update(TEN if now_ms % 200 else HUNDRED, now_ms, at_once=False)
    assert scores.wish == TEN


def test_coming_back_hold_down_doubles() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=False)
    now_ms = 0
    for times in (1, 2, 4, 8):
        now_ms += 10
        scores.update(NONE, now_ms, at_once=False)
        scores.update(TEN, now_ms, at_once=False)
        now_ms += times * HOLD_MS
        scores.update(TEN, now_ms - 1, at_once=False)
        assert scores.wish == NONE
        scores.update(TEN, now_ms, at_once=False)
        assert scores.wish == TEN
    now_ms += HOLD_MOST_MS
    scores.update(NONE, now_ms, at_once=False)
    scores.update(TEN, now_ms, at_once=False)
    scores.update(TEN, now_ms + HOLD_MS, at_once=False)
    assert scores.wish == TEN


def test_the_reason_is_always_the_newest() -> None:
    scores = Scores()
    scores.update(TEN, 0, at_once=False)
    scores.update(Wish(10, "another reason"), 1, at_once=False)
    assert scores.wish.why == "another reason"


def test_who_says_that_it_does_not_vote_is_as_good_as_not_there(peers: Peers) -> None:
    peers.on_votes("b", False)
    assert not peers.voteless, "nobody has heard of it"
    peers.on_answer(OTHER, answer(peers))
    peers.on_votes("b", False)
    assert not peers.recent(1_000, 500)
    peers.on_votes("b", True)
    assert set(peers.recent(1_000, 500)) == {"b"}
    peers.on_votes("b", False)
    peers.on_answer(Member("n2", "new disk"), answer(peers))
    assert not peers.voteless, "another store is another vote"
