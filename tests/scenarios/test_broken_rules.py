"""The schedules that PROTOCOL.md marks [broken]: each holds with the rule, and is caught where the rule is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sim.defects import DEFECTS
from sim.invariants import Violation
from sim.limits import limited
from sim.stage import Stage, founded

from food.core.message import Ack, Answer, Append, Ask, Fetch, FetchChunk, Heartbeat, Range, Refused, Seal, Sealed


def heartbeat_over_an_old_tail() -> None:
    """A new epoch resets matched: an old tail as long as the new log is not acknowledged."""
    stage = founded(3)
    stage.propose("n1", b"never committed")
    stage.drop()
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3")
    assert stage.role("n2") == "primary"
    stage.start("n1")
    stage.drop()
    stage.tick("n2", ms=200)
    stage.pass_on("n2", "n1", Heartbeat)
    assert stage.pass_on("n1", "n2", Ack).matched == 1
    stage.run(500)
    assert stage.values("n1") == ["list", "barrier"]


def commit_over_an_old_tail() -> None:
    """Commit goes up to matched only, never to what a backup merely holds."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.pass_on("n1", "n2", Append)
    stage.drop()
    for value in (b"old 3", b"old 4"):
        stage.propose("n1", value)
    stage.drop()
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3")
    stage.propose("n2", b"new 4")
    stage.flow("n2", "n3")
    assert stage.answer_to(b"new 4") == 0
    stage.start("n1")
    stage.drop()
    with limited(small=True):  # one entry a Range
        stage.tick("n2", ms=200)
        stage.pass_on("n2", "n1", Heartbeat)
        stage.pass_on("n1", "n2", Fetch)
        stage.pass_on("n2", "n1", Range)
        assert stage.node("n1").running.local.commit == 2
        stage.run(500)
    assert stage.values("n1") == ["list", b"a", "barrier", b"new 4"]


def restart_in_the_own_epoch() -> None:
    """A primary that restarts is a backup: it may have published what it never saved."""
    stage = founded(3)
    stage.node("n1").armed = "save"
    stage.propose("n1", b"published, never saved")
    assert not stage.node("n1").up
    stage.pass_on("n1", "n2", Append)
    stage.drop()
    stage.start("n1")
    assert stage.role("n1") == "backup"
    assert stage.values("n1") == ["list"]
    # A backup that still believes in it gets nothing: its log would cut what was matched.
    following = stage.node("n2").running.following
    assert following
    assert following.matched == 2
    following._fetcher.want(1, stage.now)
    stage.turn("n2")
    stage.pass_on("n2", "n1", Fetch)
    assert not [wired for wired in stage.wire if isinstance(wired.message, Range)]


def one_number_two_candidates() -> None:
    """First come for a number: another candidate with the same number is refused, and retries higher."""
    stage = founded(3)
    stage.demote("n1")
    stage.drop()
    for name in ("n1", "n2"):
        stage.node(name).running.promote(stage.now, stage.now + 5_000)
        stage.turn(name)
    stage.flow_only_questions()
    assert stage.pass_on("n1", "n3", Seal).epoch.number == 2
    assert stage.pass_on("n2", "n3", Seal).epoch.number == 2
    assert stage.pass_on("n3", "n1", Sealed).epoch.candidate == "n1.1"
    assert stage.pass_on("n3", "n2", Refused).promise.candidate == "n1.1"
    stage.run(500)
    assert sorted(stage.role(name) for name in stage.names) == ["backup", "backup", "primary"]


def two_halves_of_four() -> None:
    """R = W = floor(N/2)+1 for every N: half of four is not enough, on either side."""
    stage = founded(4)
    stage.propose("n1", b"a")
    stage.flow()
    stage.propose("n1", b"b")
    stage.flow("n1", "n2")
    stage.promote("n3", "n3", "n4")
    stage.run(500, "n3", "n4")
    assert stage.answer_to(b"a") == 0
    assert stage.answer_to(b"b") is None
    assert stage.role("n3") == "candidate"


