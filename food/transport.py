"""ZeroMQ sockets of the daemon. Moves frames; decodes none.

    log      PUB  tcp base port      what the primary publishes     SUB connected to every peer
    peers    ROUTER tcp base + 1     one-to-one messages            a DEALER connected to every peer
    clients  ROUTER tcp base + 2     on further addresses, too, if told so
    local    ROUTER ipc client.sock  clients of this machine
    control  ROUTER ipc control.sock the agent

What is tcp speaks CURVE, unless there are no keys (food/gate.py: who is let in). The ipc sockets are kept by their
files' permissions.
A DEALER only sends and the peers' ROUTER only receives: no reply path that a vanished identity could break.
Everything may be dropped silently; the protocol repairs that (heartbeats, Fetch, resends).
"""

from __future__ import annotations

import errno
import os
import select
import socket as sockets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import zmq

from .codec import FRAME_MOST_BYTES
from .gate import (
    CLIENTS,
    FAILED_AUTH,
    FAILED_PROTOCOL,
    PEERS,
    Events,
    Gate,
    come_with,
    public_of,
    serve_with,
)
from .keys import ClientKeys, Keys
from .wire import PEER_FRAME_MOST_BYTES

BATCH_MOST = 1_000  # messages taken from one socket in a turn
BATCH_MOST_BYTES = 4 * 1024 * 1024  # and their size: a turn must end well within the watchdog's patience
PEER_QUEUE_MOST = 1_000
CLIENT_QUEUE_MOST = 1_000
CONTROL_QUEUE_MOST = 100
ASKED_MOST = 3
BIND_PATIENCE_S = 3.0
BACKLOG = 1024
# Looking again for so long before the sleep, as long as something comes: waking a processor that fell asleep between a
# write's hops costs more than the hop, the more so in a virtual machine. Others go first (sched_yield).
SPIN_S = 0.000_2
RELINK_MS = 1_000  # how soon a link is made anew whose handshake failed: ZeroMQ itself never tries again

# Longer than the handshakes of all clients at once take on a busy machine, of which each has a small share: given up
# sooner none of them would ever end, and all would begin again.
HANDSHAKE_MS = 8_000
# Clients' heartbeats are answered by the same thread as all handshakes: a crowd of these must not end what stands.
CLIENT_HEARTBEAT_MS = 5_000

# Linux: bind to an address that is not here, or not yet. Python names neither.
IP_FREEBIND, IPV6_FREEBIND = 15, 78

# Plain numbers: pyzmq's enumerations cost a third of receiving a message.
_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS, _READABLE, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVMORE)

