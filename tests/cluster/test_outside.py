"""Started outside Pacemaker (external=true): what the unit runs, started again whenever it ends; and how it is held.

There is no systemd in a lab's node: a shell's loop stands for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.marks import only_long
from cluster.operations import CLONE, RESOURCE, Cluster, assert_clean, now
from testbed import Lab
from testbed.inside import Inside

pytestmark = pytest.mark.cluster

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "food@.service"
RESTART_S = 0.5
LONGEST_GAP_MS = 15_000
RECOVERY_MS = 5_000  # well under the monitor's interval


def _unit_says(name: str) -> str:
    [value] = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


class Units:
    """food@food.service on every node."""

    def __init__(self, lab: Lab) -> None:
        assert _unit_says("RestartSec") == f"{RESTART_S * 1000:.0f}ms"
        self.lab = lab
        self.command = _unit_says("ExecStart").replace("%i", RESOURCE)
        self.running: dict[str, Inside] = {}

    def start(self, node: str) -> None:
        loop = ["sh", "-c", f"while :; do {self.command}; sleep {RESTART_S}; done"]
        self.running[node] = self.lab.popen(node, loop)

    def stop(self, node: str) -> None:
        unit = self.running.pop(node)
        unit.kill()
        unit.wait()
        self.lab.signal(node, re.escape(self.command.split(" $")[0]), "TERM")

    def powered_off(self, node: str) -> None:
        self.running.pop(node).wait()


@pytest.fixture(scope="module")
def units(cluster: Cluster) -> Iterator[Units]:
    """The clone deleted, its data taken over by units, and created again for these."""
    found = Units(cluster.lab)
    cluster.settle()
    cluster.operator("pcs", "resource", "delete", RESOURCE)
    for node in cluster.lab.nodes:
        found.start(node)
    cluster.operator(
        "pcs", "resource", "create", RESOURCE, "ocf:food:food", "external=true", "promotable", "notify=true"
    )
    yield found
    cluster.operator("pcs", "resource", "delete", RESOURCE)
    for node in list(found.running):
        found.stop(node)
    cluster.wait(lambda: not any(map(cluster.lab.pids_of, cluster.lab.nodes, ["local/bin/food"] * 9)), "the units' end")
    cluster.create()


def daemons(cluster: Cluster) -> list[int]:
    return [cluster.daemon(node) for node in cluster.lab.nodes]


def test_a_disabled_clones_daemons_live_on_and_are_adopted_again(units: Units, settled: Cluster, figures: Any) -> None:
    before = daemons(settled)
    key, value = "outside", str(time.monotonic())
    settled.operator("foodctl", "put", key, value)  # not under the load: it counts every change
    with settled.load() as load:
        at, _ = now()
        settled.operator("pcs", "resource", "disable", CLONE, "--wait=60")
        assert not any(settled.states().values()), "an attribute is left"
        for node in settled.lab.nodes:
            assert settled.score(node) is None
            assert settled.operator("foodctl", "get", key, "--stale", node=node).strip() == value
            assert "not adopted" in str(settled.status(node)["self"]["why"])
        settled.operator("pcs", "resource", "enable", CLONE, "--wait=60")
        settled.settle()
    assert daemons(settled) == before, "a daemon was restarted"
    assert not settled.failures()
    figures("external: disable, enable: write gap", load.gap_ms(at))
    assert_clean(load)


@only_long
def test_a_released_backup_goes_on_replicating(units: Units, settled: Cluster) -> None:
    """A primary counts it among those in sync, while Pacemaker may not choose it."""
    backup, before = settled.backups()[0], daemons(settled)
    with settled.load() as load:
        settled.operator("pcs", "node", "standby", backup)
        settled.wait(lambda: settled.score(backup) is None, f"the release on {backup}")
        began = settled.status(backup)["commit"]
        settled.wait(lambda: settled.status(backup)["commit"] > began, "entries that are committed there")
        primary = settled.primary()
        assert settled.states()[primary].endswith("3 of 3 in sync")
        assert "not adopted" in str(settled.status(backup)["self"]["why"])
        settled.operator("pcs", "node", "unstandby", backup)
        settled.settle()
        assert settled.primary() == primary
    assert daemons(settled) == before
    assert not settled.failures()
    assert_clean(load)


def test_the_external_primary_is_killed(units: Units, settled: Cluster, figures: Any) -> None:
    old, pid = settled.primary(), settled.daemon(settled.primary())
    with settled.load() as load:
        at, _ = now()
        settled.operator("kill", "-KILL", str(pid), node=old)
        new = settled.wait_primary_not(old)
        settled.wait_restarted(old, pid)
        settled.settle()
        back = time.monotonic() - at
        assert settled.primary() == new, "the role went back"
    assert any("killed by signal 9" in reason and reason.startswith(old) for reason in settled.reasons())
    gap = load.gap_ms(at)
    figures("external: kill -9 of the primary's daemon: write gap", gap, bar="as without external")
    figures("external: kill -9 of the primary's daemon: adopted again, in sync", round(back * 1000))
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


@only_long
def test_an_external_backup_and_then_its_guardian_are_killed(units: Units, settled: Cluster, figures: Any) -> None:
    """The daemon's death is injected at once; the guardian's is found by its successor and the next monitor."""
    primary, backup = settled.primary(), settled.backups()[0]
    epoch, mark = settled.epoch(primary), settled.mark()
    with settled.load() as load:
        pid = settled.daemon(backup)
        _, wall = now()
        settled.operator("kill", "-KILL", str(pid), node=backup)
        settled.wait_restarted(backup, pid)
        settled.settle()
        [stop] = settled.actions(mark, "stop")
        assert stop.node == backup
        recovery = round((stop.at - wall) * 1000)
        pid = settled.daemon(backup)
        settled.operator("kill", "-KILL", str(settled.guardian(backup)), node=backup)
        settled.wait_restarted(backup, pid)
        settled.settle()
        assert (settled.primary(), settled.epoch(primary)) == (primary, epoch)
    figures("external: kill -9 of a backup's daemon: recovery begins", recovery, bar="500")
    assert recovery < RECOVERY_MS
    settled.reasons()
    assert_clean(load)


def test_the_node_of_an_external_primary_loses_its_power(units: Units, settled: Cluster) -> None:
    """Its /run is empty at the next boot: the daemon belongs to nobody until Pacemaker's start."""
    old = settled.primary()
    with settled.load() as load:
        settled.lab.kill(old)
        units.powered_off(old)
        settled.wait_primary_not(old)
        settled.lab.wait_fenced(old)
        settled.lab.start(old)
        units.start(old)
        settled.lab.wait_online()
        settled.settle()
    assert not [failure for failure in settled.failures() if failure.node == old]
    assert_clean(load)


@only_long
def test_without_its_unit_a_start_names_it(units: Units, settled: Cluster) -> None:
    """A unit stopped under a running resource: the role moves, and the failure says what to do."""
    old = settled.primary()
    with settled.load() as load:
        units.stop(old)
        settled.wait_primary_not(old)
        words = f"systemctl enable --now food@{RESOURCE}.service"
        settled.wait(lambda: any(words in failure.reason for failure in settled.failures()), "a failed start")
        assert any("stopped from outside" in reason for reason in settled.reasons())
        units.start(old)
        settled.operator("pcs", "resource", "cleanup", RESOURCE)
        settled.settle()
    assert_clean(load)