def donor_dies() -> None:
    """A donor counts only once its log is here; never fall back to the own shorter log with its vote."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    assert stage.answer_to(b"a") == 0
    stage.node("n1").crash()
    stage.drop()
    stage.node("n3").running.promote(stage.now, stage.now + 10_000)
    stage.turn("n3")
    stage.flow_until("n3", "n2", Fetch)
    stage.node("n2").crash()
    stage.drop()
    stage.run(1_000, "n3")
    assert stage.role("n3") == "candidate"
    stage.start("n1")
    stage.run(2_000, "n1", "n3")
    assert stage.role("n3") == "primary"
    assert stage.values("n3")[1] == b"a"


def majority_of_a_list_that_is_gone() -> None:
    """After adopting, R is counted again in the adopted log's list."""
    stage = founded(5)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1", "n4.1") is None
    stage.flow("n1", "n2", "n3")
    assert stage.change("n1", "n1.1", "n2.1", "n3.1") is None
    stage.flow("n1", "n2")
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    assert stage.answer_to(b"a") == 0
    # n3, n4 and n5 were a majority of the list that n4 knows, not of the one it adopts from n3.
    stage.promote("n4", "n3", "n4", "n5")
    stage.run(500, "n3", "n4", "n5")
    assert stage.node("n4").running.local.log.members.number == 2  # type: ignore[union-attr]
    assert stage.role("n4") == "candidate"


def two_lists_at_once() -> None:
    """A list is appended only when the former is committed."""
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    refused = stage.change("n1", "n1.1")
    stage.propose("n1", b"a")
    stage.drop()
    stage.promote("n2", "n2", "n3")
    assert refused
    assert stage.answer_to(b"a") is None
    assert stage.role("n2") == "primary"


def list_before_the_barrier() -> None:
    """A list is appended only when this epoch's barrier is committed (the single-server change bug of Raft)."""
    stage = founded(5)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1", "n4.1") is None
    stage.run(300)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1", "n4.1", "n5.1") is None
    stage.flow("n1", "n5")
    stage.node("n2").running.promote(stage.now, stage.now + 9_000)
    stage.turn("n2")
    stage.flow_until("n2", "n4", Append, "n2", "n3", "n4")
    stage.drop()
    refused = stage.change("n2", "n2.1", "n3.1", "n4.1")
    stage.tick("n2", ms=200)
    stage.flow("n2", "n3")
    stage.propose("n2", b"a")
    stage.flow("n2", "n3")
    stage.node("n2").crash()
    stage.node("n1").crash()
    stage.start("n1")
    stage.drop()
    stage.promote("n1", "n1", "n4", "n5")
    stage.run(300, "n1", "n4", "n5")
    assert refused
    assert stage.answer_to(b"a") is None or stage.answer_to(b"a") != 0
    assert stage.role("n1") == "primary"


def figure_8() -> None:
    """The commit index advances only by counting entries of the own epoch (Raft, figure 8)."""
    stage = founded(3)
    stage.propose("n1", b"x")
    stage.node("n1").crash()
    stage.drop()
    stage.node("n3").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n3")
    stage.flow_until("n3", "n2", Append, "n2", "n3")
    stage.node("n3").crash()
    stage.drop()
    stage.start("n1")
    stage.node("n1").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    with limited(small=True):  # one entry a Range
        stage.flow_until("n1", "n2", Append, "n1", "n2")
        stage.pass_on("n1", "n2", Append)
        stage.pass_on("n2", "n1", Fetch)
        stage.pass_on("n1", "n2", Range)
        assert stage.values("n2") == ["list", b"x"]
        assert stage.pass_on("n2", "n1", Ack).matched == 2
    counted = stage.node("n1").running.local.commit
    stage.node("n1").crash()
    stage.drop()
    stage.start("n3")
    stage.promote("n3", "n2", "n3")
    assert counted == 1
    assert stage.role("n3") == "primary"
    assert stage.values("n2") == ["list", "barrier", "barrier"]


