"""Daemons that die or stand still, and Pacemaker's own: the role moves or stays, the node is back by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.operations import FOOD_LOG, RESOURCE, Cluster, assert_clean, now

pytestmark = pytest.mark.cluster

PACEMAKER_WAITS_S = 180.0
LONGEST_GAP_MS = 15_000  # far beyond the figures; what is slower is broken, and not the machine busy
RECOVERY_MS = 5_000  # well under the monitor's interval: it was not the monitor who saw it
UNDISTURBED_GAP_MS = 3_000
SETTLED_FOR_S = 3.0
REPORTED, REPORTED_AGAIN_S = "failure reported to Pacemaker", 12.0


def undisturbed(cluster: Cluster, primary: str) -> tuple[str, int, int]:
    """What stays the same while a primary is left in peace."""
    return cluster.primary(), cluster.daemon(primary), cluster.epoch(primary)


def test_the_primary_is_killed(settled: Cluster, figures: Any) -> None:
    old, pid = settled.primary(), settled.daemon(settled.primary())
    with settled.load() as load:
        at, _ = now()
        settled.operator("kill", "-KILL", str(pid), node=old)
        new = settled.wait_primary_not(old)
        settled.wait_restarted(old, pid)
        back = time.monotonic() - at
        settled.settle()
        assert settled.primary() == new, "the role went back"
    assert any("killed by signal 9" in reason and reason.startswith(old) for reason in settled.reasons())
    gap = load.gap_ms(at)
    figures("kill -9 of the primary's daemon: write gap", gap, bar="score deleted + 400")
    figures("kill -9 of the primary's daemon: node back", round(back * 1000))
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


def test_a_backup_is_killed(settled: Cluster, figures: Any) -> None:
    """Pacemaker hears of it at once, not at the next monitor, and the primary is left alone."""
    primary, backup = settled.primary(), settled.backups()[0]
    before, pid = undisturbed(settled, primary), settled.daemon(backup)
    mark = settled.mark()
    with settled.load() as load:
        at, wall = now()
        settled.operator("kill", "-KILL", str(pid), node=backup)
        settled.wait_restarted(backup, pid)
        settled.settle()
        assert undisturbed(settled, primary) == before
    stops = settled.actions(mark, "stop")
    assert [stop.node for stop in stops] == [backup]
    recovery, gap = round((stops[0].at - wall) * 1000), load.gap_ms(at)
    figures("kill -9 of a backup's daemon: recovery begins", recovery, bar="500")
    figures("kill -9 of a backup's daemon: write gap", gap, bar="a few hundred")
    assert recovery < RECOVERY_MS
    assert gap < UNDISTURBED_GAP_MS
    assert settled.reasons(), "the failure is not in crm_mon"
    assert_clean(load)


def test_the_primary_stands_still(settled: Cluster, figures: Any) -> None:
    old, pid = settled.primary(), settled.daemon(settled.primary())
    with settled.load() as load:
        at, _ = now()
        settled.operator("kill", "-STOP", str(pid), node=old)
        new = settled.wait_primary_not(old)
        settled.wait_restarted(old, pid)
        settled.settle()
        assert settled.primary() == new, "the role went back"
    assert any("stood still" in reason and reason.startswith(old) for reason in settled.reasons())
    gap = load.gap_ms(at)
    figures("SIGSTOP of the primary's daemon: write gap", gap, bar="watchdog 1500 + 1000")
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


@pytest.fixture
def often_monitored(settled: Cluster) -> Iterator[Cluster]:
    """A monitor is under way at any time at which the primary stands still."""

    def interval(text: str) -> None:
        words = ["op", "monitor", "role=Promoted", f"interval={text}", "timeout=20s"]
        settled.operator("pcs", "resource", "update", RESOURCE, *words)

    interval("1s")
    settled.settle()
    yield settled
    interval("10s")


def test_a_monitor_hangs_with_the_primary(often_monitored: Cluster, figures: Any) -> None:
    """What it then says must not make Pacemaker restart the primary before it promotes another node."""
    cluster = often_monitored
    old, pid = cluster.primary(), cluster.daemon(cluster.primary())
    mark = cluster.mark()
    with cluster.load() as load:
        at, _ = now()
        cluster.operator("kill", "-STOP", str(pid), node=old)
        new = cluster.wait_primary_not(old)
        cluster.wait_restarted(old, pid)
        cluster.settle()
    promoted, stopped = cluster.actions(mark, "promote")[0], cluster.actions(mark, "stop")[0]
    assert promoted.node == new and stopped.node == old
    assert promoted.at < stopped.at, "the promote waited for the restart"
    gap = load.gap_ms(at)
    figures("SIGSTOP of the primary's daemon, a monitor hangs: write gap", gap, bar="watchdog 1500 + 1000")
    assert gap < LONGEST_GAP_MS
    assert any("stood still" in reason for reason in cluster.reasons())
    assert_clean(load)


def test_a_backup_stands_still(settled: Cluster, figures: Any) -> None:
    primary, backup = settled.primary(), settled.backups()[-1]
    before, pid = undisturbed(settled, primary), settled.daemon(backup)
    mark = settled.mark()
    with settled.load() as load:
        at, wall = now()
        settled.operator("kill", "-STOP", str(pid), node=backup)
        settled.wait_restarted(backup, pid)
        settled.settle()
        assert undisturbed(settled, primary) == before
    stops = settled.actions(mark, "stop")
    assert [stop.node for stop in stops] == [backup]
    recovery, gap = round((stops[0].at - wall) * 1000), load.gap_ms(at)
    figures("SIGSTOP of a backup's daemon: recovery begins", recovery, bar="watchdog 1500 + 500")
    figures("SIGSTOP of a backup's daemon: write gap", gap, bar="a few hundred")
    assert gap < UNDISTURBED_GAP_MS
    assert settled.reasons(), "the failure is not in crm_mon"
    assert_clean(load)


def test_pacemaker_forgets_a_failure_before_it_acts_on_it(settled: Cluster) -> None:
    """A cleanup, and no probe yet: a failure reported then would be newer than every start that follows, and Pacemaker
    would restart the instance again and again."""
    backup, schedulers = settled.backups()[0], "pacemaker-schedulerd"
    pid, log = settled.daemon(backup), settled.lab.path(backup, FOOD_LOG)
    for node in settled.lab.nodes:
        settled.lab.signal(node, schedulers, "STOP")
    try:
        reports = log.read_text().count(REPORTED)
        settled.operator("kill", "-KILL", str(pid), node=backup)
        settled.wait(lambda: log.read_text().count(REPORTED) > reports, "the failure's report")
        settled.operator("crm_resource", "--cleanup", "--resource", RESOURCE, "--node", backup)
        time.sleep(REPORTED_AGAIN_S)
    finally:
        for node in settled.lab.nodes:
            settled.lab.signal(node, schedulers, "CONT")
    settled.wait_restarted(backup, pid)
    settled.settle()
    pid = settled.daemon(backup)
    time.sleep(SETTLED_FOR_S)
    assert settled.daemon(backup) == pid, "restarted again"


def back_to_whole(cluster: Cluster, node: str) -> None:
    """A controller that dies can cost more than its own restart. Pacemaker fences the node if it plans before the new
    one has joined ("peer process is no longer available"): the node must be switched on again. Or it has sent the old
    one an action, and waits for the answer as long as the action's timeout and cluster-delay say: 70 s."""
    what = "the cluster whole again, or the node fenced"
    cluster.wait(lambda: not cluster.lab.on(node) or cluster.whole(), what, PACEMAKER_WAITS_S)
    if not cluster.lab.on(node):
        cluster.say(f"Pacemaker fenced {node}")
        cluster.lab.wait_fenced(node)
        cluster.lab.start(node)
        cluster.settle()


