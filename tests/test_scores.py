"""What food's scores and monitor codes make Pacemaker do: its own scheduler is asked (crm_simulate), state by state.

A scene is a list of events, each with the transitions that follow until all is at rest, in the order of execution. Who
is promoted, and that nobody is restarted, fenced or moved who need not be, stands there in so many words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from pacemaker_world import World

from food import pacemaker
from food.core import peers, quorum, replica
from food.core.replica import Replica
from food.watch import Job, Watch

Event = Callable[[World], Any]
NOTHING: tuple[str, ...] = ()


class Scene(NamedTuple):
    size: int
    events: tuple[tuple[Event, tuple[str, ...]], ...]
    scores: str  # of the nodes in the end, "-" for none


# --- Events ---


def kill(*nodes: str) -> Event:
    def event(world: World) -> None:
        for node in nodes:
            world.kill(node)

    return event


def cut(*nodes: str) -> Event:
    return lambda world: world.cut(*nodes)


def lag(*nodes: str) -> Event:
    return lambda world: world.lag(*nodes)


def power_off(node: str) -> Event:
    return lambda world: world.power_off(node)


def power_on(node: str) -> Event:
    return lambda world: world.power_on(node)


def standby(node: str, on: bool = True) -> Event:
    return lambda world: world.scheduler.standby(node, on)


def prefer(node: str, score: int | str, others: bool = False) -> Event:
    return lambda world: world.scheduler.prefer(node, score, others=others)


def monitored(node: str, interval_ms: int, code: int) -> Event:
    return lambda world: world.scheduler.result(node, "monitor", interval_ms, code)


def score_is(node: str, score: int | None) -> Event:
    return lambda world: world.scheduler.set_score(node, score)


def new_disk(node: str) -> Event:
    """The daemon dies, and the data directory is empty when it starts again."""

    def event(world: World) -> None:
        world.kill(node)
        world.stage.node(node).wipe()

    return event


def flip(node: str) -> Event:
    """The state of that node differs from the others' from now on."""

    def event(world: World) -> None:
        world.write()
        world.stage.flip(node)

    return event


def superseded(world: World) -> None:
    """Another member leads a newer epoch, without Pacemaker's knowing, and is gone again."""
    world.stage.node("n3").running.promote(world.stage.now, world.stage.now + 5_000)
    world.run(200)
    world.stage.node("n3").running.demote(world.stage.now, 0)


def cut_as_it_is_promoted(world: World) -> None:
    """The primary dies, and the one that Pacemaker will choose is cut off in the same moment."""
    world.kill("n1")
    world.cut("n3")


def dies_before_the_log_comes(world: World) -> None:
    """The scores are those of a moment ago, when n3 still lagged."""
    world.stage.lagging = frozenset()
    world.kill("n1")


def degraded(world: World) -> None:
    for instance in world.instances.values():
        instance.control.degraded = True
    world.cut("n2")


def no_space(world: World) -> None:
    world.stage.node("n1").running.local.no_space = "no space"


def dies_as_its_node_goes_on_standby(world: World) -> None:
    world.kill("n1")
    world.scheduler.standby("n1")


def all_scores_lost(world: World) -> None:
    for node in world.stage.names:
        world.scheduler.set_score(node, None)


def forget_preferences(world: World) -> None:
    world.scheduler.forget_preferences()


def maintenance(on: bool) -> Event:
    return lambda world: world.scheduler.property("maintenance-mode", "true" if on else "false")


def disable(on: bool) -> Event:
    return lambda world: world.scheduler.disable(on)


# --- Scenes ---

N1, N2, N3 = "n1 1000, n2 100, n3 100", "n1 100, n2 1000, n3 100", "n1 100, n2 100, n3 1000"

