"""The sockets: what cannot be bound says why, and nobody who does not read holds the daemon up."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from slow_link import SlowLink

from food import transport
from food.gate import client_keys, come_with
from food.keys import derive
from food.transport import BATCH_MOST, BATCH_MOST_BYTES, CannotListen, Transport, take

PORT = 19_910
KEYS = derive(bytes(range(32)), "food", "/key")
HERE, THERE = "127.0.2.1", "127.0.2.2"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="food-", dir="/tmp") as name:
        yield Path(name)


def attend(*nodes: Transport) -> None:
    """What the daemon's loop does for newcomers."""
    for node in nodes:
        node.wait(0)


def comes(node: Transport, socket: zmq.Socket[bytes], within_s: float = 2.0) -> bool:
    """Whether a message comes, while newcomers are attended to."""
    deadline = time.monotonic() + within_s
    while not socket.poll(10):
        attend(node)
        if time.monotonic() > deadline:
            return False
    return True


@pytest.fixture
def sockets(run_dir: Path) -> Iterator[tuple[Transport, Transport]]:
    """Two nodes that know each other, and have found each other."""
    (run_dir / "a").mkdir()
    (run_dir / "b").mkdir()
    one, two = Transport(HERE, PORT, run_dir / "a", keys=KEYS), Transport(THERE, PORT, run_dir / "b", keys=KEYS)
    one.set_peers({"b": THERE})
    two.set_peers({"a": HERE})
    deadline = time.monotonic() + 5
    while not (two.peers.poll(10) and two.log.poll(10)):
        assert time.monotonic() < deadline
        attend(one, two)
        one.send("b", b"hello")
        one.publish(b"hello")
    time.sleep(0.05)
    list(take(two.peers)), list(take(two.log))
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BIND_PATIENCE_S", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_taken_port_is_named_with_the_remedy(run_dir: Path, offset: int) -> None:
    with socket.create_server((HERE, PORT + offset)), pytest.raises(CannotListen) as caught:
        Transport(HERE, PORT, run_dir, keys=KEYS)
    assert f"{HERE}:{PORT + offset}" in str(caught.value)
    assert "another program, or another resource's food, has that port: choose another `port`" in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_an_address_that_is_not_ours_is_named_with_the_remedy(run_dir: Path) -> None:
    with pytest.raises(CannotListen) as caught:
        Transport("192.0.2.1", PORT, run_dir, keys=KEYS)
    assert f"192.0.2.1:{PORT}" in str(caught.value)
    assert "not one of this node's: check `address` or Corosync's node list" in str(caught.value)


ELSEWHERE = "192.0.2.7"  # documentation's: no machine has it


def listening(port: int) -> set[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address, at in found if int(at, 16) == port}


def test_clients_are_heard_on_further_addresses_that_may_come_later(run_dir: Path) -> None:
    opened = Transport(HERE, PORT, run_dir, keys=KEYS)
    try:
        assert opened.hear_clients_at([THERE, ELSEWHERE, HERE]) == []
        assert listening(PORT) == listening(PORT + 1) == {HERE}, "peers' ports are not for clients"
        assert listening(PORT + 2) == {HERE, THERE, ELSEWHERE}
        asking: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        come_with(asking, client_keys(KEYS))
        asking.connect(f"tcp://{THERE}:{PORT + 2}")
        asking.send(b"hello")
        assert comes(opened, opened.clients)
        (frames,) = take(opened.clients)
        assert opened.reply(opened.clients, frames[:-1], b"answer")
        assert asking.poll(2000) and asking.recv() == b"answer"
        asking.close(linger=0)
    finally:
        opened.close()
    assert not listening(PORT + 2)


def test_further_addresses_are_changed_while_it_runs(run_dir: Path) -> None:
    opened = Transport(HERE, PORT, run_dir, keys=KEYS)
    try:
        opened.hear_clients_at([THERE])
        assert opened.hear_clients_at([ELSEWHERE]) == []
        deadline = time.monotonic() + 5  # ZeroMQ's own thread lets go of it
        while listening(PORT + 2) != {HERE, ELSEWHERE}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        opened.close()


def test_a_further_address_that_is_taken_is_named_and_holds_nothing_up(run_dir: Path) -> None:
    opened = Transport(HERE, PORT, run_dir, keys=KEYS)
    try:
        with socket.create_server((THERE, PORT + 2)):
            (error,) = opened.hear_clients_at([THERE, ELSEWHERE])
        assert f"{THERE}:{PORT + 2}: " in error and "choose another `port`" in error
        assert listening(PORT + 2) == {HERE, ELSEWHERE}
        assert opened.hear_clients_at([THERE, ELSEWHERE]) == [], "the next attempt"
    finally:
        opened.close()


