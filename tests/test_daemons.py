"""Real daemons on loopback, without Pacemaker: kill -9, SIGSTOP, damage, and nothing lost, twice or stale.

This process is their guardian and their cluster manager (tests/daemons.py); tests/load.py writes exactly once and
judges the history.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from daemons import ROOT, Cluster, Node, wait
from tampering import tamper

from food.calls import CompareFailed, FoodError
from food.client import Client, Item, Row
from food.codec import pack, unpack
from food.core.local import Recovered
from food.storage import Store

PORT = 19_920
HERE = Path(__file__).resolve().parent


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three daemons, n1 promoted."""
    with Cluster(3, PORT) as raised:
        raised.promote("n1")
        yield raised


@contextlib.contextmanager
def client(cluster: Cluster, *names: str, timeout_s: float = 10.0) -> Iterator[Client]:
    endpoints = [cluster[name].endpoint for name in names] or cluster.endpoints
    with Client(endpoints, timeout_s=timeout_s) as opened:
        yield opened


def report(node: Node) -> dict[str, Any]:
    """What the node says of itself and the others; {} when it does not answer."""
    answer = ask(node, [1, "i", None])
    return answer[2] if answer else {}


def ask(node: Node, request: list[Any], within_ms: int = 2_000) -> Any:
    """One request to this node alone; None when no answer came."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        node.cluster.knock(dealer, f"tcp://{node.endpoint}")
        dealer.send(pack(request))
        return unpack(dealer.recv(), 1 << 22) if dealer.poll(within_ms) else None


def lead(cluster: Cluster, within_s: float = 15.0) -> Node:
    """What Pacemaker does: promotes the node with the best score, until one succeeds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        best = max(cluster, key=lambda node: (node.alive and node.score) or -1)
        if best.alive and best.score is not None:
            with contextlib.suppress(TimeoutError):
                if best.request("promote", timeout_ms=5_000)["rc"] == 0:
                    return best
        time.sleep(0.02)
    raise AssertionError(f"nobody could be promoted: {[(node.name, node.score, node.why) for node in cluster]}")


def level(cluster: Cluster, *names: str, within_s: float = 10.0) -> None:
    """Waits until these nodes have applied the same state."""

    def same() -> bool:
        found = [report(cluster[name]) for name in names or cluster.nodes]
        states = {(one["applied"], one["self"]["state_hash"]) for one in found if one}
        return len(states) == 1 and all(found)

    wait(same, within_s, f"{names or list(cluster.nodes)} did not become level")


def recovered(node: Node) -> Recovered:
    """What a dead node's disk holds."""
    store = Store(node.data_dir, node.name)
    store.close()
    return store.recovered


class Load:
    """tests/load.py beside the test; its verdict at the end."""

    def __init__(self, cluster: Cluster, seconds: float):
        self.out = cluster.directory / "load.jsonl"
        argv = [
            sys.executable,
            str(HERE / "load.py"),
            "--endpoints",
            ",".join(cluster.endpoints),
            "--out",
            str(self.out),
        ]
        argv += ["--seconds", str(seconds), "--writers", "4", "--readers", "2", "--rate", "100", "--timeout", "30"]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        wait(lambda: self.out.exists() and self.out.stat().st_size > 0, 10, "the load does not begin")

    def end(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, 1), f"load.py ended with {self.process.returncode}"
        found: dict[str, Any] = json.loads(output)
        return found

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def judge(found: dict[str, Any], least: int) -> None:
    wrong = {
        name: found[name] for name in ("lost", "duplicated", "stale_reads", "phantom", "out_of_order") if found[name]
    }
    assert not wrong, found["problems"]
    assert found["acknowledged"] >= least and found["reads"] >= least / 4, found


# --- Founding, writing, moving ---


