"""The event loop of one simulated world: a safety phase full of faults, then a liveness phase without any."""

from __future__ import annotations

import heapq
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import linear

from food.core import donor
from food.core.message import Message
from food.wire import decode, encode

from .budget import Budget
from .clients import Clients, Seen
from .faults import Faults
from .invariants import Invariants, Violation
from .limits import ROOMY, SMALL, Limits, bounded, sessions
from .manager import Manager
from .network import FAIR, Network
from .node import TICK_MS, Node
from .operators import Operators
from .tempers import Temper, temper
from .trace import Trace

CHAOS_MS = 8_000
# Liveness, in ticks of a node, counted from the moment in which the faults stop (or the last of them, below).
SERVE_WITHIN_TICKS = (
    160  # for every client a write and a read; plus the scores' hold-down, which doubles with every loss
)
CONVERGE_WITHIN_TICKS = 120
MEND_WITHIN_TICKS = 160  # some seconds a member: lists are changed one at a time
MEND_MS = 100
FRAMED = 0.05  # share of worlds whose messages go through frames, as on the wire: the rest need not pay for it


class Outcome(NamedTuple):
    seed: int
    commits: int
    acknowledged: int
    reads: int
    promotions: int
    faults: dict[str, int]
    served_ticks: int  # from the end of the faults until every client was served
    broken: str | None  # the rule, if one was
    ended_ms: int
    trace: list[str]
    useful: list[str]  # of it, about what broke
    history: list[Seen]  # what clients did and saw: tests/sim/clients.py


