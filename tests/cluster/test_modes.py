"""Two clones, maintenance, unmanaged, Pacemaker restarted under a running daemon, bans, failure-timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from cluster.marks import only_long
from cluster.operations import CLONE, RESOURCE, Cluster, assert_clean, now

pytestmark = pytest.mark.cluster


ODD_NAME = "A.b-c_d." + "x" * 56  # all that pcs accepts in a name, and the longest
ODD_PORT = 10002
LONGEST_GAP_MS = 15_000
FAILURE_TIMEOUT_S = 8
QUIET_S = 4.0  # longer than the guardian's looks at its score, and than any doubt about a role
PACEMAKER = "pacemaker(d|-based|-fenced|-execd|-attrd|-schedulerd|-controld)( |$)"
RESTART = "PCMK_logfacility=none setsid pacemakerd </dev/null >/dev/null 2>&1 &"


def undisturbed(cluster: Cluster) -> tuple[object, ...]:
    """Who is primary in which epoch, and every daemon's process."""
    primary = cluster.primary()
    return primary, cluster.epoch(primary), [cluster.daemon(node) for node in cluster.hosts]


def assert_sane(cluster: Cluster) -> None:
    """crm_verify has nothing to say, crm_mon shows each role once."""
    done = cluster.lab.run(cluster.on()[0], ["crm_verify", "--live-check", "-V"], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), done.stdout + done.stderr
    text = cluster.lab.run(cluster.on()[0], ["crm_mon", "-1"]).stdout
    assert f"Promoted: [ {cluster.primary()} ]" in text
    assert "Failed" not in text


@pytest.fixture
def managed(settled: Cluster) -> Iterator[Cluster]:
    """Managed again and without a ban, whatever the test did."""
    yield settled
    node = settled.on()[0]
    for argv in (
        ["pcs", "property", "set", "maintenance-mode="],
        ["pcs", "resource", "manage", CLONE],
        ["pcs", "resource", "clear", CLONE],
        ["pcs", "resource", "meta", RESOURCE, "migration-threshold=", "failure-timeout="],
    ):
        settled.lab.run(node, argv, check=False, timeout_s=60)


def maintenance(cluster: Cluster, on: bool) -> None:
    cluster.operator("pcs", "property", "set", f"maintenance-mode={'true' if on else ''}")


# Two clones


@pytest.fixture
def second(settled: Cluster) -> Iterator[Cluster]:
    """Another food on the same nodes: an odd name, other ports, no notify."""
    other = Cluster(settled.lab, resource=ODD_NAME, client_port=ODD_PORT + 2)
    other.directory = settled.directory
    other.create(f"port={ODD_PORT}", options=["notify=false"])
    yield other
    other.operator("pcs", "resource", "delete", ODD_NAME)


def test_two_clones_side_by_side(settled: Cluster, second: Cluster, figures: Any) -> None:
    """Both serve, each fails over by itself, and foodctl asks which one is meant. The second does without notify."""
    assert_sane(settled)
    assert_sane(second)
    done = settled.lab.run("n1", ["foodctl", "status"], check=False)
    assert done.returncode == 3 and "choose one with --id" in done.stderr and ODD_NAME in done.stderr
    settled.operator("foodctl", "--id", RESOURCE, "put", "whose", "the first's")
    second.operator("foodctl", "--id", ODD_NAME, "put", "whose", "the second's")
    assert settled.operator("foodctl", "--id", RESOURCE, "get", "whose") == "the first's"

    before = undisturbed(settled)
    with settled.load() as first_load, second.load() as second_load:
        victim, pid = second.primary(), second.daemon(second.primary())
        at, _ = now()
        second.operator("kill", "-KILL", str(pid), node=victim)
        # On a busy machine Pacemaker does one thing at a time, and without notify nothing lies between the demote and
        # the monitor that fails: then it restarts this node before it promotes any, and may promote it again.
        second.wait_restarted(victim, pid)
        second.settle()
        assert second.primary() != victim or settled.throttled(), "the role stayed, though Pacemaker had time"
        assert undisturbed(settled) == before, "the other clone was disturbed"
        kept = undisturbed(second)
        settled.operator("pcs", "resource", "move", CLONE, "--promoted")
        settled.settle()
        assert undisturbed(second) == kept, "the other clone was disturbed"
    figures("second clone without notify, primary killed: write gap", second_load.gap_ms(at))
    assert second_load.gap_ms(at) < LONGEST_GAP_MS
    assert_clean(first_load)
    assert_clean(second_load)