def test_a_new_cluster_is_founded_written_and_moved() -> None:
    with Cluster(3, PORT) as cluster:
        assert [node.request("monitor")["rc"] for node in cluster] == [0, 0, 0]
        cluster.promote("n2")
        assert [node.request("monitor")["rc"] for node in cluster] == [0, 8, 0]
        with client(cluster) as writer:
            first = writer.put(b"a", b"1")
            assert writer.get(b"a") == Row(b"1", first)
            assert writer.cas(b"b", 0, b"2") == first + 1
            with pytest.raises(CompareFailed):
                writer.cas(b"a", first + 9, b"x")
            assert writer.delete(b"a") == first + 2 and writer.get(b"a") is None and writer.delete(b"a") == 0
            assert cluster["n2"].request("demote")["rc"] == 0
            assert [node.request("monitor")["rc"] for node in cluster] == [0, 0, 0]
            cluster.promote("n3")
            assert writer.range(b"", 10) == [Item(b"b", b"2", first + 1)]
            assert writer.put(b"c", b"3") == first + 3
        with client(cluster, "n1") as reader:
            wait(lambda: reader.get(b"c", stale=True) == Row(b"3", first + 3), 5, "n1 does not follow")
        level(cluster)
        found = report(cluster["n1"])
        assert found["primary"] == {"node": "n3", "endpoint": cluster["n3"].endpoint}
        assert [member["voting"] for member in found["members"]] == [True] * 3
        assert report(cluster["n3"])["primary"]["endpoint"] == cluster["n3"].endpoint


def test_a_first_start_waits_for_every_node_by_name() -> None:
    with Cluster(3, PORT) as cluster:
        cluster["n3"].kill()
        time.sleep(0.5)
        n1 = cluster["n1"]
        wait(lambda: "awaiting n3" in n1.request("status")["status"], 5, "n1 does not say whom it waits for")
        assert cluster["n1"].score is None
        refused = cluster["n1"].request("promote", timeout_ms=1_000)
        assert refused["rc"] == 1 and "n3" in refused["reason"]


def test_moves_under_load_lose_nothing(cluster: Cluster) -> None:
    with Load(cluster, 60) as load:
        for source, target in (("n1", "n2"), ("n2", "n3"), ("n3", "n1")):
            time.sleep(0.7)
            assert cluster[source].request("demote")["rc"] == 0
            cluster.promote(target)
        time.sleep(0.5)
        judge(load.end(), 200)


def test_kills_at_random_instants_lose_nothing(cluster: Cluster) -> None:
    dice = random.Random()
    primary = cluster["n1"]
    with Load(cluster, 90) as load:
        for victims in ("primary", "backup", "all", "primary", "all", "primary and backup", "primary"):
            time.sleep(dice.uniform(0.2, 0.8))
            backups = [node for node in cluster if node is not primary]
            dice.shuffle(backups)
            dead = {
                "primary": [primary],
                "backup": backups[:1],
                "all": [primary, *backups],
                "primary and backup": [primary, backups[0]],
            }[victims]
            for node in dead:
                node.kill(wait_for_end=False)  # as close to one instant as it gets
            for node in dead:
                node.kill()
            if victims == "primary":
                primary = lead(cluster)  # the others go on without it
                time.sleep(dice.uniform(0.0, 0.3))
            for node in dead:
                node.start()
            if victims not in ("primary", "backup"):
                primary = lead(cluster)
        time.sleep(0.5)
        judge(load.end(), 200)
    level(cluster)


# --- The old primary ---


def test_a_stopped_primary_neither_acknowledges_nor_serves_old_reads(cluster: Cluster) -> None:
    with client(cluster) as writer:
        old = writer.put(b"key", b"old")
    n1 = cluster["n1"]
    with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        cluster.knock(asking, f"tcp://{n1.endpoint}")
        asking.send(pack([1, "r", ["get", b"key"]]))
        assert unpack(asking.recv(), 1000) == [1, 0, [b"old", old]]
        n1.kill(signal.SIGSTOP)
        # These wait in its socket: the first thing that it sees when it wakes.
        for number in range(2, 20):
            asking.send(pack([number, "r", ["get", b"key"]]))
            asking.send(pack([number + 100, "w", pack([0, 0, 0, "put", b"key", b"lost"])]))
        cluster.promote("n2")
        with client(cluster, "n2") as writer:
            new = writer.put(b"key", b"new")
            n1.kill(signal.SIGCONT)
            answers: list[Any] = []
            while len(answers) < 36 and asking.poll(4_000):
                answers.append(unpack(asking.recv(), 1000))
            assert len(answers) == 36
            assert {status for _, status, _ in answers} <= {"not_primary", "unknown", "no_quorum"}
            assert writer.get(b"key") == Row(b"new", new)
            wait(lambda: n1.request("monitor")["rc"] == 9, 5, "n1 does not notice")
            assert n1.score is None
            assert n1.request("demote")["rc"] == 0 and n1.request("monitor")["rc"] == 0
            level(cluster)
            assert report(n1)["self"]["state_hash"] == report(cluster["n2"])["self"]["state_hash"]
            assert writer.get(b"key") == Row(b"new", new)


