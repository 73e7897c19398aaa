"""Bad input as an operator sees it: what crm_mon shows of it, and that neither a node nor another clone suffers."""

from __future__ import annotations

import contextlib
import html
import re
import subprocess
from collections.abc import Iterator

import pytest
from cluster.operations import AGENT, Cluster

pytestmark = pytest.mark.cluster

# resource, parameter, Pacemaker's word, words of crm_mon's exit reason (cut at 128 characters)
ROWS = (
    ("bad-port", "port=65534", "invalid parameter", "port is 65534: must be a whole number from 1 to 65533"),
    (
        "bad-address",
        "address=0.0.0.0",
        "invalid parameter",
        "address is '0.0.0.0': must be a numeric IPv4",
    ),
    ("bad-data", "data_dir=var/food", "invalid parameter", "data_dir is 'var/food': must be an absolute path"),
    ("bad-file", "config=/nowhere.toml", "invalid parameter", "configuration file /nowhere.toml cannot be read"),
    ("bad-args", "args=--nonsense", "invalid parameter", "--nonsense is not an option"),
    (
        "bad-limit",
        "watchdog_ms=1",
        "invalid parameter",
        "watchdog_ms is 1: must be a whole number from 300",
    ),
    ("bad-user", "user=nobody-at-all", "not installed", "user 'nobody-at-all' does not exist: run deploy/install"),
    ("bad-program", "daemon=/nowhere/food", "not installed", "daemon is '/nowhere/food': no such file"),
    ("bad-place", "data_dir=/etc/passwd", "insufficient privileges", "it is no directory: move it away"),
    ("bad-neighbour", "address=192.0.2.1", "error", "cannot listen on 192.0.2.1:"),
)
FIRST_PORT, SPARE_PORT = 11_000, 11_100
FOREIGN = f"""
import socket, time
listening = socket.create_server(("", {SPARE_PORT + 1}))
print("up", flush=True)
time.sleep(600)
"""
SMALL = "/run/small"
RESERVED_MIB, DISK_MIB = 8, 64


def undisturbed(cluster: Cluster) -> tuple[object, ...]:
    primary = cluster.primary()
    boots = {node: state["boots"] for node, state in cluster.lab.status()["nodes"].items()}
    return primary, cluster.epoch(primary), [cluster.daemon(node) for node in cluster.lab.nodes], boots


def failed(cluster: Cluster) -> dict[str, set[tuple[str, str]]]:
    """Resource: (Pacemaker's word, exit reason) of what failed of it."""
    tree = cluster.lab.crm_mon(cluster.on()[0])
    found: dict[str, set[tuple[str, str]]] = {}
    for failure in tree.iterfind("failures/failure") if tree is not None else ():
        resource = (failure.get("op_key") or "").rpartition("_start_")[0]
        words = (failure.get("exitstatus") or "", html.unescape(html.unescape(failure.get("exitreason") or "")))
        found.setdefault(resource, set()).add(words)
    return found


@contextlib.contextmanager
def created(cluster: Cluster, name: str, *parameters: str) -> Iterator[None]:
    argv = ["pcs", "resource", "create", name, "ocf:food:food", *parameters, "promotable", "notify=true"]
    try:
        cluster.operator(*argv)
        yield
    finally:
        cluster.lab.run(cluster.on()[0], ["pcs", "resource", "delete", name, "--force"], check=False, timeout_s=90)


def test_crm_mon_names_each_wrong_parameter_and_nothing_else_suffers(settled: Cluster) -> None:
    before = undisturbed(settled)
    with contextlib.ExitStack() as clones:
        for number, (name, parameter, _, _) in enumerate(ROWS):
            port = [] if parameter.startswith("port=") else [f"port={FIRST_PORT + 3 * number}"]
            clones.enter_context(created(settled, name, parameter, *port))
        settled.wait(lambda: len(failed(settled)) == len(ROWS), "a failed start of every one", 90)
        found = failed(settled)
        for name, parameter, status, words in ROWS:
            print(f"{parameter}: {found[name]}")
            assert {word for word, _ in found[name]} == {status}, name
            assert all(words in reason for _, reason in found[name]), name
        assert undisturbed(settled) == before
        settled.operator("crm_mon", "-1")
    settled.wait(lambda: not failed(settled), "a clean crm_mon")
    for node in settled.lab.nodes:
        assert not settled.lab.pids_of(node, "id bad-"), f"a process is left on {node}"
    assert undisturbed(settled) == before


