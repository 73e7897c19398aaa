"""The roles: only the cluster manager changes them; a member steps down before it answers a newer Seal."""

from __future__ import annotations

import pytest
from sim.stage import Stage, founded

from food.core.message import Ack, Append, Epoch, Fetch, Heartbeat, Range, Refused, Seal, Sealed
from food.core.peers import Wish
from food.core.replica import HAND_OVER_MS, ISOLATED, Replica


def replica(stage: Stage, name: str) -> Replica:
    return stage.node(name).running


def messages(stage: Stage, source: str, target: str) -> list[str]:
    return [type(w.message).__name__ for w in stage.wire if (w.source, w.target) == (source, target)]


# --- Orders ---


def test_a_backup_never_promotes_itself() -> None:
    stage = founded(3)
    stage.node("n1").crash()
    stage.run(10_000)
    assert stage.role("n2") == stage.role("n3") == "backup"


def test_promoting_twice_changes_nothing_but_the_time_given() -> None:
    stage = founded(3)
    stage.promote("n1")
    assert stage.role("n1") == "primary"
    assert replica(stage, "n1").local.promise.number == 1
    replica(stage, "n2").promote(stage.now, stage.now + 300)
    replica(stage, "n2").promote(stage.now, stage.now + 5_000)
    stage.turn("n2")
    stage.drop()
    stage.run(600, "n2")
    assert stage.role("n2") == "candidate"


def test_a_failed_promote_drops_the_score_and_keeps_the_reason_until_demote() -> None:
    stage = founded(3)
    stage.run(1_000)
    replica(stage, "n3").promote(stage.now, stage.now + 300)
    stage.run(500, "n3")
    assert replica(stage, "n3").deposed
    assert replica(stage, "n3").wish.score is None
    assert "no answer from n1, n2" in (replica(stage, "n3").failure or "")
    stage.demote("n3")
    stage.run(1_500)
    assert not replica(stage, "n3").deposed
    assert replica(stage, "n3").failure is None
    assert replica(stage, "n3").wish.score == 100


def test_demote_waits_for_writes_in_flight() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    replica(stage, "n1").demote(stage.now, 500)
    stage.propose("n1", b"late")
    assert stage.answer_to(b"late") == "not_primary"
    stage.tick("n1")
    assert stage.role("n1") == "primary"
    stage.flow()
    stage.tick("n1")
    assert stage.answer_to(b"a") == 0
    assert stage.role("n1") == "backup"


def test_demote_answers_the_rest_outcome_unknown() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    replica(stage, "n1").demote(stage.now, 200)
    stage.drop()
    stage.run(300, "n1")
    assert stage.answer_to(b"a") == "unknown"
    assert stage.role("n1") == "backup"


@pytest.mark.parametrize(("size", "score"), [(2, 1000), (3, None)])
def test_a_primary_that_is_cut_off_gives_its_score_up_where_others_could_lead(size: int, score: int | None) -> None:
    """Of two nobody can lead without the other: it keeps the role, whatever is left of the other's score."""
    stage = founded(size)
    stage.run(2_000, "n1")
    wish = replica(stage, "n1").wish
    assert (wish.score, wish.why, wish.unless_alone) == (score, ISOLATED, score is None)


def test_a_primary_that_is_cut_off_with_a_list_of_two_which_nobody_else_has_gives_its_role_to_the_three() -> None:
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.drop()
    for _ in range(30):
        stage.tick("n1")
        stage.drop()
    wish = stage.node("n1").running.wish
    assert (wish.score, wish.why, wish.unless_alone) == (None, ISOLATED, True)
    stage.run(1_000, "n2", "n3")
    stage.demote("n1")
    stage.promote("n2", "n2", "n3")
    assert stage.role("n2") == "primary"


def test_demote_of_a_cut_off_primary_does_not_wait() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.drop()
    stage.run(1_500, "n1")
    replica(stage, "n1").demote(stage.now, 60_000)
    stage.tick("n1")
    assert stage.role("n1") == "backup"