@pytest.fixture(params=["pacemaker-attrd", "pacemaker-controld"])
def of_pacemaker(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_a_daemon_of_pacemakers_is_killed(settled: Cluster, figures: Any, of_pacemaker: str) -> None:
    """Its scores are gone; food's guardian restores them, and the role is not lost for long."""
    primary, pid = settled.primary(), settled.lab.pid_of(settled.primary(), of_pacemaker)
    with settled.load() as load:
        at, _ = now()
        settled.operator("kill", "-KILL", str(pid), node=primary)
        settled.wait(lambda: pid not in settled.lab.pids_of(primary, of_pacemaker), f"the end of {of_pacemaker}")
        back_to_whole(settled, primary)
        settled.wait(lambda: all(settled.score(node) for node in settled.lab.nodes), "every node's score")
        restored = time.monotonic() - at
        time.sleep(SETTLED_FOR_S)
        back_to_whole(settled, primary)
    moved = settled.primary() != primary
    settled.say(f"{of_pacemaker} killed on {primary}: " + ("the role moved" if moved else "the role stayed"))
    gap = load.gap_ms(at)
    figures(f"{of_pacemaker} killed on the primary's node: write gap", gap)
    figures(f"{of_pacemaker} killed on the primary's node: scores restored", round(restored * 1000))
    assert gap < LONGEST_GAP_MS
    settled.reasons()
    assert_clean(load)
