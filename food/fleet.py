"""Many clients in one thread, a connection each: for `foodctl bench` and for load generators.

All share one Directory, so that a thousand waiting clients do not ask who is primary a thousand times. The loop
must cost little, because it usually shares the processors with the daemons it measures: it waits by epoll on the
sockets' descriptors (zmq.Poller costs a call into libzmq for every socket and round), and looks at all clients'
retry rules only every TICK_S.
"""

from __future__ import annotations

import resource
import select
import time
from collections.abc import Callable, Sequence

import zmq

from .calls import Outcome, Request, Worker
from .client import Line, key_giver
from .directory import PROBE_EVERY_S, Directory
from .keyring import Keyring

TICK_S = 0.01
DRAIN_MOST = 64  # frames taken from one socket before the others have their turn
# A connection that has not come about for so long is begun anew: ZeroMQ may have given it up. Longer than a handshake's
# patience (food/client.py): what is begun anew goes to the end of a crowd.
REOPEN_S = 10.0
FILES_PER_CLIENT = 4  # descriptor of the mailbox, of the connection, of one more of each during a failover
FILES_SPARE = 128

# Plain numbers: pyzmq's enumerations cost a third of receiving a message.
EVENTS, RCVMORE, READABLE, NOBLOCK = int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.POLLIN), int(zmq.NOBLOCK)


class Port:
    """One socket of one client (None: of nobody, for probes). `unsent`: a probe that found no connection yet."""

    __slots__ = ("dirty", "endpoint", "fd", "line", "member", "socket", "unsent", "worked")

    def __init__(self, line: Line, member: Member | None):
        self.line = line
        self.socket = line.socket
        self.endpoint = line.endpoint
        self.member = member
        self.fd = int(line.socket.FD)
        self.worked = time.monotonic()  # when something could be sent last
        self.unsent = False
        self.dirty = False


class Member:
    """One client. `done` is called with each outcome; it may submit the next request at once."""

    def __init__(self, fleet: Fleet, number: int, done: Callable[[Member, Outcome, float], None]):
        self.fleet = fleet
        self.number = number
        self.worker = Worker(fleet.directory)
        self.done = done
        self.ports: dict[str, Port] = {}

    def submit(self, request: Request, now: float, timeout_s: float) -> None:
        outcome = self.worker.submit(request, now, timeout_s)
        if outcome:
            self.done(self, outcome, now)
        else:
            self.fleet.send_due(self, now)

    def finish(self, now: float, timeout_s: float) -> bool:
        """Starts closing the session; False if there is none."""
        if not self.worker.finish(now, timeout_s):
            return False
        self.fleet.send_due(self, now)
        return True