def test_demote_ends_a_leadership_for_good() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    replica(stage, "n1").demote(stage.now, 500)
    replica(stage, "n1").promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    assert stage.answer_to(b"a") == "unknown"
    stage.flow()
    stage.run(300)
    assert stage.role("n1") == "primary"
    assert replica(stage, "n1").local.promise == Epoch(2, "n1.1")


def test_demote_of_a_candidate() -> None:
    stage = founded(3)
    replica(stage, "n3").promote(stage.now, stage.now + 5_000)
    stage.demote("n3")
    assert stage.role("n3") == "backup"
    assert replica(stage, "n3").failure is None
    stage.run(500)
    assert stage.role("n1") == "primary"


def test_a_move_keeps_the_old_score_until_the_new_primary_has_its_own() -> None:
    stage = founded(3)
    stage.run(1_000)
    stage.demote("n1")
    assert replica(stage, "n1").wish.score == 1000
    stage.promote("n2")
    stage.run(HAND_OVER_MS + 100)
    assert replica(stage, "n2").wish.score == 1000
    assert replica(stage, "n1").wish.score == 100


# --- Seals and refusals ---


def test_a_primary_steps_down_before_it_answers_a_newer_seal() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.drop()
    replica(stage, "n2").promote(stage.now, stage.now + 5_000)
    stage.turn("n2")
    stage.flow_until("n2", "n1", Seal)
    stage.pass_on("n2", "n1", Seal)
    assert stage.role("n1") == "backup"
    assert stage.answer_to(b"a") == "unknown"
    assert "superseded by n2 in epoch 2" in (replica(stage, "n1").failure or "")
    assert stage.take_off("n1", "n2", Sealed).message
    stage.tick("n1")
    assert replica(stage, "n1").wish.score is None


def test_a_promise_is_answered_again_the_same() -> None:
    stage = founded(3)
    stage.node("n1").crash()
    replica(stage, "n2").promote(stage.now, stage.now + 5_000)
    stage.turn("n2")
    stage.flow_until("n2", "n3", Seal)
    seal = next(w for w in stage.wire if w.target == "n3" and isinstance(w.message, Seal))
    stage.deliver(seal)
    first = stage.take_off("n3", "n2", Sealed).message
    stage.late(seal)
    assert stage.take_off("n3", "n2", Sealed).message == first


@pytest.mark.parametrize("kind", [Append, Heartbeat])
def test_an_older_epoch_is_refused_with_the_promise(kind: type) -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.tick("n1", ms=200)
    late = [stage.take_off("n1", "n2", Append), stage.take_off("n1", "n2", Heartbeat)]
    stage.drop()
    stage.promote("n3", "n2", "n3")
    stage.late(next(wired for wired in late if isinstance(wired.message, kind)))
    assert stage.take_off("n2", "n1", Refused).message == Refused(Epoch(2, "n3.1"), True)
    assert stage.values("n2") == ["list", "barrier"]


def test_one_refusal_a_sender_and_turn() -> None:
    stage = founded(3)
    for value in (b"a", b"b", b"c"):
        stage.propose("n1", value)
    late = [wired for wired in stage.wire if wired.target == "n2"]
    stage.drop()
    stage.promote("n3", "n2", "n3")
    for wired in late:
        stage.node("n2").take((wired.sender, wired.message))
    stage.turn("n2")
    assert messages(stage, "n2", "n1").count("Refused") == 1


def test_fetching_in_an_older_epoch_is_refused() -> None:
    stage = founded(3)
    following = replica(stage, "n2").following
    assert following
    following._fetcher.want(0, stage.now)
    stage.turn("n2")
    late = stage.take_off("n2", "n1", Fetch)
    stage.promote("n3", "n1", "n3")
    stage.late(late)
    assert messages(stage, "n1", "n2") == ["Refused"]


def test_nobody_speaks_for_another_candidate() -> None:
    stage = founded(3)
    sender = stage.node("n3").disk.member
    for forged in (Seal(Epoch(9, "n2.1")), Heartbeat(Epoch(9, "n2.1"), replica(stage, "n1").local.log.last, 0, 0)):
        stage.node("n1").take((sender, forged))
    stage.turn("n1")
    assert stage.role("n1") == "primary"
    assert replica(stage, "n1").local.promise.number == 1


