"""Who is let in at the tcp ports, and who tried in vain: ZAP (RFC 27), and what ZeroMQ tells of failed handshakes.

In the daemon's own loop, without a thread. ZeroMQ asks here only about those who proved to hold some key and knew ours;
whoever has none, or speaks to another key, it turns away itself, and all that can be had is an event. It names
the connection's descriptor, from which the address is read if the connection still stands by then.
"""

from __future__ import annotations

import errno
import itertools
import socket as sockets
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Set

import zmq
from zmq.utils import z85

from .keys import ClientKeys, Keys

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
PEERS, CLIENTS = b"peers", b"clients"  # ZAP domains
EVENTS_A_TURN = 200
KINDS_MOST = 40
UNKNOWN = "an unknown address"

# Who has no key mostly hangs up first, when it hears that one is wanted: told from other hanging up only by luck.
NO_KEY, WANTS_KEY, HUNG_UP, OTHER_KEY, NOT_ADMITTED, NO_ZMTP, SILENT = (
    "no key, or hung up",
    "it has a key, and here is none",
    "hung up",
    "made for another key",
    "key not admitted",
    "no ZMTP",
    "silent",
)
MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
FAILED_PROTOCOL, FAILED_OTHERWISE, FAILED_AUTH, SUCCEEDED, ACCEPTED, DISCONNECTED = (
    int(event)
    for event in (
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        zmq.EVENT_HANDSHAKE_SUCCEEDED,
        zmq.EVENT_ACCEPTED,
        zmq.EVENT_DISCONNECTED,
    )
)
FAILED = FAILED_PROTOCOL | FAILED_OTHERWISE | FAILED_AUTH

_names = itertools.count()


def public_of(secret: bytes) -> bytes:
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def client_keys(keys: Keys) -> ClientKeys:
    return ClientKeys(public_of(keys.node), keys.client)


def serve_with(socket: zmq.Socket[bytes], keys: Keys, domain: bytes) -> None:
    """Before bind. A missing ZAP handler must not mean that everybody is let in."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.node)
    socket.setsockopt(zmq.ZAP_DOMAIN, domain)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def come_with(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    """Before connect."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public_of(keys.secret))


class Events:
    """A socket's events as they come, without a bound that could hold ZeroMQ's own thread up."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], events: int):
        name = f"inproc://events-{next(_names)}"
        self._socket = socket
        socket.monitor(name, events)
        self.socket = context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(name)

    def take(self) -> Iterator[tuple[int, int, str]]:
        """(event, value, endpoint), up to a turn's worth."""
        for _ in range(EVENTS_A_TURN):
            try:
                head, endpoint = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event, value = struct.unpack("=hi", head)
            yield event & 0xFFFF, value, endpoint.decode(errors="replace")

    def close(self) -> None:
        """Before the socket that it tells of."""
        self._socket.disable_monitor()
        self.socket.close(0)


class Door:
    """A listening socket's connections that are not through the handshake yet."""

    def __init__(self, port: str, keyed: bool):
        self._port = port
        self._keyed = keyed
        self._opened: dict[int, tuple[str, int]] = {}  # descriptor: (address, `_settled` by then)
        self._settled = 0  # handshakes that came to an answer, yes or no
        self._kind = ""

    def hear(self, event: int, value: int) -> tuple[str, str] | None:
        """(kind, where from and to) of one that was turned away. Its failure and its end come one after the other."""
        if event == ACCEPTED:
            self._opened[value] = (_address(value), self._settled)
        elif event in (SUCCEEDED, FAILED_AUTH):  # the latter is counted where it was said
            self._settled += 1
        elif event == FAILED_PROTOCOL and value == MISMATCH:
            self._kind = NO_KEY if self._keyed else WANTS_KEY
        elif event == FAILED_PROTOCOL:
            self._kind = OTHER_KEY if value == CRYPTOGRAPHIC else NO_ZMTP
        elif event == FAILED_OTHERWISE:
            self._kind = SILENT if value == errno.EAGAIN else NO_KEY if self._keyed else HUNG_UP
        elif event == DISCONNECTED:
            address, settled = self._opened.pop(value, (UNKNOWN, -1))
            kind, self._kind = self._kind, ""
            if not kind and settled == self._settled:
                kind = NO_ZMTP  # nobody's handshake has come to an answer since it came: its own has not
            if kind:
                return kind, f"from {address} on the {self._port}"
        return None


class Gate:
    """`refused`: what was turned away since somebody last emptied it; `totals`: by kind, since the start."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]):
        self.refused: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self._context = context
        self._admitted: Mapping[bytes, Set[bytes]] = {}
        self._client = b""
        self.doors: dict[zmq.Socket[bytes], tuple[Events, Door]] = {}
        self.zap = context.socket(zmq.ROUTER)
        self.zap.setsockopt(zmq.LINGER, 0)
        self.zap.bind(ZAP_ENDPOINT)

    def admit(self, keys: Keys | None) -> None:
        """Whose keys are let in at which port. Before any bind."""
        if keys is None:
            self._admitted = {}
            return
        node, self._client = public_of(keys.node), public_of(keys.client)
        self._admitted = {PEERS: {node}, CLIENTS: {node, self._client}}

    def watch(self, socket: zmq.Socket[bytes], port: str, keyed: bool) -> zmq.Socket[bytes]:
        """Before bind; what to wait for."""
        events = Events(self._context, socket, ACCEPTED | SUCCEEDED | FAILED | DISCONNECTED)
        self.doors[events.socket] = events, Door(port, keyed)
        return events.socket

    def unwatch(self) -> None:
        for events, _ in self.doors.values():
            events.close()
        self.doors.clear()

    def attend(self, ready: Set[object]) -> Set[object]:
        """Answers ZeroMQ's questions, and counts. Returns those of `ready` that are the gate's."""
        mine = {socket for socket in (self.zap, *self.doors) if socket in ready}
        if self.zap in mine:
            self._answer()
        for socket, (events, door) in self.doors.items():
            if socket in mine:
                for event, value, _ in events.take():
                    if found := door.hear(event, value):
                        self._count(*found)
        return mine

    def _answer(self) -> None:
        for _ in range(EVENTS_A_TURN):
            try:
                frames = self.zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            route, empty, version, request, domain, address, _, mechanism, *credentials = frames
            admitted = mechanism == b"CURVE" and credentials[0] in self._admitted.get(domain, set())
            status, text = (b"200", b"OK") if admitted else (b"400", b"this key is not admitted here")
            if not admitted:
                whose = ", a client's" if credentials and credentials[0] == self._client else ""
                self._count(
                    NOT_ADMITTED, f"from {address.decode(errors='replace')} on the {domain.decode()}' ports{whose}"
                )
            self.zap.send_multipart([route, empty, version, request, status, text, b"", b""], zmq.NOBLOCK)

    def _count(self, kind: str, where: str) -> None:
        self.totals[kind] += 1
        text = f"{where}: {kind}"
        self.refused[text if text in self.refused or len(self.refused) < KINDS_MOST else f"elsewhere: {kind}"] += 1


def _address(descriptor: int) -> str:
    """The other end of a connection that ZeroMQ owns, and may have closed: nothing may be closed or kept here."""
    try:
        borrowed = sockets.socket(fileno=descriptor)
    except OSError:
        return UNKNOWN
    try:
        return str(borrowed.getpeername()[0])
    except (OSError, IndexError):
        return UNKNOWN
    finally:
        borrowed.detach()