def read_joins_only_a_round_not_yet_sent() -> None:
    """An echo that was sent before the read came says nothing about who is primary now."""
    stage = founded(3)
    first = stage.ask("n1")
    stage.pass_on("n1", "n2", Heartbeat)
    echo = stage.take_off("n2", "n1", Ack)
    stage.drop()
    stage.promote("n3", "n2", "n3")
    stage.propose("n3", b"newer")
    stage.flow("n2", "n3")
    assert stage.answer_to(b"newer") == 0
    second = stage.ask("n1")
    stage.late(echo)
    assert stage.read_answer(first) is not None  # began before the newer write: either may come first
    assert stage.read_answer(second) is None


def replay_ends_at_the_saved_commit() -> None:
    """After a restart the state is replayed up to the saved commit index, never past it."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    stage.propose("n1", b"b")
    stage.drop()
    saved = stage.node("n1").disk.commit
    stage.restart("n1")
    local = stage.node("n1").running.local
    assert local.log.last.index == 3
    assert local.commit == local.state.applied == saved <= 2


def acknowledged_only_when_saved() -> None:
    """Nothing but the primary's own entries leaves a node before its save."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.node("n2").armed = "saved"
    stage.pass_on("n1", "n2", Append)
    assert not stage.node("n2").up
    assert stage.node("n2").disk.last.index == 2
    assert not [wired for wired in stage.wire if isinstance(wired.message, Ack)]
    stage.node("n3").armed = "save"
    stage.pass_on("n1", "n3", Append)
    assert stage.node("n3").disk.last.index == 1
    assert not [wired for wired in stage.wire if isinstance(wired.message, Ack)]


def rolled_back_store() -> None:
    """A store that anybody remembers as further on than it is does not vote."""
    stage = founded(3)
    stage.node("n2").image = stage.node("n2").disk.copy()
    stage.restart("n2")
    stage.run(1_000)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    assert stage.answer_to(b"a") == 0
    stage.node("n1").crash()
    stage.node("n2").roll_back()
    stage.start("n2")
    stage.promote("n3", "n2", "n3")
    stage.run(800, "n2", "n3")
    assert stage.role("n3") == "candidate"
    assert stage.node("n2").disk.member.store == "n2.2"


def rolled_back_to_before_it_was_a_member() -> None:
    """A store that does not find itself in its list may be in a later one: it too asks before it votes."""
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.run(500)
    stage.node("n3").image = stage.node("n3").disk.copy()
    stage.restart("n3")
    stage.run(1_000)
    assert stage.change("n1", "n1.1", "n2.1", "n3.1") is None
    stage.run(500)
    stage.propose("n1", b"a")
    stage.flow("n1", "n3")
    assert stage.answer_to(b"a") == 0
    stage.node("n1").crash()
    stage.node("n3").roll_back()
    stage.node("n3").start()
    stage.drop()
    stage.promote("n2", "n2", "n3")
    stage.run(1_000, "n2", "n3")
    assert stage.role("n2") == "candidate"
    assert stage.node("n3").disk.member.store == "n3.2"


def two_foundings() -> None:
    """Who is to found the cluster counts only if every one of them was told the same."""
    stage = Stage(5)
    for name in ("n1", "n2"):
        stage.tell(name, "n1", "n2", "n3")
    for name in ("n3", "n4", "n5"):
        stage.tell(name, "n3", "n4", "n5")
    stage.run(500, "n1", "n2", "n3")
    stage.node("n1").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    while wired := next(
        (w for w in stage.wire if w.target == "n2" or isinstance(w.message, Ask | Answer | Seal)), None
    ):
        stage.deliver(wired)
        while to_n1 := next((w for w in stage.wire if w.target == "n1"), None):
            stage.deliver(to_n1)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2")
    for name in ("n1", "n2"):
        stage.node(name).crash()
    stage.restart("n3")
    stage.tell("n3", "n3", "n4", "n5")
    stage.run(1_000, "n3", "n4", "n5")
    stage.promote("n4", "n3", "n4", "n5")
    assert stage.role("n4") == "primary"
    assert stage.answer_to(b"a") != 0