# Links heal fast on a LAN: a dead connection is noticed by ZeroMQ's own heartbeat, and a SYN in a cut link is given
# up early instead of waiting for TCP's backoff.
_LINK_OPTIONS = {
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 500,
    zmq.HEARTBEAT_TIMEOUT: 1500,
    zmq.CONNECT_TIMEOUT: 1000,
    zmq.HANDSHAKE_IVL: HANDSHAKE_MS,  # a stopped peer's kernel accepts, and nobody says hello
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 500,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


class CannotListen(Exception):
    """An address that cannot be bound; the text names it and the remedy."""


class Transport:
    def __init__(self, address: str, port: int, run_dir: Path, *, keys: Keys | None):
        """Without `keys` everything is plaintext. Raises CannotListen."""
        self._context = zmq.Context()
        self._epoll = select.epoll()
        self._busy = False  # whether something came the last time
        self._watched: dict[int, zmq.Socket[bytes] | int] = {}
        # Sockets that may hold messages of which their descriptor says nothing (any more).
        self._unsure: set[zmq.Socket[bytes]] = set()
        self._address = address
        self._port = port
        self.endpoint = f"{_bracketed(address)}:{port + 2}"  # where clients reach this node
        self._own = [address] if address.startswith("127.") else [address, "127.0.0.1"]
        self._further: set[str] = set()  # where clients are heard, too
        self._addresses: dict[str, str] = {}
        self._relinked_ms = 0
        self.gate = Gate(self._context)  # before any bind: without it everybody would be let in
        self._watch(int(self.gate.zap.FD), self.gate.zap)
        self.local = self._router(CLIENT_QUEUE_MOST)
        self.control = self._router(CONTROL_QUEUE_MOST)
        try:
            self._open(keys)
            self._bind_ipc(self.local, run_dir / "client.sock", 0o660)
            self._bind_ipc(self.control, run_dir / "control.sock", 0o600)
        except CannotListen:
            self.close()
            raise
        for socket in (self.local, self.control):
            self._watch(int(socket.FD), socket)

    def _open(self, keys: Keys | None) -> None:
        """What is tcp. Raises CannotListen."""
        self.keys = keys
        self.gate.admit(keys)
        self._dealers: dict[str, tuple[zmq.Socket[bytes], Events]] = {}
        self._publisher = self._socket(zmq.PUB, PEER_QUEUE_MOST, PEER_FRAME_MOST_BYTES)
        self.peers = self._socket(zmq.ROUTER, PEER_QUEUE_MOST, PEER_FRAME_MOST_BYTES)
        self.clients = self._router(CLIENT_QUEUE_MOST)
        self.log = self._socket(zmq.SUB, PEER_QUEUE_MOST, PEER_FRAME_MOST_BYTES)
        self.log.subscribe(b"")
        self._as_node = ClientKeys(public_of(keys.node), keys.node) if keys else None
        if self._as_node:
            come_with(self.log, self._as_node)
        self._log_events = Events(self._context, self.log, FAILED_PROTOCOL | FAILED_AUTH)
        for socket, domain, port in (
            (self._publisher, PEERS, "log port"),
            (self.peers, PEERS, "peers' port"),
            (self.clients, CLIENTS, "clients' port"),
        ):
            if keys:
                serve_with(socket, keys, domain)
            events = self.gate.watch(socket, port, keyed=keys is not None)
            self._watch(int(events.FD), events)
        self._bind_tcp(self._publisher, self._address, self._port)
        self._bind_tcp(self.peers, self._address, self._port + 1)
        for one in self._own:
            self._bind_tcp(self.clients, one, self._port + 2)
        for socket in (self.log, self.peers, self.clients):
            self._watch(int(socket.FD), socket)

    def change_keys(self, keys: Keys | None) -> list[str]:
        """Every tcp connection ends and is made anew; answers on the way to clients are lost. Raises CannotListen, and
        returns what `hear_clients_at` does."""
        addresses, further = dict(self._addresses), sorted(self._further)
        self.set_peers({})
        for socket in (self.log, self.peers, self.clients, *self.gate.doors):
            self._unwatch(socket)
        self.gate.unwatch()
        self._log_events.close()
        for socket in (self.log, self.peers, self.clients, self._publisher):
            socket.close(0)
        self._further.clear()
        self._open(keys)
        self.set_peers(addresses)
        deadline = time.monotonic() + BIND_PATIENCE_S
        while (errors := self.hear_clients_at(further)) and time.monotonic() < deadline:
            time.sleep(0.05)  # ZeroMQ's own thread lets go of the old ones
        return errors

    def _router(self, queue_most: int) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.ROUTER, queue_most, FRAME_MOST_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, CLIENT_HEARTBEAT_MS)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that cannot be delivered is counted
        return socket

    def _socket(self, kind: int, queue_most: int, frame_most_bytes: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        for option, value in _LINK_OPTIONS.items():
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.SNDHWM, queue_most)
        socket.setsockopt(zmq.RCVHWM, queue_most)
        socket.setsockopt(zmq.MAXMSGSIZE, frame_most_bytes)
        socket.setsockopt(zmq.BACKLOG, BACKLOG)
        return socket

    def _bind_tcp(self, socket: zmq.Socket[bytes], address: str, port: int) -> None:
        """A predecessor that was just killed may still be giving the port back."""
        deadline = time.monotonic() + BIND_PATIENCE_S
        while True:
            try:
                socket.setsockopt(zmq.IPV6, int(":" in address))
                socket.bind(f"tcp://{_bracketed(address)}:{port}")
                return
            except zmq.ZMQError as error:
                if time.monotonic() >= deadline or error.errno not in (zmq.EADDRINUSE, zmq.EADDRNOTAVAIL):
                    why = f"{zmq.strerror(error.errno or 0)}; {_remedy(error.errno)}"  # pyzmq's own text has more
                    raise CannotListen(f"cannot listen on {address}:{port}: {why}") from None
                time.sleep(0.05)

    def hear_clients_at(self, addresses: Sequence[str]) -> list[str]:
        """Hears clients on these further addresses, which may come later, and no more on earlier ones; what went wrong.

        Never waits: it is called in a running daemon, too.
        """
        port, errors = self._port + 2, []
        wanted = set(addresses) - set(self._own)
        for address in sorted(self._further - wanted):
            self.clients.unbind(f"tcp://{_bracketed(address)}:{port}")
            self._further.discard(address)
        for address in sorted(wanted - self._further):
            try:
                _bind_ahead(self.clients, address, port)
                self._further.add(address)
            except (zmq.ZMQError, OSError) as error:
                errors.append(
                    f"cannot listen on {address}:{port}: {zmq.strerror(error.errno or 0)}; {_remedy(error.errno)}"
                )
        return errors

    def _bind_ipc(self, socket: zmq.Socket[bytes], path: Path, mode: int) -> None:
        try:
            path.unlink(missing_ok=True)
            socket.bind(f"ipc://{path}")
            os.chmod(path, mode)
        except (OSError, zmq.ZMQError) as error:
            raise CannotListen(f"cannot listen on {path}: {error}; the run directory must be ours to write") from None

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Connects to every peer in `addresses` (node: IP address) and leaves the others."""
        for node in [node for node, address in self._addresses.items() if addresses.get(node) != address]:
            self._leave(node)
            self._leave_log(self._addresses.pop(node))
        self._unsure.add(self.log)
        for node, address in addresses.items():
            if node not in self._addresses:
                self._addresses[node] = address
                self._reach(node)
                self._reach_log(address)

    def _reach(self, node: str) -> None:
        dealer = self._socket(zmq.DEALER, PEER_QUEUE_MOST, PEER_FRAME_MOST_BYTES)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # no queue for a peer that is not there
        if self._as_node:
            come_with(dealer, self._as_node)
        self._dealers[node] = dealer, Events(self._context, dealer, FAILED_PROTOCOL | FAILED_AUTH)
        _connect(dealer, self._addresses[node], self._port + 1)

    def _reach_log(self, address: str) -> None:
        _connect(self.log, address, self._port)

    def _leave(self, node: str) -> None:
        dealer, events = self._dealers.pop(node)
        events.close()
        dealer.close(0)

    def _leave_log(self, address: str) -> None:
        try:
            self.log.disconnect(f"tcp://{_bracketed(address)}:{self._port}")
        except zmq.ZMQError as error:
            if error.errno != errno.ENOENT:  # ZeroMQ itself has given it up
                raise

    def relink(self, now_ms: int) -> None:
        """Makes links anew that ZeroMQ gave up: it takes a failed handshake for final, but the other end may only be
        about to change its keys."""
        if now_ms - self._relinked_ms < RELINK_MS:
            return
        self._relinked_ms = now_ms
        for node, (_, events) in list(self._dealers.items()):
            if list(events.take()):
                self._leave(node)
                self._reach(node)
        failed = {endpoint for _, _, endpoint in self._log_events.take()}
        for address in self._addresses.values():
            if f"tcp://{_bracketed(address)}:{self._port}" in failed:
                self._leave_log(address)
                self._reach_log(address)

    def client_endpoint(self, node: str) -> str | None:
        """Where clients reach `node`, if its address is known."""
        return f"{_bracketed(self._addresses[node])}:{self._port + 2}" if node in self._addresses else None

    # --- Receiving ---

    def watch(self, descriptor: int) -> None:
        """`wait` names it, too."""
        self._watch(descriptor, descriptor)

    def _watch(self, descriptor: int, what: zmq.Socket[bytes] | int) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._watched[descriptor] = what
        if isinstance(what, zmq.Socket):
            self._unsure.add(what)

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        self._epoll.unregister(int(socket.FD))
        del self._watched[int(socket.FD)]
        self._unsure.discard(socket)

    def wait(self, wait_s: float) -> set[zmq.Socket[bytes] | int]:
        """The sockets, and other descriptors, that may have something to read; sleeps at most so long for it. Who
        wants in is attended to here.

        A tenth of what zmq.Poller costs, which asks every socket twice. A socket's descriptor signals once, and any
        call may swallow the signal: who was read from or sent on is asked, before the sleep, whether there is more.
        """
        found: set[zmq.Socket[bytes] | int] = {socket for socket in self._unsure if _readable(socket)}
        events = self._poll(0 if found else wait_s)
        found.update(self._watched[descriptor] for descriptor, _ in events)
        self._busy = bool(found)
        self._unsure = {what for what in found if not isinstance(what, int)}
        return found - self.gate.attend(found)

    def _poll(self, wait_s: float) -> list[tuple[int, int]]:
        """epoll's events; before it sleeps it looks for a moment, unless nothing came the last time either."""
        spin_until_s = time.monotonic() + (min(SPIN_S, wait_s) if self._busy else 0.0)
        while not (events := self._epoll.poll(0)) and time.monotonic() < spin_until_s:
            os.sched_yield()
        return events or (self._epoll.poll(wait_s) if wait_s else events)

    # --- Sending: never waits ---

    def reply(self, socket: zmq.Socket[bytes], route: list[bytes], frame: bytes) -> bool:
        """Answers a request that came with `route`; False when the asker is gone or does not read."""
        if socket.closed:
            return False  # it came before the keys were changed
        self._unsure.add(socket)
        return _send(socket, [*route, frame])

    def publish(self, frame: bytes) -> None:
        _send(self._publisher, [frame])

    def send(self, node: str, frame: bytes) -> None:
        if link := self._dealers.get(node):
            _send(link[0], [frame])

    def close(self) -> None:
        self._epoll.close()
        self._context.destroy(linger=0)