def test_a_primary_that_is_cut_off_neither_acknowledges_nor_serves_old_reads() -> None:
    """It does not know yet that there is another one."""
    with Cluster(3, PORT, program=[str(HERE / "cut_daemon.py")]) as cluster:
        cluster.promote("n1")
        n1 = cluster["n1"]
        with client(cluster) as writer:
            old = writer.put(b"key", b"old")
        cut = n1.data_dir / "cut"
        cut.touch()
        cluster.promote("n2")
        with client(cluster, "n2") as writer:
            new = writer.put(b"key", b"new")
            assert ask(n1, [1, "s", ["get", b"key"]]) == [1, 0, [b"old", old]]  # stale reads may
            assert report(n1)["role"] == "primary"
            write = [2, "w", pack([0, 0, 0, "put", b"key", b"lost"])]
            assert (ask(n1, write, within_ms=500) or [2, "nothing"])[1] in ("nothing", "unknown", "not_primary")
            assert (ask(n1, [3, "r", ["get", b"key"]], within_ms=4_000) or [3, "nothing"])[1] == "no_quorum"
            wait(lambda: any(order.get("unless_alone") for order in n1.orders), 5, "n1 does not offer its role")
            cut.unlink()
            wait(lambda: n1.request("monitor")["rc"] == 9, 5, "n1 does not notice")
            assert n1.request("demote")["rc"] == 0
            level(cluster)
            assert writer.get(b"key") == Row(b"new", new)


def test_a_deposed_primary_whose_role_stays_is_failed(cluster: Cluster) -> None:
    cluster.promote("n2")  # as if Pacemaker's demote of n1 had been lost
    n1 = cluster["n1"]
    wait(lambda: any("fail" in order for order in n1.orders), 8, "n1 does not report itself")
    failure = next(order["fail"] for order in n1.orders if "fail" in order)
    assert "superseded by n2" in failure
    assert n1.request("monitor")["rc"] == 9


# --- Catching up ---


def test_a_backup_that_was_down_catches_up_by_entries(cluster: Cluster) -> None:
    cluster["n3"].kill()
    with client(cluster) as writer:
        for number in range(300):
            writer.put(b"%d" % number, b"x" * 1000)
        cluster["n3"].start()
        level(cluster)
        assert writer.get(b"299")
    cluster["n3"].kill()
    assert recovered(cluster["n3"]).log.base.index == 0


def test_a_backup_that_was_down_for_long_catches_up_by_snapshot() -> None:
    with Cluster(3, PORT, program=[str(HERE / "small_limits.py")]) as cluster:
        cluster.promote("n1")
        with client(cluster) as writer:
            writer.put(b"first", b"x")
            level(cluster)
            cluster["n3"].kill()
            before = recovered(cluster["n3"]).log.last.index
            for number in range(200):
                writer.put(b"key %d" % number, b"x" * 100)
            cluster["n3"].start()
            with Load(cluster, 60) as load:  # the snapshot is read out while writes go on
                level(cluster, "n1", "n2", "n3", within_s=20) if load.end()["lost"] == 0 else pytest.fail("lost")
            level(cluster)
            rows = writer.range(b"key ", 1000)
            assert len(rows) == 200
            cluster["n1"].kill()
            cluster["n2"].kill()
            with client(cluster, "n3") as reader:
                assert reader.range(b"key ", 1000, stale=True) == rows
        cluster["n3"].kill()
        assert recovered(cluster["n1"]).log.base.index > before  # it could not have been entries
        found = recovered(cluster["n3"])
        assert found.log.base.index > before and found.log.members and len(found.log.members.members) == 3


