"""The schedules that PROTOCOL.md marks [broken]: each holds with the rule, and is caught where the rule is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from sim.defects import DEFECTS
from sim.invariants import Violation
from sim.limits import limited
from sim.node import Request
from sim.stage import Stage, founded

from food.core.message import (
    Ack,
    Answer,
    Append,
    Ask,
    Chunk,
    Epoch,
    Fetch,
    FetchChunk,
    Heartbeat,
    Range,
    Refused,
    Seal,
    Sealed,
)


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
    assert stage.role("n2") == "backup"
    assert stage.node("n2").running.failure == "isolated: no answer from n1 (sealing)"
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


def log_of_a_newer_epoch_is_better() -> None:
    """The best log is the one whose last entry has the greatest epoch, however long another one is."""
    stage = founded(3)
    for value in (b"old 2", b"old 3", b"old 4"):
        stage.propose("n1", value)
    stage.drop()
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3")
    stage.propose("n2", b"new 3")
    stage.flow("n2", "n3")
    assert stage.answer_to(b"new 3") == 0
    stage.node("n2").crash()
    stage.start("n1")
    stage.promote("n1", "n1", "n3")
    assert stage.role("n1") == "primary"
    assert stage.values("n1") == ["list", "barrier", b"new 3", "barrier"]


def ack_of_a_former_epoch() -> None:
    """An Ack speaks of the log of its epoch: the same primary may have another one by now."""
    stage = founded(3)
    stage.node("n1").armed = "save"
    for value in (b"old 2", b"old 3"):
        stage.node("n1").take(Request(value, msgpack.packb([0, 0, 0, "put", b"k", value]), None))
    stage.node("n1").turn()
    while stage.waits("n1", "n2", Append):
        stage.pass_on("n1", "n2", Append)
    acks = []
    while stage.waits("n2", "n1", Ack):
        acks.append(stage.take_off("n2", "n1", Ack))
    assert Ack(Epoch(1, "n1.1"), 3, 0) in [wired.message for wired in acks]
    stage.drop()
    stage.start("n1")
    stage.promote("n3", "n1", "n3")
    stage.demote("n3")
    stage.node("n1").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    stage.flow_until("n1", "n3", Append, "n1", "n3")
    assert stage.values("n1") == ["list", "barrier", "barrier"]
    for wired in acks:
        stage.late(wired)
    assert stage.role("n1") == "candidate"


def answer_of_a_former_epoch() -> None:
    """So does an answer to Fetch: what it holds may have been replaced since."""
    stage = founded(3)
    stage.propose("n1", b"old 2")
    stage.drop()
    stage.tick("n1", ms=200)
    stage.pass_on("n1", "n2", Heartbeat)
    stage.pass_on("n2", "n1", Fetch)
    late = stage.take_off("n1", "n2", Range)
    stage.drop()
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3")
    stage.start("n1")
    stage.run(300)
    stage.node("n2").crash()
    stage.start("n2")
    stage.promote("n1", "n1", "n3")
    stage.tick("n1", ms=200)
    stage.pass_on("n1", "n2", Heartbeat)
    stage.late(late)
    stage.run(500)
    assert stage.values("n2") == ["list", "barrier", "barrier"]


def own_promise_first() -> None:
    """A candidate counts itself once its promise is durable: else its next life may take the same epoch."""
    stage = Stage(1)
    stage.run(500)
    stage.node("n1").armed = "save"
    stage.promote("n1")
    assert not stage.node("n1").up
    stage.restart("n1")
    stage.promote("n1")
    assert stage.role("n1") == "primary"


def late_answer_of_a_primary_that_restarted() -> None:
    """A late Fetch answer cannot cut what is matched; nor does whoever restarted give what it holds."""
    stage = founded(3)
    stage.propose("n1", b"old 2")
    stage.drop()
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3")
    assert stage.values("n3") == ["list", "barrier"]
    stage.start("n1")
    stage.node("n1").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    stage.flow_until("n2", "n1", Range, "n1", "n2")
    stage.node("n1").armed = "save"  # the adopted log is on no disk of its own when the barrier is published
    stage.pass_on("n2", "n1", Range)
    stage.pass_on("n1", "n3", Append)
    stage.drop()
    stage.start("n1")
    following = stage.node("n3").running.following
    assert following and following.matched == 3
    following._fetcher.want(1, stage.now)
    stage.turn("n3")
    stage.pass_on("n3", "n1", Fetch)
    if given := stage.waits("n1", "n3", Range):
        stage.pass_on("n1", "n3", Range)
    assert not given
    assert stage.values("n3") == ["list", "barrier", "barrier"]


def what_stands_behind_a_snapshot() -> None:
    """A snapshot keeps the suffix that continues it: it was acknowledged."""
    with limited(small=True):
        stage = founded(3)
        for number in range(25):
            stage.propose("n1", b"%d" % number)
        for _ in range(20):  # published before any of it was committed
            stage.pass_on("n1", "n3", Append)
        while stage.waits("n3", "n1", Ack):
            stage.pass_on("n3", "n1", Ack)
        stage.tick("n1", ms=300)
        stage.tick("n1", ms=300)
        for _ in range(5):
            stage.pass_on("n1", "n3", Append)
        while stage.waits("n3", "n1", Ack):
            stage.pass_on("n3", "n1", Ack)
        assert stage.answer_to(b"24") == 0
        stage.drop()
        assert stage.node("n3").running.local.commit == 1
        stage.node("n1").crash()
        stage.start("n1")
        local = stage.node("n1").running.local
        assert local.log.base.index > 1 and local.commit < local.log.last.index == 26
        stage.node("n1").running.promote(stage.now, stage.now + 5_000)
        stage.turn("n1")
        stage.flow_until("n1", "n2", Append, "n1", "n2")
        stage.drop()
        stage.tick("n1", ms=200)
        stage.pass_on("n1", "n3", Heartbeat)
        stage.drop(kind=Append)
        stage.flow_until("n1", "n3", Chunk, "n1", "n3")
        stage.run(1_000, "n1", "n3")
    assert stage.node("n3").running.local.log.base.index > 1
    assert stage.node("n3").running.local.log.last.index >= 27


def candidate_that_was_removed() -> None:
    """Whoever is not in the list of the log that it adopted fails."""
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.flow("n1", "n2")
    stage.restart("n1")
    stage.promote("n3")
    stage.run(500)
    assert stage.role("n3") == "backup"
    assert stage.node("n3").running.failure


def list_that_was_cut() -> None:
    """A list that was never committed is undone with its entry."""
    stage = founded(3)
    assert stage.change("n1", "n1.1", "n2.1") is None
    stage.node("n1").crash()
    stage.drop()
    stage.promote("n2", "n2", "n3")
    stage.start("n1")
    stage.run(500)
    stage.demote("n2")
    stage.promote("n1")
    assert stage.change("n1", "n1.1", "n3.1") is None
    stage.run(500)
    members = stage.node("n3").running.local.log.members
    assert members and (members.number, members.stores) == (2, ("n1.1", "n3.1"))


def new_disk_of_a_member() -> None:
    """A list differs from the former by one store: a new disk is added once the old one was removed."""
    stage = founded(3)
    stage.node("n3").wipe()
    stage.node("n3").start()
    stage.run(2_000)
    asked = stage.command("n1", "add", "n3.2")
    stage.run(300)
    answer = stage.result(asked)
    assert answer and answer.status == "refused"


def written_by_a_newer_primary() -> Stage:
    """n1 does not know yet that n2 leads, and has acknowledged a write."""
    stage = founded(3)
    stage.promote("n2", "n2", "n3")
    stage.propose("n2", b"newer")
    stage.flow("n2", "n3")
    assert stage.answer_to(b"newer") == 0
    assert stage.role("n1") == "primary"
    return stage


def read_at_a_deposed_primary() -> None:
    """A read is answered after a round that a majority, still promised to this epoch, has echoed."""
    stage = written_by_a_newer_primary()
    asked = stage.ask("n1")
    assert stage.read_answer(asked) is None


def read_when_a_leadership_ends() -> None:
    """What waits then for its round is not answered from the state."""
    stage = written_by_a_newer_primary()
    asked = stage.ask("n1")
    stage.drop()
    stage.tick("n2", ms=200)
    stage.pass_on("n2", "n1", Heartbeat)
    answer = stage.read_answer(asked)
    assert stage.role("n1") == "backup"
    assert answer and answer.status == "not_primary"


def list_that_nobody_could_commit() -> None:
    """A list rules from its append: it is made only if a majority of it answers."""
    stage = founded(3)
    stage.node("n3").crash()
    stage.run(2_000, "n1", "n2")
    answer = stage.result(stage.command("n1", "remove", "n2.1"))
    assert answer and answer.status == "refused"


def command_of_somebody_who_looked_before() -> None:
    """A change is asked for with the number of the list that was seen, and made of that list only."""
    stage = founded(4)
    stage.run(500)
    assert stage.result(stage.command("n1", "remove", "n4.1")) is None
    stage.run(500)
    answer = stage.result(stage.command("n1", "remove", "n3.1", number=1))
    assert answer and answer.status == "list_changed"


def refusal_is_an_answer() -> None:
    """Whoever speaks in an older epoch is told the promise: so a primary that was cut off learns that it is none."""
    stage = written_by_a_newer_primary()
    stage.drop()
    stage.run(300, "n1", "n3")
    assert stage.role("n1") == "backup"


def deposed_primary_says_so() -> None:
    """It gives up its score and reports at once, although the manager has not demoted it."""
    stage = written_by_a_newer_primary()
    stage.run(300)
    running = stage.node("n1").running
    assert running.deposed and running.wish.score is None and "superseded" in running.wish.why


def promotion_that_gets_nowhere() -> None:
    """Every wait has a bound; what failed names whom it missed."""
    stage = founded(3)
    stage.node("n1").crash()
    stage.node("n2").crash()
    stage.node("n3").running.promote(stage.now, stage.now + 1_000)
    stage.run(1_200, "n3")
    assert stage.role("n3") == "backup"
    assert "no answer from n1, n2" in str(stage.node("n3").running.failure)


def learner_is_no_candidate() -> None:
    """Who is not listed has no score."""
    stage = founded(3)
    stage.node("n3").wipe()
    stage.node("n3").start()
    stage.run(3_000)
    assert stage.node("n3").running.local.log.last.index == 1
    assert stage.node("n3").running.wish.score is None


def demoted_primary_takes_no_more() -> None:
    """A demote stops new writes; those in flight are waited for."""
    stage = founded(3)
    stage.propose("n1", b"in flight")
    stage.node("n1").running.demote(stage.now, 500)
    stage.propose("n1", b"late")
    stage.run(1_000)
    assert stage.answer_to(b"in flight") == 0
    assert stage.answer_to(b"late") == "not_primary"


def isolated_candidate_outbids_nobody() -> None:
    """Step 0 of a promotion asks without promising: who hears nobody poisons neither itself nor others."""
    stage = founded(3)
    stage.node("n3").running.promote(stage.now, stage.now + 5_000)
    stage.run(500, "n3")
    stage.demote("n3")
    stage.run(1_000)
    assert stage.role("n1") == "primary"
    assert [stage.node(name).disk.promise.number for name in stage.names] == [1, 1, 1]


def gap_at_the_tail() -> None:
    """PUB drops silently: heartbeats say how far the log goes, and what is missing is fetched."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.drop(kind=Append)
    stage.run(500)
    assert stage.answer_to(b"a") == 0
    assert stage.values("n2") == stage.values("n3") == ["list", b"a"]


