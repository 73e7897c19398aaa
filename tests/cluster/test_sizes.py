"""Clusters of other sizes than three; fewer instances than nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.marks import only_long
from cluster.operations import LONG, Cluster, assert_clean, now
from testbed import Lab

pytestmark = pytest.mark.cluster


FEW, FEW_PORT, INSTANCES = "few", 10010, 3


@contextlib.contextmanager
def raised(nodes: int, directory: Path) -> Iterator[Lab]:
    with Lab("sizes-tests", nodes, install=True) as lab:
        Cluster.directory = directory
        yield lab


def most_may_die(cluster: Cluster, figures: Any) -> None:
    """All that a majority can spare lose their power at once, the primary first; then they come back."""
    size = len(cluster.hosts)
    spare = (size - 1) // 2
    with cluster.load() as load:
        cluster.operator("pcs", "resource", "move", cluster.clone, "--promoted")
        cluster.settle()
        victims = [cluster.primary(), *cluster.backups()][:spare]
        at, _ = now()
        cluster.lab.kill(*victims)
        cluster.wait_primary_not(*victims)
        cluster.wait(lambda: load.acknowledged(since=now()[0] - 1.0), "writes by those that are left")
        for victim in victims:
            cluster.lab.wait_fenced(victim)
        cluster.lab.start(*victims)
        cluster.lab.wait_online()
        cluster.settle()
    figures(f"{size} nodes, {spare} lose power at once, the primary too: write gap", load.gap_ms(at))
    assert_clean(load)
    cluster.assert_converged()
    done = cluster.lab.run(cluster.on()[0], ["crm_verify", "--live-check", "-V"], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), done.stdout + done.stderr


def instances(cluster: Cluster) -> list[str]:
    """The nodes that have an instance."""
    tree = cluster.lab.crm_mon(cluster.on()[0])
    found = tree.iter("resource") if tree is not None else ()
    return sorted(
        node.get("name") or "" for one in found if one.get("id") == cluster.resource for node in one.iterfind("node")
    )


def fewer_than_nodes(lab: Lab, figures: Any) -> Cluster:
    """clone-max below the number of nodes: nothing is founded by guess; the operator names the members."""
    cluster = Cluster(lab, resource=FEW, client_port=FEW_PORT + 2)
    argv = ["ocf:food:food", f"port={FEW_PORT}", "promotable", "notify=true", f"clone-max={INSTANCES}"]
    cluster.operator("pcs", "resource", "create", FEW, *argv)
    cluster.wait(lambda: len(instances(cluster)) == INSTANCES, "the instances")
    cluster.hosts = instances(cluster)
    without = [node for node in lab.nodes if node not in cluster.hosts]

    def told() -> bool:
        words = f"awaiting {', '.join(without)}; with fewer: foodctl member found"
        states = cluster.states()
        return len(states) == INSTANCES and all(words in state for state in states.values())

    cluster.wait(told, "the word on what is missing")
    cluster.operator("foodctl", "--id", FEW, "member", "found", *cluster.hosts, "--yes", node=cluster.hosts[0])
    cluster.settle()
    with cluster.load() as load:
        victim, pid = cluster.primary(), cluster.daemon(cluster.primary())
        at, _ = now()
        cluster.operator("kill", "-KILL", str(pid), node=victim)
        cluster.wait_primary_not(victim)
        cluster.wait_restarted(victim, pid)
        cluster.settle()
    figures(f"{INSTANCES} instances on {len(lab.nodes)} nodes, primary killed: write gap", load.gap_ms(at))
    assert_clean(load)
    return cluster


def a_spare_takes_part(cluster: Cluster) -> None:
    """A member's node is gone: Pacemaker starts an instance elsewhere, which votes once it is told to."""
    gone = cluster.backups()[0]
    left = [node for node in cluster.hosts if node != gone]
    with cluster.load(nodes=left) as load:
        cluster.operator("pcs", "node", "standby", gone)
        cluster.wait(lambda: len(instances(cluster)) == INSTANCES and gone not in instances(cluster), "a spare")
        (spare,) = set(instances(cluster)) - set(left)
        cluster.say(f"{spare} has the instance that {gone} had")
        primary = cluster.primary()
        cluster.operator("foodctl", "--id", FEW, "member", "add", spare, node=primary)
        cluster.operator("foodctl", "--id", FEW, "member", "remove", gone, node=primary)
        cluster.hosts = sorted([*left, spare])
        cluster.settle()
        cluster.operator("pcs", "node", "unstandby", gone)
        cluster.settle()
        assert instances(cluster) == cluster.hosts
    assert_clean(load)


def test_five_nodes(figures: Any, tmp_path: Path) -> None:
    with raised(5, tmp_path) as lab:
        few = fewer_than_nodes(lab, figures)
        if LONG:
            a_spare_takes_part(few)
        few.operator("pcs", "resource", "delete", FEW)
        every = Cluster(lab)
        every.create()
        most_may_die(every, figures)


@only_long
@pytest.mark.parametrize("nodes", [4, 7])
def test_other_sizes(figures: Any, tmp_path: Path, nodes: int) -> None:
    with raised(nodes, tmp_path) as lab:
        cluster = Cluster(lab)
        cluster.create()
        most_may_die(cluster, figures)