@pytest.mark.usefixtures("impatient")
def test_a_run_directory_that_is_not_there_is_named(run_dir: Path) -> None:
    with pytest.raises(CannotListen, match=r"gone/client\.sock: .*the run directory must be ours to write"):
        Transport(HERE, PORT, run_dir / "gone", keys=KEYS)


@pytest.mark.usefixtures("impatient")
def test_what_failed_to_bind_leaves_nothing_bound(run_dir: Path) -> None:
    with socket.create_server((HERE, PORT + 2)), pytest.raises(CannotListen):
        Transport(HERE, PORT, run_dir, keys=KEYS)
    Transport(HERE, PORT, run_dir, keys=KEYS).close()


def test_a_port_that_becomes_free_is_waited_for(run_dir: Path) -> None:
    predecessor = socket.create_server((HERE, PORT))
    begun = time.monotonic()
    threading.Timer(0.3, predecessor.close).start()
    Transport(HERE, PORT, run_dir, keys=KEYS).close()
    assert 0.2 < time.monotonic() - begun < 2.5


def test_local_sockets_are_closed_to_others(run_dir: Path) -> None:
    opened = Transport(HERE, PORT, run_dir, keys=KEYS)
    modes = {name: stat.S_IMODE(os.stat(run_dir / name).st_mode) for name in ("client.sock", "control.sock")}
    opened.close()
    assert modes == {"client.sock": 0o660, "control.sock": 0o600}


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_works(run_dir: Path) -> None:
    opened = Transport("::1", PORT, run_dir, keys=KEYS)
    opened.set_peers({"self": "::1"})
    try:
        assert opened.endpoint == opened.client_endpoint("self") == f"[::1]:{PORT + 2}"
        deadline = time.monotonic() + 5
        while not opened.peers.poll(10):
            assert time.monotonic() < deadline
            attend(opened)
            opened.send("self", b"hello")
    finally:
        opened.close()


def test_messages_arrive_one_to_one_and_one_to_all(sockets: tuple[Transport, Transport]) -> None:
    one, two = sockets
    one.send("b", b"to you")
    one.publish(b"to all")
    assert comes(two, two.peers) and comes(two, two.log)
    assert [frames[-1] for frames in take(two.peers)] == [b"to you"]
    assert list(take(two.log)) == [[b"to all"]]


def test_a_peer_that_is_left_hears_nothing_more(sockets: tuple[Transport, Transport]) -> None:
    one, two = sockets
    one.set_peers({})
    two.set_peers({})
    one.send("b", b"lost")
    for _ in range(20):
        one.publish(b"lost")
        time.sleep(0.01)
    assert not two.peers.poll(0) and not two.log.poll(0)
    assert one.client_endpoint("b") is None


def test_sending_to_nobody_does_not_wait(run_dir: Path) -> None:
    opened = Transport(HERE, PORT, run_dir, keys=KEYS)
    opened.set_peers({"b": "192.0.2.1"})
    begun = time.monotonic()
    for _ in range(10_000):
        opened.send("b", b"x" * 100)
        opened.send("never heard of", b"x")
        opened.publish(b"x" * 100)
    assert time.monotonic() - begun < 2
    opened.close()


def test_a_peer_that_does_not_read_holds_nobody_up(sockets: tuple[Transport, Transport]) -> None:
    one, _ = sockets
    begun = time.monotonic()
    for _ in range(3000):
        one.send("b", bytes(30_000))
        one.publish(bytes(30_000))
    assert time.monotonic() - begun < 4


