"""States are compared at indexes that all pass: the odd one stops voting, and only the odd one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from sim.defects import DEFECTS
from sim.limits import limited
from sim.stage import Stage, founded

from food.core import local as core_local
from food.core.agreement import MARKS_TOLD, PATIENCE_MS, RECENT_MS, START_MS, Agreement
from food.core.entries import Log, pack_members
from food.core.local import Local, Recovered, blank
from food.core.message import Ack, Digest, Entry, Epoch, Kind, Member, MemberList, Sealed
from food.core.peers import ASK_MS, HOLD_MS
from food.core.replica import Replica
from food.core.state import State

N1, N2, N3, N4, N5 = (Member(f"n{number}", f"n{number}.1") for number in range(1, 6))
E1 = Epoch(1, "n1.1")
HERE, THERE, ELSEWHERE = 1, 2, 3


def replica(stage: Stage, name: str) -> Replica:
    return stage.node(name).running


def store(stage: Stage, name: str) -> str:
    return stage.node(name).disk.member.store


def written(size: int) -> Stage:
    """A cluster with one key, on every disk."""
    stage = founded(size)
    stage.propose("n1", b"a")
    stage.run(2_000)
    assert stage.answer_to(b"a") == 0
    return stage


def told(stage: Stage) -> str:
    return "\n".join(stage.log)


# --- Among three: a majority decides ---


def test_equal_states_are_nobodys_business() -> None:
    stage = written(3)
    for name in stage.names:
        assert not replica(stage, name).agreement.differing
        assert replica(stage, name).agreement.digest().votes
    assert "differs" not in told(stage)


@pytest.mark.parametrize("name", ["n1", "n3"], ids=["the primary", "a backup"])
def test_the_one_that_differs_from_the_majority_is_set_aside(name: str) -> None:
    """Also the primary: it is gone at once, and what was acknowledged is on the others."""
    stage = written(3)
    stage.flip(name)
    stage.propose("n1", b"b", key=b"another")
    stage.run(500)
    assert store(stage, name) == f"{name}.2", "it came back with an empty store"
    others = [other for other in stage.names if other != name]
    assert [store(stage, other) for other in others] == [f"{other}.1" for other in others]
    if name == "n1":
        stage.run(HOLD_MS)
        stage.promote("n2")
    stage.run(1_000)
    primary = "n2" if name == "n1" else "n1"
    assert stage.role(primary) == "primary"
    assert "learner" in replica(stage, name).wish.why
    stage.propose(primary, b"c")
    stage.run(500)
    assert stage.answer_to(b"c") == 0
    assert stage.values(primary)[1:3] == [b"a", b"b"]
    assert replica(stage, name).local.state.rows == replica(stage, primary).local.state.rows, "healed by the log"


def test_a_store_that_was_tampered_with_while_it_was_down() -> None:
    stage = written(3)
    stage.tamper("n2")
    stage.run(START_MS - ASK_MS)
    assert store(stage, "n2") == "n2.1", "a start that fails would not be tried again"
    stage.run(1_000)
    assert store(stage, "n2") == "n2.2"
    assert "learner" in replica(stage, "n2").wish.why


def test_the_others_name_it() -> None:
    stage = written(3)
    stage.flip("n3")
    here, there = (replica(stage, name).local.state.hash for name in ("n1", "n3"))
    stage.tick(ms=ASK_MS)
    stage.flow("n1", "n3")
    assert f"n1: the state of n3 differs at entry 2: here {here:016x}, there {there:016x}" in stage.log
    assert replica(stage, "n1").agreement.differing["n3"] == (2, here, there)
    stage.run(500)
    assert not replica(stage, "n1").agreement.differing, "it has another store now, and that is in order"


# --- Between two: the primary's state counts, and nobody's store is touched ---


@pytest.fixture
def two() -> Stage:
    """n1 leads, n2 differs from it and has noticed."""
    stage = written(2)
    stage.flip("n2")
    stage.run(PATIENCE_MS + 3 * ASK_MS)
    return stage


def test_a_backup_that_differs_from_the_primary_stops_voting(two: Stage) -> None:
    stage = two
    assert replica(stage, "n2").agreement.odd.startswith("the state differs from n1's at entry 2: here ")
    assert "not voting; move the data directory away, then foodctl member replace n2" in told(stage)
    assert replica(stage, "n2").wish == (None, replica(stage, "n2").agreement.odd, False)
    stage.propose("n1", b"b")
    stage.run(3_000)
    assert stage.answer_to(b"b") is None, "no majority acknowledges it"
    assert stage.role("n1") == "primary"
    assert not [wired for wired in stage.wire if isinstance(wired.message, Ack)]
    assert store(stage, "n2") == "n2.1", "without a majority nothing is set aside"
    assert len(stage.values("n2")) == 3, "it still receives the log"


def test_it_neither_seals_nor_is_promoted_nor_answers_stale_reads(two: Stage) -> None:
    stage = two
    replica(stage, "n2").promote(stage.now, stage.now + 5_000)
    assert replica(stage, "n2").failure == replica(stage, "n2").agreement.odd
    stage.turn("n2")
    replica(stage, "n2").read_stale("stale", "get", [b"k"])
    stage.turn("n2")
    (answered,) = (result for whose, result in stage.answers if whose == "stale")
    assert answered.status == "no_quorum"
    stage.demote("n1")
    stage.drop()
    stage.promote("n1")
    stage.run(500)
    assert stage.role("n1") == "candidate", "it asks, and the odd one's answer does not count"
    assert replica(stage, "n1").local.promise.number == 1
    assert not [wired for wired in stage.wire if isinstance(wired.message, Sealed)]


def test_a_seal_that_comes_all_the_same_is_not_answered(two: Stage) -> None:
    stage = two
    replica(stage, "n1").peers.voteless.clear()
    stage.demote("n1")
    stage.drop()
    stage.node("n1").running.promote(stage.now, stage.now + 5_000)
    stage.turn("n1")
    replica(stage, "n1").peers.voteless.clear()
    stage.run(500)
    assert replica(stage, "n2").local.promise.number == 1
    assert stage.role("n1") == "candidate"


def test_a_candidate_that_turns_out_to_be_odd_gives_up() -> None:
    stage = written(2)
    stage.flip("n2")
    stage.run(PATIENCE_MS - ASK_MS)
    replica(stage, "n2").promote(stage.now, stage.now + 5_000)
    assert replica(stage, "n2").following and replica(stage, "n2").promotion
    own = replica(stage, "n1").agreement.digest()
    replica(stage, "n2").step(N1, own, stage.now)
    replica(stage, "n2").step(N1, own, stage.now + PATIENCE_MS)
    assert replica(stage, "n2").role == "backup"
    assert replica(stage, "n2").failure == replica(stage, "n2").agreement.odd


def test_it_is_healed_by_an_empty_store_and_member_replace(two: Stage) -> None:
    stage = two
    stage.propose("n1", b"b")
    stage.run(500)
    stage.node("n2").wipe()
    stage.start("n2")
    stage.run(1_000)
    for op, wiped in (("remove", "n2.1"), ("add", "n2.2")):
        command = stage.command("n1", op, wiped)
        stage.run(1_000)
        answered = stage.result(command)
        assert answered and answered.status == 0
    stage.run(500)
    assert stage.answer_to(b"b") == 0
    assert replica(stage, "n2").local.state.rows == replica(stage, "n1").local.state.rows


def test_it_does_not_count_for_a_list_that_is_to_be_made(two: Stage) -> None:
    stage = two
    members = replica(stage, "n1").local.log.members
    assert members
    assert not replica(stage, "n1").peers.recent(stage.now, 1_500)


def test_equal_again_it_votes_again(two: Stage) -> None:
    stage = two
    stage.flip("n2", value=b"a")
    stage.run(500 + HOLD_MS)
    assert not replica(stage, "n2").agreement.odd
    assert "n2: the state differs no more: this member votes again" in stage.log
    stage.propose("n1", b"b")
    stage.run(500)
    assert stage.answer_to(b"b") == 0


def test_between_the_two_the_primary_is_believed() -> None:
    stage = written(2)
    stage.flip("n1")
    stage.run(PATIENCE_MS + 3 * ASK_MS)
    assert stage.role("n1") == "primary"
    assert replica(stage, "n2").agreement.odd


def test_a_third_member_decides_between_the_two() -> None:
    """One of three was away: the other two could not tell who of them is wrong."""
    for flipped, right in (("n1", "n2"), ("n2", "n1")):
        stage = written(3)
        stage.node("n3").crash()
        stage.run(RECENT_MS + ASK_MS)
        stage.flip(flipped)
        stage.run(PATIENCE_MS + 3 * ASK_MS)
        assert replica(stage, "n2").agreement.odd
        assert [store(stage, name) for name in stage.names] == ["n1.1", "n2.1", "n3.1"]
        stage.start("n3")
        stage.run(1_000)
        assert store(stage, flipped) == f"{flipped}.2"
        assert store(stage, right) == f"{right}.1"
        assert not replica(stage, right).agreement.odd
        assert not replica(stage, "n3").agreement.odd


def test_where_all_differ_the_backups_stop_and_nothing_is_set_aside() -> None:
    stage = written(3)
    stage.now += 2 * RECENT_MS  # what they said before they differed is old
    stage.flip("n2", value=b"x")
    stage.flip("n3", value=b"y")
    stage.run(PATIENCE_MS + 3 * ASK_MS)
    assert replica(stage, "n2").agreement.odd and replica(stage, "n3").agreement.odd
    assert stage.role("n1") == "primary"
    assert [store(stage, name) for name in stage.names] == ["n1.1", "n2.1", "n3.1"]


def test_a_learner_that_differs_from_the_majority_is_set_aside_again() -> None:
    stage = written(3)
    stage.node("n3").wipe()
    stage.start("n3")
    stage.run(1_000)
    assert store(stage, "n3") == "n3.2"
    stage.flip("n3")
    stage.run(START_MS)
    assert store(stage, "n3") == "n3.3"


# --- Positions ---


def test_under_load_they_are_compared_at_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that is never at the primary's index at the moment has passed the same marks."""
    monkeypatch.setattr(core_local, "MARK_ENTRIES", 4)
    stage = written(3)
    stage.flip("n3", key=b"k")
    for number in range(12):
        stage.propose("n1", b"%d" % number, key=b"%d" % number)
    stage.flow("n1", "n2")
    stage.flow_only_questions()
    assert store(stage, "n3") == "n3.1"
    for number in range(12, 24):
        stage.propose("n1", b"%d" % number, key=b"%d" % number)
        stage.tick(ms=60)
        stage.flow()
    assert store(stage, "n3") == "n3.2"


