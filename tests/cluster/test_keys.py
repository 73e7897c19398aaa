"""Keys on a real cluster: the cluster's secret is changed under load, through pcs, and nobody loses the role for it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from cluster import wiretap
from cluster.conftest import Figures
from cluster.operations import RESOURCE, Cluster, assert_clean, now
from testbed import packages

pytestmark = pytest.mark.cluster

SECRET = "/etc/food-key"
MAKE = f"umask 077; printf %s {'another secret ' * 4!r} > {SECRET}"
AFTER_S = 5.0
LISTEN_S, HEARD_LEAST_BYTES = 4.0, 100_000


def keys_of(cluster: Cluster) -> set[str]:
    return {str(cluster.status(node).get("self", {}).get("keys")) for node in cluster.lab.nodes}


def test_keys_change_under_load_without_a_change_of_role(settled: Cluster, figures: Figures) -> None:
    lab = settled.lab
    for node in lab.nodes:
        lab.run(node, ["sh", "-c", MAKE])
    before = settled.primary(), settled.epoch("n1"), [settled.daemon(node) for node in lab.nodes]
    old = keys_of(settled)
    assert len(old) == 1 and "from /etc/corosync/authkey" in str(old)
    with settled.load() as load:
        event, _ = now()
        settled.operator("pcs", "resource", "update", RESOURCE, f"key_file={SECRET}")
        settled.wait(lambda: all(SECRET in keys for keys in keys_of(settled)), "the new keys on every node")
        assert len(keys_of(settled)) == 1
        settled.client_env(settled.directory)  # the client elsewhere is given the new key
        replaced = time.monotonic()
        settled.wait(lambda: load.acknowledged(replaced + 1) > 50, "writes with the new keys")
        time.sleep(AFTER_S)
        figures("keys changed under load: write gap", load.gap_ms(event))
    settled.settle()
    assert (settled.primary(), settled.epoch("n1"), [settled.daemon(node) for node in lab.nodes]) == before
    assert not settled.failures()
    assert_clean(load)
    settled.operator("pcs", "resource", "update", RESOURCE, "key_file=")
    settled.wait(lambda: keys_of(settled) == old, "the cluster's own keys again")


def test_nothing_readable_goes_over_the_wires(settled: Cluster) -> None:
    """Entries, reads and answers, between nodes and to clients. What is found, the mechanism's name in the greeting of
    each new connection, shows that the search finds what is there."""
    secret, port = "a value that nobody may read", settled.client_port - 2
    with settled.load() as load:
        words = ["CURVE", "NULL", load.name, secret]
        argv = [packages.PYTHON, wiretap.__file__, str(LISTEN_S), str(port), *words]
        with settled.lab.popen_client(argv, stdout=subprocess.PIPE, text=True) as tap:
            assert tap.stdout and tap.stdout.readline() == "listening\n"
            began, _ = now()
            put = ["foodctl", "--endpoints", f"{settled.lab.address('n1')}:{settled.client_port}", "put", "k", secret]
            settled.lab.run_client(put, env=settled.client_env(settled.directory))
            heard = json.loads(tap.stdout.readline())
        assert load.acknowledged(began) > 100
    assert heard["bytes"] > HEARD_LEAST_BYTES
    assert heard["found"].pop("CURVE") > 0
    assert heard["found"] == {"NULL": 0, load.name: 0, secret: 0}


def test_a_node_without_the_secret_says_so(settled: Cluster) -> None:
    """By hand, as Pacemaker would; the others are not touched."""
    node = settled.backups()[0]
    lab, path = settled.lab, Path("/etc/corosync/authkey")
    env = {"OCF_RESOURCE_INSTANCE": "other", "OCF_RESKEY_port": "12000", "OCF_ROOT": "/usr/lib/ocf"}
    agent = ["/usr/lib/ocf/resource.d/food/food", "validate-all"]
    assert lab.run(node, agent, env=env).returncode == 0
    lab.run(node, ["mv", str(path), f"{path}.away"])
    try:
        refused = lab.run(node, agent, env=env, check=False)
    finally:
        lab.run(node, ["mv", f"{path}.away", str(path)])
    assert refused.returncode == 5 and f"no key: {path} is not there" in refused.stderr
    lab.run(node, ["chmod", "0444", str(path)])
    try:
        refused = lab.run(node, agent, env=env, check=False)
    finally:
        lab.run(node, ["chmod", "0400", str(path)])
    assert refused.returncode == 2 and f"chmod 0400 {path}" in refused.stderr
