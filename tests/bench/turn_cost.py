#!/usr/bin/env python3
"""What a write costs in the daemons' own code, without sockets: tests/bench/turn_cost.py [KEYS [PROFILE]]

Three replicas in this process hand each other encoded frames and save to real stores, with 1, 64 and 500 writes a
turn. Prints microseconds of processor time a write, median of rounds: of the primary, and of one backup. PROFILE: a
file for cProfile's figures.
"""

from __future__ import annotations

import cProfile
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from food import driver
from food.codec import pack, unpack
from food.core.local import Local
from food.core.message import Message
from food.core.ready import Save
from food.core.replica import Replica
from food.core.state import Result
from food.daemon import GC_THRESHOLD, PASS_MS
from food.storage import Store
from food.wire import decode, encode

TURNS = {1: 4_000, 64: 200, 500: 40}  # writes a turn: turns a round
ROUNDS = 5
FILL = 5_000  # writes a turn while the keys are made
NODES = ["n1", "n2", "n3"]


class Node:
    """A replica, its store, and what would be its sockets."""

    def __init__(self, directory: Path, name: str):
        directory.mkdir()
        self.store = Store(directory, name)
        self.replica = Replica(Local(self.store.recovered, name, NODES), 10_000, 0)
        self.published: list[bytes] = []
        self.sent: list[tuple[str, bytes]] = []
        self.answered = 0
        self.session = 0
        self.spent_s = 0.0
        self.next_ms = 0

    def turn(self, frames: list[bytes], requests: list[bytes], now_ms: int) -> None:
        began = time.process_time()
        for frame in frames:
            envelope = decode(frame)
            self.replica.step(envelope.sender, envelope.message, now_ms)
        for request in requests:
            number, _, command = unpack(request, 1 << 21)
            self.replica.propose(number, command)
        if now_ms >= self.next_ms:
            self.next_ms = now_ms + PASS_MS
            self.replica.tick(now_ms)
        driver.finish_turn(self.replica, self, now_ms)
        self.store.fold()
        self.spent_s += time.process_time() - began

    def _frame(self, message: Message) -> bytes:
        members = self.replica.local.log.members
        return encode(members.cluster if members else "", self.replica.local.member, message)

    def publish(self, message: Message) -> None:
        self.published.append(self._frame(message))

    def save(self, save: Save) -> None:
        self.store.save(save)

    def send(self, node: str, message: Message) -> None:
        self.sent.append((node, self._frame(message)))

    def answer(self, whose: object, result: Result) -> None:
        assert result.status == 0, result
        pack([whose, *result])
        self.session = result.value
        self.answered += 1

    def event(self, text: str) -> None:
        pass


class Trio:
    def __init__(self, directory: Path):
        self.now_ms = 0
        self.nodes = {name: Node(directory / name, name) for name in NODES}
        self.primary = self.nodes["n1"]
        for _ in range(100):
            self.deliver()
        self.primary.replica.promote(self.now_ms, self.now_ms + 10_000)
        while self.primary.replica.role != "primary":
            self.deliver()

    def deliver(self, requests: list[bytes] | None = None) -> None:
        """A turn of every node, and another until all that was asked is answered."""
        wanted = self.primary.answered + len(requests or ())
        self.now_ms += 1
        while True:
            inboxes: dict[str, list[bytes]] = {name: [] for name in NODES}
            for name, node in self.nodes.items():
                for other in NODES:
                    if other != name:
                        inboxes[other] += node.published
                for other, frame in node.sent:
                    inboxes[other].append(frame)
                node.published, node.sent = [], []
            for name, node in self.nodes.items():
                asked = requests or [] if node is self.primary else []
                if inboxes[name] or asked or requests is None:
                    node.turn(inboxes[name], asked, self.now_ms)
            requests = requests and []
            if self.primary.answered >= wanted:
                return

    def write(self, turns: int, writes: int, keys: int, first: int = 0) -> None:
        """Every write has a fresh number; the keys go round in strides, so that neighbours are not neighbours."""
        for turn in range(turns):
            numbers = range(first + turn * writes, first + (turn + 1) * writes)
            bodies = [pack([0, 0, 0, "put", b"%08d" % (number * 7919 % keys), bytes(100)]) for number in numbers]
            self.deliver([pack([number, "w", body]) for number, body in zip(numbers, bodies, strict=True)])


def measure(trio: Trio, keys: int) -> dict[int, tuple[float, float]]:
    found: dict[int, tuple[float, float]] = {}
    for writes, turns in TURNS.items():
        costs: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            for node in trio.nodes.values():
                node.spent_s = 0.0
            trio.write(turns, writes, keys, number * turns * writes)
            each = 1e6 / turns / writes
            backups = trio.nodes["n2"].spent_s + trio.nodes["n3"].spent_s
            costs.append((trio.primary.spent_s * each, backups * each / 2))
        found[writes] = (statistics.median(c[0] for c in costs), statistics.median(c[1] for c in costs))
    return found


def main() -> None:
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    with tempfile.TemporaryDirectory(prefix="food-") as name:
        trio = Trio(Path(name))
        trio.write(-(-keys // FILL), FILL, keys)
        profile: Any = cProfile.Profile() if len(sys.argv) > 2 else None
        if profile:
            profile.enable()
        found = measure(trio, keys)
        if profile:
            profile.disable()
            profile.dump_stats(sys.argv[2])
        for writes, (primary, backup) in found.items():
            print(f"{keys} keys, {writes} writes a turn: primary {primary:.1f} us a write, backup {backup:.1f}")


if __name__ == "__main__":
    main()
