"""Real daemons with keys: what goes over the wire, what a client without the right key is told, keys that change."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import ROOT, Cluster, wait

from food.calls import Unavailable
from food.client import Client, Row
from food.gate import client_keys
from food.keys import ClientKeys, client_file, derive

PORT = 19_960
KEY, VALUE = b"a key that nobody may read", b"a value that nobody may read"
ETH_P_ALL = 3
SETTLE_S = 0.3  # for the last packets to be seen


class Wiretap:
    """Everything that goes over loopback between the cluster's ports while the body runs."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 25)
        self._socket.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                packet = self._socket.recv(1 << 17)
                ports = packet[20:22], packet[22:24]
                if any(PORT <= int.from_bytes(port, "big") <= PORT + 2 for port in ports):
                    self.seen += packet

    def __enter__(self) -> Wiretap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(SETTLE_S)
        self._ending.set()
        self._thread.join()
        self._socket.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="listening on the wire needs root")
@pytest.mark.parametrize("plaintext", [False, True])
def test_nothing_readable_goes_over_the_wire(plaintext: bool) -> None:
    """Without keys the same search finds key and value: it can fail."""
    with Wiretap() as tap, Cluster(3, PORT, plaintext=plaintext) as cluster:
        cluster.promote("n1")
        with Client(cluster.endpoints) as client:
            for number in range(20):
                client.put(KEY + b"/%d" % number, VALUE)
            assert len(client.range(KEY)) == 20 and client.get(KEY + b"/7")
    assert len(tap.seen) > 20_000
    found = {word: word in tap.seen for word in (KEY, VALUE)}
    assert found == dict.fromkeys((KEY, VALUE), plaintext)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3, PORT) as raised:
        raised.promote("n1")
        yield raised


def write_key(path: Path, keys: ClientKeys) -> Path:
    path.touch(0o600)
    path.write_text(client_file(keys, "of the test"))
    return path


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("none", "it wants a key: foodctl client-key, run on a node, prints one for --key-file or FOOD_KEY_FILE"),
        ("another cluster's", "it closes the connection in the handshake: made for another key?"),
        ("its own", "it does not admit this client's key"),
    ],
)
def test_a_client_without_the_right_key_is_told_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str, words: str
) -> None:
    assert cluster.keys
    server = client_keys(cluster.keys).server
    wrong = {
        "none": None,
        "another cluster's": client_keys(derive(bytes(64), "food", "")),
        "its own": ClientKeys(server, bytes(31) + b"x"),
    }[which]
    monkeypatch.delenv("FOOD_KEY_FILE")
    key_file = str(write_key(tmp_path / "wrong", wrong)) if wrong else None
    with Client(cluster.endpoints, timeout_s=1.5, key_file=key_file) as client:
        with pytest.raises(Unavailable, match="no primary") as refused:
            client.put(KEY, VALUE)
        assert words in str(refused.value)

        def told() -> bool:
            failed = client.status().failed
            return all(words in failed.get(endpoint, "") for endpoint in cluster.endpoints)

        # Who hangs up first is a matter of luck: tried again, every endpoint gives the reason.
        wait(told, 10, f"not every endpoint says {words}")
    with Client([str(cluster["n1"].run_dir / "client.sock")]) as client:
        (own, *_) = (answer["self"] for answer in client.status().answers.values() if answer)
        assert sum(own["refused"].values()) > 0
        assert client.get(KEY) is None


