"""What operators do: move, standby, disable, cleanup, and configurations that are wrong."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from cluster.operations import AGENT, CLONE, FOOD_LOG, RESOURCE, Cluster, assert_clean, now
from testbed import LabError

pytestmark = pytest.mark.cluster

LONGEST_GAP_MS = 10_000
STOOD_STILL_S = 3.0  # twice the limits' default


def instances(cluster: Cluster) -> dict[str, str]:
    """Node and role of every running instance."""
    tree = cluster.lab.crm_mon(cluster.on()[0])
    found = {}
    for resource in tree.iter("resource") if tree is not None else ():
        node = resource.find("node")
        if resource.get("id") == RESOURCE and node is not None:
            found[node.get("name") or ""] = resource.get("role") or ""
    return found


def test_the_role_is_moved(settled: Cluster, figures: Any) -> None:
    """`pcs resource move` waits, takes its constraint away, and fails if the role does not stay."""
    old = settled.primary()
    with settled.load() as load:
        at, _ = now()
        settled.operator("pcs", "resource", "move", CLONE, "--promoted", node=old)  # LabError unless it exits with 0
        new = settled.primary()
        assert new != old
        assert RESOURCE not in settled.operator("pcs", "constraint")
        settled.settle()
        assert settled.primary() == new, "the role went back"
    assert not settled.failures()
    gap = load.gap_ms(at)
    figures("pcs resource move --promoted: write gap", gap, bar="Pacemaker's own + 350")
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


def test_the_role_is_moved_to_a_node_of_choice_and_back(settled: Cluster) -> None:
    old, target = settled.primary(), settled.backups()[-1]
    with settled.load() as load:
        for node in (target, old):
            settled.operator("pcs", "resource", "move", CLONE, node, "--promoted")
            assert settled.primary() == node
            settled.settle()
    assert settled.primary() == old
    assert not settled.failures()
    assert_clean(load)


def test_the_primarys_node_goes_on_standby(settled: Cluster, figures: Any) -> None:
    old = settled.primary()
    with settled.load() as load:
        at, _ = now()
        settled.operator("pcs", "node", "standby", old)
        new = settled.wait_primary_not(old)
        settled.wait(lambda: old not in instances(settled), f"the end of the instance on {old}")
        assert settled.score(old) is None, "a stopped instance left its score behind"
        settled.operator("pcs", "node", "unstandby", old)
        settled.settle()
        assert settled.primary() == new, "the role went back"
    assert not settled.failures()
    gap = load.gap_ms(at)
    figures("standby of the primary's node: write gap", gap)
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


def test_the_clone_is_disabled_and_enabled(settled: Cluster, figures: Any) -> None:
    """No process, score or attribute is left behind, and all writes are there afterwards."""
    with settled.load() as load:
        at, _ = now()
        settled.operator("pcs", "resource", "disable", CLONE, "--wait=60")
        assert not instances(settled)
        for node in settled.lab.nodes:
            assert not settled.lab.pids_of(node, "food.daemon|local/bin/food"), f"a process is left on {node}"
            assert settled.score(node) is None
        assert not any(settled.states().values()), "an attribute is left"
        settled.operator("pcs", "resource", "enable", CLONE, "--wait=60")
        settled.settle()
    assert not settled.failures()
    figures("disable, enable: write gap", load.gap_ms(at))
    assert_clean(load)


def test_a_cleanup_disturbs_nobody(settled: Cluster) -> None:
    primary = settled.primary()
    before = [settled.daemon(node) for node in settled.lab.nodes], settled.epoch(primary)
    with settled.load() as load:
        settled.operator("pcs", "resource", "cleanup")
        settled.operator("pcs", "resource", "refresh", RESOURCE)
        settled.settle()
    assert settled.primary() == primary
    assert before == ([settled.daemon(node) for node in settled.lab.nodes], settled.epoch(primary))
    assert_clean(load)


def test_new_parameters_reach_every_instance(settled: Cluster, figures: Any) -> None:
    """All instances restart with the new port; no one goes on with the old one."""
    old, before = settled.primary(), [settled.daemon(node) for node in settled.lab.nodes]
    settled.operator("pcs", "resource", "update", RESOURCE, "port=9300")
    ports = {}

    def listening() -> bool:
        for node in settled.lab.nodes:
            text = settled.lab.run(node, ["ss", "-ltnH"]).stdout
            ports[node] = sorted(set(re.findall(rf"{re.escape(settled.lab.address(node))}:(\d+)", text)))
        return all(found == ["9300", "9301", "9302"] for found in ports.values())

    try:
        settled.wait(listening, "every instance on its new port")
        after = [settled.daemon(node) for node in settled.lab.nodes]
        assert all(pid != earlier for pid, earlier in zip(after, before, strict=True))
        settled.settle()
    finally:
        print(f"{old} was primary; ports: {ports}")
        settled.reasons()
        settled.operator("pcs", "resource", "update", RESOURCE, "port=")
    settled.wait(lambda: not listening() and all("9999" in found for found in ports.values()), "the old ports again")


def same_lives(cluster: Cluster) -> tuple[str, int, list[int]]:
    """What a reload leaves alone: the primary, its epoch, every process."""
    primary = cluster.primary()
    pids = [pid(node) for node in cluster.lab.nodes for pid in (cluster.guardian, cluster.daemon)]
    return primary, cluster.epoch(primary), pids


def reload(cluster: Cluster, **parameters: str) -> None:
    """`pcs resource update`, and wait until every guardian has it; "" unsets."""
    logs = {node: cluster.lab.path(node, FOOD_LOG) for node in cluster.lab.nodes}
    ends = {node: path.stat().st_size for node, path in logs.items()}
    cluster.operator("pcs", "resource", "update", RESOURCE, *(f"{name}={value}" for name, value in parameters.items()))

    def reloaded() -> bool:
        return all("parameters reloaded: " in logs[node].read_bytes()[end:].decode() for node, end in ends.items())

    cluster.wait(reloaded, "the new parameters on every node")
    # Pacemaker records a reload as a start: until the next monitor's result is in, crm_mon shows no instance promoted.
    cluster.settle()


def monitor_if_degraded(cluster: Cluster, node: str) -> int:
    """The agent's monitor, itself told to let 190 and 191 through: what the daemon makes of `degraded`."""
    env = {"OCF_RESOURCE_INSTANCE": RESOURCE, "OCF_RESKEY_degraded": "true"}
    return cluster.lab.run(node, [AGENT, "monitor"], env=env, check=False).returncode


