"""A stand-in for a cluster: client sockets of several nodes over one state, in one thread, with faults on demand.

It speaks what a client may rely on and nothing more; that the daemon speaks the same is for tests/ with real
daemons to show. `primary` may be set from the test's thread at any time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import zmq

from food.codec import BadFrame, pack, unpack
from food.core.state import BadCommand, Result, State


class StandIn:
    """`faults` are taken one for each read or write that reaches the primary:

    ok, ignore (nothing executed, no reply), mute (executed, no reply), twice (two replies), late (executed; the reply
    comes with the next request's), garbage (bad replies, then none), or a code (not executed, this status).
    """

    def __init__(self, nodes: int = 3, endpoints: Sequence[str] = ()):
        self.state = State()
        self.index = 0
        self.epoch = 1
        self.primary: int | None = 0
        self.claims: dict[int, int] = {}  # node → epoch: believes that it leads, but cannot commit
        self.stopped: set[int] = set()  # these take nothing from their sockets
        self.hints = True
        self.amnesia = False  # forgets what it executed: a retry is executed again
        self.faults: deque[str] = deque()
        self.requests: list[tuple[int, str]] = []  # (node, kind) of each read and write, in order
        self.probes = 0
        self._late: list[list[bytes]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self.endpoints: list[str] = []
        for number in range(nodes):
            socket = self._context.socket(zmq.ROUTER)
            socket.setsockopt(zmq.LINGER, 0)
            if endpoints:
                socket.bind(f"ipc://{endpoints[number]}")
                self.endpoints.append(endpoints[number])
            else:
                self.endpoints.append(f"127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
            self._sockets.append(socket)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def promote(self, node: int) -> None:
        self.epoch += 1
        self.primary = node

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._ending.is_set():
            events = dict(poller.poll(5))
            for node, socket in enumerate(self._sockets):
                if socket in events and node not in self.stopped:
                    self._drain(node, socket)

    def _drain(self, node: int, socket: zmq.Socket[bytes]) -> None:
        for _ in range(1000):
            try:
                who, frame = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            for reply in self._answer(node, frame):
                socket.send_multipart([who, reply])

    def _answer(self, node: int, frame: bytes) -> list[bytes]:
        try:
            number, kind, body = unpack(frame, 4_000_000)
        except (BadFrame, ValueError):
            return []
        if kind == "i":
            self.probes += 1
            return [pack([number, 0, self._info(node)])]
        self.requests.append((node, kind))
        if kind == "s":
            return [pack([number, *self.state.query(body[0], body[1:])])]
        if node in self.claims:
            return []
        if node != self.primary:
            return [pack([number, "not_primary", {"text": "this node is a backup", **self._hint()}])]
        fault = self.faults.popleft() if self.faults else "ok"
        if fault not in ("ok", "ignore", "mute", "twice", "late", "garbage"):
            return [pack([number, fault, {"text": f"the test wants {fault}"}])]
        if fault == "ignore":
            return []
        reply = pack([number, *self._execute(kind, body)])
        if fault == "mute":
            return []
        if fault == "late":
            self._late.append([reply])
            return []
        if fault == "garbage":
            return [b"", b"\xc1", pack(7), pack([number]), pack([str(number), 0, 1]), pack([number + 1000, 0, 99])]
        late = [frame for frames in self._late for frame in frames]
        self._late.clear()
        return [*late, reply, reply] if fault == "twice" else [*late, reply]

    def _execute(self, kind: str, body: Any) -> Result:
        if kind == "r":
            return self.state.query(body[0], body[1:])
        try:
            self.state.check(body)
        except BadCommand as error:
            return Result(error.code, {"text": str(error)})
        session, seq, *_ = unpack(body, 4_000_000)
        if self.amnesia and session in self.state.sessions:
            self.state.sessions[session].seq = seq - 1
        self.index += 1
        return self.state.apply(self.index, body)

    def _hint(self) -> dict[str, Any]:
        if self.primary is None or not self.hints:
            return {}
        return {"primary": self.endpoints[self.primary], "node": f"n{self.primary + 1}"}

    def _info(self, node: int) -> dict[str, Any]:
        leads = node == self.primary or node in self.claims
        leader = None
        if self.primary is not None and self.hints:
            leader = {"node": f"n{self.primary + 1}", "endpoint": self.endpoints[self.primary]}
        members = [
            {
                "node": f"n{number + 1}",
                "store": f"s{number + 1}",
                "voting": True,
                "role": "primary" if number == self.primary else "backup",
                "epoch": [self.epoch, "s1"],
                "last": self.index,
                "lag": 0,
                "state": "in sync",
                "score": 100 - number,
                "since_s": 12.5,
            }
            for number in range(len(self.endpoints))
        ]
        return {
            "node": f"n{node + 1}",
            "cluster": "c",
            "role": "primary" if leads else "backup",
            "epoch": [self.claims.get(node, self.epoch), "s1"],
            "primary": leader,
            "commit": self.index,
            "last": self.index,
            "applied": self.index,
            "revision": self.state.revision,
            "members": members,
            "self": {"store": f"s{node + 1}"},
        }
