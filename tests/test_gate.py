"""Who gets in at which port, who does not, and that it is counted (food/gate.py); links that are made anew."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from food import gate
from food.gate import client_keys, come_with, public_of
from food.keys import ClientKeys, Keys, derive
from food.transport import RELINK_MS, Transport, take

PORT = 19_930
HERE, THERE = "127.0.2.5", "127.0.2.6"
KEYS, OTHER = derive(bytes(range(64)), "food", "/key"), derive(bytes(range(64)), "other", "/key")
LOG, PEERS, CLIENTS = 0, 1, 2
PORTS = {LOG: "log port", PEERS: "peers' port", CLIENTS: "clients' port"}
WITHIN_S = 5.0


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="food-", dir="/tmp") as name:
        for part in ("a", "b"):
            (Path(name) / part).mkdir()
        yield Path(name)


@contextlib.contextmanager
def opened(run_dir: Path, address: str = HERE, keys: Keys | None = KEYS) -> Iterator[Transport]:
    node = Transport(address, PORT, run_dir / ("a" if address == HERE else "b"), keys=keys)
    try:
        yield node
    finally:
        node.close()


def until(condition: Callable[[], object], *nodes: Transport) -> bool:
    """Runs the nodes' loops until it holds."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        for node in nodes:
            node.wait(0.005)
        if time.monotonic() > deadline:
            return False
    return True


@contextlib.contextmanager
def knocking(port: int, keys: ClientKeys | None) -> Iterator[zmq.Socket[bytes]]:
    """Somebody at a port of the node HERE, who says something there."""
    with zmq.Context() as context, context.socket(zmq.SUB if port == LOG else zmq.DEALER) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.setsockopt(zmq.RECONNECT_IVL, 20)
        if keys:
            come_with(asking, keys)
        if port == LOG:
            asking.subscribe(b"")
        asking.connect(f"tcp://{HERE}:{PORT + port}")
        if port != LOG:
            asking.send(b"let me in", zmq.NOBLOCK)
        yield asking


def heard(node: Transport, port: int, asking: zmq.Socket[bytes]) -> bool:
    if port == LOG:
        node.publish(b"what is written")
        return bool(asking.poll(0))
    return any(frames[-1] == b"let me in" for frames in take(node.peers if port == PEERS else node.clients))


NODE = ClientKeys(public_of(KEYS.node), KEYS.node)
CLIENT = client_keys(KEYS)
FRIENDS = [(LOG, NODE), (PEERS, NODE), (CLIENTS, NODE), (CLIENTS, CLIENT)]
WRONG = {
    "no key": (None, gate.NO_KEY),
    "a key of another cluster": (client_keys(OTHER), gate.OTHER_KEY),
    "our server's key and one of its own": (ClientKeys(CLIENT.server, os.urandom(32)), gate.NOT_ADMITTED),
}
STRANGERS = [(port, *wrong) for port in PORTS for wrong in WRONG.values()]
STRANGERS += [(port, CLIENT, gate.NOT_ADMITTED) for port in (LOG, PEERS)]


@pytest.mark.parametrize(("port", "keys"), FRIENDS)
def test_who_has_the_key_of_a_port_is_let_in(run_dir: Path, port: int, keys: ClientKeys) -> None:
    with opened(run_dir) as node, knocking(port, keys) as asking:
        assert until(lambda: heard(node, port, asking), node)
        assert not node.gate.totals


@pytest.mark.parametrize(("port", "keys", "kind"), STRANGERS)
def test_strangers_are_refused_and_counted(run_dir: Path, port: int, keys: ClientKeys | None, kind: str) -> None:
    got_in = []
    with opened(run_dir) as node, knocking(port, keys) as asking:

        def refused() -> bool:
            got_in.append(heard(node, port, asking))
            return bool(node.gate.totals)

        assert until(refused, node)
        end = time.monotonic() + 0.3  # and later attempts fare no better
        assert until(lambda: refused() and time.monotonic() > end, node)
        assert not any(got_in)
        assert set(node.gate.totals) == {kind}
        (text,) = {text.replace(gate.UNKNOWN, HERE).replace("127.0.0.1", HERE) for text in node.gate.refused}
        if kind == gate.NOT_ADMITTED:
            whose = ", a client's" if keys == CLIENT else ""
            assert text == f"from {HERE} on the {'clients' if port == CLIENTS else 'peers'}' ports{whose}: {kind}"
        else:
            assert text == f"from {HERE} on the {PORTS[port]}: {kind}"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: food\r\n\r\n" + bytes(64), gate.NO_ZMTP),
        (b"\x01\x00\x05hello", gate.NO_ZMTP),  # ZMTP 1, which knows no keys
        (b"\xff" + bytes(7) + b"\x01\x7f\x01\x05", gate.NO_ZMTP),  # ZMTP 2, which knows none either
        (b"", gate.NO_KEY),
    ],
)
@pytest.mark.parametrize("port", PORTS)
def test_who_speaks_something_else_is_refused_and_counted(run_dir: Path, port: int, said: bytes, kind: str) -> None:
    with opened(run_dir) as node:
        with socket.create_connection((HERE, PORT + port)) as raw:
            raw.sendall(said)
            if said:
                assert until(lambda: node.gate.totals, node)
        assert until(lambda: node.gate.totals[kind], node), node.gate.totals
        assert not list(take(node.peers)) and not list(take(node.clients))