def client(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    opened = context.socket(zmq.DEALER)
    opened.setsockopt(zmq.LINGER, 0)
    opened.setsockopt(zmq.RCVHWM, 1)
    come_with(opened, client_keys(KEYS))
    opened.connect(endpoint)
    return opened


def test_a_client_that_does_not_read_loses_its_answers_and_nobody_waits(sockets: tuple[Transport, Transport]) -> None:
    one, _ = sockets
    with zmq.Context() as context, client(context, f"tcp://{one.endpoint}") as asking:
        asking.send(b"question")
        assert comes(one, one.clients)
        [[route, _question]] = list(take(one.clients))
        begun = time.monotonic()
        delivered = [one.reply(one.clients, [route], bytes(50_000)) for _ in range(4000)]
        assert time.monotonic() - begun < 4
        assert delivered[0] and not delivered[-1]  # and whoever counts them knows
    deadline = time.monotonic() + 5
    while one.reply(one.clients, [route], b"gone"):
        assert time.monotonic() < deadline


def test_what_is_taken_in_a_turn_is_bounded(sockets: tuple[Transport, Transport]) -> None:
    one, _ = sockets
    with zmq.Context() as context, client(context, f"tcp://{one.endpoint}") as asking:
        asking.setsockopt(zmq.SNDHWM, 0)
        for _ in range(BATCH_MOST + 50):
            asking.send(b"small")
        _arrive(one)
        assert len(list(take(one.clients))) == BATCH_MOST
        rest, deadline = 0, time.monotonic() + 5
        while rest < 50:
            rest += len(list(take(one.clients)))
            assert time.monotonic() < deadline
        for _ in range(8):
            asking.send(bytes(1024 * 1024))
        _arrive(one)
        assert len(list(take(one.clients))) == BATCH_MOST_BYTES // (1024 * 1024)


def test_waiting_misses_nothing(sockets: tuple[Transport, Transport]) -> None:
    """A socket's descriptor signals once: what came while it was read from, or sent on, is found all the same."""
    one, two = sockets
    with zmq.Context() as context, client(context, f"tcp://{one.endpoint}") as asking:
        asking.setsockopt(zmq.SNDHWM, 0)
        asking.send(b"first")
        deadline = time.monotonic() + 5
        first: list[list[bytes]] = []
        while not first:  # connections wake it, too
            assert time.monotonic() < deadline
            first = list(take(one.clients)) if one.clients in one.wait(0.2) else []
        [[route, _]] = first
        asking.send(b"second")
        time.sleep(0.2)
        assert one.reply(one.clients, [route], b"answer")
        assert one.clients in one.wait(2)
        assert [frames[-1] for frames in take(one.clients)] == [b"second"]
        for _ in range(3 * BATCH_MOST):
            asking.send(b"small")
        taken = 0
        while taken < 3 * BATCH_MOST:
            assert one.clients in one.wait(2)
            taken += len(list(take(one.clients)))
    two.send("a", b"to you")
    two.publish(b"to all")
    time.sleep(0.2)
    assert {one.peers, one.log} <= one.wait(2)
    list(take(one.peers)), list(take(one.log))


def test_waiting_ends_with_its_time_and_with_a_watched_descriptor(sockets: tuple[Transport, Transport]) -> None:
    one, _ = sockets
    reader, writer = os.pipe()
    one.watch(reader)
    try:
        while one.wait(0.2):
            pass
        begun = time.monotonic()
        assert one.wait(0.2) == set() and time.monotonic() - begun > 0.1
        os.write(writer, b"x")
        assert one.wait(5) == {reader}
    finally:
        os.close(reader)
        os.close(writer)


def _arrive(node: Transport) -> None:
    assert comes(node, node.clients)
    time.sleep(0.3)


def test_an_oversized_frame_costs_its_sender_the_connection(sockets: tuple[Transport, Transport]) -> None:
    one, _ = sockets
    with zmq.Context() as context, client(context, f"tcp://{one.endpoint}") as asking:
        asking.send(bytes(3 * 1024 * 1024))
        asking.send(b"small")
        assert comes(one, one.clients)  # over a new one
        assert [frames[-1] for frames in take(one.clients)] == [b"small"]


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_noise_on_a_port_is_survived(sockets: tuple[Transport, Transport], offset: int) -> None:
    one, two = sockets
    for size in (1, 10, 64, 5000):
        try:
            with socket.create_connection((THERE, PORT + offset), timeout=2) as raw:
                raw.sendall(os.urandom(size))
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.EPIPE)
    deadline, heard = time.monotonic() + 2, set[bytes]()
    one.send("b", b"still there")
    while b"still there" not in heard:  # what looks like ZMTP's first version comes through, as noise
        assert comes(two, two.peers) and time.monotonic() < deadline
        heard |= {frames[-1] for frames in take(two.peers)}


def test_a_client_that_is_slow_to_greet_is_waited_for(run_dir: Path) -> None:
    """On a busy machine whose clients all come at once each of them is."""
    node = Transport(HERE, PORT, run_dir, keys=KEYS)
    with SlowLink(HERE, PORT + 2, 3.0) as link, zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        come_with(client, client_keys(KEYS))
        client.connect(f"tcp://{link.endpoint}")
        client.send(b"hello")
        assert comes(node, node.clients, 8.0)
        assert link.accepted == 1, "it was turned away"
    node.close()
