"""Clients with sessions: pipelining, retries of the same sequence number at any node, and linearizable reads.

What they did and saw is kept as a history for a checker that knows nothing of nodes, logs or epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from food.core.state import Result

from .invariants import Violation
from .model import Version
from .node import Node, Request
from .operators import Order

if TYPE_CHECKING:
    from .simulator import Simulation

KEYS = [b"a", b"ab", b"b", b"c", b"d"]
RETRY_MS = 250
STEP_MS = 25
PIPELINE = 4


# One operation as its client saw it: (client, op, key, argument, result, invoked_at, returned_at).
#   op    argument             result, None where it was never learned
#   get   None                 (value, revision); (None, 0) of an absent key
#   put   value                revision
#   del   None                 revision, 0 of an absent key
#   cas   (revision, value)    revision, or ("compare", the revision found, 0 of an absent key)
# Moments are microseconds of simulated time, no two alike. A write that was never answered (returned_at is None) may
# have happened, may happen at any later moment, or never; a read that was not is left out.
Seen = tuple[int, str, bytes, Any, Any, int, int | None]


class History:
    """Every operation once, however often it was sent; in the order in which they began."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._moment = 0
        self._seen: list[list[Any]] = []

    def _now(self) -> int:
        self._moment = max(self._moment + 1, self._world.now * 1000)
        return self._moment

    def invoked(self, client: int, op: str, key: bytes, argument: Any) -> int:
        """Returns its number, for `returned`."""
        self._seen.append([client, op, key, argument, None, self._now(), None])
        return len(self._seen) - 1

    def returned(self, number: int, result: Any) -> None:
        """The first answer that arrives counts."""
        seen = self._seen[number]
        if seen[-1] is None:
            seen[4], seen[6] = result, self._now()

    def rows(self) -> list[Seen]:
        return [tuple(seen) for seen in self._seen if seen[1] != "get" or seen[6] is not None]


def _learned(result: Result) -> Any:
    return result.value if result.status == 0 else (result.status, result.value["revision"])


class Whose(NamedTuple):
    client: int
    session: int
    seq: int  # 0: a session is opened
    read: int  # 0: a write
    key: bytes
    floor: Version | None
    number: int = 0  # of a read, in the history


class Write:
    def __init__(self, op: list[Any], number: int) -> None:
        self.op = op
        self.number = number  # in the history
        self.sent_ms = -RETRY_MS


class Client:
    def __init__(self, clients: Clients, number: int) -> None:
        self.clients = clients
        self.world = clients.world
        self.number = number
        self.session = 0
        self.seq = 0
        self.waiting: dict[int, Write] = {}  # by seq
        self.revisions: dict[bytes, int] = {}
        self.target = self.world.names[0]
        self._opened_ms = -RETRY_MS
        self._written = 0
        self._reads = 0

    def step(self) -> None:
        rng, now = self.world.rng, self.world.now
        if rng.random() < 0.3:
            self._find()
        if not self.session:
            if now - self._opened_ms >= RETRY_MS:
                self._opened_ms = now
                self._send(Whose(self.number, 0, 0, 0, b"", None), [0, 0, 0, "open"])
        else:
            while len(self.waiting) < PIPELINE and rng.random() < 0.5:
                self.seq += 1
                op = self._new()
                argument = op[2] if op[0] == "put" else tuple(op[2:]) or None
                self.waiting[self.seq] = Write(op, self.clients.history.invoked(self.number, op[0], op[1], argument))
            for seq, write in self.waiting.items():
                if now - write.sent_ms >= RETRY_MS:
                    self._write(seq, write)
        if rng.random() < 0.4:
            self._read(rng.choice(KEYS))
        self.world.after(STEP_MS, self.step)

    def _new(self) -> list[Any]:
        rng = self.world.rng
        key = rng.choice(KEYS)
        self._written += 1
        value = b"%d-%d" % (self.number, self._written)
        chance = rng.random()
        if chance < 0.6:
            return ["put", key, value]
        if chance < 0.8:
            return ["del", key]
        return ["cas", key, self.revisions.get(key, 0), value]

    def _write(self, seq: int, write: Write) -> None:
        write.sent_ms = self.world.now
        done = min(self.waiting) - 1
        self._send(Whose(self.number, self.session, seq, 0, b"", None), [self.session, seq, done, *write.op])

    def _read(self, key: bytes) -> None:
        self._reads += 1
        number = self.clients.history.invoked(self.number, "get", key, None)
        whose = Whose(self.number, 0, 0, self._reads, key, None, number)
        self._send(whose, None)

    def _send(self, whose: Whose, command: list[Any] | None) -> None:
        target = self.world.node(self.target)
        packed = None if command is None else msgpack.packb(command)
        for delay in self.world.network.delays("client", self.target):
            self.world.after(delay, self._arrive, target, whose, packed)

    def _arrive(self, target: Node, whose: Whose, packed: bytes | None) -> None:
        if whose.read:
            # The read starts here at the latest: whatever is committed by now must be seen.
            whose = whose._replace(floor=self.world.watch.floor(whose.key))
        target.take(Request(whose, packed, whose.key if whose.read else None))

    def _find(self) -> None:
        """A guess at who is primary: often a node that thinks so."""
        rng = self.world.rng
        primaries = [n.name for n in self.world.nodes if n.replica and n.replica.leading]
        self.target = rng.choice(primaries) if primaries and rng.random() < 0.8 else rng.choice(self.world.names)

    def answered(self, whose: Whose, result: Result) -> None:
        if whose.read:
            if result.status == 0:
                self.clients.reads += 1
                self.clients.history.returned(whose.number, tuple(result.value or (None, 0)))
                if result.value:
                    self.revisions[whose.key] = result.value[1]
            return
        if result.status in ("not_primary", "busy"):
            self._find()
        if whose.seq == 0:
            if result.status == 0 and not self.session:
                self.session, self.seq, self.waiting = result.value, 0, {}
            return
        if whose.session != self.session or whose.seq not in self.waiting:
            return
        match result.status:
            case 0 | "compare":
                write = self.waiting.pop(whose.seq)
                self.clients.history.returned(write.number, _learned(result))
                self.clients.done += 1
            case "session":
                raise Violation("a session that is in use is known")
            case "not_primary" | "busy" | "order":
                self.waiting[whose.seq].sent_ms = min(self.waiting[whose.seq].sent_ms, self.world.now - RETRY_MS + 30)
            case "unknown":
                pass  # the retry of the same sequence number will tell
            case other:
                raise Violation(f"answer {other}: {result.value}")


class Clients:
    def __init__(self, world: Simulation, count: int) -> None:
        self.world = world
        self.done = 0
        self.reads = 0
        self.history = History(world)
        self.all = [Client(self, number) for number in range(count)]
        for client in self.all:
            world.after(world.rng.randrange(STEP_MS), client.step)

    def answered(self, node: Node, whose: object, result: Result) -> None:
        """An answer leaves `node`: judged here, whether or not it arrives."""
        if isinstance(whose, Order):
            self.world.operators.answered(node, whose, result)
            return
        assert isinstance(whose, Whose)
        watch = self.world.watch
        if whose.read:
            if result.status == 0:
                assert whose.floor is not None
                watch.on_read_answer(node, whose.key, whose.floor, result.value)
        elif whose.seq:
            watch.on_write_answer(node, whose.session, whose.seq, result)
        client = self.all[whose.client]
        for delay in self.world.network.delays(node.name, "client"):
            self.world.after(delay, client.answered, whose, result)