# Maintenance, unmanaged


@only_long
def test_maintenance_comes_and_goes(managed: Cluster) -> None:
    before = undisturbed(managed)
    with managed.load() as load:
        maintenance(managed, True)
        time.sleep(QUIET_S)
        maintenance(managed, False)
        managed.settle()
        managed.operator("pcs", "resource", "unmanage", CLONE)
        time.sleep(QUIET_S)
        managed.operator("pcs", "resource", "manage", CLONE)
        managed.settle()
        assert undisturbed(managed) == before
    assert_sane(managed)
    assert_clean(load)


@only_long
@pytest.mark.parametrize("mode", ["maintenance", "unmanaged"])
def test_the_primary_dies_while_nobody_manages_it(managed: Cluster, figures: Any, mode: str) -> None:
    """Nothing moves then; what was due is done as soon as Pacemaker may, and nothing is lost."""
    old, pid = managed.primary(), managed.daemon(managed.primary())
    with managed.load() as load:
        if mode == "maintenance":
            maintenance(managed, True)
        else:
            managed.operator("pcs", "resource", "unmanage", CLONE)
        managed.operator("kill", "-KILL", str(pid), node=old)
        managed.wait(lambda: managed.score(old) is None, "the dead primary's score gone")
        time.sleep(QUIET_S)
        at, _ = now()
        if mode == "maintenance":
            maintenance(managed, False)
        else:
            managed.operator("pcs", "resource", "manage", CLONE)
        managed.wait_restarted(old, pid)
        managed.settle()
        managed.reasons()
    acknowledged = [write.end for write in load.history().writes if write.outcome == "ack" and write.end > at]
    figures(f"primary died in {mode}: lifted to first acknowledgement", round((min(acknowledged) - at) * 1000))
    assert_clean(load)


# Pacemaker restarted


def restart_pacemaker(cluster: Cluster, node: str, signal: str, pattern: str) -> None:
    cluster.lab.signal(node, pattern, signal)
    cluster.wait(lambda: not cluster.lab.pids_of(node, pattern), f"the end of {node}'s Pacemaker")
    cluster.lab.run(node, ["sh", "-c", RESTART])

    def whole() -> bool:
        tree = cluster.lab.crm_mon(node)  # in maintenance the fence device may stay stopped
        states = tree.findall("nodes/node") if tree is not None else []
        return bool(states) and all(s.get("online") == "true" and s.get("pending") == "false" for s in states)

    cluster.wait(whole, "every node online, as the restarted one sees it")


def test_pacemaker_restarts_under_a_running_primary(managed: Cluster, figures: Any) -> None:
    """In maintenance, as for an update of Pacemaker: it forgets the scores, and the probe has them set again."""
    before, primary = undisturbed(managed), managed.primary()
    with managed.load() as load:
        maintenance(managed, True)
        at, _ = now()
        restart_pacemaker(managed, primary, "TERM", "^pacemakerd")
        managed.wait(lambda: managed.score(primary), "the primary's score")
        figures("Pacemaker restarted in maintenance: until the primary's score is back", round((now()[0] - at) * 1000))
        managed.settle()
        maintenance(managed, False)
        time.sleep(QUIET_S)
        managed.settle()
        assert undisturbed(managed) == before, "the healthy primary was demoted or restarted"
    assert_sane(managed)
    assert_clean(load)


@only_long
def test_pacemaker_is_restarted_on_every_node(managed: Cluster) -> None:
    """A whole cluster's update in maintenance: nobody's role or process changes."""
    before = undisturbed(managed)
    with managed.load() as load:
        maintenance(managed, True)
        for node in managed.lab.nodes:
            restart_pacemaker(managed, node, "TERM", "^pacemakerd")
            managed.wait(partial(managed.score, node), f"the score of {node}")
        maintenance(managed, False)
        time.sleep(QUIET_S)
        managed.settle()
        assert undisturbed(managed) == before
    assert_sane(managed)
    assert_clean(load)