def test_a_taken_port_is_named_on_that_node_alone_and_a_cleanup_mends_it(settled: Cluster) -> None:
    before = undisturbed(settled)
    first = settled.lab.nodes[0]
    with settled.lab.popen(first, ["/usr/bin/python3", "-c", FOREIGN], stdout=subprocess.PIPE, text=True) as foreign:
        try:
            assert foreign.stdout and foreign.stdout.readline() == "up\n"
            with created(settled, "spare", f"port={SPARE_PORT}"):
                settled.wait(lambda: "spare" in failed(settled), "a failed start", 60)
                ((status, reason),) = failed(settled)["spare"]
                assert status == "error" and f":{SPARE_PORT + 1}: Address already in use; another program" in reason
                foreign.kill()
                settled.operator("pcs", "resource", "cleanup", "spare")
                settled.wait(
                    lambda: len(re.findall(r" Promoted: \[ n", settled.lab.run(first, ["crm_mon", "-1"]).stdout)) == 2,
                    "both clones promoted",
                    60,
                )
                assert not failed(settled)
        finally:
            foreign.kill()
    assert undisturbed(settled) == before


def test_a_full_disk_refuses_writes_in_words_and_a_move_brings_them_back(settled: Cluster) -> None:
    """Only the primary's disk is full; reads and its role go on, and no node fails."""
    nodes = settled.lab.nodes

    def foodctl(node: str, *words: str) -> tuple[int, str]:
        done = settled.lab.run(node, ["foodctl", "--id", "small", *words], check=False)
        return done.returncode, done.stdout + done.stderr

    def promoted() -> str | None:
        tree = settled.lab.crm_mon(settled.on()[0])
        for resource in tree.iter("resource") if tree is not None else ():
            node = resource.find("node")
            if resource.get("id") == "small" and resource.get("role") in ("Promoted", "Master") and node is not None:
                return node.get("name")
        return None

    for node in nodes:
        settled.lab.run(node, ["mkdir", "-p", SMALL])
        settled.lab.run(node, ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "small", SMALL])
    try:
        with created(settled, "small", f"port={SPARE_PORT}", f"data_dir={SMALL}/store"):
            settled.wait(promoted, "a primary", 60)
            primary = str(promoted())
            assert foodctl(primary, "put", "k", "before")[0] == 0
            fill = f"head -c {DISK_MIB - RESERVED_MIB}M /dev/zero > {SMALL}/filler"
            settled.lab.run(primary, ["sh", "-c", fill])
            # The disk is looked at a few times a second: the first of these may be taken.
            settled.wait(lambda: foodctl(primary, "put", "other", "value")[0] == 6, "a refusal")
            code, text = foodctl(primary, "put", "k", "refused")
            assert code == 6 and "no space: " in text and f"{SMALL}/store on {primary}" in text
            assert foodctl(primary, "get", "k") == (0, "before")
            assert "no space: " in foodctl(primary, "status")[1]
            settled.wait(
                lambda: ", no space" in settled.lab.run(primary, ["crm_mon", "-A1"]).stdout, "crm_mon to show it"
            )
            assert promoted() == primary and not failed(settled)
            settled.operator("pcs", "resource", "move", "small-clone", "--promoted")
            assert promoted() != primary
            assert foodctl(primary, "put", "k", "elsewhere")[0] == 0
            assert foodctl(primary, "del", "k")[0] == 0
            assert not failed(settled)
    finally:
        for node in nodes:
            settled.lab.run(node, ["umount", "--lazy", SMALL], check=False)


def test_a_start_without_corosync_says_so(settled: Cluster) -> None:
    """In a network of its own nothing of Corosync or Pacemaker can be reached, as when they do not run."""
    env = {"OCF_RESOURCE_INSTANCE": "alone", "OCF_RESKEY_port": "9600", "OCF_ROOT": "/usr/lib/ocf"}
    node = settled.backups()[0]
    done = settled.lab.run(
        node,
        ["unshare", "--net", AGENT, "start"],
        check=False,
        env=env | {"OCF_RESKEY_CRM_meta_timeout": "5000"},
    )
    print(done.stderr)
    assert done.returncode == 1
    assert (
        "ocf-exit-reason:start did not end in time: corosync-cmapctl: Failed to initialize the cmap API" in done.stderr
    )
    assert settled.lab.run(node, [AGENT, "stop"], env=env).returncode == 0
    assert settled.lab.run(node, [AGENT, "monitor"], env=env, check=False).returncode == 7
    assert not settled.lab.pids_of(node, "id alone")