def test_whoever_publishes_has_sealed_a_majority_and_is_promised() -> None:
    stage = founded(3)
    stage.promote("n2", "n1", "n2")
    stage.tick("n2", ms=200)
    stage.pass_on("n2", "n3", Heartbeat)
    assert stage.node("n3").disk.promise == Epoch(2, "n2.1")


def test_an_old_primary_that_hears_of_a_led_epoch_gives_up() -> None:
    stage = founded(3)
    stage.run(1_000)
    stage.promote("n3", "n2", "n3")
    stage.tick("n1", ms=200)
    stage.pass_on("n1", "n3", Heartbeat)
    assert stage.pass_on("n3", "n1", Refused).led
    assert stage.role("n1") == "backup"
    assert replica(stage, "n1").deposed
    stage.run(300)
    assert replica(stage, "n1").wish.score is None
    assert stage.role("n3") == "primary"


def test_a_primary_outbids_the_promise_to_a_candidate_that_failed() -> None:
    """Else the member that promised would stay out for good."""
    stage = founded(3)
    stage.run(1_000)
    replica(stage, "n3").promote(stage.now, stage.now + 5_000)
    stage.turn("n3")
    stage.flow_until("n3", "n2", Seal)
    stage.pass_on("n3", "n2", Seal)
    stage.node("n3").crash()
    stage.drop()
    stage.run(1_000)
    assert stage.role("n1") == "primary"
    assert replica(stage, "n1").local.promise == Epoch(3, "n1.1")
    assert replica(stage, "n2").local.promise == Epoch(3, "n1.1")


def test_a_cut_off_primary_outbids_nobody() -> None:
    stage = founded(3)
    stage.run(2_000, "n1")
    sender = stage.node("n2").disk.member
    stage.node("n1").take((sender, Refused(Epoch(7, "n2.1"), False)))
    stage.turn("n1")
    assert replica(stage, "n1").local.promise.number == 1
    assert replica(stage, "n1").leading


def test_a_late_refusal_of_an_older_promise_says_nothing() -> None:
    stage = founded(3)
    stage.promote("n1")
    sender = stage.node("n2").disk.member
    stage.node("n1").take((sender, Refused(Epoch(0, ""), True)))
    stage.turn("n1")
    assert stage.role("n1") == "primary"


def test_a_store_of_another_cluster_among_ours_is_not_promoted_and_has_no_score() -> None:
    stage = founded(1)
    own = replica(stage, "n1")
    own.local.nodes = ("n1", "n2")
    stage.demote("n1")
    own.peers.on_stranger("n2", stage.now)
    own.promote(stage.now, stage.now + 5_000)
    stage.tick("n1")
    assert own.failure == "this store is of another cluster than that of n2"
    assert stage.role("n1") == "backup" and own.deposed
    own.demote(stage.now, 0)
    stage.tick("n1")
    assert own.wish == Wish(None, "this store is of another cluster than that of n2")


def test_no_score_is_shown_while_the_manager_must_not_promote() -> None:
    stage = founded(3)
    stage.run(1_000)
    replica(stage, "n2").withheld = "not adopted"
    stage.tick("n2")
    assert replica(stage, "n2").wish == Wish(None, "not adopted; in sync")
    replica(stage, "n2").withheld = ""
    stage.tick("n2")
    assert replica(stage, "n2").wish.score == 100, "at once: it was no measurement that may flap"


# --- Late pieces ---


def test_a_piece_of_an_older_epoch_is_ignored() -> None:
    stage = founded(3)
    following = replica(stage, "n2").following
    assert following
    stage.propose("n1", b"a")
    stage.drop()
    following._fetcher.want(1, stage.now)
    stage.turn("n2")
    stage.pass_on("n2", "n1", Fetch)
    late = stage.take_off("n1", "n2", Range)
    stage.promote("n3", "n2", "n3")
    before = stage.values("n2")
    stage.late(late)
    assert stage.values("n2") == before == ["list", "barrier"]