@only_long
def test_pacemakerd_is_killed_and_started_again(managed: Cluster) -> None:
    """Its children survive it, and are adopted."""
    before, primary = undisturbed(managed), managed.primary()
    with managed.load() as load:
        restart_pacemaker(managed, primary, "KILL", "^pacemakerd")
        time.sleep(QUIET_S)
        managed.settle()
        assert undisturbed(managed) == before
    assert_clean(load)


@only_long
def test_all_of_pacemaker_is_killed(managed: Cluster, figures: Any) -> None:
    """The node is fenced for it, as Pacemaker does; until then its primary is one whose cluster manager is dead."""
    old = managed.primary()
    with managed.load() as load:
        at, _ = now()
        managed.lab.signal(old, PACEMAKER, "KILL")
        managed.wait(lambda: not managed.lab.on(old), f"the fencing of {old}")
        managed.wait_primary_not(old)
        managed.lab.wait_fenced(old)
        managed.lab.start(old)
        managed.lab.wait_online()
        managed.settle()
    figures("all of Pacemaker killed on the primary's node: write gap", load.gap_ms(at))
    assert_clean(load)


# Bans, thresholds


@only_long
def test_the_role_is_banned_and_cleared(managed: Cluster) -> None:
    old = managed.primary()
    with managed.load() as load:
        managed.operator("pcs", "resource", "ban", CLONE, old, "--promoted")
        new = managed.wait_primary_not(old)
        managed.settle()
        managed.operator("pcs", "resource", "clear", CLONE)
        managed.settle()
        assert managed.primary() == new, "the role went back"
    assert_sane(managed)
    assert_clean(load)


def failcount(cluster: Cluster, node: str) -> int:
    argv = ["crm_failcount", "--query", "-r", RESOURCE, "-N", node]
    text = cluster.lab.run(cluster.on()[0], argv).stdout.rpartition("value=")[2].strip()
    return 1_000_000 if text == "INFINITY" else int(text)


def test_a_failure_counts_and_is_forgotten(managed: Cluster, figures: Any) -> None:
    """migration-threshold=5 as the README advises: one death bans nobody, and failure-timeout forgets it."""
    options = ["migration-threshold=5", f"failure-timeout={FAILURE_TIMEOUT_S}s"]
    managed.operator("pcs", "resource", "meta", RESOURCE, *options)
    managed.settle()
    with managed.load() as load:
        for role, victim in (("backup", managed.backups()[0]), ("primary", managed.primary())):
            pid = managed.daemon(victim)
            managed.operator("kill", "-KILL", str(pid), node=victim)
            managed.wait_restarted(victim, pid)
            managed.settle()
            count = failcount(managed, victim)
            figures(f"fail count after the death of a {role}", count, "")
            assert count < 5
        kept = undisturbed(managed)
        managed.wait(lambda: not any(failcount(managed, node) for node in managed.hosts), "the failures forgotten")
        managed.settle()
        assert undisturbed(managed) == kept
    assert_clean(load)


@only_long
def test_too_many_failures_ban_until_they_are_forgotten(managed: Cluster) -> None:
    """The banned instance stays away, the others serve, and it is back by itself."""
    options = ["migration-threshold=5", "failure-timeout=60s"]
    managed.operator("pcs", "resource", "meta", RESOURCE, *options)
    managed.settle()
    victim = managed.backups()[0]
    with managed.load() as load:
        while failcount(managed, victim) < 5:
            pid = managed.daemon(victim)
            managed.operator("kill", "-KILL", str(pid), node=victim)
            time.sleep(QUIET_S)
            if failcount(managed, victim) < 5:
                managed.wait_restarted(victim, pid)
                managed.settle()
        managed.wait(lambda: not managed.status(victim), "the ban")
        managed.lab.wait(lambda: managed.status(victim), 150, "its return")
        managed.settle()
    assert_clean(load)