def session_that_nobody_opened() -> None:
    """An unknown session is told so, and nothing is executed."""
    stage = founded(3)
    stage.node("n1").take(Request("whose", msgpack.packb([99, 1, 0, "put", b"k", b"v"]), None))
    stage.run(500)
    answer = stage.result("whose")
    assert answer and answer.status == "session"
    assert not stage.node("n1").running.local.state.rows


def write_in_flight_when_a_leadership_ends() -> None:
    """What was not answered may or may not happen, and its client is told just that."""
    stage = founded(3)
    stage.propose("n1", b"a")
    stage.pass_on("n1", "n2", Append)
    stage.drop()
    stage.promote("n2", "n2", "n3")
    stage.run(500)
    assert stage.values("n1") == ["list", b"a", "barrier"]
    assert stage.answer_to(b"a") == "unknown"


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
    (rolled_back_store, "starts_of_others_forgotten"),
    (two_foundings, "founders_not_compared"),
    (rolled_back_to_before_it_was_a_member, "unlisted_store_votes_at_once"),
    (log_of_a_newer_epoch_is_better, "longest_log_adopted"),
    (ack_of_a_former_epoch, "acks_of_other_epochs_counted"),
    (answer_of_a_former_epoch, "answers_of_other_epochs_taken"),
    (own_promise_first, "own_seal_counted_before_its_save"),
    (late_answer_of_a_primary_that_restarted, "late_answer_cuts_what_is_matched"),
    (what_stands_behind_a_snapshot, "suffix_lost_with_the_snapshot"),
    (new_disk_of_a_member, "two_stores_changed_at_once"),
    (read_at_a_deposed_primary, "read_without_a_round"),
    (read_when_a_leadership_ends, "reads_answered_at_the_end"),
)