RULES: tuple[tuple[Callable[[], None], str], ...] = (
    (heartbeat_over_an_old_tail, "matched_not_reset"),
    (commit_over_an_old_tail, "commit_up_to_what_is_held"),
    (restart_in_the_own_epoch, "restart_keeps_leading"),
    (one_number_two_candidates, "same_number_promised_twice"),
    (two_halves_of_four, "half_is_enough_for_even_lists"),
    (donor_dies, "donor_not_awaited"),
    (majority_of_a_list_that_is_gone, "adopted_list_not_counted"),
    (two_lists_at_once, "two_lists_at_once"),
    (list_before_the_barrier, "list_before_the_barrier"),
    (figure_8, "old_epochs_entries_counted"),
    (read_joins_only_a_round_not_yet_sent, "read_joins_a_round_in_flight"),
    (replay_ends_at_the_saved_commit, "replayed_past_the_commit"),
    (acknowledged_only_when_saved, "acknowledged_before_the_save"),
    (rolled_back_store, "rolled_back_store_votes"),
    (two_foundings, "founders_not_compared"),
    (rolled_back_to_before_it_was_a_member, "unlisted_store_votes_at_once"),
)


@pytest.mark.parametrize("script", [script for script, _ in RULES], ids=lambda script: script.__name__)
def test_the_rule_holds(script: Callable[[], None]) -> None:
    script()


@pytest.mark.parametrize(("script", "defect"), RULES, ids=[defect for _, defect in RULES])
def test_the_rule_is_needed(script: Callable[[], None], defect: str) -> None:
    """The invariants name the break, before the script's own assertions see it."""
    with DEFECTS[defect](), pytest.raises(Violation):
        script()


def test_corosync_does_not_change_who_votes() -> None:
    """A node removed from Corosync still counts until an entry says otherwise (5 to 3: acknowledged writes lost)."""
    stage = founded(5)
    stage.propose("n1", b"a")
    stage.flow("n1", "n2", "n3")
    assert stage.answer_to(b"a") == 0
    for name in ("n3", "n4", "n5"):
        stage.node(name).running.local.nodes = ("n3", "n4", "n5")
    stage.promote("n4", "n4", "n5")
    stage.run(500, "n4", "n5")
    assert stage.role("n4") == "candidate"
    stage.run(2_000, "n3", "n4", "n5")
    assert stage.role("n4") == "primary"
    assert stage.values("n4")[1] == b"a"


def test_pieces_of_two_snapshots_never_mix() -> None:
    with limited(small=True):
        stage = Stage(3)
        stage.run(1_000)
        stage.promote("n1", "n1", "n2", "n3")
        for number in range(40):
            stage.propose("n1", b"%d" % number, key=b"key %d" % (number % 20))
            stage.run(50, "n1", "n2")
        assert stage.node("n1").running.local.log.base.index > 1
        stage.drop()
        stage.tick("n1", ms=200)
        stage.pass_on("n1", "n3", Heartbeat)
        stage.flow_until("n3", "n1", FetchChunk, "n1", "n3")
        stage.drop()
        # More is written while the first snapshot is on its way, and its primary restarts in the middle.
        stage.propose("n1", b"later", key=b"key 3")
        stage.flow("n1", "n2")
        stage.restart("n1")
        stage.promote("n2", "n1", "n2")
        stage.run(2_000)
    assert stage.node("n3").running.local.state.rows == stage.node("n2").running.local.state.rows
    assert stage.node("n3").running.local.state.rows[b"key 3"].value == b"later"
