"""Members by command on a real cluster, each under load: a lost disk replaced, a node added to Corosync, one removed.

No client sees an error. Node by node in a lab of its own, since the others' has three for good (FOOD_LONG=yes).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.marks import only_long
from cluster.operations import RESOURCE, Cluster, Load, assert_clean
from testbed import Lab

pytestmark = pytest.mark.cluster

AFTERWARDS_S = 3.0  # of load that the new list carries


@pytest.fixture
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes, of which Corosync knows three; n4 is off."""
    with Lab("cluster-members", 4, spare=1, install=True) as lab:
        found = Cluster(lab)
        found.directory = tmp_path_factory.mktemp("loads")
        yield found
        print(*found.picture(), sep="\n")


def create(cluster: Cluster) -> None:
    cluster.operator("pcs", "resource", "create", RESOURCE, "ocf:food:food", "promotable", "notify=true")


def whole(cluster: Cluster, *nodes: str) -> None:
    """Waits until just these nodes vote, one is primary and all others are in sync."""

    def so() -> bool:
        states = cluster.states()
        told = [states.get(node, "") for node in nodes]
        primaries = [state for state in told if state.startswith("primary")]
        in_sync = [state for state in told if state.startswith("backup") and state.endswith("in sync")]
        return len(in_sync) == len(nodes) - 1 and [*map(ends, primaries)] == [f"{len(nodes)} of {len(nodes)} in sync"]

    cluster.wait(so, f"{', '.join(nodes)} in sync, and nobody else", 90)


def ends(state: str) -> str:
    return state.rpartition(", ")[2]


def state_says(cluster: Cluster, node: str, words: str) -> None:
    """food-state, which an operator sees in crm_mon -A1, names the remedy."""
    cluster.wait(lambda: words in cluster.states().get(node, ""), f"{words!r} in the state of {node}", 90)
    cluster.say(f"{node}: {cluster.states()[node]}")


def without_errors(load: Load) -> int:
    """Every write of the load was acknowledged, and nothing was lost, doubled or stale; how many."""
    assert_clean(load)
    assert {write.outcome for write in load.history().writes} == {"ack"}
    return load.acknowledged()


def listed(cluster: Cluster, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.operator("foodctl", "--output", "json", "member", "list", node=node))
    return found


def test_a_disk_is_lost_and_replaced(settled: Cluster, figures: Any) -> None:
    lab, primary, (other, lost) = settled.lab, settled.primary(), settled.backups()
    old = settled.status(lost)["self"]["store"]
    with settled.load() as load:
        lab.kill(lost)
        lab.wait_fenced(lost)
        shutil.rmtree(lab.path(lost, f"/var/lib/food/{RESOURCE}"))
        lab.start(lost)
        state_says(settled, lost, f"foodctl member replace {lost}")
        began = time.monotonic()
        settled.say(settled.operator("foodctl", "member", "replace", lost, node=other).strip())
        figures("a lost disk replaced under load: foodctl member replace", round(time.monotonic() - began, 1), "s")
        whole(settled, *lab.nodes)
        time.sleep(AFTERWARDS_S)
    stores = listed(settled, lost)["stores"]
    assert [row["node"] for row in stores if row["voting"]] == lab.nodes and len(stores) == len(lab.nodes)
    assert old not in [row["store"] for row in stores]
    assert settled.primary() == primary
    figures("a lost disk replaced under load: writes acknowledged, no error", without_errors(load), "")
    settled.assert_converged()


@only_long
def test_a_node_is_added_and_one_is_removed(growing: Cluster, figures: Any) -> None:
    lab = growing.lab
    create(growing)
    whole(growing, "n1", "n2", "n3")
    primary = growing.primary()
    stays, goes = (node for node in lab.settings.first_names if node != primary)
    left = sorted((primary, stays, "n4"))
    with growing.load(nodes=lab.settings.first_names) as load:
        growing.say("n4 is added to Corosync")
        lab.list_nodes("n1", "n2", "n3", "n4")
        lab.start("n4")
        lab.wait_online()
        state_says(growing, "n4", "foodctl member add n4")
        growing.say(growing.operator("foodctl", "member", "add", "n4", node=stays).strip())
        whole(growing, "n1", "n2", "n3", "n4")
        time.sleep(AFTERWARDS_S)
    figures("a node added under load: writes acknowledged, no error", without_errors(load), "")
    with growing.load(nodes=left) as load:
        growing.say(f"{goes} is removed from Corosync")
        lab.shut_down(goes)
        lab.list_nodes(*left)
        growing.operator("crm_node", "-R", goes, "--force", node=primary)
        state_says(growing, primary, f"{goes} left Corosync, still counts: foodctl member remove {goes}")
        growing.say(growing.operator("foodctl", "member", "remove", goes, node="n4").strip())
        whole(growing, *left)
        time.sleep(AFTERWARDS_S)
    figures("a node removed under load: writes acknowledged, no error", without_errors(load), "")
    found = listed(growing, "n4")
    assert [row["node"] for row in found["stores"]] == left and found["number"] == 3
    growing.say(f"{primary} loses its power: the new node's vote is needed, and that of {goes} is not")
    lab.kill(primary)
    lab.wait_fenced(primary)
    growing.wait_primary_not(primary)
    growing.operator("foodctl", "put", "k", "v", node="n4")


@only_long
def test_three_of_four_found_by_command_and_the_fourth_is_added(growing: Cluster) -> None:
    """n4 is in Corosync's list and has never been there: the first start awaits it, and an operator does not."""
    lab = growing.lab
    lab.list_nodes("n1", "n2", "n3", "n4")
    create(growing)
    state_says(growing, "n1", "first start needs every node once: awaiting n4")
    growing.say(growing.operator("foodctl", "member", "found", "n1", "n2", "n3", "--yes", node="n2").strip())
    whole(growing, "n1", "n2", "n3")
    with growing.load(nodes=["n1", "n2", "n3"]) as load:
        lab.start("n4")
        lab.wait_online()
        state_says(growing, "n4", "foodctl member add n4")
        growing.say(growing.operator("foodctl", "member", "add", "n4", node="n4").strip())
        whole(growing, "n1", "n2", "n3", "n4")
        time.sleep(AFTERWARDS_S)
    without_errors(load)
