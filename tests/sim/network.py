"""Links between nodes: loss, doubles, delay without order, cuts in one direction, and PUB at its high-water mark.

Published and direct messages have no order among each other or among themselves, which is worse than ZeroMQ. A link
whose subscriber does not keep up takes in what its queue still holds, which comes all at once when it recovers; what is
published meanwhile is dropped silently, while everything sent directly passes.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Weather(NamedTuple):
    """How bad the links are while faults last: chances of each message."""

    loss: float = 0.0
    double: float = 0.0
    slow: float = 0.0  # takes up to `slow_ms`
    slow_ms: int = 600


FAIR = Weather()
USUAL_MS = 4


class Queue:
    """What a publisher keeps for one subscriber that does not read."""

    def __init__(self, room: int, until_ms: int) -> None:
        self.room, self.until_ms = room, until_ms


class Network:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.weather = FAIR
        self.cuts: dict[tuple[str, str], None] = {}  # (from, to), a dict for its order
        self.queues: dict[tuple[str, str], Queue] = {}
        self.lost = self.doubled = self.slowed = self.dropped = 0

    def delays(self, source: str, target: str) -> list[int]:
        """After how many ms each copy of a message arrives; none when it is lost."""
        if (source, target) in self.cuts:
            self.lost += 1
            return []
        weather, chance = self.weather, self._rng.random()
        if chance < weather.loss:
            self.lost += 1
            return []
        copies = 1
        if chance < weather.loss + weather.double:
            self.doubled += 1
            copies = 2
        return [self._delay(weather) for _ in range(copies)]

    def published(self, source: str, target: str, now_ms: int) -> list[int]:
        """As `delays`, of a message that is published."""
        queue = self.queues.get((source, target))
        if queue is None:
            return self.delays(source, target)
        if queue.until_ms <= now_ms:
            del self.queues[source, target]
            return self.delays(source, target)
        if not queue.room:
            self.dropped += 1
            return []
        queue.room -= 1
        return [queue.until_ms - now_ms + delay for delay in self.delays(source, target)]

    def fill(self, source: str, target: str, room: int, until_ms: int) -> None:
        """That subscriber does not read until then; its queue takes in so many messages."""
        self.queues[source, target] = Queue(room, until_ms)

    def _delay(self, weather: Weather) -> int:
        chance = self._rng.random()
        if chance < weather.slow:
            self.slowed += 1
            return int(chance / weather.slow * weather.slow_ms)
        return int(chance * USUAL_MS)

    def isolate(self, name: str, others: list[str], inward: bool, outward: bool) -> None:
        for other in others:
            if other != name:
                if inward:
                    self.cuts[other, name] = None
                if outward:
                    self.cuts[name, other] = None
