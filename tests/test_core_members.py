"""Members by command: what the primary asks before it makes the next list, and that it answers once it is committed."""

from __future__ import annotations

from typing import Any

import pytest
from sim.stage import Stage, founded

from food.core import members
from food.core.members import Change, parse
from food.core.message import Ack, Member, MemberList
from food.core.replica import Replica

STORES = ("n1.1", "n2.1", "n3.1")


def settled(size: int = 3) -> Stage:
    stage = founded(size)
    stage.run(1_000)
    return stage


def replica(stage: Stage, name: str) -> Replica:
    return stage.node(name).running


def listed(stage: Stage, name: str = "n1") -> tuple[str, ...]:
    ruling = replica(stage, name).local.log.members
    assert ruling
    return ruling.stores


def refusal(stage: Stage, asked: str) -> str:
    result = stage.result(asked)
    assert result and result.status == "refused", result
    return str(result.value["text"])


def with_new_disk(name: str = "n3") -> Stage:
    """n3 has lost its disk and is a learner that is level."""
    stage = settled()
    stage.node(name).wipe()
    stage.node(name).start()
    stage.run(2_000)
    return stage


# --- Requests ---


def test_a_request_is_a_change_or_nothing() -> None:
    assert parse(["add", 3, "n4", "s4", False]) == Change(3, "add", Member("n4", "s4"), False)
    assert parse(["remove", 3, "n4", "s4", True]) == Change(3, "remove", Member("n4", "s4"), True)


@pytest.mark.parametrize(
    "body",
    [
        [],
        ["swap", 1, "n1", "s", False],
        ["add", 1, "n1", "s"],
        ["add", "1", "n1", "s", False],
        ["add", 1, b"n1", "s", False],
        ["add", 1, "", "s", False],
        ["add", 1, "n1", "", False],
        ["add", 1, "n1", "s", 0],
        ["add", 1, "n1", "s", False, 1],
    ],
)
def test_what_is_no_change_is_none(body: list[Any]) -> None:
    assert parse(body) is None


# --- Done ---


def test_a_member_is_removed_and_answered_once_that_is_committed() -> None:
    stage = settled()
    asked = stage.command("n1", "remove", "n3.1")
    assert listed(stage) == ("n1.1", "n2.1")  # rules from its append
    assert stage.result(asked) is None
    stage.flow("n1", "n2")
    result = stage.result(asked)
    assert result and result.status == 0
    assert result.value == replica(stage, "n1").local.log.members
    assert "n1: member list 2: n3 removed by command" in stage.log
    stage.run(500)
    assert replica(stage, "n3").wish.score is None
    assert "foodctl member add n3" in replica(stage, "n3").wish.why


def test_a_learner_is_added() -> None:
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    asked = stage.command("n1", "add", "n3.1")
    stage.run(500)
    result = stage.result(asked)
    assert result and result.status == 0
    assert listed(stage, "n3") == STORES
    stage.run(2_000)
    assert replica(stage, "n3").wish.score == 100
    assert "n1: member list 3: n3 added by command" in stage.log


def test_a_lost_disk_is_replaced_in_two_steps() -> None:
    stage = with_new_disk()
    assert "foodctl member replace n3" in replica(stage, "n3").wish.why
    assert "the former store of n3 still counts" in refusal(stage, stage.command("n1", "add", "n3.2"))
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    stage.command("n1", "add", "n3.2")
    stage.run(500)
    assert listed(stage) == ("n1.1", "n2.1", "n3.2")


def test_the_survivor_of_two_goes_on_alone_once_the_other_is_removed() -> None:
    """Its barrier was committed under the old list: nobody leads without this node, so it may shrink the list."""
    stage = settled(2)
    stage.node("n2").crash()
    stage.propose("n1", b"a")
    stage.run(2_000)
    assert stage.answer_to(b"a") is None
    stage.command("n1", "remove", "n2.1")
    stage.run(100)
    assert stage.answer_to(b"a") == 0
    stage.start("n2")
    stage.promote("n2", ms=1_000)
    stage.run(1_500)
    assert stage.role("n2") != "primary"


# --- Retries harm nothing ---


def test_a_change_that_is_made_already_is_answered_as_done() -> None:
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    again = stage.command("n1", "remove", "n3.1", number=1)
    result = stage.result(again)
    assert result and result.status == 0 and result.value.number == 2
    assert len(stage.values("n1")) == 2  # one list of founding, one of the change