class Simulation:
    def __init__(
        self, seed: int, trace: bool = False, steer: Temper | None = None, limits: Limits | None = None
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.now = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._ticket = 0
        self._trace = Trace() if trace else None
        self.counts: Counter[str] = Counter()
        self.temper = steer or temper(self.rng)
        self.chaos, self.mended = True, False
        self.away: list[Node] = []  # who stays broken when the faults stop
        self.down: dict[str, None] = {}  # stays down for a while
        self.names = [f"n{number}" for number in range(1, self.rng.choice(self.temper.sizes) + 1)]
        self.corosync = self.names
        self.late_ms = self.rng.randrange(1_000, CHAOS_MS)  # a node that misses the first start comes by then
        self.network = Network(self.rng)
        small = self.rng.random() < self.temper.small
        self._limits = limits or (SMALL if small else ROOMY)
        self.sessions = sessions(self._limits)
        self.watch = Invariants(self)
        self.nodes = [Node(self, name) for name in self.names]
        self._by_name = {node.name: node for node in self.nodes}
        self.clients = self._new_clients()
        self.manager = Manager(self)
        self.faults = Faults(self)
        self.operators = Operators(self)
        self.budget = Budget(self)
        self.served_ticks = 0
        self._framed = self.rng.random() < FRAMED

    def _new_clients(self) -> Clients:
        return Clients(self, self.rng.choice((2, 3, 4)))

    # --- What the parts of the world use ---

    def node(self, name: str) -> Node:
        return self._by_name[name]

    def may_start(self, node: Node) -> bool:
        return (
            node.name in self.corosync
            and node.name not in self.down
            and (not self.chaos or self.operators.may_start(node))
        )

    def after(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        self._ticket += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._ticket, action, args))

    def mostly_short(self, most_ms: int) -> int:
        """A time that is short most of the time: long outages teach little and cost much."""
        return 10 + int(most_ms * self.rng.random() ** 4)

    def carry(self, source: Node, target: str, message: Message, published: bool = False) -> None:
        receiver, network = self._by_name[target], self.network
        if published and network.queues:
            delays = network.published(source.name, target, self.now)
        else:
            delays = network.delays(source.name, target)
        if self._framed:
            members = source.running.local.log.members
            frame = encode(members.cluster if members else "", source.disk.member, message)
            message = decode(frame).message
        for delay in delays:
            self.after(delay, receiver.take, (source.disk.member, message))
        if self._trace is not None:
            self._trace.sent(self.now, source.name, target, message)

    def count(self, fault: str) -> None:
        self.counts[fault] += 1
        if self._trace is not None:
            self._trace.note(self.now, "", f"fault: {fault}")

    def note(self, who: str, text: str) -> None:
        if self._trace is not None:
            self._trace.note(self.now, who, text)

    # --- Phases ---

    def run(self) -> Outcome:
        broken, index = None, None
        with bounded(self._limits):
            try:
                self._run()
            except Exception as error:
                broken = f"{type(error).__name__}: {error}"
                index = error.index if isinstance(error, Violation) else None
                expected = isinstance(error, Violation)
                self.note(self.watch.at, broken if expected else "".join(traceback.format_exception(error)))
        history = self.clients.history.rows()
        if broken is None and (why := linear.check(history, whole=True)):
            broken = f"Violation: what clients saw is not linearizable: {why}"
            self.note("", broken)
        network = self.network
        messages = Counter(
            {
                "message lost": network.lost,
                "message doubled": network.doubled,
                "message late": network.slowed,
                "published message dropped": network.dropped,
            }
        )
        return Outcome(
            self.seed,
            len(self.watch.ledger),
            self.watch.acknowledged,
            self.clients.reads,
            self.watch.promotions,
            dict(self.counts + messages),
            self.served_ticks,
            broken,
            self.now,
            self._trace.whole() if self._trace else [],
            self._trace.useful(self.watch.at, index) if self._trace else [],
            history,
        )

    def _begin(self) -> None:
        for node in self.nodes:
            self.after(self.rng.randrange(50), node.start)
            if not self.operators.may_start(node):
                self.after(self.late_ms + 1, node.start)
        self.after(200, self._managing)

    def _run(self) -> None:
        self._begin()
        self._until(CHAOS_MS, lambda: False)
        self._calm()
        self._serve()
        self._return()
        self._must_within(CONVERGE_WITHIN_TICKS, self._level, "backups do not catch up")
        self._mending()
        self._must_within(MEND_WITHIN_TICKS, lambda: self.mended, "not every node is a member")

    def _serve(self) -> None:
        """Every client is served: a write, and a read."""
        began_ms, clients = self.now, self.clients.all
        before = [(client.done, client.has_read) for client in clients]

        def served() -> bool:
            return all(c.done > done and c.has_read > read for c, (done, read) in zip(clients, before, strict=True))

        self._must_within(SERVE_WITHIN_TICKS + self._hold_ms() // TICK_MS, served, "not every client is served")
        self.served_ticks = (self.now - began_ms) // TICK_MS

    def _must_within(self, ticks: int, done: Callable[[], bool], otherwise: str) -> None:
        if not self._until(self.now + ticks * TICK_MS, done):
            raise Violation(f"liveness: {otherwise} within {ticks} ticks: {self._why()}")

    def _mending(self) -> None:
        self.mended = self.operators.mend()
        if not self.mended:
            self.after(MEND_MS, self._mending)

    def _until(self, end: int, done: Callable[[], bool]) -> bool:
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
        """Faults stop, but for what may stay broken: tests/sim/budget.py. Every other node runs."""
        self.note("", "calm")
        self.chaos = False
        donor.RANGE_MOST_BYTES = 2_000  # a backup must be able to overtake the clients
        network = self.network
        network.cuts, network.queues, network.weather = {}, {}, FAIR
        self.corosync = self.names
        self.away = away = self.budget.stay_broken() if self.rng.random() < 0.5 else []
        for node in self.nodes:
            node.armed, node.paused_until_ms, node.unreadable_until_ms, node.short_until_ms = None, 0, 0, 0
            node.clock.change(self.now)
            if away:
                node.forget_changes()  # asked for before anybody could know who stays away
            node.start()
            node.hear_of_nodes()
        for node in away:
            kind = self.rng.choice(("down", "down", "in", "out", "both"))
            self.count(f"stays {'down' if kind == 'down' else 'cut off: ' + kind}")
            if kind == "down":
                node.crash()
                self.down[node.name] = None
            else:
                network.isolate(node.name, self.names, kind != "out", kind != "in")
        if not any(node.up and node.running.local.log.members for node in self.nodes):
            self.operators.found_all()  # also where a list was written once and lost before it was saved anywhere

    def _return(self) -> None:
        """What stayed broken comes back."""
        self.note("", "all return")
        self.network.cuts, self.down, self.away = {}, {}, []
        for node in self.nodes:
            node.start()

    def _hold_ms(self) -> int:
        return max(node.running.scores._hold_ms for node in self.nodes if node.up)

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