def member(*marks: tuple[int, int]) -> Local:
    """n1 of five, as far as the last mark; the others are its marks."""
    members = MemberList(1, "cluster", (N1, N2, N3, N4, N5))
    log = Log(entries=[Entry(1, E1, Kind.MEMBERS, pack_members(members))])
    found = Local(Recovered(N1, 1, E1, log, 1, State(), {}), "life", ["n1", "n2", "n3", "n4", "n5"])
    *earlier, (applied, state_hash) = marks
    found.marks = dict(earlier)
    found.state.applied, found.state.hash = applied, state_hash
    return found


def digest(*marks: tuple[int, int], votes: bool = True) -> Digest:
    return Digest(marks, votes)


def test_the_newest_index_that_decides_counts() -> None:
    """What was different once, and is equal by now, is over; what is different now is not excused by the past."""
    agreement = Agreement(member((4, HERE), (8, HERE)), -START_MS)
    assert agreement.on_digest(N2, digest((4, THERE), (8, HERE)), None, 0) is None
    assert agreement.on_digest(N3, digest((4, THERE), (8, HERE)), None, 0) is None
    assert agreement.on_digest(N4, digest((4, THERE)), None, 0) is None
    agreement = Agreement(member((4, HERE), (8, HERE)), -START_MS)
    for other in (N2, N3):
        assert agreement.on_digest(other, digest((4, HERE), (8, THERE)), None, 0) is None
    why = agreement.on_digest(N4, digest((4, HERE), (8, THERE)), None, 0)
    assert why == f"the state differs from that of n2, n3, n4 at entry 8: here {HERE:016x}, there {THERE:016x}"
    assert len(why) <= 128, "Pacemaker cuts reasons there"


