"""Bad input, second part of the table: whatever comes in through sockets, to three real daemons, of which n1 leads.

After every row the same process still leads the same epoch, serves a client, and has counted what it dropped.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
import zmq
from daemons import Cluster, Node, wait

from food.calls import TooLarge
from food.cli import main as foodctl
from food.client import Client
from food.codec import pack, unpack

PORT = 18_610
MIB = 1024 * 1024
COUNTED_EVERY_MS = 500  # instead of a minute
LOUD = f"import sys, food.daemon as d; d.ODD_FRAMES_EVERY_MS = {COUNTED_EVERY_MS}; sys.exit(d.main())"
NOISE = random.Random(4711).randbytes(4096)


class Served:
    """Three daemons whose first one leads, and what must not change whatever comes in."""

    def __init__(self, cluster: Cluster, log: Path):
        self.cluster, self.n1, self.log_file = cluster, cluster["n1"], log
        with self.client() as client:
            client.put(b"before", b"everything")
        assert self.n1.process
        self.pid = self.n1.process.pid
        self.epoch = self.n1.request("status")["status"]

    def client(self) -> Client:
        return Client([str(self.n1.run_dir / "client.sock")], timeout_s=10)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def check(self) -> None:
        assert self.n1.alive and self.n1.process and self.n1.process.pid == self.pid
        assert self.n1.request("monitor")["rc"] == 8
        assert self.n1.request("status")["status"] == self.epoch
        with self.client() as client:
            assert client.put(b"after", b"it") and client.get(b"before")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Bytes that are its own."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("log")
    with Cluster(3, PORT, ["-c", LOUD], {"FOOD_LOG_DIRECTORY": str(directory)}) as cluster:
        cluster.promote("n1")
        wait(lambda: "3 of 3" in cluster["n1"].request("status")["status"], 10, "not all are in sync")
        yield Served(cluster, directory / "food.log")


@contextlib.contextmanager
def dealer(path: Path) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.setsockopt(zmq.LINGER, 500)
        opened.connect(f"ipc://{path}")
        yield opened


class Peer:
    """n3's place, after its death: what n1 hears from there, under a node's key."""

    def __init__(self, served: Served, context: zmq.Context[Any]):
        self.served, n3 = served, served.cluster["n3"]
        self.publisher, self.dealer = context.socket(zmq.PUB), context.socket(zmq.DEALER)
        assert served.cluster.keys
        self.publisher.setsockopt(zmq.CURVE_SERVER, 1)
        self.publisher.setsockopt(zmq.CURVE_SECRETKEY, served.cluster.keys.node)
        self.publisher.bind(f"tcp://{n3.address}:{PORT}")
        served.cluster.knock(self.dealer, f"tcp://{served.n1.address}:{PORT + 1}", as_node=True)
        for one in (self.publisher, self.dealer):
            one.setsockopt(zmq.LINGER, 500)

    def heard(self) -> bool:
        """A subscriber comes when it comes: to be asked until it is there."""
        self.say("log", b"\xc1")
        return "frame of 1 bytes" in self.served.log()

    def say(self, to: str, frame: bytes) -> None:
        (self.publisher if to == "log" else self.dealer).send(frame)


@pytest.fixture(scope="module")
def peer(served: Served) -> Iterator[Peer]:
    served.cluster["n3"].kill()
    wait(lambda: "2 of 3" in served.n1.request("status")["status"], 10, "n3 is not missed")
    served.epoch = served.n1.request("status")["status"]
    with zmq.Context() as context:
        opened = Peer(served, context)
        wait(opened.heard, 10, "n1 does not listen")
        yield opened
        opened.publisher.close()
        opened.dealer.close()


# --- What a client may say wrongly ---


def command(*parts: Any) -> bytes:
    return pack([7, "w", msgpack.packb(parts)])


class Frame(NamedTuple):
    fault: str
    frame: bytes
    code: str | int | None  # of the answer; None: there is none
    words: str


SHAPE = "a request is [id, kind, body]"
KINDS = "a request's kind and body are w and bytes, r or s and [op, args…]"
OPS = "a command is [session, seq, done, op, args…], op one of open, close, put"
FRAMES = (
    Frame("random bytes", NOISE, "bad_request", "is not what food speaks"),
    Frame("nothing", b"", "bad_request", "frame of 0 bytes is not what food speaks"),
    Frame("half a request", command(0, 0, 0, "put", b"k", bytes(100))[:60], "bad_request", "is not what food speaks"),
    Frame(
        "two requests in one",
        command(0, 0, 0, "open") * 2,
        "bad_request",
        "received extra data",
    ),
    Frame("deep nesting", b"\x91" * 100_000, "bad_request", "is not what food speaks"),
    Frame("a key twice", b"\x82\xa1a\x01\xa1a\x02", "bad_request", "a map has a key twice among its 2"),
    Frame("an extension type", b"\xd4\x05\x00", "bad_request", "is not what food speaks"),
    Frame("an array of four thousand million", b"\xdd\xff\xff\xff\xff", "bad_request", "is not what food speaks"),
    Frame("two million nils", b"\xdd\x00\x1f\xff\x00" + b"\xc0" * 0x1FFF00, "bad_request", "exceeds max_array_len"),
    Frame(
        "a thousand arrays that announce much", b"\xdd\x00\x1f\xff\x00" * 1000, "bad_request", "is not what food speaks"
    ),
    Frame("as deep as msgpack reads", b"\x93\x07\xa1w" + b"\x91" * 1000 + b"\xc0", "bad_request", KINDS),
    Frame("a map", pack({"id": 7}), "bad_request", SHAPE),
    Frame("a number that is text", pack(["7", "i", None]), "bad_request", SHAPE),
    Frame("an unknown kind", pack([7, "x", None]), "bad_request", KINDS),
    Frame("a command that is a list", pack([7, "w", [0, 0, 0, "open"]]), "bad_request", KINDS),
    Frame("a command that is noise", pack([7, "w", NOISE]), "bad_request", "the command is not msgpack"),
    Frame("a command without an op", command(0, 0, 0), "bad_request", OPS),
    Frame("an unknown op", command(0, 0, 0, "drop"), "bad_request", OPS),
    Frame("a key that is text", command(0, 0, 0, "put", "k", b"v"), "bad_request", "put takes bytes, bytes"),
    Frame("an argument too few", command(0, 0, 0, "put", b"k"), "bad_request", "put takes bytes, bytes"),
    Frame("an empty key", command(0, 0, 0, "put", b"", b"v"), "bad_request", "key of 0 bytes: a key has 1 to 1024"),
    Frame("a long key", command(0, 0, 0, "put", bytes(1025), b"v"), "too_large", "key of 1025 bytes: a key has 1"),
    Frame(
        "a long value",
        command(0, 0, 0, "put", b"k", bytes(MIB + 1)),
        "too_large",
        "a value has at most 1048576; split it",
    ),
    Frame("a long value in a cas", command(0, 0, 0, "cas", b"k", 0, bytes(MIB + 1)), "too_large", "at most 1048576"),
    Frame("a frame over the limit", bytes(2 * MIB + 1), None, ""),
    Frame("seq before done", command(5, 1, 1, "put", b"k", b"v"), "bad_request", "seq counts from 1, done stays below"),
    Frame("a session nobody opened", command(10**9, 1, 0, "put", b"k", b"v"), "session", "is not known or was evicted"),
    Frame("a session of minus one", command(-1, 1, 0, "put", b"k", b"v"), "session", "is not known or was evicted"),
    Frame(
        "an unknown query",
        pack([7, "r", ["count", b""]]),
        "bad_request",
        "a query is get [key] or range [prefix, limit]",
    ),
    Frame("a query without arguments", pack([7, "s", ["get"]]), "bad_request", "a query is get [key]"),
    Frame("a query of nothing", pack([7, "r", []]), "bad_request", KINDS),
    Frame("a range of minus one", pack([7, "r", ["range", b"", -1]]), 0, ""),
    Frame("a range without end", pack([7, "r", ["range", b"", 2**63]]), 0, ""),
)


@pytest.mark.parametrize("row", FRAMES, ids=lambda row: row.fault)
def test_a_wrong_request_is_answered_in_words(served: Served, row: Frame) -> None:
    with dealer(served.n1.run_dir / "client.sock") as client:
        client.send(row.frame)
        if row.code is None:
            client.send(pack([8, "i", None]))  # over a new connection
            assert client.poll(10_000)
            assert unpack(client.recv(), 1 << 24)[0] == 8
        else:
            assert client.poll(10_000), "no answer"
            answer = unpack(client.recv(), 1 << 24)
            assert answer[1] == row.code, answer
            assert row.words in (answer[2]["text"] if row.words else "")
    served.check()


def test_a_request_of_a_thousand_parts_is_answered_to_its_sender(served: Served) -> None:
    with dealer(served.n1.run_dir / "client.sock") as client:
        client.send_multipart([b"part"] * 1_000 + [pack([7, "i", None])])
        assert client.poll(10_000)
        parts = client.recv_multipart()
        assert parts[:-1] == [b"part"] * 1_000 and unpack(parts[-1], 1 << 24)[0] == 7
    served.check()


# --- What only a program that means harm, or a very old one, says to the agent's socket ---

CONTROL = (
    Frame("random bytes", NOISE, 1, "the daemon refused the request: frame of 4096 bytes"),
    Frame("nothing", b"", 1, "the daemon refused the request"),
    Frame("another version", pack({"v": 2, "action": "monitor", "timeout_ms": 5}), 1, "of different versions"),
    Frame("no timeout", pack({"v": 1, "action": "monitor"}), 1, "timeout_ms must be a whole number from 1 to"),
    Frame("an unknown action", pack({"v": 1, "action": "dance", "timeout_ms": 5}), 1, "knows no action 'dance'"),
    Frame(
        "an action as deep as msgpack reads",
        b"\x83\xa1v\x01\xaatimeout_ms\x05\xa6action" + b"\x91" * 1_015 + b"\xc0",
        1,
        "knows no action [[[...]]]",
    ),
    Frame("too long", bytes(9_000), 1, "frame of 9000 bytes, the limit is 8192"),
    Frame(
        "settings of another shape",
        pack({"v": 1, "action": "reload", "timeout_ms": 5, "settings": [1]}),
        1,
        "settings must be a map of texts",
    ),
)


@pytest.mark.parametrize("row", CONTROL, ids=lambda row: row.fault)
def test_a_wrong_request_to_the_agents_socket_is_refused_in_words(served: Served, row: Frame) -> None:
    with dealer(served.n1.run_dir / "control.sock") as agent:
        agent.send_multipart([b"", row.frame])
        assert agent.poll(10_000), "no answer"
        answer = unpack(agent.recv_multipart()[-1], 1 << 24)
        assert answer["rc"] == row.code and row.words in answer["reason"]
    served.check()


# --- What peers may say wrongly ---


def from_peer(*fields: Any, version: int = 1, cluster: str = "", node: str = "n9", store: str = "s") -> bytes:
    return pack([version, cluster, node, store, *fields])


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


FIELD = b"\x98" + from_peer(8, [1, "s"])[1:]  # the next one follows, and another


PEERS = (
    Frame("random bytes", NOISE, None, "from a peer: frame of 4096 bytes is not what food speaks"),
    Frame("nothing", b"", None, "from a peer: frame of 0 bytes is not what food speaks"),
    Frame("deep nesting", nested(100_000), None, "from a peer: frame of 100001 bytes is not what food speaks"),
    Frame("a key twice", b"\x82\xa1a\x01\xa1a\x02", None, "from a peer: a map has a key twice among its 2"),
    Frame("another version", from_peer(1, version=9), None, "protocol version 9, this node speaks 1: update"),
    Frame("an unknown message", from_peer(99), None, "from a peer: not a message between food's daemons"),
    Frame("a field too few", from_peer(8, [1, "s"], 3), None, "from a peer: message 8 of 'n9'"),
    Frame(
        "a field as deep as msgpack reads", FIELD + nested(1_015) + b"\0", None, "message 8 of 'n9': [[[...]]] where"
    ),
    Frame("a number below nothing", from_peer(9, [1, "s"], -1), None, "-1 where a whole number belongs"),
    Frame(
        "another cluster",
        from_peer(9, [1, "s"], 1, cluster="theirs"),
        None,
        "from 'n9', which belongs to another cluster",
    ),
)


@pytest.mark.parametrize("row", PEERS, ids=lambda row: row.fault)
@pytest.mark.parametrize("to", ["peers", "log"])
def test_a_wrong_frame_of_a_peer_is_dropped_and_counted(served: Served, peer: Peer, to: str, row: Frame) -> None:
    before = len(served.log())
    peer.say(to, row.frame)
    wait(lambda: row.words in served.log()[before:], 10, f"nothing in the log but {served.log()[before:]}")
    served.check()


# --- Limits, seen through the library and foodctl ---


def test_limits_are_named_by_the_client_library(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(TooLarge, match=r"value of 'k' has 1048577 bytes, the limit is 1048576: split it"):
            client.put(b"k", bytes(MIB + 1))
        with pytest.raises(TooLarge, match="has 1025 bytes: 1 to 1024 are possible"):
            client.put(bytes(1025), b"v")
        with pytest.raises(TooLarge, match="has 0 bytes: 1 to 1024"):
            client.get(b"")
        assert client.put(b"largest", bytes(MIB)) and len((client.get(b"largest") or (b"",))[0]) == MIB
        assert client.delete(b"largest")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["put", "k" * 1025, "v"], 6, "1 to 1024 are possible"),
        (["get", ""], 6, "1 to 1024 are possible"),
        (["put", "k", "-"], 6, "the limit is 1048576: split it over several keys"),
        (["list", "k" * 1025], 6, "0 to 1024 are possible"),
    ],
    ids=["a long key", "an empty key", "a long value", "a long prefix"],
)
def test_limits_are_named_by_foodctl(
    served: Served,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(MIB + 1))))
    assert foodctl(["--endpoints", str(served.n1.run_dir / "client.sock"), *words]) == code
    assert text in capsys.readouterr().err


# --- Bytes that are no ZMTP, and connections that come to nothing ---

GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01NULL" + bytes(48)
PORTS = {"log": 0, "peers": 1, "clients": 2}


def connect(node: Node, offset: int) -> socket.socket:
    return socket.create_connection((node.address, PORT + offset), timeout=5)


@pytest.mark.parametrize("port", PORTS)
def test_bytes_that_are_no_zmtp_are_survived(served: Served, port: str) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + NOISE,
        NOISE,
        GREETING + NOISE,
        b"\x00",
        b"\xff" * 70_000,
    ):
        with contextlib.suppress(OSError), connect(served.n1, PORTS[port]) as raw:  # it hangs up as it likes
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(0.2)
            raw.recv(100)
    served.check()


@pytest.mark.parametrize("port", PORTS)
def test_greetings_that_never_end_hold_nothing_for_long(served: Served, port: str) -> None:
    """The sockets give up on them after HANDSHAKE_IVL."""
    before = served.descriptors()
    silent = [connect(served.n1, PORTS[port]) for _ in range(20)]
    half = [connect(served.n1, PORTS[port]) for _ in range(20)]
    for raw in half:
        raw.sendall(GREETING[:11])
    served.check()
    wait(lambda: served.descriptors() <= before + 2, 10, f"{served.descriptors()} descriptors, before {before}")
    for raw in silent + half:
        raw.close()


def test_a_thousand_connections_come_and_vanish(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    before = served.descriptors(), served.memory()
    opened: list[socket.socket] = []
    try:
        for _ in range(1_200):
            opened.append(connect(served.n1, 2))
            opened[-1].sendall(GREETING[:30])
        served.check()  # with more than the usual 1024 descriptors in use
    finally:
        for raw in opened:
            raw.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait(lambda: served.descriptors() <= before[0] + 2, 15, f"{served.descriptors()} descriptors, before {before[0]}")
    assert served.memory() - before[1] < 40 * MIB
    served.check()


def test_a_thousand_clients_write_and_vanish_without_a_word(served: Served) -> None:
    """Each opens a session, writes, and goes; nothing of them stays but what they wrote, and a session."""
    before = served.descriptors()
    for _ in range(10):
        with zmq.Context() as context:
            clients = []
            for number in range(100):
                one = context.socket(zmq.DEALER)
                one.setsockopt(zmq.LINGER, 0)
                one.connect(f"ipc://{served.n1.run_dir}/client.sock")
                one.send(command(0, 0, 0, "open"))
                one.send(command(0, 0, 0, "put", b"client %d" % number, b"v"))
                clients.append(one)
            for one in clients:
                assert one.poll(10_000)
                one.close()  # half of the answers are never taken
    wait(lambda: served.descriptors() <= before + 2, 15, f"{served.descriptors()} descriptors, before {before}")
    with served.client() as client:
        (answer,) = client.status().answers.values()
        assert answer and 1_000 <= answer["sessions"] <= 10_000
        assert len(client.range(b"client ", limit=1_000)) == 100
    served.check()


def test_a_client_that_does_not_read_costs_nobody_else_anything(served: Served) -> None:
    with served.client() as writer:
        writer.put(b"large", bytes(50_000))
    before = served.memory()
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RCVHWM, 1)
        client.connect(f"ipc://{served.n1.run_dir}/client.sock")
        for number in range(4_000):
            client.send(pack([number, "s", ["get", b"large"]]))
        wait(lambda: "for a client that is gone or does not read" in served.log(), 20, "not a word of it in the log")
        served.check()
        assert served.memory() - before < 100 * MIB  # the queue's thousand answers and what the kernel holds
    wait(lambda: served.memory() - before < 40 * MIB, 20, f"{served.memory() - before} bytes more than before")


# --- Everything that was dropped was counted ---


def test_noise_is_counted_once_in_a_while_and_costs_no_memory(served: Served) -> None:
    before = served.memory()
    lines = len(served.log().splitlines())
    begun = time.monotonic()
    dice = random.Random(5)
    with dealer(served.n1.run_dir / "client.sock") as client:
        for _ in range(20_000):
            client.send(dice.randbytes(dice.randrange(1, 40)))
            while client.poll(0):
                client.recv()
    served.check()
    time.sleep(2 * COUNTED_EVERY_MS / 1000)
    took_s = time.monotonic() - begun
    new = served.log().splitlines()[lines:]
    counted = [line for line in new if " dropped " in line and " from a client: " in line]
    assert 0 < len(counted) <= 21 * (took_s * 1000 / COUNTED_EVERY_MS + 1), "so many kinds each time, and no more"
    assert served.memory() - before < 40 * MIB
