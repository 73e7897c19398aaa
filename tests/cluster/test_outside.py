"""Started outside Pacemaker (external=true): the unit as it was installed, under a systemd in every node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import units
from cluster.marks import only_long
from cluster.operations import CLONE, RESOURCE, Cluster, assert_clean, now
from fake_tools import eventually
from testbed import Lab
from testbed.inside import Inside

pytestmark = pytest.mark.cluster

UNIT = f"food@{RESOURCE}"
HOME = units.lives_in("/run/systemd-of-food", "/usr/local/lib/systemd/system")
LONGEST_GAP_MS = 15_000
RECOVERY_MS = 5_000  # well under the monitor's interval


class Units:
    """food@food.service on every node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.running: dict[str, Inside] = {}

    def _cgroup(self, node: str) -> str:
        return f"food-{self.lab.settings.name}-{node}"

    def _systemctl(self, node: str, *words: str) -> None:
        self.lab.run(node, ["systemctl", "--user", *words], env=HOME)

    def start(self, node: str) -> None:
        if node not in self.running:
            self.running[node] = self.lab.popen(node, units.boot(self._cgroup(node)), env=HOME)
            socket = ["test", "-S", f"{HOME['XDG_RUNTIME_DIR']}/systemd/private"]
            eventually("systemd", lambda: not self.lab.run(node, socket, check=False).returncode, units.PATIENT_S)
        self._systemctl(node, "start", UNIT)

    def stop(self, node: str) -> None:
        self._systemctl(node, "stop", UNIT)

    def powered_off(self, node: str) -> None:
        self.running.pop(node).wait()
        units.clear(self._cgroup(node))

    def close(self) -> None:
        for node, manager in self.running.items():
            self.stop(node)
            manager.kill()
            manager.wait()
            units.clear(self._cgroup(node))


@pytest.fixture(scope="module")
def systemd(cluster: Cluster) -> Iterator[Units]:
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
    found.close()
    cluster.wait(lambda: not any(map(cluster.lab.pids_of, cluster.lab.nodes, ["local/bin/food"] * 9)), "the units' end")
    cluster.create()


def daemons(cluster: Cluster) -> list[int]:
    return [cluster.daemon(node) for node in cluster.lab.nodes]


def test_a_disabled_clones_daemons_live_on_and_are_adopted_again(
    systemd: Units, settled: Cluster, figures: Any
) -> None:
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
def test_a_released_backup_goes_on_replicating(systemd: Units, settled: Cluster) -> None:
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


def test_the_external_primary_is_killed(systemd: Units, settled: Cluster, figures: Any) -> None:
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
def test_an_external_backup_and_then_its_guardian_are_killed(systemd: Units, settled: Cluster, figures: Any) -> None:
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


def test_the_node_of_an_external_primary_loses_its_power(systemd: Units, settled: Cluster) -> None:
    """Its /run is empty at the next boot: the daemon belongs to nobody until Pacemaker's start."""
    old = settled.primary()
    with settled.load() as load:
        settled.lab.kill(old)
        systemd.powered_off(old)
        settled.wait_primary_not(old)
        settled.lab.wait_fenced(old)
        settled.lab.start(old)
        systemd.start(old)
        settled.lab.wait_online()
        settled.settle()
    assert not [failure for failure in settled.failures() if failure.node == old]
    assert_clean(load)


@only_long
def test_without_its_unit_a_start_names_it(systemd: Units, settled: Cluster) -> None:
    """A unit stopped under a running resource: the role moves, and the failure says what to do."""
    old = settled.primary()
    with settled.load() as load:
        systemd.stop(old)
        settled.wait_primary_not(old)
        words = f"systemctl enable --now food@{RESOURCE}.service"
        settled.wait(lambda: any(words in failure.reason for failure in settled.failures()), "a failed start")
        assert any("stopped from outside" in reason for reason in settled.reasons())
        systemd.start(old)
        settled.operator("pcs", "resource", "cleanup", RESOURCE)
        settled.settle()
    assert_clean(load)
