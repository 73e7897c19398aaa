"""The order of a turn: publish, save, send; and what a crash in between leaves behind."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from sim.disk import Disk
from sim.stage import founded

from food import driver
from food.core.entries import pack_members
from food.core.local import Local
from food.core.message import (
    NO_EPOCH,
    START,
    Ack,
    Answer,
    Append,
    Ask,
    Entry,
    Epoch,
    Heartbeat,
    Kind,
    Member,
    MemberList,
    Message,
    Seal,
)
from food.core.peers import Heard
from food.core.ready import Ready, Save
from food.core.replica import Replica
from food.core.state import Result
from food.driver import finish_turn

ME, OTHER, THIRD = Member("n1", "a"), Member("n2", "b"), Member("n3", "c")


class Recorder:
    """A shell that writes down what it is asked, in order."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.done: list[str] = []
        self.sent: list[Message] = []
        self.saves: list[Save] = []

    def publish(self, message: Message) -> None:
        self.done.append(f"publish {type(message).__name__}")

    def save(self, save: Save) -> None:
        self.done.append("save")
        self.saves.append(save)
        self.disk.save(save)

    def send(self, node: str, message: Message) -> None:
        self.done.append(f"send {type(message).__name__}")
        self.sent.append(message)

    def answer(self, whose: object, result: Result) -> None:
        self.done.append(f"answer {whose} {result.status}")

    def event(self, text: str) -> None:
        self.done.append("event")

    def take(self) -> list[str]:
        found, self.done = [step for step in self.done if step not in ("event", "send Ask")], []
        return found


def alone() -> tuple[Replica, Recorder]:
    """A cluster of one, founded and serving."""
    disk = Disk(ME)
    replica = Replica(Local(disk.recover(), "life", ["n1"]), 1_000, 0)
    shell = Recorder(disk)
    replica.promote(0, 5_000)
    finish_turn(replica, shell, 0)
    return replica, shell


def test_a_founding_of_one_takes_one_turn() -> None:
    """Promise, barrier, commit: each counts itself only after its save."""
    replica, shell = alone()
    assert replica.role == "primary"
    assert shell.take()[:2] == ["save", "publish Heartbeat"]
    assert [bool(save.promise) for save in shell.saves][:2] == [True, False]
    assert [entry.kind for entry in shell.saves[1].entries] == [Kind.MEMBERS]


def test_entries_are_published_before_the_save_and_answers_leave_after_it() -> None:
    replica, shell = alone()
    shell.take()
    replica.propose("w", msgpack.packb([0, 0, 0, "put", b"k", b"v"]))
    finish_turn(replica, shell, 10)
    assert shell.take() == ["publish Append", "save", "answer w 0"]


def test_all_of_a_turn_shares_one_save() -> None:
    replica, shell = alone()
    shell.take()
    for number in range(20):
        replica.propose(number, msgpack.packb([0, 0, 0, "put", b"k", b"v"]))
    finish_turn(replica, shell, 10)
    steps = shell.take()
    assert steps.count("save") == 1
    assert steps.count("publish Append") == 1
    assert sum(step.startswith("answer") for step in steps) == 20


def test_a_turn_without_changes_saves_nothing() -> None:
    replica, shell = alone()
    replica.tick(5_000)
    finish_turn(replica, shell, 5_000)
    shell.take()
    replica.tick(5_050)
    finish_turn(replica, shell, 5_050)
    assert shell.take() == []


def backup() -> tuple[Replica, Recorder]:
    disk = Disk(ME)
    replica = Replica(Local(disk.recover(), "life", ["n1", "n2"]), 1_000, 0)
    for member in (OTHER, THIRD):  # an empty store follows only whom it has asked what it knows of it
        said = Answer("life", 1, NO_EPOCH, START, 0, 0, (), "backup", None, False, 0, 1, "", None)
        replica.peers.heard[member.store] = Heard(member, said, 0)
    return replica, Recorder(disk)


def test_a_backup_acknowledges_after_its_save() -> None:
    replica, shell = backup()
    epoch = Epoch(1, "b")
    entry = Entry(1, epoch, Kind.MEMBERS, pack_members(MemberList(1, "c", (ME, OTHER))))
    replica.step(OTHER, Append(epoch, replica.local.log.last, (entry,), 0), 0)
    finish_turn(replica, shell, 0)
    assert shell.take() == ["save", "send Ack"]
    assert shell.saves[0].promise == epoch
    assert shell.sent == [Ack(epoch, 1, 0)]


def test_a_promise_is_saved_before_it_is_told() -> None:
    replica, shell = backup()
    replica.step(OTHER, Seal(Epoch(1, "b")), 0)
    finish_turn(replica, shell, 0)
    assert shell.take() == ["save", "send Sealed"]
    assert shell.disk.promise == Epoch(1, "b")


def test_what_a_turn_took_from_two_epochs_is_told_after_both() -> None:
    replica, shell = backup()
    replica.step(OTHER, Seal(Epoch(1, "b")), 0)
    replica.step(OTHER, Heartbeat(Epoch(1, "b"), replica.local.log.last, 0, 0), 0)
    replica.step(THIRD, Seal(Epoch(2, "c")), 0)
    finish_turn(replica, shell, 0)
    # The heartbeat of epoch 1 is not acknowledged any more: epoch 2 is promised.
    assert shell.take() == ["save", "send Sealed", "send Sealed"]
    assert shell.disk.promise == Epoch(2, "c")


def test_a_question_needs_no_save() -> None:
    replica, shell = backup()
    answer = ["send Answer", "send Digest"]
    for expected in (["save", *answer], answer):  # the start itself is noted first
        replica.step(OTHER, Ask("life", 1), 0)
        finish_turn(replica, shell, 0)
        assert shell.take() == expected


def test_a_failed_save_lets_nothing_out() -> None:
    replica, shell = backup()

    def fail(save: Save) -> None:
        raise OSError("disk on fire")

    shell.save = fail  # type: ignore[method-assign]
    replica.step(OTHER, Seal(Epoch(1, "b")), 0)
    with pytest.raises(OSError, match="disk on fire"):
        finish_turn(replica, shell, 0)
    assert shell.take() == []


def test_a_turn_that_does_not_come_to_rest_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, shell = backup()

    def restless(now_ms: int) -> Ready:
        return Ready(save=Save(promise=Epoch(1, "b")))

    monkeypatch.setattr(replica, "ready", restless)
    with pytest.raises(AssertionError, match="does not come to rest"):
        finish_turn(replica, shell, 0)
    assert len(shell.saves) == driver.ROUNDS_MOST + 1


@pytest.mark.parametrize(
    ("point", "durable", "published"),
    [("publish", 1, 0), ("save", 1, 1), ("saved", 2, 1)],
)
def test_a_crash_inside_the_turn_of_a_primary(point: str, durable: int, published: int) -> None:
    stage = founded(3)
    stage.node("n1").armed = point
    stage.propose("n1", b"a")
    assert not stage.node("n1").up
    assert stage.node("n1").disk.last.index == durable
    assert sum(isinstance(wired.message, Append) for wired in stage.wire) == 2 * published
    assert stage.answer_to(b"a") is None


def test_the_disk_of_the_simulator_reads_back_what_was_saved() -> None:
    stage = founded(3)
    for number in range(5):
        stage.propose("n1", b"%d" % number)
        stage.run(100)
    stage.run(2_000)
    before: Any = stage.node("n2").running.local
    stage.restart("n2")
    after = stage.node("n2").running.local
    assert after.state.rows == before.state.rows
    assert after.log.last == before.log.last
    assert after.promise == before.promise
    assert after.starts == before.starts + 1