SCENES: dict[str, Scene] = {
    "at rest": Scene(3, (), N1),
    "a backup lags": Scene(3, ((lag("n3"), NOTHING), (lag(), NOTHING)), N1),
    "a backup that lags is not chosen": Scene(
        3,
        ((lag("n3"), NOTHING), (dies_before_the_log_comes, ("demote n1, promote n2", "stop n1, start n1"))),
        N2,
    ),
    "a backup is cut off": Scene(3, ((cut("n2"), NOTHING), (cut(), NOTHING)), N1),
    "a backup that is cut off is not chosen": Scene(
        3, ((cut("n3"), NOTHING), (prefer("n1", "-INFINITY"), ("demote n1, promote n2",))), "n1 100, n2 1000, n3 -"
    ),
    "the primary is cut off": Scene(3, ((cut("n1"), ("demote n1, promote n3",)), (cut(), NOTHING)), N3),
    "everybody is cut off": Scene(3, ((cut("n1", "n3", "n2"), NOTHING), (cut(), NOTHING)), N1),
    "the primary's daemon dies": Scene(3, ((kill("n1"), ("demote n1, promote n3", "stop n1, start n1")),), N3),
    "a backup's daemon dies": Scene(3, ((kill("n3"), ("stop n3, start n3",)),), N1),
    "a primary and a backup die": Scene(
        3, ((kill("n1", "n3"), ("demote n1, stop n3, start n3, promote n2", "stop n1, start n1")),), N2
    ),
    "the primary's node loses its power": Scene(
        3, ((power_off("n1"), ("fence n1, promote n3",)), (power_on("n1"), ("start n1",))), N3
    ),
    "a backup's node loses its power": Scene(
        3, ((power_off("n3"), ("fence n3",)), (power_on("n3"), ("start n3",))), N1
    ),
    "the primary's node on standby and back": Scene(
        3, ((standby("n1"), ("demote n1, stop n1, promote n3",)), (standby("n1", False), ("start n1",))), N3
    ),
    "a backup's node on standby and back": Scene(
        3, ((standby("n3"), ("stop n3",)), (standby("n3", False), ("start n3",))), N1
    ),
    "moved away, the ban lifted": Scene(
        3, ((prefer("n1", "-INFINITY"), ("demote n1, promote n3",)), (forget_preferences, NOTHING)), N3
    ),
    "moved to a node of choice, the preference lifted": Scene(
        3, ((prefer("n2", "INFINITY"), ("demote n1, promote n2",)), (forget_preferences, NOTHING)), N2
    ),
    "disabled and enabled": Scene(
        3,
        (
            (disable(True), ("demote n1, stop n1, stop n3, stop n2",)),
            (disable(False), ("start n2, start n3, start n1", "promote n1")),
        ),
        N1,
    ),
    "a promote fails: another node is promoted": Scene(
        3,
        (
            (
                cut_as_it_is_promoted,
                ("demote n1, promote n3", "demote n3, stop n1, stop n3, start n1, start n3", "promote n1"),
            ),
        ),
        "n1 1000, n2 100, n3 -",
    ),
    "deposed: the score goes at once": Scene(3, ((superseded, ("demote n1, promote n3",)),), N3),
    "deposed, and the role is pinned there: reported": Scene(
        3,
        ((prefer("n1", "INFINITY"), NOTHING), (superseded, ("demote n1, stop n1, start n1, promote n1",))),
        N1,
    ),
    "monitor 9 of a primary": Scene(
        3, ((monitored("n1", 10_000, 9), ("demote n1, stop n1, start n1, promote n1",)),), N1
    ),
    "monitor 1 of a primary": Scene(
        3, ((monitored("n1", 10_000, 1), ("demote n1, stop n1, start n1, promote n1",)),), N1
    ),
    "monitor 7 of a backup": Scene(3, ((monitored("n3", 11_000, 7), ("stop n3, start n3",)),), N1),
    "monitor 8 of a backup": Scene(3, ((monitored("n3", 11_000, 8), ("demote n3, stop n3, start n3",)),), N1),
    "monitors 190 and 191: nobody is disturbed": Scene(3, ((degraded, NOTHING),), "n1 1000, n2 -, n3 100"),
    "no space": Scene(3, ((no_space, NOTHING),), N1),
    "a new disk: a learner": Scene(3, ((new_disk("n3"), ("stop n3, start n3",)),), "n1 1000, n2 100, n3 -"),
    "a learner beside a primary that dies: one of two is no majority": Scene(
        3,
        (
            (new_disk("n3"), ("stop n3, start n3",)),
            (
                kill("n1"),
                ("demote n1, promote n2", "demote n2, stop n1, stop n2, start n1, start n2", "promote n1"),
            ),
        ),
        "n1 1000, n2 100, n3 -",
    ),
    "a learner is not chosen": Scene(
        3,
        ((new_disk("n3"), ("stop n3, start n3",)), (prefer("n1", "-INFINITY"), ("demote n1, promote n2",))),
        "n1 100, n2 1000, n3 -",
    ),
    "a backup's state differs: set aside": Scene(3, ((flip("n3"), ("stop n3, start n3",)),), "n1 1000, n2 100, n3 -"),
    "the primary's state differs: set aside": Scene(
        3, ((flip("n1"), ("demote n1, promote n3", "stop n1, start n1")),), "n1 -, n2 100, n3 1000"
    ),
    "the score is lost": Scene(3, ((score_is("n1", None), ("demote n1, promote n3",)),), N3),
    "all scores are lost": Scene(3, ((all_scores_lost, ("demote n1", "promote n3")),), N3),
    "dies in maintenance": Scene(
        3,
        (
            (maintenance(True), NOTHING),
            (kill("n1"), NOTHING),
            (maintenance(False), ("demote n1, stop n1, start n1, promote n3",)),
        ),
        N3,
    ),
    "dies as its node goes on standby": Scene(
        3, ((dies_as_its_node_goes_on_standby, ("demote n1, stop n1, promote n3",)),), "n1 -, n2 100, n3 1000"
    ),
    "some points from the others: a preferred primary": Scene(
        3,
        (
            (prefer("n2", -5, others=True), NOTHING),
            (kill("n1"), ("demote n1, promote n2", "stop n1, start n1")),
            (forget_preferences, NOTHING),
        ),
        N2,
    ),
    "too many points from the others: none of them is ever promoted": Scene(
        3,
        (
            (prefer("n1", -101, others=True), NOTHING),
            (kill("n1"), ("demote n1", "stop n1, start n1", "promote n1")),
        ),
        N1,
    ),
    "two: a backup's node loses its power": Scene(
        2, ((power_off("n2"), ("fence n2",)), (power_on("n2"), ("start n2",))), "n1 1000, n2 100"
    ),
    "two: the primary's node loses its power": Scene(
        2, ((power_off("n1"), ("fence n1",)), (power_on("n1"), ("start n1", "promote n1"))), "n1 1000, n2 100"
    ),
    "two: a backup's daemon dies": Scene(2, ((kill("n2"), ("stop n2, start n2",)),), "n1 1000, n2 100"),
    "two: the primary's daemon dies": Scene(
        2,
        (
            (
                kill("n1"),
                ("demote n1, promote n2", "demote n2, stop n1, stop n2, start n1, start n2", "promote n1"),
            ),
        ),
        "n1 1000, n2 100",
    ),
    "two: cut": Scene(2, ((cut("n1"), NOTHING), (cut(), NOTHING)), "n1 1000, n2 100"),
    "two: the states differ": Scene(2, ((flip("n2"), NOTHING),), "n1 1000, n2 -"),
}


