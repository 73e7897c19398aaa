"""The client library: one client, one thread, plain calls that return when the outcome is known.

    with Client(["10.0.0.1:10001", "10.0.0.2:10001"]) as client:
        revision = client.put(b"key", b"value")
        row = client.get(b"key")

Here are the sockets; when to send what to whom is food/calls.py's business. A Client belongs to the thread that made
it, and does not survive a fork.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import zmq

from .calls import REPLY_MOST_BYTES, FoodError, Outcome, ProtocolError, Request, Unavailable, Worker
from .directory import Directory, address
from .gate import FAILED, FAILED_AUTH, FAILED_PROTOCOL, Events, come_with
from .keyring import Keyring, explain
from .keys import ClientKeys

RUN_DIR = "/run/food"
TIMEOUT_S = 10.0
ROUND_MS = 20  # longest sleep between two looks at the retry rules
STATUS_WAIT_S = 1.0  # for endpoints that do not answer, when others did
REFUSED_PAUSE_S = 1.0  # between two attempts at an endpoint that refused the handshake: ZeroMQ itself tries no more
HANDSHAKE_MS, HEARTBEAT_MS = 8_000, 5_000  # as the servers' (food/transport.py)
CLOSE_WAIT_S = 0.5  # for closing the session; the servers evict what stays behind
RANGE_LIMIT = 1000


class Row(NamedTuple):
    value: bytes
    revision: int


class Item(NamedTuple):
    key: bytes
    value: bytes
    revision: int


class Members(NamedTuple):
    """A member list that is committed."""

    number: int
    members: list[tuple[str, str]]  # node and store


class Status(NamedTuple):
    """What the nodes say: `answers` by endpoint, None where none came; `leader` is the endpoint of the primary.
    `failed`: by endpoint, why no connection to it came about."""

    leader: str | None
    answers: dict[str, dict[str, Any] | None]
    failed: Mapping[str, str] = MappingProxyType({})


def default_endpoints(node_id: str | None = None, run_dir: str = RUN_DIR) -> list[str]:
    """FOOD_ENDPOINTS, unless an ID is named; else this machine's client.sock. Raises Unavailable."""
    if not node_id and os.environ.get("FOOD_ENDPOINTS"):
        return split_endpoints(os.environ["FOOD_ENDPOINTS"])
    return [own_socket(node_id, run_dir)]


def own_socket(node_id: str | None = None, run_dir: str = RUN_DIR) -> str:
    """This machine's client.sock. Raises Unavailable."""
    found = sorted(glob.glob(f"{glob.escape(run_dir)}/{glob.escape(node_id) if node_id else '*'}/client.sock"))
    if not found:
        raise Unavailable(
            f"no {run_dir}/{node_id or '*'}/client.sock: food does not run on this machine, or you are neither root "
            "nor in group food; name nodes with --endpoints host:port,… or FOOD_ENDPOINTS"
        )
    if len(found) > 1:
        names = ", ".join(path.split("/")[-2] for path in found)
        raise Unavailable(f"several clones run on this machine ({names}): choose one with --id")
    return found[0]


def key_giver(endpoints: Sequence[str], node_id: str | None) -> Callable[[], str]:
    """Finds the client.sock to ask for a key: one of the endpoints, else this machine's. It raises Unavailable."""
    own = next((one for one in endpoints if address(one).startswith("ipc://")), None)
    return lambda: own or own_socket(node_id)


def split_endpoints(text: str) -> list[str]:
    """host:port,… → a list. Raises ValueError."""
    endpoints = [part.strip() for part in text.split(",") if part.strip()]
    for endpoint in endpoints:
        address(endpoint)
    return endpoints