def test_a_running_instance_takes_over_what_needs_no_restart(settled: Cluster) -> None:
    """Every reloadable parameter is seen to hold, and to hold no more, without a change of role, epoch or process."""
    before, backup, primary = same_lives(settled), settled.backups()[0], settled.primary()
    pid = str(settled.daemon(backup))
    notify = {"OCF_RESOURCE_INSTANCE": RESOURCE, "OCF_RESKEY_CRM_meta_notify_type": "post"}
    notify |= {"OCF_RESKEY_CRM_meta_notify_operation": "start", "OCF_RESKEY_CRM_meta_notify_start_uname": "nowhere"}

    def notified() -> int:
        """A debug line of the daemon's on `backup`: how often it has been logged, after it was provoked."""
        settled.lab.run(backup, [AGENT, "notify"], env=notify)
        time.sleep(0.5)
        return settled.lab.path(backup, FOOD_LOG).read_text().count("notify: post-start of nowhere")

    with settled.load() as load:
        assert notified() == 0
        reload(settled, watchdog_ms="10000", degraded="true", log_level="debug")
        assert same_lives(settled) == before
        settled.wait(lambda: notified() > 0, "a debug line")
        settled.operator("kill", "-STOP", pid, node=backup)
        time.sleep(STOOD_STILL_S)
        assert monitor_if_degraded(settled, primary) == 191, "degraded"
        settled.operator("kill", "-CONT", pid, node=backup)
        settled.wait(lambda: monitor_if_degraded(settled, primary) == 8, "a whole primary")
        assert same_lives(settled) == before, "a stop longer than the default, shorter than watchdog_ms"
        reload(settled, watchdog_ms="", degraded="", log_level="", isolation_ms="20000")
        noted = notified()
        assert notified() == noted, "log_level=debug is over"
        settled.lab.cut(primary, links="food")
        time.sleep(STOOD_STILL_S)
        assert monitor_if_degraded(settled, primary) == 8, "degraded is over"
        assert settled.states()[primary].startswith("primary, epoch")
        assert "isolated" not in settled.states()[primary], "a silence longer than the default, shorter than the limit"
        settled.lab.heal(primary)
        healed = load.acknowledged()
        settled.wait(lambda: load.acknowledged() > healed, "writes over the healed links")
        reload(settled, isolation_ms="")
        settled.settle()
        assert same_lives(settled) == before
    assert not settled.failures()
    assert_clean(load)
    settled.operator("kill", "-STOP", pid, node=backup)
    settled.wait_restarted(backup, int(pid))
    assert any("stood still" in line for line in settled.lab.path(backup, FOOD_LOG).read_text().splitlines()[-40:])