def test_a_local_client_needs_no_file_to_reach_the_primary_elsewhere(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOOD_KEY_FILE")
    with Client([str(cluster["n2"].run_dir / "client.sock")], timeout_s=5.0) as client:
        revision = client.put(KEY, VALUE)
        assert client.get(KEY) == Row(VALUE, revision)


def foodctl(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "food.cli", *words]
    env = {name: value for name, value in os.environ.items() if name != "FOOD_KEY_FILE"}
    return subprocess.run(argv, env={**env, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_foodctl_without_a_key_says_what_it_lacks(cluster: Cluster, tmp_path: Path) -> None:
    endpoints = ("--endpoints", ",".join(cluster.endpoints), "--timeout", "1.5")
    refused = foodctl(*endpoints, "get", "k")
    assert refused.returncode == 3 and "it wants a key: foodctl client-key" in refused.stderr
    refused = foodctl(*endpoints, "status")
    assert refused.returncode == 3 and "it wants a key: foodctl client-key" in refused.stderr
    refused = foodctl(*endpoints, "--key-file", str(tmp_path / "gone"), "get", "k")
    assert refused.returncode == 2 and "foodctl client-key, run on a node, makes one" in refused.stderr
    assert foodctl(*endpoints, "--key-file", str(cluster.key_file), "put", "k", "v").returncode == 0
    assert foodctl(*endpoints, "get", "k", FOOD_KEY_FILE=str(cluster.key_file)).stdout == "v"


def test_plaintext_is_shown_and_has_no_key_to_give() -> None:
    with Cluster(1, PORT, plaintext=True) as cluster:
        cluster.promote("n1")
        shown = foodctl("--endpoints", cluster.endpoints[0], "status")
        assert shown.returncode == 0 and "n1: PLAINTEXT, anyone can read and write." in shown.stdout


# --- Keys that change ---


def writing(client: Client) -> tuple[Callable[[], int], threading.Event]:
    done, ending = [0], threading.Event()

    def write() -> None:
        while not ending.is_set():
            client.put(b"counter", b"%d" % done[0])
            done[0] += 1

    threading.Thread(target=write, daemon=True).start()
    return lambda: done[0], ending


def test_keys_change_under_a_writer_without_a_change_of_role(cluster: Cluster) -> None:
    """The guardians' part is played here; the file of a client elsewhere is replaced while it writes."""
    fresh = derive(bytes(range(64)), "food", "the other file")
    before = [node.process.pid for node in cluster if node.process]
    with Client(cluster.endpoints, timeout_s=30.0) as client:
        count, ending = writing(client)
        wait(lambda: count() > 50, 10, "no writes")
        for node in cluster:
            node.says(settings=node.settings, keys=fresh.packet())
        replacement = write_key(cluster.directory / "new", client_keys(fresh))
        replacement.rename(cluster.key_file)
        cluster.keys = fresh
        at = count()
        wait(lambda: count() > at + 50, 20, "no writes with the new keys")
        ending.set()
        time.sleep(SETTLE_S)
        answers = [answer for answer in client.status().answers.values() if answer]
    assert {answer["self"]["keys"] for answer in answers} == {f"keys {fresh.name} from the other file"}
    assert [node.request("monitor")["rc"] for node in cluster] == [8, 0, 0], "the role stays where it was"
    assert [node.process.pid for node in cluster if node.process] == before
    assert not any("fail" in order for node in cluster for order in node.orders)
    with Client(cluster.endpoints) as again:
        row = again.get(b"counter")
        assert row and int(row.value) == count() - 1


def test_a_node_that_missed_the_change_is_alone_and_comes_back_with_the_key(cluster: Cluster) -> None:
    fresh = derive(bytes(range(64)), "food", "the other file")
    n3 = cluster["n3"]
    n3.kill(signal.SIGSTOP)
    for name in ("n1", "n2"):
        cluster[name].says(settings=cluster[name].settings, keys=fresh.packet())
    write_key(cluster.key_file, client_keys(fresh))
    with Client(cluster.endpoints[:2]) as client:
        client.put(KEY, VALUE)
        n3.kill(signal.SIGCONT)
        wait(lambda: "isolated" in n3.request("status")["status"], 10, "n3 does not notice")
        n3.says(settings=n3.settings, keys=fresh.packet())
        wait(lambda: "in sync" in n3.request("status")["status"], 10, "n3 does not come back")
        assert client.get(KEY)
