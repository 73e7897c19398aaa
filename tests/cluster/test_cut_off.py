"""The primary cut off from everything while fencing is disabled on purpose: by Pacemaker's books there are two.

Promise 4: no node acknowledges in an older epoch what the newer epoch's log does not hold; and promise 2: the old
primary does not answer a linearizable read with what is no longer so.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.operations import LONG, RESOURCE, Cluster, Load, assert_clean
from testbed import Lab, floors

pytestmark = pytest.mark.cluster

# What Pacemaker does with the part that has no quorum: nothing, the worst; stop everything there; what lies between.
POLICIES = ("ignore", "stop", "freeze") if LONG else ("ignore",)
ACKS_BEFORE, APART_S, IN_FLIGHT_S = 100, 10.0, 1.0


@pytest.fixture(scope="module")
def unfenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Lab("cluster-cut-off", 3, fencing=False, install=True) as lab:
        found = Cluster(lab)
        found.directory = tmp_path_factory.mktemp("cut-off")
        found.create()
        yield found


def enough(load: Load) -> bool:
    return load.acknowledged() >= ACKS_BEFORE


@pytest.mark.parametrize("policy", POLICIES)
def test_an_old_primary_that_nobody_fenced(unfenced: Cluster, figures: Any, policy: str) -> None:
    cluster = unfenced
    cluster.operator("pcs", "property", "set", f"no-quorum-policy={policy}")
    cluster.settle()
    old, rest = cluster.primary(), cluster.backups()
    with cluster.load("--shared", nodes=rest) as outside:
        counters = ("--read-counters", f"{outside.name}:4")
        with cluster.load("--shared", *counters, host=old, writers=2, readers=2) as inside:
            for load in (outside, inside):
                cluster.wait(functools.partial(enough, load), "enough writes before the cut")
            cut = time.monotonic()
            cluster.lab.cut(old)
            cluster.say(f"{old} is cut off from {' and '.join(rest)}, Corosync too; no-quorum-policy is {policy}")
            cluster.wait(
                lambda: floors.promoted_node(cluster.lab, RESOURCE, rest[0]) in rest, "a primary among the others"
            )
            promoted = time.monotonic()
            new = floors.promoted_node(cluster.lab, RESOURCE, rest[0])
            time.sleep(APART_S)
            believed = floors.promoted_node(cluster.lab, RESOURCE, old)
            cluster.say(f"promoted by the others' books: {new}; by {old}'s: {believed or 'nobody'}")
            asked = cluster.lab.run(old, ["foodctl", "--timeout", "2", "get", f"{outside.name}/first"], check=False)
            cluster.say(f"a linearizable read on {old}: exit code {asked.returncode}: {asked.stderr.strip()}")
            assert asked.returncode == 3, "a linearizable read was served by the isolated side"
            healed = time.monotonic()
            cluster.lab.heal()
            cluster.settle()
            seconds = time.monotonic() - healed
            cluster.say(f"healed: {cluster.primary()} is primary, all in sync after {seconds:.1f} s")
    here, there = outside.acknowledged(promoted, healed), inside.acknowledged(cut + IN_FLIGHT_S, healed)
    cluster.reasons()
    figures(f"cut off, {policy}: acknowledged before the cut", outside.acknowledged(0, cut), "writes", ">= 100")
    figures(f"cut off, {policy}: acknowledged by the majority in {APART_S:.0f} s", here, "writes")
    figures(f"cut off, {policy}: acknowledged by the isolated primary then", there, "writes", "0")
    figures(f"cut off, {policy}: write gap of the majority", outside.gap_ms(cut))
    figures(f"cut off, {policy}: whole after the heal", round(seconds * 1000))
    assert here > ACKS_BEFORE
    assert there == 0, "acknowledged without a majority"
    assert_clean(outside, inside)
    cluster.assert_converged()