def test_a_late_repetition_does_not_undo_what_was_done_since() -> None:
    stage = settled()
    stage.command("n1", "remove", "n3.1", number=1)
    stage.run(500)
    stage.command("n1", "add", "n3.1")
    stage.run(500)
    late = stage.command("n1", "remove", "n3.1", number=1)
    text = "member list 3 rules by now, not 1: look at it again"
    assert stage.result(late) == ("list_changed", {"text": text})
    assert listed(stage) == STORES


def test_one_change_at_a_time() -> None:
    stage = settled()
    first = stage.command("n1", "remove", "n3.1")
    second = stage.command("n1", "remove", "n2.1")
    repeated = stage.command("n1", "remove", "n3.1", number=1)
    for asked in (second, repeated):
        result = stage.result(asked)
        assert result and result.status == "busy"
    assert stage.result(first) is None


def test_a_change_is_unknown_when_the_leadership_ends_first() -> None:
    stage = settled()
    asked = stage.command("n1", "remove", "n3.1")
    stage.drop()
    stage.demote("n1")
    result = stage.result(asked)
    assert result and result.status == "unknown"


def test_only_a_primary_changes_members() -> None:
    stage = settled()
    asked = stage.command("n2", "remove", "n3.1")
    result = stage.result(asked)
    assert result and result.status == "not_primary"
    stage.propose("n1", b"in flight")
    replica(stage, "n1").demote(stage.now, 5_000)
    result = stage.result(stage.command("n1", "remove", "n3.1"))
    assert result and result.status == "not_primary"


# --- Refused ---


def test_the_primary_does_not_remove_itself() -> None:
    stage = settled()
    assert "move the role first" in refusal(stage, stage.command("n1", "remove", "n1.1", force=True))


def test_no_list_that_could_not_commit_whatever_force_says() -> None:
    stage = settled()
    stage.node("n3").crash()
    stage.run(2_000, "n1", "n2")
    text = refusal(stage, stage.command("n1", "remove", "n2.1", force=True))
    assert "no answer from n3: a list without n2 could not commit anything" in text
    assert listed(stage) == STORES


def test_nobody_is_added_to_a_list_that_could_not_commit() -> None:
    stage = settled(4)
    stage.command("n1", "remove", "n4.1")
    stage.run(500)
    for name in ("n2", "n3"):
        stage.node(name).crash()
    stage.run(2_000, "n1", "n4")
    text = refusal(stage, stage.command("n1", "add", "n4.1", force=True))
    assert "no answer from n2, n3: a list with n4 could not commit anything" in text


def test_only_who_answers_with_that_store_is_added() -> None:
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    assert "n3 does not answer with store n3.9" in refusal(stage, stage.command("n1", "add", "n3.9"))
    stage.node("n3").crash()
    stage.run(2_000, "n1", "n2")
    assert "n3 does not answer" in refusal(stage, stage.command("n1", "add", "n3.1"))


def test_only_who_is_in_corosyncs_list_is_added() -> None:
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    replica(stage, "n1").local.nodes = ("n1", "n2")
    assert "not in Corosync's node list" in refusal(stage, stage.command("n1", "add", "n3.1"))


def test_who_is_behind_is_not_added_even_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "LEVEL_ENTRIES", 2)
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    for number in range(4):
        stage.propose("n1", b"%d" % number)
        stage.flow("n1", "n2")
    asked = stage.command("n1", "add", "n3.1", force=True)
    result = stage.result(asked)
    assert result
    assert result == ("behind", {"text": "n3 is 4 entries behind: wait", "behind": 4})


def test_a_list_of_members_that_lag_waits_for_them_or_for_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "LEVEL_ENTRIES", 2)
    stage = settled()
    for number in range(4):
        stage.propose("n1", b"%d" % number)
        stage.flow("n1", "n2")
    result = stage.result(stage.command("n1", "remove", "n2.1"))
    assert result and result.status == "behind" and result.value["behind"] == 4
    assert result.value["text"].startswith("n3 is 4 entries behind: wait, or --force")
    stage.command("n1", "remove", "n2.1", force=True)
    assert listed(stage) == ("n1.1", "n3.1")
    stage.run(500)
    assert replica(stage, "n1").local.commit == replica(stage, "n1").local.log.last.index