def test_a_backup_killed_while_it_receives_a_snapshot_is_what_it_was() -> None:
    """What was put aside counts for nothing; and status says how much has come."""
    slow = {"PACE_BYTES_PER_MS": "10"}
    with Cluster(3, PORT, program=[str(HERE / "small_limits.py")], environment=slow) as cluster:
        cluster.promote("n1")
        with client(cluster) as writer:
            writer.put(b"first", b"x")
            level(cluster)
            time.sleep(0.5)  # its tables follow the log after 50 ms
            cluster["n3"].kill()
            for number in range(200):
                writer.put(b"key %d" % number, b"x" * 100)
        cluster["n3"].start()

        def states() -> list[str]:
            rows = [row for name in ("n1", "n3") for row in report(cluster[name]).get("members", [])]
            return [row["state"] for row in rows if row["node"] == "n3"]

        def halfway() -> bool:
            return len(found := states()) == 2 and all(" of 201 keys" in state for state in found)

        wait(halfway, 20, "n3 receives no snapshot, or nobody says so")
        cluster["n3"].kill()
        found = recovered(cluster["n3"])
        assert list(found.state.rows) == [b"first"] and found.commit == found.log.last.index
        cluster["n3"].start()
        level(cluster, within_s=30)


def test_a_total_restart_loses_nothing(cluster: Cluster) -> None:
    with client(cluster) as writer:
        revisions = {b"%d" % number: writer.put(b"%d" % number, b"v") for number in range(100)}
        for node in cluster:
            node.kill()
        for node in cluster:
            node.start()
        lead(cluster)
        assert {row.key: row.revision for row in writer.range(b"", 1000)} == revisions
        assert writer.put(b"more", b"") == max(revisions.values()) + 1


# --- Stores that must not vote ---


def damage(node: Node) -> None:
    """In the middle of what is synced."""
    path = node.data_dir / "food.db-wal"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_store_comes_back_as_a_learner_and_is_not_counted(cluster: Cluster) -> None:
    n1, n2, n3 = cluster
    with client(cluster, timeout_s=3) as writer:
        for number in range(50):
            writer.put(b"%d" % number, b"v" * 5000)
        store = report(n3)["self"]["store"]
        n3.kill()
        damage(n3)
        n3.start()
        wait(lambda: report(n3).get("applied") == report(n1)["applied"], 10, "the learner does not learn")
        found = report(n3)
        assert found["self"]["store"] != store and "learner" in found["self"]["why"] and n3.score is None
        assert len(list(n3.data_dir.glob("set-aside-*/food.db"))) == 1
        n2.kill()
        with pytest.raises(FoodError):
            writer.put(b"alone", b"n1 and a learner are no majority")
        n2.start()
        assert writer.put(b"again", b"v")


def test_a_rolled_back_store_is_set_aside(cluster: Cluster) -> None:
    n3 = cluster["n3"]
    n3.kill()
    shutil.copytree(n3.data_dir, n3.data_dir.with_name("copy"))
    for _ in range(2):
        n3.start()
        wait(lambda: report(n3).get("primary"), 10, "n3 does not follow")
        time.sleep(1.0)  # until the others have asked it: what nobody saw, nobody remembers
        n3.kill()
    shutil.rmtree(n3.data_dir)
    n3.data_dir.with_name("copy").rename(n3.data_dir)
    n3.start()
    assert n3.process
    assert n3.process.wait(10) == 1
    wait(lambda: n3.exiting, 2, "no reason was given")
    assert "rolled back or copied" in (n3.exiting or "")
    n3.start()
    wait(lambda: "learner" in n3.request("status")["status"], 10, "it is no learner")
    assert len(list(n3.data_dir.glob("set-aside-*/food.db"))) == 1