@pytest.fixture
def mended(settled: Cluster) -> Any:
    """The parameter `port` as it was, whatever the test did."""
    yield settled
    settled.lab.run(settled.on()[0], ["pcs", "resource", "update", RESOURCE, "port=9999", "--force"], timeout_s=90)
    settled.lab.run(settled.on()[0], ["pcs", "resource", "enable", CLONE], timeout_s=90)
    settled.lab.run(settled.on()[0], ["pcs", "resource", "cleanup", RESOURCE], timeout_s=90)
    settled.settle()
    settled.lab.run(settled.on()[0], ["pcs", "resource", "update", RESOURCE, "port="], timeout_s=90)


PROMOTE_IN_VAIN_S = 60.0


def test_a_broken_parameter_gets_no_node_fenced(mended: Cluster) -> None:
    """Stop and probe work without a usable configuration, and the failed start says what to mend."""
    words = "port is 'abc': must be a whole number from 1 to 65533"

    def named() -> bool:
        """Pacemaker may stop the backups first and promote the last instance once more, in vain, before its restart."""
        return {f.node for f in mended.failures() if words in f.reason} == set(mended.lab.nodes)

    boots = mended.lab.status()["nodes"]
    with pytest.raises(LabError, match="port is 'abc': must be a whole number"):
        mended.operator("pcs", "resource", "update", RESOURCE, "port=abc", "--agent-validation")
    with mended.load() as load:
        mended.operator("pcs", "resource", "update", RESOURCE, "port=abc", "--force")
        mended.wait(named, "a failed start on every node, with its reason", PROMOTE_IN_VAIN_S)
        mended.reasons()
        mended.wait(lambda: not instances(mended), "the end of every instance")
        for node in mended.lab.nodes:
            assert not mended.lab.pids_of(node, "food.daemon|local/bin/food"), f"a process is left on {node}"
        mended.operator("pcs", "resource", "cleanup", RESOURCE)  # probes, and starts again in vain
        mended.wait(lambda: len(mended.failures()) == len(mended.lab.nodes), "a failed start on every node, again")
        mended.operator("pcs", "resource", "disable", CLONE, "--wait=60")
        mended.operator("pcs", "resource", "update", RESOURCE, "port=")
        mended.operator("pcs", "resource", "cleanup", RESOURCE)
        mended.operator("pcs", "resource", "enable", CLONE, "--wait=60")
        mended.settle()
    assert mended.lab.status()["nodes"].keys() == boots.keys()
    for node, state in mended.lab.status()["nodes"].items():
        assert state["on"] and state["boots"] == boots[node]["boots"], f"{node} was fenced"
    assert_clean(load)
