"""Clients with sessions: pipelining, retries of the same sequence number at any node, and reads of each kind.

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
RETRY_MS = 250  # of whoever opens a session
UNKNOWN_MOST = 8  # retries of one write that say so: then its result is not kept any more


class Habits(NamedTuple):
    step_ms: int = 25
    pipeline: int = 4
    retry_ms: int = 250
    leaves: float = 0.0  # chance, at a step, to go on with another session


USUAL = Habits()
# Slow: late with everything; hasty: asks again before any answer can be here; fickle: has many sessions.
HABITS = (USUAL, USUAL, Habits(300, 8, 1_500), Habits(25, 2, 15), Habits(25, 4, 250, 0.04))


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
    seq: int  # 0: a session is opened or closed
    read: int  # 0: a write
    key: bytes
    floor: Version | None = None  # of a key that is read
    number: int = 0  # of such a read, in the history
    kind: str = "get"
    since: int = 0  # newest committed entry when a range is read


class Write:
    def __init__(self, op: list[Any], number: int, never_ms: int) -> None:
        self.op = op
        self.number = number  # in the history
        self.sent_ms = never_ms
        self.unknown = 0  # how often the answer said so


class Client:
    def __init__(self, clients: Clients, number: int, habits: Habits) -> None:
        self.clients = clients
        self.world = clients.world
        self.number = number
        self.habits = habits
        self.session = 0
        self.seq = 0
        self.waiting: dict[int, Write] = {}  # by seq
        self.revisions: dict[bytes, int] = {}
        self.target = self.world.names[0]
        self.done = self.has_read = 0
        self._former: set[int] = set()  # sessions that it had
        self._opened_ms = -RETRY_MS
        self._written = 0
        self._reads = 0
        self._asking = False  # for something to read, and nobody has answered

    def step(self) -> None:
        rng, habits = self.world.rng, self.habits
        if rng.random() < 0.3:
            self._find()
        if self.session and self.world.chaos and rng.random() < habits.leaves:
            if rng.random() < 0.5:
                self._send(Whose(self.number, 0, 0, 0, b""), [0, 0, 0, "close", self.session])
            self._leave()
        if not self.session:
            self._open()
        else:
            self._write_on()
        if rng.random() < 0.4:
            self._read(rng.choice(KEYS))
        elif self._asking and not self.world.chaos:
            self._find()  # as for a write; by chance alone a slow client would ask too seldom
            self._read(rng.choice(KEYS))
        self.world.after(habits.step_ms, self.step)

    def _open(self) -> None:
        if self.world.now - self._opened_ms >= RETRY_MS:
            if not self.world.chaos:
                self._find()  # like whoever waits for a write
            self._opened_ms = self.world.now
            self._send(Whose(self.number, 0, 0, 0, b""), [0, 0, 0, "open"])

    def _write_on(self) -> None:
        rng, now, habits = self.world.rng, self.world.now, self.habits
        while len(self.waiting) < habits.pipeline and rng.random() < 0.5:
            self.seq += 1
            op = self._new()
            argument = op[2] if op[0] == "put" else tuple(op[2:]) or None
            number = self.clients.history.invoked(self.number, op[0], op[1], argument)
            self.waiting[self.seq] = Write(op, number, now - habits.retry_ms)
        late = [seq for seq, write in self.waiting.items() if now - write.sent_ms >= habits.retry_ms]
        if late and not self.world.chaos:
            self._find()  # not for ever at a node that stays down; in the chaos just that happens, too
        for seq in late:
            self._write(seq, self.waiting[seq])

    def _leave(self) -> None:
        """Whether what waits was done, or will be, is never learned."""
        self._former.add(self.session)
        self.session, self.seq, self.waiting = 0, 0, {}

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
        self._send(Whose(self.number, self.session, seq, 0, b""), [self.session, seq, done, *write.op])

    def _read(self, key: bytes) -> None:
        self._reads += 1
        self._asking = True
        chance = self.world.rng.random()
        if chance < 0.8:
            number = self.clients.history.invoked(self.number, "get", key, None)
            self._send(Whose(self.number, 0, 0, self._reads, key, None, number), None)
        else:
            kind = "range" if chance < 0.95 else "stale"
            self._send(Whose(self.number, 0, 0, self._reads, key[:1], kind=kind), None)

    def _send(self, whose: Whose, command: list[Any] | None) -> None:
        target = self.world.node(self.target)
        packed = None if command is None else msgpack.packb(command)
        for delay in self.world.network.delays("client", self.target):
            self.world.after(delay, self._arrive, target, whose, packed)

    def _arrive(self, target: Node, whose: Whose, packed: bytes | None) -> None:
        watch = self.world.watch
        if whose.read:
            # The read starts here at the latest: whatever is committed by now must be seen.
            floor = watch.floor(whose.key) if whose.kind == "get" else None
            whose = whose._replace(floor=floor, since=len(watch.ledger))
        target.take(Request(whose, packed, whose.key if whose.read else None, kind=whose.kind))

    def _find(self) -> None:
        """A guess at who is primary: often a node that thinks so."""
        rng = self.world.rng
        primaries = [n.name for n in self.world.nodes if n.replica and n.replica.leading]
        self.target = rng.choice(primaries) if primaries and rng.random() < 0.8 else rng.choice(self.world.names)

    def answered(self, whose: Whose, result: Result) -> None:
        if result.status in ("not_primary", "busy"):
            self._find()
        if whose.read:
            self._has_read(whose, result)
        elif whose.seq == 0:
            if result.status == 0 and result.value and not self.session and result.value not in self._former:
                self.session, self.seq, self.waiting = result.value, 0, {}
        elif whose.session == self.session and whose.seq in self.waiting:
            self._has_written(whose.seq, self.waiting[whose.seq], result)

    def _has_read(self, whose: Whose, result: Result) -> None:
        if result.status != 0:
            return
        self.clients.reads += 1
        self.has_read += 1
        self._asking = False
        if whose.kind == "get":
            self.clients.history.returned(whose.number, tuple(result.value or (None, 0)))
            if result.value:
                self.revisions[whose.key] = result.value[1]

    def _has_written(self, seq: int, write: Write, result: Result) -> None:
        match result.status:
            case 0 | "compare":
                del self.waiting[seq]
                self.clients.history.returned(write.number, _learned(result))
                self.done += 1
            case "not_primary" | "busy" | "order" | "no_space":
                write.sent_ms = min(write.sent_ms, self.world.now - self.habits.retry_ms + 30)
            case "session":  # evicted, or closed
                self.world.count("session lost")
                self._leave()
            case "unknown":  # the retry of the same sequence number will tell, if its result is still kept
                write.unknown += 1
                if write.unknown == UNKNOWN_MOST:
                    self.world.count("result lost")
                    self._leave()
            case other:
                raise Violation(f"answer {other}: {result.value}")


class Clients:
    def __init__(self, world: Simulation, count: int) -> None:
        self.world = world
        self.reads = 0
        self.history = History(world)
        self.all = [self._new(number) for number in range(count)]
        for client in self.all:
            world.after(world.rng.randrange(client.habits.step_ms), client.step)

    def _new(self, number: int) -> Client:
        return Client(self, number, self.world.rng.choice(HABITS))

    def answered(self, node: Node, whose: object, result: Result) -> None:
        """An answer leaves `node`: judged here, whether or not it arrives."""
        if isinstance(whose, Order):
            self.world.operators.answered(node, whose, result)
            return
        assert isinstance(whose, Whose)
        watch = self.world.watch
        if whose.seq:
            watch.on_write_answer(node, whose.session, whose.seq, result)
        elif whose.read and result.status == 0:
            if whose.kind == "range":
                watch.on_range_answer(node, whose.key, whose.since, result.value)
            elif whose.kind == "stale":
                watch.on_stale_answer(node, whose.key, result.value)
            else:
                assert whose.floor is not None
                watch.on_read_answer(node, whose.key, whose.floor, result.value)
        client = self.all[whose.client]
        for delay in self.world.network.delays(node.name, "client"):
            self.world.after(delay, client.answered, whose, result)
