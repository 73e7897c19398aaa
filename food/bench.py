"""`foodctl bench`: how many requests a second, and how long each takes.

Every client has a connection and a session of its own, one request outstanding, and one key that it overwrites.
Keys and sessions are removed afterwards.
"""

from __future__ import annotations

import math
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .calls import FoodError, Outcome, Request
from .fleet import Fleet, Member

CLIENTS_MOST = 4000
CLEAN_WAIT_S = 5.0
ERRORS_SHOWN_MOST = 3


@dataclass
class Figures:
    clients: int
    kind: str
    seconds: float
    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    errors: int
    own_cpu_us: (
        float  # processor time that this process itself took for a request: of the same machine, if it shares it
    )
    error_texts: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        clients: int,
        kind: str,
        seconds: float,
        took: Sequence[float],
        cpu_s: float,
        errors: int,
        error_texts: Sequence[str],
    ) -> Figures:
        """`took`: the seconds of each request, in any order."""
        times = sorted(took)
        return cls(
            clients=clients,
            kind=kind,
            seconds=round(seconds, 3),
            requests=len(times),
            per_second=round(len(times) / seconds, 1),
            p50_ms=_percentile_ms(times, 0.5),
            p99_ms=_percentile_ms(times, 0.99),
            worst_ms=_percentile_ms(times, 1.0),
            errors=errors,
            own_cpu_us=round(cpu_s / max(1, len(times)) * 1e6, 1),
            error_texts=list(error_texts),
        )

    def as_map(self) -> dict[str, Any]:
        return asdict(self)


class Stage:
    """One number of clients. The clock starts once every client has had its first answer."""

    def __init__(self, fleet: Fleet, clients: int, value_bytes: int, reads: bool, timeout_s: float):
        self.fleet = fleet
        self.kind = "reads" if reads else "writes"
        self.timeout_s = timeout_s
        self.times = array("d")
        self.errors = 0
        self.error_texts: list[str] = []
        self.first_error: FoodError | None = None
        self.measuring = False
        self.ending = False
        self.working = 0  # clients with a request under way
        run, value = os.urandom(4).hex(), os.urandom(value_bytes)
        keys = [f"bench/{run}/{number}".encode() for number in range(clients)]
        self.first = [Request("w", "put", (key, value)) for key in keys]
        self.requests = [Request("r", "get", (key,)) for key in keys] if reads else self.first
        self.last = [Request("w", "del", (key,)) for key in keys]
        self.members = [fleet.add(self._done) for _ in keys]

    def run(self, seconds: float) -> Figures:
        self._all(self.first, self.timeout_s)
        if self.first_error:
            raise self.first_error
        self.measuring = True
        started, cpu = time.monotonic(), time.process_time()
        now = started
        for member in self.members:
            self._submit(member, self.requests[member.number], now, self.timeout_s)
        while now < started + seconds:
            self.fleet.round(0.1)
            now = time.monotonic()
        self.measuring = False
        cpu = time.process_time() - cpu
        figures = Figures.of(
            len(self.members), self.kind, now - started, self.times, cpu, self.errors, self.error_texts
        )
        self._wait(self.timeout_s)
        self._all(self.last, CLEAN_WAIT_S)
        now = time.monotonic()
        self.working = sum(member.finish(now, CLEAN_WAIT_S) for member in self.members)
        self._wait(CLEAN_WAIT_S)
        return figures

    def _all(self, requests: Sequence[Request], timeout_s: float) -> None:
        """One request of each client."""
        now = time.monotonic()
        for member in self.members:
            self._submit(member, requests[member.number], now, timeout_s)
        self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s + 1
        while self.working and time.monotonic() < deadline:
            self.fleet.round(0.1)

    def _submit(self, member: Member, request: Request, now: float, timeout_s: float) -> None:
        self.working += 1
        member.submit(request, now, timeout_s)

    def _done(self, member: Member, outcome: Outcome, now: float) -> None:
        self.working -= 1
        if outcome.error:
            self.errors += 1
            self.first_error = self.first_error or outcome.error
            if len(self.error_texts) < ERRORS_SHOWN_MOST:
                self.error_texts.append(str(outcome.error))
        if self.measuring:
            if not outcome.error:
                self.times.append(now - member.worker.started)
            self._submit(member, self.requests[member.number], now, self.timeout_s)


def bench(
    endpoints: Sequence[str],
    clients: Sequence[int],
    seconds: float,
    value_bytes: int,
    reads: bool,
    timeout_s: float,
    tell: Callable[[Figures], None],
    key_file: str | None = None,
    node_id: str | None = None,
) -> list[Figures]:
    """A stage for each number of clients; `tell` hears of each as it ends."""
    results = []
    for count in clients:
        fleet = Fleet(endpoints, count, key_file=key_file, node_id=node_id)
        try:
            figures = Stage(fleet, count, value_bytes, reads, timeout_s).run(seconds)
        finally:
            fleet.close()
        tell(figures)
        results.append(figures)
    return results


def _percentile_ms(times: Sequence[float], part: float) -> float:
    """Of sorted seconds; the nearest rank, so that it is a time that was measured."""
    if not times:
        return 0.0
    rank = max(0, min(len(times) - 1, math.ceil(len(times) * part) - 1))
    return round(times[rank] * 1000, 3)
