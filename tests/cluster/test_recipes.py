"""The recipes of deploy/recipes, run as they are written: with pcs and with crmsh, and a virtual IP that follows."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import recipes
from cluster.operations import CLONE, LONG, RESOURCE, Cluster, assert_clean, now
from testbed import Lab, LabError, layout

pytestmark = pytest.mark.cluster

MOVES = 5 if LONG else 1
VIP_RESOURCE = "food-vip"
LONGEST_GAP_MS = 10_000


def assert_sane(cluster: Cluster) -> None:
    done = cluster.lab.run(cluster.on()[0], ["crm_verify", "--live-check", "-V"], check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), done.stdout + done.stderr


def vip_holders(cluster: Cluster) -> list[str]:
    """The nodes that have the address."""
    argv = ["ip", "-o", "-4", "addr", "show", "to", recipes.VIP]
    return [node for node in cluster.on() if cluster.lab.run(node, argv).stdout]


def wait_vip(cluster: Cluster) -> None:
    def there() -> bool:
        with contextlib.suppress(LabError):
            return vip_holders(cluster) == [cluster.primary()]
        return False

    cluster.wait(there, "the virtual IP on the primary's node, and nowhere else")


def wait_heard_everywhere(cluster: Cluster) -> None:
    """A reload that Pacemaker drops, as it plans anew for the recipe's next line, comes with the next monitor."""
    argv = ["ss", "-ltnH", "src", f"{recipes.VIP}:{cluster.client_port}"]
    cluster.wait(lambda: all(cluster.lab.run(node, argv).stdout for node in cluster.on()), "every node's listening")


@contextlib.contextmanager
def only_the_vip(lab: Lab) -> Iterator[None]:
    """The client's host reaches the nodes' own addresses no more, as behind a firewall."""
    nodes = ", ".join(lab.address(node) for node in lab.nodes)
    chain = f"chain output {{ type filter hook output priority 0; ip daddr {{ {nodes} }} meta l4proto tcp drop; }}"
    lab.run(layout.CLIENT, ["nft", "-f", "-"], input=f"table inet vip_only {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        lab.run(layout.CLIENT, ["nft", "delete", "table", "inet", "vip_only"])


def undisturbed(cluster: Cluster) -> tuple[object, ...]:
    primary = cluster.primary()
    return primary, cluster.epoch(primary), [cluster.daemon(node) for node in cluster.lab.nodes]


def move_gaps(cluster: Cluster, what: str, figures: Any, at: str = "") -> float:
    """The median write gap of some moves, with nobody's help but the address `at`, or the nodes' own."""
    gaps = []
    for _ in range(MOVES):
        with cluster.load(at=at) as load:
            began, _ = now()
            cluster.operator("pcs", "resource", "move", CLONE, "--promoted")
            cluster.settle()
        gaps.append(load.gap_ms(began))
        assert_clean(load)
    figures(f"move, clients at {what}: write gap", statistics.median(gaps))
    print(f"{what}: {gaps}")
    return statistics.median(gaps)


@pytest.fixture
def without_vip(settled: Cluster) -> Iterator[Cluster]:
    """No address when it begins, and none when it ends."""
    yield settled
    node = settled.on()[0]
    settled.lab.run(node, ["pcs", "resource", "delete", VIP_RESOURCE], check=False, timeout_s=90)
    settled.operator("pcs", "resource", "update", RESOURCE, "client_addresses=")


def test_a_virtual_ip_follows_the_primary(without_vip: Cluster, figures: Any) -> None:
    cluster = without_vip
    if LONG:
        plain = move_gaps(cluster, "the nodes' addresses, no virtual IP", figures)
    before = undisturbed(cluster)
    with cluster.load() as load:
        for line in recipes.shell("vip.pcs.sh"):
            cluster.operator("sh", "-ec", line)
        wait_vip(cluster)
        wait_heard_everywhere(cluster)
        cluster.settle()
        assert undisturbed(cluster) == before, "the recipe disturbed the clone"
    assert_clean(load)
    assert_sane(cluster)

    with only_the_vip(cluster.lab):
        gap = move_gaps(cluster, "the virtual IP alone", figures, recipes.VIP)
        wait_vip(cluster)
        old, pid = cluster.primary(), cluster.daemon(cluster.primary())
        with cluster.load(at=recipes.VIP) as load:
            at, _ = now()
            cluster.operator("kill", "-KILL", str(pid), node=old)
            cluster.wait_primary_not(old)
            wait_vip(cluster)
            cluster.settle()
    killed = load.gap_ms(at)
    figures("kill -9 of the primary, clients at the virtual IP alone: write gap", killed)
    assert max(gap, killed) < LONGEST_GAP_MS
    assert_clean(load)
    if LONG:
        figures("what the virtual IP adds to a move", gap - plain)


# crmsh


@pytest.fixture
def by_crmsh(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own, in which nobody uses pcs."""
    with Lab("crmsh-tests", 3, install=True) as lab:
        cluster = Cluster(lab)
        cluster.directory = tmp_path
        yield cluster


def test_crmsh_alone(by_crmsh: Cluster, figures: Any, tmp_path: Path) -> None:
    """Created by the recipe with both monitors, moved, and the virtual IP follows."""
    cluster = by_crmsh
    for command in recipes.crmsh("food.crm", tmp_path):
        cluster.operator("sh", "-ec", command)
    cluster.settle()
    assert_sane(cluster)
    text = cluster.operator("crm", "configure", "show", RESOURCE)
    assert "op monitor interval=10s role=Promoted" in text and "op monitor interval=11s role=Unpromoted" in text

    before = undisturbed(cluster)
    for command in recipes.crmsh("vip.crm", tmp_path):
        cluster.operator("sh", "-ec", command)
    wait_vip(cluster)
    wait_heard_everywhere(cluster)
    cluster.settle()
    assert undisturbed(cluster) == before, "the recipe disturbed the clone"
    assert_sane(cluster)

    with only_the_vip(cluster.lab), cluster.load(at=recipes.VIP) as load:
        old, (at, _) = cluster.primary(), now()
        cluster.operator("crm_resource", "--ban", "--resource", CLONE, "--node", old, "--promoted")
        cluster.wait_primary_not(old)
        wait_vip(cluster)
        cluster.settle()
        cluster.operator("crm", "resource", "clear", CLONE)
        cluster.settle()
    figures("crmsh: move by a ban, clients at the virtual IP: write gap", load.gap_ms(at))
    print(cluster.operator("crm", "status"))
    assert_clean(load)