def test_a_donors_piece_that_comes_after_the_promotion_failed_is_ignored() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    stage.node("n1").crash()
    stage.drop()
    replica(stage, "n3").promote(stage.now, stage.now + 5_000)
    stage.turn("n3")
    stage.flow_until("n3", "n2", Fetch, "n2", "n3")
    stage.pass_on("n3", "n2", Fetch)
    late = stage.take_off("n2", "n3", Range)
    stage.demote("n3")
    stage.drop()
    stage.late(late)
    assert stage.role("n3") == "backup"
    assert stage.values("n3") == ["list"]


# --- Restarts ---


def test_a_restarted_primary_is_a_backup_and_may_be_promoted_again() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.flow()
    stage.restart("n1")
    assert stage.role("n1") == "backup"
    stage.promote("n1")
    assert stage.role("n1") == "primary"
    assert replica(stage, "n1").local.promise.number == 2
    assert stage.values("n1") == ["list", b"a", "barrier"]


def test_acks_to_a_former_life_count_for_nothing() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.pass_on("n1", "n2", Append)
    late = stage.take_off("n2", "n1", Ack)
    stage.restart("n1")
    stage.drop()
    stage.late(late)
    assert replica(stage, "n1").local.commit == 1


def test_only_the_epochs_primary_or_its_donors_give_entries() -> None:
    stage = founded(3)
    sender = stage.node("n3").disk.member
    stage.node("n2").take((sender, Fetch(Epoch(1, "n1.1"), 0)))
    stage.turn("n2")
    assert not [w for w in stage.wire if isinstance(w.message, Range)]


def test_a_restarted_store_votes_once_it_was_told_what_is_remembered_of_it() -> None:
    stage = founded(3)
    stage.node("n3").crash()
    stage.node("n3").start()
    stage.drop()
    stage.tick("n1", ms=200)
    stage.pass_on("n1", "n3", Heartbeat)
    assert not [w for w in stage.wire if w.source == "n3" and isinstance(w.message, Ack)]
    stage.tick("n3")
    stage.flow_only_questions()
    stage.drop()
    stage.tick("n1", ms=200)
    stage.pass_on("n1", "n3", Heartbeat)
    assert stage.take_off("n3", "n1", Ack).message


def test_a_node_whose_list_is_gone_votes_again() -> None:
    """It was away while everybody else in its list was replaced; Corosync names the new ones."""
    stage = founded(3)
    own = replica(stage, "n3")
    own.local.nodes = ("n3", "n4", "n5")
    own.peers.heard.clear()
    sender = replica(stage, "n1").local.member
    assert not own._introduced(sender)
    heard = {**replica(stage, "n1").peers.heard}
    for number, (_, old) in enumerate(sorted(heard.items()), 4):
        member = old.member._replace(node=f"n{number}", store=f"n{number}.1")
        own.peers.heard[member.store] = old._replace(member=member)
    assert own._introduced(sender)


# --- Reads ---


def test_any_node_serves_stale_reads() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.run(300)
    replica(stage, "n3").read_stale("r", "get", [b"k"])
    stage.turn("n3")
    assert stage.answers[-1][1].value == [b"a", 1]


def test_a_backup_says_that_it_is_not_primary() -> None:
    stage = founded(3)
    stage.propose("n2", b"a")
    assert stage.answer_to(b"a") == "not_primary"
    found = stage.read_answer(stage.ask("n2"))
    assert found
    assert found.status == "not_primary"


def test_a_linearizable_read_after_a_failover_sees_every_acknowledged_write() -> None:
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    assert stage.answer_to(b"a") == 0
    stage.node("n1").crash()
    stage.drop()
    stage.promote("n3", "n2", "n3")
    number = stage.ask("n3")
    stage.flow("n2", "n3")
    found = stage.read_answer(number)
    assert found
    assert found.value == [b"a", 1]


def test_every_change_of_role_is_one_log_line() -> None:
    stage = founded(3)
    stage.run(200)
    assert [line for line in stage.log if "role:" in line] == ["n1: role: backup -> primary in epoch 1"]


def test_own_messages_are_ignored() -> None:
    stage = founded(3)
    stage.node("n1").take((stage.node("n1").disk.member, Seal(Epoch(9, "n1.1"))))
    stage.turn("n1")
    assert stage.role("n1") == "primary"
