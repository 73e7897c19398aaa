"""The event loop of one simulated world: a safety phase full of faults, then a liveness phase without any."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from food.core import donor
from food.core.message import Message

from .clients import Clients, Seen
from .faults import Faults
from .invariants import Invariants, Violation
from .limits import limited
from .manager import Manager
from .network import FAIR, Network
from .node import Node
from .operators import Operators
from .tempers import Temper, temper

CHAOS_MS = 8_000
SERVE_WITHIN_MS = 8_000  # plus the scores' hold-down, which doubles with every loss
CONVERGE_WITHIN_MS = 6_000
MEND_WITHIN_MS = 8_000  # some seconds a member: lists are changed one at a time
MEND_MS = 100
TRACE_LINES_MOST = 200_000


class Outcome(NamedTuple):
    seed: int
    commits: int
    acknowledged: int
    reads: int
    promotions: int
    faults: dict[str, int]
    broken: str | None  # the rule, if one was
    trace: list[str]
    history: list[Seen]  # what clients did and saw: tests/sim/clients.py


class Simulation:
    def __init__(self, seed: int, trace: bool = False, steer: Temper | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ticket = 0
        self._trace: list[str] | None = [] if trace else None
        self.counts: Counter[str] = Counter()
        self.temper = steer or temper(self.rng)
        self.chaos, self.mended = True, False
        self.names = [f"n{number}" for number in range(1, self.rng.choice(self.temper.sizes) + 1)]
        self.corosync = self.names
        self.late_ms = self.rng.randrange(1_000, CHAOS_MS)  # a node that misses the first start comes by then
        self.network = Network(self.rng)
        self.watch = Invariants(self)
        self.nodes = [Node(self, name) for name in self.names]
        self._by_name = {node.name: node for node in self.nodes}
        self.clients = Clients(self, self.rng.choice((2, 3, 4)))
        self.manager = Manager(self)
        self.faults = Faults(self)
        self.operators = Operators(self)

    # --- What the parts of the world use ---

    def node(self, name: str) -> Node:
        return self._by_name[name]

    def may_start(self, node: Node) -> bool:
        return node.name in self.corosync and (not self.chaos or self.operators.may_start(node))

    def after(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        self._ticket += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._ticket, action, args))

    def mostly_short(self, most_ms: int) -> int:
        """A time that is short most of the time: long outages teach little and cost much."""
        return 10 + int(most_ms * self.rng.random() ** 4)

    def carry(self, source: Node, target: str, message: Message) -> None:
        receiver = self._by_name[target]
        for delay in self.network.delays(source.name, target):
            self.after(delay, receiver.take, (source.disk.member, message))
        if self._trace is not None:
            self.note(source.name, f"-> {target} {message}")

    def count(self, fault: str) -> None:
        self.counts[fault] += 1
        if self._trace is not None:
            self.note("", f"fault: {fault}")

    def note(self, who: str, text: str) -> None:
        if self._trace is not None and len(self._trace) < TRACE_LINES_MOST:
            self._trace.append(f"{self.now:6} {who:3} {text}")

    # --- Phases ---

    def run(self) -> Outcome:
        broken = None
        with limited(small=self.rng.random() < self.temper.small):
            try:
                self._run()
            except Exception as error:
                broken = f"{type(error).__name__}: {error}"
                if self._trace is not None:
                    import traceback

                    self._trace.append(traceback.format_exc())
        faults = {**self.counts, "message lost": self.network.lost, "message doubled": self.network.doubled}
        return Outcome(
            self.seed,
            len(self.watch.ledger),
            self.watch.acknowledged,
            self.clients.reads,
            self.watch.promotions,
            faults,
            broken,
            self._trace or [],
            self.clients.history.rows(),
        )

    def _run(self) -> None:
        for node in self.nodes:
            self.after(self.rng.randrange(50), node.start)
            if not self.operators.may_start(node):
                self.after(self.late_ms + 1, node.start)
        self.after(200, self._managing)
        self._until(CHAOS_MS, lambda: False)
        self._calm()
        acknowledged, reads, within_ms = self.watch.acknowledged, self.clients.reads, SERVE_WITHIN_MS + self._hold_ms()
        if not self._until(within_ms, lambda: self.watch.acknowledged > acknowledged):
            raise Violation(f"liveness: no write served within {within_ms} ms: {self._why()}")
        if not self._until(within_ms, lambda: self.clients.reads > reads):
            raise Violation(f"liveness: no read served within {within_ms} ms: {self._why()}")
        if not self._until(CONVERGE_WITHIN_MS, self._level):
            raise Violation(f"liveness: backups do not catch up within {CONVERGE_WITHIN_MS} ms: {self._why()}")
        self._mending()
        if not self._until(MEND_WITHIN_MS, lambda: self.mended):
            raise Violation(f"liveness: not every node is a member within {MEND_WITHIN_MS} ms: {self._why()}")

    def _mending(self) -> None:
        self.mended = self.operators.mend()
        if not self.mended:
            self.after(MEND_MS, self._mending)

    def _until(self, most_ms: int, done: Callable[[], bool]) -> bool:
        end = self.now + most_ms
        queue = self._queue
        while queue and queue[0][0] <= end:
            if queue[0][0] != self.now:
                if done():
                    return True
                self.now = queue[0][0]
            _, _, action, args = heapq.heappop(queue)
            action(*args)
        self.now = end
        return done()

    def _managing(self) -> None:
        if self.chaos:
            self.manager.step()
            self.after(self.rng.randrange(20, self.temper.manage_ms), self._managing)
        else:
            self.manager.sane(budget_ms=2_000)
            self.after(100, self._managing)

    def _calm(self) -> None:
        """Faults stop, every node runs; which stores were lost is kept within what the promises allow."""
        self.note("", "calm")
        self.chaos = False
        donor.RANGE_MOST_BYTES = 2_000  # a backup must be able to overtake the clients
        self.network.cuts, self.network.weather = {}, FAIR
        self.corosync = self.names
        for node in self.nodes:
            node.armed, node.paused_until_ms = None, 0
            node.start()
            node.hear_of_nodes()
        if not self.watch.lists:
            self.operators.found_all()

    def _hold_ms(self) -> int:
        return max(node.running.scores._hold_ms for node in self.nodes)

    def _level(self) -> bool:
        """Every node that runs holds what the primary holds, and applied what it committed lately."""
        behind = len(self.watch.ledger) - 20
        return all(node.up and node.running.local.commit >= behind for node in self.nodes) and any(
            node.up and node.running.role == "primary" for node in self.nodes
        )

    def _why(self) -> str:
        return "; ".join(
            f"{node.name} {node.running.role} commit {node.running.local.commit} {node.running.wish}"
            for node in self.nodes
            if node.up
        )


def run(seed: int, trace: bool = False, steer: Temper | None = None) -> Outcome:
    return Simulation(seed, trace, steer).run()


def counted(seed: int, steer: Temper | None = None) -> Outcome:
    """One world of many: without its history, which would take the memory of whoever counts."""
    return run(seed, steer=steer)._replace(history=[])