def test_a_crowd_of_strangers_takes_bounded_room(run_dir: Path) -> None:
    with opened(run_dir) as node:
        for number in range(3 * gate.KINDS_MOST):
            node.gate._count(gate.NO_KEY, f"from 10.0.0.{number} on the log port")
        assert len(node.gate.refused) == gate.KINDS_MOST + 1
        assert node.gate.refused[f"elsewhere: {gate.NO_KEY}"] == 2 * gate.KINDS_MOST
        assert node.gate.totals == {gate.NO_KEY: 3 * gate.KINDS_MOST}


def test_local_clients_need_no_key_and_tcp_on_loopback_does(run_dir: Path) -> None:
    with opened(run_dir) as node, zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.connect(f"ipc://{run_dir}/a/client.sock")
        asking.send(b"hello")
        assert until(lambda: [frames[-1] for frames in take(node.local)] == [b"hello"], node)
        assert not list(take(node.clients)), "who may ask for keys is told by the socket"


def linked(one: Transport, two: Transport) -> Callable[[], bool]:
    """Messages and the log go both ways."""
    got: set[tuple[str, str]] = set()

    def look() -> bool:
        for name, node, other in (("one", one, "b"), ("two", two, "a")):
            node.send(other, b"hello")
            node.publish(b"to all")
            for kind, sock in (("log", node.log), ("peers", node.peers)):
                if list(take(sock)):
                    got.add((name, kind))
            node.relink(int(time.monotonic() * 1000))
        return len(got) == 4

    return look


@contextlib.contextmanager
def pair(run_dir: Path, one_keys: Keys | None, two_keys: Keys | None) -> Iterator[tuple[Transport, Transport]]:
    with opened(run_dir, keys=one_keys) as one, opened(run_dir, THERE, two_keys) as two:
        one.set_peers({"b": THERE})
        two.set_peers({"a": HERE})
        yield one, two


@pytest.mark.parametrize(("before", "after"), [(KEYS, OTHER), (None, KEYS), (KEYS, None)])
def test_keys_are_changed_one_node_after_the_other(run_dir: Path, before: Keys | None, after: Keys | None) -> None:
    """Between the two changes they are strangers; then the links come back, even those that ZeroMQ gave up."""
    with pair(run_dir, before, before) as (one, two):
        assert until(linked(one, two), one, two)
        assert one.change_keys(after) == []
        apart = time.monotonic() + 2.5 * RELINK_MS / 1000
        met = linked(one, two)
        while time.monotonic() < apart:
            assert not met()
            one.wait(0.005), two.wait(0.005)
        assert one.gate.totals and two.gate.totals, "each has seen the other as a stranger"
        assert two.change_keys(after) == []
        assert until(linked(one, two), one, two)


def test_who_waited_for_an_answer_over_the_old_keys_holds_nothing_up(run_dir: Path) -> None:
    with opened(run_dir) as node, knocking(CLIENTS, CLIENT):
        questions: list[list[bytes]] = []

        def asked() -> bool:
            questions.extend(take(node.clients))
            return bool(questions)

        assert until(asked, node)
        door = node.clients
        node.change_keys(OTHER)
        assert node.reply(door, questions[0][:-1], b"too late") is False
        node.wait(0.01)
        node.wait(0.01)


def test_without_the_handler_nobody_is_let_in(run_dir: Path) -> None:
    """ZeroMQ's own default lets any key in where no ZAP handler is bound."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bare:
        gate.serve_with(bare, KEYS, gate.CLIENTS)
        bare.bind(f"tcp://{HERE}:{PORT + CLIENTS}")
        with knocking(CLIENTS, CLIENT):
            assert not bare.poll(500)