def test_a_minority_outvotes_nobody() -> None:
    agreement = Agreement(member((8, HERE)), -START_MS)
    for other, found in ((N2, THERE), (N3, THERE), (N4, ELSEWHERE), (N5, ELSEWHERE)):
        assert agreement.on_digest(other, digest((8, found)), None, 0) is None
    assert set(agreement.differing) == {"n2", "n3", "n4", "n5"}


def test_a_process_that_only_begins_is_not_ended() -> None:
    agreement = Agreement(member((8, HERE)), 0)
    for other in (N2, N3, N4):
        assert agreement.on_digest(other, digest((8, THERE)), None, START_MS - 1) is None
    assert agreement.on_digest(N4, digest((8, THERE)), None, START_MS)


def test_who_is_not_a_member_outvotes_nobody() -> None:
    agreement = Agreement(member((8, HERE)), -START_MS)
    for number in range(6, 12):
        stranger = Member(f"n{number}", f"n{number}.1")
        assert agreement.on_digest(stranger, digest((8, THERE)), None, 0) is None


def test_only_what_was_said_lately_counts() -> None:
    agreement = Agreement(member((8, HERE)), -START_MS)
    agreement.on_digest(N2, digest((8, THERE)), None, 0)
    agreement.on_digest(N3, digest((8, THERE)), None, RECENT_MS)
    assert agreement.on_digest(N4, digest((8, THERE)), None, RECENT_MS + 1) is None
    assert set(agreement.differing) == {"n3", "n4"}
    assert agreement.on_digest(N2, digest((8, THERE)), None, RECENT_MS + 1)


