"""One long world in which many clients count: exactly once through sessions, over failovers, up to a number.

A counter is a key that holds a number, and an increment a compare-and-set: whether a retry is told the first result,
and not that somebody was faster, decides if the counters end at what the clients believe to have counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from food.core.state import Result

from .clients import Client, Clients, Habits, Whose, Write
from .invariants import Violation
from .limits import LARGE
from .node import TICK_MS
from .simulator import CONVERGE_WITHIN_TICKS, SERVE_WITHIN_TICKS, Simulation
from .tempers import Temper

CLIENTS = 64
SHARED = (b"shared 1", b"shared 2")  # counters of every eighth client each; all others have one of their own
HABITS = Habits(step_ms=50)
SLICE_MS = 1_000
PATIENCE_SLICES = 120  # without an increment: nothing counts any more
COUNTING = Temper(
    "counting", (3,), hostile=0.05, stale=0.02, manage_ms=400, faults_ms=(600, 1_200), strike=0.5, wipes=0.01
)


class Incrementer(Client):
    """Increments one counter, over and over."""

    def __init__(self, clients: Counters, number: int) -> None:
        super().__init__(clients, number, HABITS)
        self.counters = clients
        self.key = SHARED[number % 8] if number % 8 < len(SHARED) else b"own %d" % number
        self.counted = 0
        self._read_ms = 0

    def step(self) -> None:
        now = self.world.now
        if self.world.rng.random() < 0.2:
            self._find()
        if not self.session:
            self._open()
        elif not self.waiting:
            if now - self._read_ms >= HABITS.retry_ms:
                self._look()
        else:
            for seq, write in self.waiting.items():
                if now - write.sent_ms >= HABITS.retry_ms:
                    self._write(seq, write)
        self.world.after(HABITS.step_ms, self.step)

    def _look(self) -> None:
        if not self.counters.enough:
            self._reads += 1
            self._read_ms = self.world.now
            self._send(Whose(self.number, 0, 0, self._reads, self.key), None)

    def _has_read(self, whose: Whose, result: Result) -> None:
        if result.status == 0 and whose.read == self._reads and not self.waiting:
            value, revision = result.value or (b"0", 0)
            self._increment(int(value), revision)

    def _increment(self, value: int, revision: int) -> None:
        if not self.counters.enough:
            self.seq += 1
            write = self.waiting[self.seq] = Write(["cas", self.key, revision, b"%d" % (value + 1)], 0, 0)
            self._write(self.seq, write)

    def _has_written(self, seq: int, write: Write, result: Result) -> None:
        if result.status == 0:
            del self.waiting[seq]
            self.counted += 1
            self.counters.counted += 1
            self._increment(int(write.op[-1]), result.value)
        elif result.status == "compare":
            if self.key not in SHARED:
                raise Violation(f"{self.key!r} was changed by somebody else than its only client: {result.value}")
            del self.waiting[seq]  # somebody else was faster
            self._look()
        elif result.status not in ("not_primary", "busy", "no_space", "unknown"):
            raise Violation(f"answer {result.status}: {result.value}")


class Counters(Clients):
    def __init__(self, world: Simulation) -> None:
        self.counted = 0
        self.enough = False
        self.incrementers: list[Incrementer] = []
        super().__init__(world, CLIENTS)

    def _new(self, number: int) -> Client:
        self.incrementers.append(Incrementer(self, number))
        return self.incrementers[-1]

    def settled(self) -> bool:
        return not any(client.waiting for client in self.all)

    def compare(self) -> None:
        """What stands there is what was counted, counter by counter, on every node."""
        believed: Counter[bytes] = Counter()
        for client in self.incrementers:
            believed[client.key] += client.counted
        for node in self.world.nodes:
            there = {key: int(row.value) for key, row in node.running.local.state.rows.items()}
            if there != +believed:
                wrong = sorted(key for key in {*there, *believed} if there.get(key, 0) != believed[key])
                told = ", ".join(f"{key!r} is {there.get(key, 0)}, counted {believed[key]}" for key in wrong[:5])
                raise Violation(f"{len(wrong)} counters on {node.name} are not exact: {told}")


class Counting(Simulation):
    """Counts at least so far, over at least so many promotions."""

    def __init__(
        self, seed: int, increments: int, promotions: int, progress: Callable[[int, int], None] = lambda _, __: None
    ) -> None:
        self._increments, self._promotions, self._progress = increments, promotions, progress
        super().__init__(seed, steer=COUNTING, limits=LARGE)

    def _new_clients(self) -> Clients:
        self.counters = Counters(self)
        return self.counters

    def _run(self) -> None:
        self._begin()
        counters, watch, silent = self.counters, self.watch, 0

        def enough() -> bool:
            return counters.counted >= self._increments and watch.promotions >= self._promotions

        while not enough():
            before = counters.counted
            self._until(self.now + SLICE_MS, enough)
            silent = 0 if counters.counted > before else silent + 1
            if silent == PATIENCE_SLICES:
                raise Violation(f"nothing was counted within {silent * SLICE_MS} ms: {self._why()}")
            self._progress(counters.counted, watch.promotions)
        counters.enough = True
        self._calm()
        within = SERVE_WITHIN_TICKS + self._hold_ms() // TICK_MS
        self._must_within(within, counters.settled, "not every increment is answered")
        self._return()
        self._must_within(CONVERGE_WITHIN_TICKS, self._all_level, "backups do not catch up")
        counters.compare()

    def _all_level(self) -> bool:
        return self._level() and all(node.running.local.commit == len(self.watch.ledger) for node in self.nodes)