def test_a_learner_counts_for_nothing() -> None:
    """Neither for writes nor for reads nor for seals."""
    stage = settled()
    stage.command("n1", "remove", "n3.1")
    stage.run(500)
    stage.propose("n1", b"a")
    stage.flow("n1", "n3")
    assert stage.answer_to(b"a") is None
    read = stage.ask("n1")
    stage.flow("n1", "n3")
    assert stage.read_answer(read) is None
    assert [wired for wired in stage.wire if isinstance(wired.message, Ack)] == []
    stage.node("n1").crash()
    stage.promote("n2", "n2", "n3", ms=1_000)
    stage.run(1_500, "n2", "n3")
    assert stage.role("n2") != "primary"
    assert "no answer from n1" in str(replica(stage, "n2").failure)


# --- Founding with fewer ---


def awaiting() -> Stage:
    """Three nodes of Corosync's list, of which n3 has never been there."""
    stage = Stage(3)
    stage.node("n3").crash()
    stage.run(1_000, "n1", "n2")
    return stage


def test_two_of_three_found_by_command_and_the_third_is_added() -> None:
    stage = awaiting()
    assert "awaiting n3" in replica(stage, "n1").wish.why
    for name in ("n1", "n2"):
        result = stage.result(stage.tell(name, "n2", "n1"))
        assert result == (0, ["n1", "n2"])
    stage.run(1_000, "n1", "n2")
    assert replica(stage, "n1").wish.score
    stage.promote("n1", "n1", "n2")
    stage.run(500, "n1", "n2")
    assert stage.role("n1") == "primary" and listed(stage) == ("n1.1", "n2.1")
    stage.start("n3")
    stage.run(1_000)
    assert "foodctl member add n3" in replica(stage, "n3").wish.why
    stage.command("n1", "add", "n3.1")
    stage.run(500)
    assert listed(stage, "n3") == STORES


def test_one_node_founds_alone() -> None:
    stage = awaiting()
    stage.tell("n1", "n1")
    stage.run(1_000, "n1")
    stage.promote("n1", "n1")
    assert listed(stage) == ("n1.1",)


def test_a_node_that_was_not_told_prevents_the_founding() -> None:
    stage = awaiting()
    stage.tell("n1", "n1", "n2")
    stage.run(1_000, "n1", "n2")
    assert replica(stage, "n1").wish.why == "first start: n2 has another node list (n1, n2, n3)"
    stage.promote("n1", "n1", "n2", ms=1_000)
    stage.run(500, "n1", "n2")
    assert replica(stage, "n1").failure == "n2 has another node list than n1, n2: not founding"


def test_a_node_that_appears_prevents_the_founding_until_all_are_named() -> None:
    stage = awaiting()
    for name in ("n1", "n2"):
        stage.tell(name, "n1", "n2")
    stage.start("n3")
    stage.run(1_000)
    assert "n3 has another node list" in replica(stage, "n1").wish.why
    for name in ("n1", "n2"):
        stage.tell(name, "n1", "n2", "n3")
    stage.run(1_000)
    stage.promote("n1")
    stage.run(500)
    assert listed(stage) == STORES


def test_whoever_was_not_named_or_has_a_log_or_does_not_know_the_names_refuses() -> None:
    stage = awaiting()
    assert "n1 is not among those" in refusal(stage, stage.tell("n1", "n2"))
    assert "lacks n8, n9" in refusal(stage, stage.tell("n1", "n1", "n9", "n8"))
    stage = settled()
    assert "n1 has a log" in refusal(stage, stage.tell("n1", "n1"))


def test_an_awaited_founder_is_named() -> None:
    stage = awaiting()
    stage.tell("n1", "n1", "n2")
    stage.run(3_000, "n1")
    assert replica(stage, "n1").wish.why == "first start needs n1, n2 once: awaiting n2"


def test_what_was_told_ends_with_the_process_and_with_a_change_of_corosyncs_list() -> None:
    stage = awaiting()
    stage.tell("n1", "n1", "n2")
    assert replica(stage, "n1").local.founding_nodes == ("n1", "n2")
    replica(stage, "n1").local.nodes = ("n1", "n3")
    assert replica(stage, "n1").local.founding_nodes == ("n1", "n3")
    stage.restart("n1")
    assert replica(stage, "n1").local.founding_nodes == ("n1", "n2", "n3")


def test_a_list_travels_as_number_cluster_and_members() -> None:
    from food.codec import pack, unpack

    answered = MemberList(2, "c", (Member("n1", "s1"),))
    assert unpack(pack([1, 0, answered]), 1_000) == [1, 0, [2, "c", [["n1", "s1"]]]]