@pytest.mark.parametrize("script", [script for script, _ in RULES], ids=lambda script: script.__name__)
def test_the_rule_holds(script: Callable[[], None]) -> None:
    script()


@pytest.mark.parametrize(("script", "defect"), RULES, ids=[defect for _, defect in RULES])
def test_the_rule_is_needed(script: Callable[[], None], defect: str) -> None:
    """The invariants name the break, or the core's own assertions, before the script's see it."""
    with DEFECTS[defect](), pytest.raises(AssertionError) as caught:
        script()
    assert caught.type is Violation or "core" in Path(caught.traceback[-1].path).parts


PROMISES: tuple[tuple[Callable[[], None], str], ...] = (
    (candidate_that_was_removed, "unlisted_candidate_leads"),
    (refusal_is_an_answer, "refused_in_silence"),
    (deposed_primary_says_so, "deposed_and_silent_about_it"),
    (promotion_that_gets_nowhere, "promotion_without_an_end"),
    (learner_is_no_candidate, "learner_shows_a_score"),
    (demoted_primary_takes_no_more, "demoted_and_still_writing"),
    (list_that_was_cut, "list_outlives_its_truncation"),
    (list_that_nobody_could_commit, "list_that_cannot_commit"),
    (command_of_somebody_who_looked_before, "old_look_at_the_list"),
    (isolated_candidate_outbids_nobody, "sealed_without_asking"),
    (gap_at_the_tail, "gap_at_the_tail_not_noticed"),
    (session_that_nobody_opened, "unknown_session_executed"),
    (write_in_flight_when_a_leadership_ends, "certainly_not_done_says_who_cannot_know"),
)


@pytest.mark.parametrize(("script", "defect"), PROMISES, ids=[defect for _, defect in PROMISES])
def test_the_promise_is_kept_by_the_rule(script: Callable[[], None], defect: str) -> None:
    """What nodes cannot see of each other, so that no invariant of theirs is broken."""
    script()
    with DEFECTS[defect](), pytest.raises(AssertionError):
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