class Fleet:
    """Use: add members, submit their first requests, then call `round` until done; close."""

    def __init__(
        self,
        endpoints: Sequence[str],
        clients_most: int,
        probe_every_s: float = PROBE_EVERY_S,
        key_file: str | None = None,
        node_id: str | None = None,
    ):
        _allow_files(clients_most * FILES_PER_CLIENT + FILES_SPARE)
        self.directory = Directory(endpoints, probe_every_s)
        self.members: list[Member] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, clients_most * 4 + FILES_SPARE)
        self._keyring = Keyring(self._context, key_file, key_giver(endpoints, node_id))
        self._epoll = select.epoll()
        self._ports: dict[int, Port] = {}
        self._probes: dict[str, Port] = {}
        self._dirty: list[Port] = []
        self._next_tick = 0.0
        # Answers to probes are read by a worker that never has a request of its own.
        self._listener = Worker(self.directory)

    def add(self, done: Callable[[Member, Outcome, float], None]) -> Member:
        member = Member(self, len(self.members), done)
        self.members.append(member)
        return member

    def close(self) -> None:
        self._epoll.close()
        self._context.destroy(linger=0)

    def round(self, wait_s: float) -> None:
        """Takes what has come, answers it, and sees to retries; waits at most `wait_s` for something to come."""
        now = time.monotonic()
        if now >= self._next_tick:
            self._tick(now)
        if not self._dirty:
            for fd, _ in self._epoll.poll(min(wait_s, TICK_S)):
                self._mark(self._ports[fd])
        ports, self._dirty = self._dirty, []
        for port in ports:
            port.dirty = False
            if not port.socket.closed:
                self._drain(port)

    def send_due(self, member: Member, now: float) -> None:
        worker = member.worker
        target = worker.due(now)
        if target is None:
            return
        port = member.ports.get(target)
        if port is None:
            port = member.ports[target] = self._open(target, member)
            self._drop_old(member, target)
        try:
            port.socket.send(worker.frame(), NOBLOCK)
        except zmq.Again:
            worker.unsendable(now)
            if now - port.worked > REOPEN_S or port.line.outdated(self._keyring):
                self._shut(port)
                member.ports[target] = self._open(target, member)
            return
        port.worked = now
        worker.sent(target, now)
        # Sending may have taken in, unseen, the signal that a reply is there: look without waiting for epoll.
        self._mark(port)

    # --- Inside ---

    def _tick(self, now: float) -> None:
        self._next_tick = now + TICK_S
        for member in self.members:
            if member.worker.busy:
                outcome = member.worker.expire(now)
                if outcome:
                    member.done(member, outcome, now)
                else:
                    self.send_due(member, now)
        for endpoint in self.directory.probes(now):
            if endpoint not in self._probes:
                self._probes[endpoint] = self._open(endpoint, None)
            self._probes[endpoint].unsent = True
        for port in self._probes.values():
            if port.unsent:
                self._probe(port)

    def _probe(self, port: Port) -> None:
        now = time.monotonic()
        try:
            port.socket.send(self.directory.probe_frame(), zmq.NOBLOCK)
        except zmq.Again:  # no connection yet; the next tick tries again
            if failure := port.line.failure():
                self.directory.on_failed(port.endpoint, failure[0], now)
                self._keyring.renew(now)
            if now - port.worked > REOPEN_S or port.line.outdated(self._keyring):
                self._shut(port)
                self._probes[port.endpoint] = self._open(port.endpoint, None)
                self._probes[port.endpoint].unsent = True
            return
        port.worked = now
        port.unsent = False
        self._mark(port)

    def _drain(self, port: Port) -> None:
        socket, member = port.socket, port.member
        get = socket.getsockopt
        worker = member.worker if member else self._listener
        for _ in range(DRAIN_MOST):
            # Asked first: an empty recv costs an exception, several times as much.
            if not int(get(EVENTS)) & READABLE:
                return
            frame = socket.recv(NOBLOCK)
            if get(RCVMORE):  # no reply of ours, though its last part may look like one
                while get(RCVMORE):
                    socket.recv(NOBLOCK)
                continue
            now = time.monotonic()
            outcome = worker.receive(port.endpoint, frame, now)
            if member is None:
                continue
            if outcome:
                member.done(member, outcome, now)
            elif worker.busy:
                self.send_due(member, now)
            if socket.closed:
                return
        self._mark(port)

    def _mark(self, port: Port) -> None:
        if not port.dirty:
            port.dirty = True
            self._dirty.append(port)

    def _open(self, endpoint: str, member: Member | None) -> Port:
        port = Port(Line(self._context, endpoint, self._keyring, listen=member is None), member)
        self._ports[port.fd] = port
        self._epoll.register(port.fd, select.EPOLLIN)  # level-triggered: nothing is lost by looking late
        return port

    def _drop_old(self, member: Member, target: str) -> None:
        """A client keeps the connections to the primary and to the one before."""
        while len(member.ports) > 2:
            self._shut(member.ports.pop(next(e for e in member.ports if e != target)))

    def _shut(self, port: Port) -> None:
        self._epoll.unregister(port.fd)
        del self._ports[port.fd]
        port.line.close()  # `round` passes over it if it is marked


def _allow_files(count: int) -> None:
    """Raises the soft limit of open files as far as needed and allowed. Raises OSError when it is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise OSError(f"{count} open files are needed, the limit is {hard}: raise it (ulimit -Hn) or use fewer clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