def test_a_store_whose_state_was_tampered_with_is_outvoted(cluster: Cluster) -> None:
    """The store itself notices nothing: the sum fits. The others' states do."""
    n1, n2, n3 = cluster
    with client(cluster) as writer:
        writer.put(b"key", b"right")
        time.sleep(1.5)  # until the state's tables have it
        for number in range(50):
            writer.put(b"%d" % number, b"v")
        before = report(n1)["self"]["state_hash"]
        n3.kill()
        tamper(n3.data_dir / "food.db", b"key", b"wrong")
        n3.start()
        assert n3.process
        assert n3.process.wait(10) == 1
        wait(lambda: n3.exiting, 2, "no reason was given")
        assert (n3.exiting or "").startswith("the state differs from that of n1, n2 at entry "), n3.exiting
        n3.start()
        wait(lambda: "learner" in n3.request("status")["status"], 10, "it is no learner")
        (aside,) = n3.data_dir.glob("set-aside-*/food.db")
        assert Store(aside.parent, "n3").recovered.state.rows[b"key"].value == b"wrong", "not noticed by itself"
        wait(lambda: report(n3).get("applied") == report(n1)["applied"], 10, "the learner does not learn")
        assert report(n3)["self"]["state_hash"] == report(n1)["self"]["state_hash"] == before
        n2.kill()
        with pytest.raises(FoodError), client(cluster, timeout_s=3) as alone:
            alone.put(b"alone", b"n1 and a learner are no majority")