def play(scene: Scene, scratch: Path) -> None:
    world = World(scene.size, scratch)
    assert world.settle() == [], "the saved cluster is at rest"
    for number, (event, expected) in enumerate(scene.events, 1):
        event(world)
        assert world.settle() == list(expected), f"event {number}"
    shown = {node: world.score(node) for node in world.stage.names}
    assert ", ".join(f"{node} {'-' if score is None else score}" for node, score in shown.items()) == scene.scores
    held = [node for node in world.stage.names if world.stage.node(node).up and world.stage.role(node) == "primary"]
    assert world.held == set(held), "Pacemaker holds promoted who is primary, and nobody else"


@pytest.mark.parametrize("name", SCENES)
def test_what_pacemaker_does(name: str, tmp_path: Path) -> None:
    play(SCENES[name], tmp_path)


def test_a_preference_for_who_must_not_be_promoted_is_a_to_and_fro(tmp_path: Path) -> None:
    """README warns of it: a positive preference lifts a node without a score above the healthy primary."""
    world = World(3, tmp_path)
    new_disk("n3")(world)
    assert world.settle() == ["stop n3, start n3"]
    world.scheduler.prefer("n3", 5)
    assert world.settle() == [], "a small one does no harm while there is a primary"
    world.scheduler.prefer("n3", 5_000)
    with pytest.raises(AssertionError, match="does not come to rest"):
        world.settle()
    assert world.transitions[1:3] == ["demote n1, promote n3", "demote n3, stop n3, start n3, promote n1"]


# --- Defects: each patches the shipped code from outside, and the scene named notices ---

Defect = Callable[[], Any]


@contextmanager
def score_0_instead_of_deleted() -> Iterator[None]:
    """0 promotes, -1 and nothing do not."""

    def zero(resource: str, node: str, *, master: bool = True) -> list[str]:
        return pacemaker.set_score(resource, node, 0, master=master)

    with patch.object(pacemaker, "delete_score", zero):
        yield