class Line:
    """A DEALER to one endpoint, connecting in the background; with `listen` a failed handshake can be heard of."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keyring: Keyring, *, listen: bool = True
    ):
        self.endpoint = endpoint
        self.keys = keyring.keys() if address(endpoint).startswith("tcp://") else None
        self.socket = context.socket(zmq.DEALER)
        self.events = Events(context, self.socket, FAILED) if listen else None
        _connect(self.socket, endpoint, self.keys)

    def failure(self) -> tuple[str, bool] | None:
        """Why the last handshake failed, and whether ZeroMQ gave the connection up."""
        found = None
        for event, value, _ in self.events.take() if self.events else ():
            given_up = event in (FAILED_PROTOCOL, FAILED_AUTH) or (found is not None and found[1])
            found = explain(event, value, self.keys is not None), given_up
        return found

    def outdated(self, keyring: Keyring) -> bool:
        return self.keys is not None and self.keys != keyring.keys()

    def close(self) -> None:
        if self.events:
            self.events.close()
        self.socket.close(0)


def _connect(socket: zmq.Socket[bytes], endpoint: str, keys: ClientKeys | None) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    # Without a connection a send fails at once. Queued for a dead peer it would be sent after its return.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.SNDHWM, 64)
    socket.setsockopt(zmq.MAXMSGSIZE, REPLY_MOST_BYTES)
    # A cut link leaves the kernel's SYN in its backoff (1, 3, 7 s…), and a stopped peer's kernel still accepts:
    # give up on both and start anew. On a handshake not soon: when the role has moved all clients come at once, and
    # where each takes longer than its patience nobody ever gets in.
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 1000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS)
    if endpoint.removeprefix("tcp://").startswith("["):
        socket.setsockopt(zmq.IPV6, 1)
    if keys:
        come_with(socket, keys)
    socket.connect(address(endpoint))


class Client:
    """Raises Unavailable, OutcomeUnknown, CompareFailed, TooLarge, BadRequest, ProtocolError (food/calls.py)."""

    def __init__(
        self,
        endpoints: Sequence[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        node_id: str | None = None,
        key_file: str | None = None,
    ):
        """`key_file`: from `foodctl client-key`. Without it FOOD_KEY_FILE counts, else this machine's food is asked.
        Raises Unavailable, ValueError."""
        self.timeout_s = timeout_s
        self._directory = Directory(endpoints if endpoints else default_endpoints(node_id))
        self._worker = Worker(self._directory)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._keyring = Keyring(self._context, key_file, key_giver(self._directory.configured, node_id))
        self._lines: dict[str, Line] = {}
        self._by_socket: dict[zmq.Socket[bytes], Line] = {}
        self._paused: dict[str, float] = {}  # endpoint: not before
        self._poller = zmq.Poller()
        self._unsent_probes: set[str] = set()
        self._pid = os.getpid()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Requests ---

    def put(self, key: bytes, value: bytes) -> int:
        """Returns the key's new revision."""
        return self._revision(Request("w", "put", (key, value)))

    def delete(self, key: bytes) -> int:
        """Returns the revision of the deletion, 0 if the key was absent."""
        return self._revision(Request("w", "del", (key,)))

    def cas(self, key: bytes, expected_revision: int, value: bytes) -> int:
        """Puts if the key's revision is the expected one (0: absent); else raises CompareFailed, which names it."""
        return self._revision(Request("w", "cas", (key, expected_revision, value)))

    def get(self, key: bytes, stale: bool = False) -> Row | None:
        """The latest acknowledged value; with `stale`, the value at any node that answers."""
        match self._run(Request("s" if stale else "r", "get", (key,))):
            case None:
                return None
            case [bytes(value), int(revision)]:
                return Row(value, revision)
        raise ProtocolError("get was answered with neither a row nor nil")

    def range(self, prefix: bytes, limit: int = RANGE_LIMIT, stale: bool = False) -> list[Item]:
        """The first keys that start with `prefix`, in order. The servers cut long answers (README, "Limits")."""
        match self._run(Request("s" if stale else "r", "range", (prefix, limit))):
            case [*rows]:
                return [_item(row) for row in rows]
        raise ProtocolError("range was answered with something else than rows")

    def change_members(self, number: int, op: str, node: str, store: str, force: bool = False) -> Members:
        """Adds or removes a store, if member list `number` rules; sent again it harms nothing. Raises Refused."""
        match self._run(Request("m", op, (number, node, store, force))):
            case [int(found), str(_), [*members]]:
                return Members(found, [_member(member) for member in members])
        raise ProtocolError("a change of members was answered without a list")

    def found(self, endpoint: str, nodes: Sequence[str]) -> None:
        """Tells one node with whom it is to found the cluster. Raises Refused."""
        self._run(Request("m", "found", (list(nodes),), endpoint))

    def status(self) -> Status:
        """Asks all nodes that are known, and those that these name."""
        self._usable()
        started = time.monotonic()
        deadline = started + min(self.timeout_s, STATUS_WAIT_S)
        answers: dict[str, dict[str, Any]] = {}
        while (now := time.monotonic()) < deadline and len(answers) < len(self._directory.endpoints):
            self._directory.wanted = True
            self._send_probes(now)
            self._receive(ROUND_MS)
            answers = self._directory.answered(started)
        leads = {e: _number(info) for e, info in answers.items() if info.get("role") == "primary"}
        leader = max(leads, key=lambda e: leads[e]) if leads else None
        return Status(leader, {e: answers.get(e) for e in self._directory.endpoints}, dict(self._directory.failed))

    def close(self) -> None:
        """Closes the session if the primary is at hand, and the sockets. The client cannot be used any more."""
        if self._context.closed:
            return
        try:
            if self._pid == os.getpid() and self._worker.finish(time.monotonic(), CLOSE_WAIT_S):
                self._until_done(None)
        finally:
            if self._pid == os.getpid():
                self._context.destroy(linger=0)

    # --- The loop ---

    def _revision(self, request: Request) -> int:
        revision = self._run(request)
        if type(revision) is not int:
            raise ProtocolError(f"{request} was answered without a revision")
        return revision

    def _run(self, request: Request) -> Any:
        self._usable()
        outcome = self._until_done(self._worker.submit(request, time.monotonic(), self.timeout_s))
        if outcome.error:
            raise outcome.error
        return outcome.value

    def _until_done(self, outcome: Outcome | None) -> Outcome:
        try:
            while outcome is None:
                now = time.monotonic()
                outcome = self._worker.expire(now)
                if outcome is None:
                    self._send_due(now)
                    self._send_probes(now)
                    outcome = self._receive(ROUND_MS)
        finally:
            self._worker.interrupt()  # Ctrl-C and the like; nothing to give up otherwise
        return outcome

    def _send_due(self, now: float) -> None:
        target = self._worker.due(now)
        if target is None:
            return
        if self._send(target, self._worker.frame()):
            self._worker.sent(target, now)
        else:
            self._worker.unsendable(now)

    def _send_probes(self, now: float) -> None:
        self._unsent_probes.update(self._directory.probes(now))
        for endpoint in list(self._unsent_probes):
            if self._send(endpoint, self._directory.probe_frame()):
                self._unsent_probes.discard(endpoint)

    def _send(self, endpoint: str, frame: bytes) -> bool:
        """False while there is no connection. The next poll then wakes as soon as there is one."""
        line = self._lines.get(endpoint) or self._open(endpoint)
        if line is None:
            return False
        try:
            line.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._poller.register(line.socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        self._poller.register(line.socket, zmq.POLLIN)
        return True

    def _open(self, endpoint: str) -> Line | None:
        if time.monotonic() < self._paused.get(endpoint, 0.0):
            return None
        line = self._lines[endpoint] = Line(self._context, endpoint, self._keyring)
        assert line.events
        self._by_socket[line.socket] = self._by_socket[line.events.socket] = line
        self._poller.register(line.events.socket, zmq.POLLIN)
        return line

    def _failed(self, line: Line, now: float) -> None:
        """A handshake failed: with another key it goes on at once, and without one at leisure."""
        failure = line.failure()
        if failure is None:
            return
        text, given_up = failure
        self._directory.on_failed(line.endpoint, text, now)
        # Renewed for another line it counts, too: ZeroMQ would try this one's old key for ever.
        renewed = self._keyring.renew(now) or line.outdated(self._keyring)
        if given_up or renewed:
            assert line.events
            for socket in (line.socket, line.events.socket):
                del self._by_socket[socket]
                if socket in self._poller:
                    self._poller.unregister(socket)
            del self._lines[line.endpoint]
            line.close()
            self._paused[line.endpoint] = now if renewed else now + REFUSED_PAUSE_S

    def _receive(self, wait_ms: int) -> Outcome | None:
        for socket, event in self._poller.poll(wait_ms):
            line = self._by_socket.get(socket)
            if line is None:
                continue  # just closed
            if socket is not line.socket:
                self._failed(line, time.monotonic())
                continue
            if event & zmq.POLLOUT:
                self._poller.register(socket, zmq.POLLIN)
            if not event & zmq.POLLIN:
                continue
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                continue
            if len(frames) == 1:
                outcome = self._worker.receive(line.endpoint, frames[0], time.monotonic())
                if outcome:
                    return outcome
        return None

    def _usable(self) -> None:
        if self._pid != os.getpid():
            raise FoodError("a Client does not survive a fork: make a new one in the child")
        if self._context.closed:
            raise FoodError("the Client is closed")


def _item(row: Any) -> Item:
    match row:
        case [bytes(key), bytes(value), int(revision)]:
            return Item(key, value, revision)
    raise ProtocolError("range was answered with something else than [key, value, revision]")


def _member(member: Any) -> tuple[str, str]:
    match member:
        case [str(node), str(store)]:
            return node, store
    raise ProtocolError("a member list holds something else than [node, store]")


def _number(info: dict[str, Any]) -> int:
    match info.get("epoch"):
        case [int(number), *_]:
            return number
    return -1