def test_a_backup_that_differs_from_the_primary_of_two_stops_and_is_replaced() -> None:
    """Nobody can say who is right: the primary's state counts, and an operator puts the other one away."""
    with Cluster(2, PORT) as cluster:
        n1, n2 = cluster
        cluster.promote("n1")
        with client(cluster, timeout_s=3) as writer:
            writer.put(b"key", b"right")
            time.sleep(1.5)
            n2.kill()
            tamper(n2.data_dir / "food.db", b"key", b"wrong")
            n2.start()
            wait(lambda: "not voting" in n2.why, 10, "it did not notice")
            assert n2.alive and n2.score is None
            assert report(n2)["self"]["votes"] is False
            assert "the state of n2 differs" in n1.request("status")["status"]
            with pytest.raises(FoodError):
                writer.put(b"key", b"not acknowledged by two")
            assert ask(n2, [1, "s", ["get", b"key"]])[1] == "no_quorum"
        n2.kill()
        shutil.rmtree(n2.data_dir)
        n2.data_dir.mkdir()
        n2.start()
        wait(lambda: "foodctl member replace n2" in n2.request("status")["status"], 10, "it is no learner")
        command = [sys.executable, "-m", "food.cli", "--endpoints", n1.endpoint, "--key-file", str(cluster.key_file)]
        done = subprocess.run([*command, "member", "replace", "n2"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with client(cluster) as writer:
            assert writer.put(b"key", b"acknowledged again")
        level(cluster, "n1", "n2")


# --- Whatever comes in, and whatever goes away ---


def test_noise_on_every_socket_is_survived(cluster: Cluster) -> None:
    dice = random.Random(7)
    n1 = cluster["n1"]
    endpoints = [f"tcp://{n1.address}:{n1.cluster.port + offset}" for offset in (1, 2)]
    endpoints += [f"ipc://{n1.run_dir}/{name}" for name in ("client.sock", "control.sock")]
    valid = [
        pack([5, "w", pack([0, 0, 0, "put", b"k", b"v"])]),
        pack([5, "r", ["range", b"", 10]]),
        pack([1, "x", "n9", "s", 6, [1, "s"], [[1, "s"], 3], [[[1, "s"], [[0, b"x"]]]], 2]),
        pack({"v": 1, "action": "monitor", "timeout_ms": 5}),
    ]
    with zmq.Context() as context:
        for endpoint in endpoints:
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 500)
                cluster.knock(dealer, endpoint, as_node=True)
                for _ in range(400):
                    noise = bytearray(dice.choice([*valid, dice.randbytes(dice.randrange(200))]))
                    for _ in range(dice.randrange(4)):
                        if noise:
                            noise[dice.randrange(len(noise))] = dice.randrange(256)
                    dealer.send_multipart([bytes(noise)] * dice.choice([1, 1, 1, 3]))
        with context.socket(zmq.PUB) as publisher:  # a peer's log, as the others hear it
            cluster["n3"].kill()
            publisher.setsockopt(zmq.LINGER, 500)
            assert cluster.keys
            publisher.setsockopt(zmq.CURVE_SERVER, 1)
            publisher.setsockopt(zmq.CURVE_SECRETKEY, cluster.keys.node)
            bind(publisher, f"tcp://{cluster['n3'].address}:{PORT}")
            time.sleep(0.5)
            for _ in range(400):
                publisher.send(dice.randbytes(dice.randrange(200)))
    for offset in (0, 1, 2):
        with contextlib.suppress(OSError), socket.create_connection((n1.address, PORT + offset)) as raw:
            raw.sendall(dice.randbytes(10_000))
    cluster["n3"].start()
    with client(cluster) as writer:
        assert writer.put(b"still", b"here")
    assert [node.request("monitor")["rc"] for node in cluster] == [8, 0, 0]
    level(cluster)


def bind(publisher: zmq.Socket[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            publisher.bind(endpoint)
            return
        except zmq.ZMQError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_daemon_ends_with_its_guardian(cluster: Cluster) -> None:
    for name in ("n1", "n2"):
        node = cluster[name]
        assert node.process and node._pipe
        begun = time.monotonic()
        node._pipe.shutdown(socket.SHUT_RDWR)
        assert node.process.wait(5) == 1 and time.monotonic() - begun < 1


def test_sigterm_ends_it_in_order(cluster: Cluster) -> None:
    with client(cluster) as writer:
        writer.put(b"k", b"v")
    for node in cluster:
        node.kill(signal.SIGTERM)
        assert node.process and node.process.returncode == 0
        assert not (node.data_dir / "food.db-wal").exists()


def test_python_without_assertions_is_refused() -> None:
    argv = [sys.executable, "-O", "-m", "food.daemon", "--guardian-fd", "3", "--lock-fd", "4"]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=10)
    assert run.returncode == 1 and "do not run it under python -O" in run.stderr


def test_reasons_reach_the_guardian() -> None:
    with Cluster(1, PORT, program=[str(HERE / "full_disk.py")]) as cluster:
        n1 = cluster["n1"]
        cluster.promote("n1")
        with client(cluster, timeout_s=2) as writer, pytest.raises(FoodError):
            for number in range(100):
                writer.put(b"%d" % number, bytes(50_000))
        wait(lambda: n1.exiting, 5, "no reason was given")
        assert "saving failed" in (n1.exiting or "") and "database or disk is full: make room" in (n1.exiting or "")
        assert n1.process and n1.process.wait(5) == 1
        n1.kill()
        with socket.create_server((n1.address, PORT + 1)):
            n1.start()
            wait(lambda: n1.exiting, 10, "no reason was given")
        assert f"cannot listen on {n1.address}:{PORT + 1}" in (n1.exiting or "")
        n1.kill()
        shutil.rmtree(n1.data_dir)
        n1.start()
        wait(lambda: n1.exiting, 10, "no reason was given")
        assert "unable to open database file: the directory must be there" in (n1.exiting or "")


def test_a_reload_changes_a_running_daemon(cluster: Cluster) -> None:
    n1 = cluster["n1"]
    agent = {"watchdog_ms": "2000", "isolation_ms": None, "degraded": "true", "log_level": None}
    assert n1.request("reload", settings=agent)["rc"] == 0
    cluster["n3"].kill()
    wait(lambda: n1.request("monitor")["rc"] == 191, 5, "degraded is not in force")
    assert "2 of 3 in sync" in n1.request("monitor")["reason"]


def test_a_node_that_corosync_no_longer_names_still_votes(cluster: Cluster) -> None:
    n1, n2, n3 = cluster
    for node in (n1, n2):
        node.says(nodes={name: cluster.addresses[name] for name in ("n1", "n2")})
    n2.kill()
    with client(cluster) as writer:
        assert writer.put(b"with", b"n1 and n3")
        n2.start()
        n1.kill()
        assert lead(cluster) in (n2, n3)
        assert writer.get(b"with")


def test_one_node_is_a_cluster() -> None:
    with Cluster(1, PORT) as cluster:
        cluster.promote("n1")
        with client(cluster) as writer:
            first = writer.put(b"k", b"v")
            cluster["n1"].kill()
            cluster["n1"].start()
            lead(cluster)
            assert writer.get(b"k") == Row(b"v", first)


def test_a_daemon_run_as_a_file_is_the_same() -> None:
    """The parameter `daemon` may name a path."""
    environment = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, str(ROOT / "food" / "daemon.py"), "--help"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0 and "--guardian-fd" in run.stdout