@contextmanager
def failure_injected_first() -> Iterator[None]:
    """Before the score is dropped: Pacemaker restarts the node and promotes only then."""
    jobs, died = Watch._jobs, Watch.died

    def failure_first(self: Watch, now: float) -> Iterator[Job]:
        found = list(jobs(self, now))
        yield from sorted(found, key=lambda job: job.kind != "fail")

    def at_once(self: Watch, text: str, now: float) -> None:
        died(self, text, now)
        if self.phase == "dead":
            self.report_at = now

    with patch.object(Watch, "_jobs", failure_first), patch.object(Watch, "died", at_once):
        yield


@contextmanager
def stop_does_not_cancel_a_failure() -> Iterator[None]:
    jobs, withdraw = Watch._jobs, Watch._withdraw

    def keeping(self: Watch) -> None:
        pending = self.report_at
        withdraw(self)
        self.report_at = pending and 0.0

    def failing(self: Watch, now: float) -> Iterator[Job]:
        if self.phase == "stopping" and self.report_at is not None:
            yield Job("fail", value="pending")
        yield from jobs(self, now)

    with patch.object(Watch, "_withdraw", keeping), patch.object(Watch, "_jobs", failing):
        yield


@contextmanager
def stop_leaves_its_score() -> Iterator[None]:
    def leaving(self: Watch) -> None:
        self.report_at = None
        self.score_wanted = self.score_believed

    with patch.object(Watch, "_withdraw", leaving):
        yield


@contextmanager
def score_given_up_though_nobody_else_shows_one() -> Iterator[None]:
    order = Watch.order_score

    def at_once(self: Watch, number: int, score: int | None, why: str, unless_alone: bool, now: float) -> None:
        order(self, number, score, why, False, now)

    with patch.object(Watch, "order_score", at_once):
        yield


@contextmanager
def deposed_keeps_its_score() -> Iterator[None]:
    judge = Replica._judge

    def unmoved(self: Replica, now_ms: int) -> None:
        if not self.deposed:
            judge(self, now_ms)

    with patch.object(Replica, "_judge", unmoved):
        yield


@contextmanager
def lagging_is_as_good_as_in_sync() -> Iterator[None]:
    with patch.object(peers, "SCORE_ELIGIBLE", peers.SCORE_IN_SYNC):
        yield


@contextmanager
def in_sync_although(word: str) -> Iterator[None]:
    original = peers.backup_wish

    def generous(*args: Any) -> peers.Wish:
        found = original(*args)
        return peers.Wish(peers.SCORE_IN_SYNC, found.why) if word in found.why else found

    with patch.object(replica, "backup_wish", generous):
        yield


def a_learner_has_a_score() -> AbstractContextManager[None]:
    return in_sync_although("learner")


def cut_off_keeps_its_score() -> AbstractContextManager[None]:
    return in_sync_although("isolated")


@contextmanager
def a_primary_of_two_gives_its_role_to_who_is_gone() -> Iterator[None]:
    with patch.object(replica, "quorum", SimpleNamespace(holds=quorum.holds, majority=lambda stores: 0)):
        yield


@contextmanager
def a_dead_primary_says_so_before_its_role_has_moved() -> Iterator[None]:
    """The monitor answers 7 at once, which is the same as a failure injected first."""
    with patch.object(Watch, "awaits_role_move", lambda self: False), patch.object(World, "settle", _impatient):
        yield


def _impatient(self: World) -> list[str]:
    self.monitor(self.instances)
    return _settle(self)


_settle = World.settle

DEFECTS: tuple[tuple[Defect, str], ...] = (
    (score_0_instead_of_deleted, "two: the primary's node loses its power"),
    (failure_injected_first, "the primary's daemon dies"),
    (stop_does_not_cancel_a_failure, "dies as its node goes on standby"),
    (stop_leaves_its_score, "the primary's node on standby and back"),
    (score_given_up_though_nobody_else_shows_one, "everybody is cut off"),
    (deposed_keeps_its_score, "deposed: the score goes at once"),
    (lagging_is_as_good_as_in_sync, "a backup that lags is not chosen"),
    (a_learner_has_a_score, "a learner is not chosen"),
    (cut_off_keeps_its_score, "a backup that is cut off is not chosen"),
    (a_primary_of_two_gives_its_role_to_who_is_gone, "two: a backup's node loses its power"),
    (a_dead_primary_says_so_before_its_role_has_moved, "the primary's daemon dies"),
)


@pytest.mark.parametrize(("defect", "scene"), DEFECTS, ids=[defect.__name__ for defect, _ in DEFECTS])
def test_a_defect_is_noticed(defect: Defect, scene: str, tmp_path: Path) -> None:
    with defect(), pytest.raises(AssertionError) as caught:
        play(SCENES[scene], tmp_path)
    print(caught.value)