def test_without_a_common_index_nothing_is_known() -> None:
    agreement = Agreement(member((8, HERE)), -START_MS)
    for other in (N2, N3, N4, N5):
        assert agreement.on_digest(other, digest((7, THERE), (9, THERE)), None, 0) is None
    assert not agreement.differing


def test_a_difference_from_the_primary_must_last() -> None:
    """One that has passed since is forgotten, and the clock begins anew."""
    agreement = Agreement(member((8, HERE)), -START_MS)
    agreement.on_digest(N2, digest((8, THERE)), N2, 0)
    agreement.on_digest(N2, digest((8, THERE)), N2, PATIENCE_MS - 1)
    agreement.on_digest(N2, digest((8, HERE)), N2, PATIENCE_MS)
    agreement.on_digest(N2, digest((8, THERE)), N2, PATIENCE_MS + 1)
    assert not agreement.odd
    agreement.on_digest(N2, digest((8, THERE)), N2, 2 * PATIENCE_MS + 1)
    assert agreement.odd
    first = agreement.odd
    agreement.on_digest(N2, digest((8, ELSEWHERE)), N2, 3 * PATIENCE_MS)
    assert agreement.odd == first, "the words do not change all the time"
    assert not agreement.digest().votes


def test_a_word_about_other_indexes_does_not_end_it() -> None:
    agreement = Agreement(member((8, HERE)), -START_MS)
    agreement.on_digest(N2, digest((8, THERE)), N2, 0)
    agreement.on_digest(N2, digest((8, THERE)), N2, PATIENCE_MS)
    agreement.on_digest(N2, digest((9, THERE)), N2, PATIENCE_MS)
    assert agreement.odd


def test_before_the_first_entry_there_is_nothing_to_tell() -> None:
    assert Agreement(Local(blank(N1), "life", ["n1", "n2"]), 0).digest() == Digest((), True)


def test_the_newest_marks_are_told_and_a_bounded_number_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_local, "MARK_ENTRIES", 2)
    monkeypatch.setattr(core_local, "MARKS_KEPT", 20)
    own = Local(blank(N1), "life", ["n1"])
    own.append(Entry(index, E1, Kind.BARRIER, b"") for index in range(1, 102))
    own.advance(101)
    assert list(own.marks) == list(range(62, 102, 2))
    marks = Agreement(own, 0).digest().marks
    assert [index for index, _ in marks] == [*range(102 - 2 * MARKS_TOLD, 102, 2), 101]