def _bind_ahead(socket: zmq.Socket[bytes], address: str, port: int) -> None:
    """Listens on an address that this node need not have, as a virtual one: ZeroMQ is given a listener that does."""
    six = ":" in address
    with sockets.socket(sockets.AF_INET6 if six else sockets.AF_INET, sockets.SOCK_STREAM) as listener:
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        if six:
            listener.setsockopt(sockets.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            listener.setsockopt(sockets.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        socket.setsockopt(zmq.IPV6, int(six))
        socket.setsockopt(zmq.USE_FD, listener.fileno())
        try:
            socket.bind(f"tcp://{_bracketed(address)}:{port}")
            listener.detach()  # it is ZeroMQ's to close
        finally:
            socket.setsockopt(zmq.USE_FD, -1)


def _connect(socket: zmq.Socket[bytes], address: str, port: int) -> None:
    socket.setsockopt(zmq.IPV6, int(":" in address))
    socket.connect(f"tcp://{_bracketed(address)}:{port}")


def _send(socket: zmq.Socket[bytes], frames: list[bytes]) -> bool:
    """Part by part: half the price of send_multipart. A message that finds no room fails with its first part; if a
    later one ever did, what is sent next would go to the wrong client: that must end the process."""
    first, *rest = frames
    try:
        socket.send(first, _MORE if rest else _NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            raise
        return False
    for part in rest[:-1]:
        socket.send(part, _MORE)
    if rest:
        socket.send(rest[-1], _NOBLOCK)
    return True


def take(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    """The messages that wait, up to a batch."""
    receive, get = socket.recv, socket.getsockopt
    size = 0
    for number in range(BATCH_MOST):
        # An empty receive costs an exception, as much as asking some times: a lone message's end is asked for.
        if number < ASKED_MOST and not _readable(socket):
            return
        try:
            frames = [receive(_NOBLOCK)]
        except zmq.Again:
            return
        while get(_RCVMORE):
            frames.append(receive(_NOBLOCK))
        yield frames
        size += len(frames[-1])
        if size >= BATCH_MOST_BYTES:
            return


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(_EVENTS)) & _READABLE)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _remedy(errno: int | None) -> str:
    if errno == zmq.EADDRINUSE:
        return "another program, or another resource's food, has that port: choose another `port`"
    if errno == zmq.EADDRNOTAVAIL:
        return "that address is not one of this node's: check `address` or Corosync's node list"
    return "check `address` and `port`"