def test_a_snapshot_leaves_no_marks_of_the_state_before() -> None:
    with limited(small=True):
        stage = Stage(3)
        stage.run(1_000)
        stage.promote("n1")
        stage.propose("n1", b"a")
        stage.run(500)
        stage.drop()
        for number in range(60):
            stage.propose("n1", b"%d" % number)
            stage.run(50, "n1", "n2")
        marks: dict[int, Any] = replica(stage, "n3").local.marks
        assert not marks or max(marks) < 10
        stage.run(2_000)
        assert replica(stage, "n3").local.commit == replica(stage, "n1").local.commit
        assert all(index > 10 for index in replica(stage, "n3").local.marks)


# --- Any schedule ---


@pytest.mark.parametrize("seed", range(12))
def test_only_who_is_wrong_is_ever_set_aside(seed: int) -> None:
    """A minority's states are made wrong at random while entries flow: a majority stays, serves and heals the rest."""
    rng = Random(seed)
    with limited(small=rng.random() < 0.5):
        stage = written(rng.choice((3, 3, 4, 5)))
        size = len(stage.names)
        wrong = rng.sample(stage.names, rng.randrange(1, (size - 1) // 2 + 1))
        for step in range(12):
            primary = next((name for name in stage.names if stage.role(name) == "primary"), None)
            if primary:
                stage.propose(primary, b"%d" % step, key=b"%d" % step)
            if step == 4:
                for name in wrong:
                    stage.flip(name)
            stage.run(50 * rng.randrange(1, 8), *rng.sample(stage.names, rng.randrange(size // 2 + 1, size + 1)))
        stage.run(3_000)
        if not any(stage.role(name) == "primary" for name in stage.names):
            stage.promote(next(name for name in stage.names if replica(stage, name).wish.score is not None))
        stage.run(2_000)
    for name in stage.names:
        assert (store(stage, name) == f"{name}.1") == (name not in wrong), name
        assert replica(stage, name).local.state.rows[b"k"].value == b"a", "a wrong state spreads to nobody"
    assert sum(stage.role(name) == "primary" for name in stage.names) == 1


# --- The rules left out on purpose ---


def the_odd_backup_is_set_aside() -> None:
    test_the_one_that_differs_from_the_majority_is_set_aside("n3")


def a_backup_of_two_stops_acknowledging() -> None:
    stage = written(2)
    stage.flip("n2")
    stage.run(PATIENCE_MS + 3 * ASK_MS)
    test_a_backup_that_differs_from_the_primary_stops_voting(stage)


def a_backup_of_two_stops_sealing() -> None:
    stage = written(2)
    stage.flip("n2")
    stage.run(PATIENCE_MS + 3 * ASK_MS)
    test_a_seal_that_comes_all_the_same_is_not_answered(stage)


LEFT_OUT: tuple[tuple[Callable[[], None], str], ...] = (
    (the_odd_backup_is_set_aside, "states_not_compared"),
    (test_a_minority_outvotes_nobody, "two_outvote_anybody"),
    (test_a_difference_from_the_primary_must_last, "odd_one_goes_on_voting"),
    (a_backup_of_two_stops_acknowledging, "odd_one_goes_on_acknowledging"),
    (a_backup_of_two_stops_sealing, "odd_one_goes_on_sealing"),
)


@pytest.mark.parametrize(("script", "defect"), LEFT_OUT, ids=[defect for _, defect in LEFT_OUT])
def test_a_rule_left_out_is_noticed(script: Callable[[], None], defect: str) -> None:
    script()
    with DEFECTS[defect](), pytest.raises(AssertionError):
        script()


def test_a_key_forgotten_while_it_is_applied_is_noticed_by_the_others() -> None:
    """Without the simulator's own look at every state: the members find it out by themselves."""
    with DEFECTS["a_key_forgotten_on_one_node"]():
        stage = written(3)
        stage.watch.flipped.add("n1.1")
        for number in range(20):
            stage.propose("n1", b"%d" % number, key=b"%d" % number)
        stage.run(500)
        assert store(stage, "n1") == "n1.2"
        assert [store(stage, name) for name in ("n2", "n3")] == ["n2.1", "n3.1"]
