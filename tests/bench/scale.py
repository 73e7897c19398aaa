#!/usr/bin/env python3
"""What size does: start, memory, and the catch-up of a backup under load. Real daemons on loopback, no Pacemaker.

tests/bench/scale.py [start|memory|writes|cost|entries|snapshot …] [--keys N] [--value-bytes N] [--clients N] [--rate N]

start     kill and start a daemon that holds --keys keys of --value-bytes: how long until it answers
memory    write --keys keys through the primary: resident memory of each daemon
writes    --writes writes on --clients keys: resident memory along the way, which should stay
cost      what a write to one of few and of --keys keys costs: writes a second, processor time of the daemons
entries   a backup that is --behind entries behind starts while clients write
snapshot  a backup that missed all of --keys keys of --value-bytes starts while clients write

Every stage bounds its time by --patience-s. "still" is the longest time that a daemon went without a beat; its
watchdog waits 1,500 ms.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from daemons import Cluster, Node, wait

from food.calls import Outcome, Request
from food.client import Client
from food.core.message import Position
from food.core.ready import Save
from food.core.snapshot import Piece, Snapshot
from food.core.state import Draft
from food.fleet import Fleet, Member
from food.storage import Store

WRITE_PATIENCE_S = 30.0
PIECE_ROWS = 2_000
WINDOW_S = 10.0  # measured before and after a catch-up
SHOWN_EVERY_S = 5.0
FEW_KEYS = 1_000
COST_ROUNDS = 5
COST_CLIENTS = (1, 64, 500)
SETTLED_S = 30.0  # until a state that was just read lies in huge pages
WARM_S, COST_S = 2.0, 6.0


class Stillness:
    """The longest time between two beats of a daemon's loop."""

    def __init__(self, node: Node):
        self.longest_ms = 0.0
        self._last: float | None = None
        node.on_packet = self._packet

    def _packet(self, packet: dict[str, Any]) -> None:
        if "beat" in packet:
            now = time.monotonic()
            if self._last is not None:
                self.longest_ms = max(self.longest_ms, (now - self._last) * 1000)
            self._last = now

    def again(self) -> None:
        self.longest_ms, self._last = 0.0, None


class Writers:
    """Clients in a thread, one write outstanding each. Together they try `rate` writes a second, or all they can."""

    def __init__(self, cluster: Cluster, clients: int, requests: Iterator[Request], rate: float = 0):
        self._fleet = Fleet(cluster.endpoints, clients)
        self._requests = requests
        self._pause_s = clients / rate if rate else 0.0
        self._due: list[tuple[float, Member]] = []
        self._ended = False
        self._working = 0
        self.at, self.took = array("d"), array("d")
        self.errors: list[str] = []
        self._members = [self._fleet.add(self._done) for _ in range(clients)]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        now = time.monotonic()
        for number, member in enumerate(self._members):
            self._due.append((now + self._pause_s * number / len(self._members), member))
        while self._working or (self._due and not self._ended):
            now = time.monotonic()
            while self._due and self._due[0][0] <= now and not self._ended:
                self._submit(self._due.pop(0)[1], now)
            self._fleet.round(0.001 if self._pause_s else 0.1)
        self._fleet.close()

    def _submit(self, member: Member, now: float) -> None:
        request = None if self._ended else next(self._requests, None)
        if request:
            self._working += 1
            member.submit(request, now, WRITE_PATIENCE_S)

    def _done(self, member: Member, outcome: Outcome, now: float) -> None:
        self._working -= 1
        if outcome.error:
            self.errors.append(str(outcome.error))
        self.at.append(now)
        self.took.append(now - member.worker.started)
        if self._pause_s:
            self._due.append((max(now, member.worker.started + self._pause_s), member))
            self._due.sort(key=lambda item: item[0])
        else:
            self._submit(member, now)

    def end(self) -> None:
        """No new write; those under way are awaited."""
        self._ended = True
        self.join()

    def join(self, tell: Callable[[int], None] = lambda done: None) -> None:
        while self._thread.is_alive():
            self._thread.join(SHOWN_EVERY_S)
            tell(len(self.at))

    def figures(self, begin: float, end: float) -> str:
        took = sorted(t for at, t in zip(self.at, self.took, strict=False) if begin <= at < end)
        if not took:
            return "no write ended"
        p50, p99 = (took[math.ceil(len(took) * part) - 1] * 1000 for part in (0.5, 0.99))
        rate = len(took) / (end - begin)
        return f"{rate:8.0f} writes/s   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   worst {took[-1] * 1000:7.1f} ms"


def puts(count: int, keys: int, value_bytes: int, first: int = 0) -> Iterator[Request]:
    """Each with a value of its own, over `keys` keys."""
    for number in range(first, first + count):
        yield Request("w", "put", (key_of(number % keys), value_of(number, value_bytes)))


def key_of(number: int) -> bytes:
    return b"scale/%012d" % number


def value_of(number: int, length: int) -> bytes:
    return (b"%016d" % number * (length // 16 + 1))[:length]


def rss_mib(node: Node) -> int:
    assert node.process
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024


def processor_s(cluster: Cluster) -> float:
    """Processor time that the daemons have had, user's and system's."""
    ticks = 0
    for node in cluster:
        assert node.process
        fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def scattered(keys: int) -> Iterator[Request]:
    """Writes for ever, each to a key picked by chance: the next one lies nowhere near."""
    rng = Random(keys)
    for number in count(1):
        yield Request("w", "put", (key_of(rng.randrange(keys)), value_of(number, 100)))


def memory(cluster: Cluster) -> str:
    return "   ".join(f"{node.name} {rss_mib(node):,} MiB" for node in cluster if node.alive)


def answer(node: Node) -> dict[str, Any]:
    with Client([node.endpoint]) as client:
        return client.status().answers.get(node.endpoint) or {}


def own_row(node: Node) -> dict[str, Any]:
    found = answer(node)
    return next((m for m in found.get("members", []) if m["store"] == found["self"]["store"]), {})


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def fill_disks(cluster: Cluster, keys: int, value_bytes: int, nodes: Sequence[str]) -> None:
    """Puts a state of many keys on the stopped nodes' disks, as a snapshot above all that they hold would."""
    began = time.monotonic()
    for name in nodes:
        node = cluster[name]
        with closing(Store(node.data_dir, name)) as store:
            found = store.recovered
            members = found.log.members
            assert members
            at = Position(found.log.last.epoch, found.log.last.index + keys)
            commit = found.commit
            store.save(Save(staged=[Piece(at, 0, [], [])], commit=commit))
            draft, numbers, piece = Draft(), iter(range(keys)), 0
            while stride := list(islice(numbers, PIECE_ROWS)):
                piece += 1
                rows = [(key_of(number), value_of(number, value_bytes), number + 1) for number in stride]
                for row in rows:
                    draft.add(*row)
                store.save(Save(staged=[Piece(at, piece, [], rows)], commit=commit))
                store.fold()
            store.save(Save(snapshot=Snapshot(at, members, keys, draft.hash, 0, keys), commit=at.index))
    say(f"{keys:,} keys of {value_bytes:,} bytes on {len(nodes)} disks in {time.monotonic() - began:.0f} s")


class Scale:
    def __init__(self, options: argparse.Namespace, cluster: Cluster):
        self.options, self.cluster = options, cluster
        self.still = {node.name: Stillness(node) for node in cluster}
        cluster.promote("n1")
        wait(lambda: all(answer(node).get("commit") for node in cluster), 10, "the backups do not follow")

    def _stills(self) -> str:
        return "still: " + ", ".join(f"{name} {still.longest_ms:.0f} ms" for name, still in self.still.items())

    def _stop(self, *names: str) -> None:
        for name in names:
            self.cluster[name].kill()

    def _start(self, *names: str) -> None:
        for name in names:
            self.still[name].again()
            self.cluster[name].start()
        for name in names:
            wait(lambda name=name: self._up(self.cluster[name]), self.options.patience_s, f"{name} does not come up")

    def _up(self, node: Node) -> bool:
        assert node.alive, f"{node.name} ended: {node.exiting}"
        try:
            return bool(node.request("monitor", timeout_ms=500))
        except TimeoutError:
            return False

    def filled(self, *names: str) -> None:
        self._stop("n1", "n2", "n3")
        fill_disks(self.cluster, self.options.keys, self.options.value_bytes, names)
        self._start(*names)
        self.cluster.promote("n1", self.options.patience_s)

    # --- Stages ---

    def start(self) -> None:
        self.filled("n1", "n2", "n3")
        for _ in range(3):
            self._stop("n3")
            began = time.monotonic()
            self._start("n3")
            say(f"start: {time.monotonic() - began:.1f} s until it answers")
        say(f"memory after a start: {memory(self.cluster)}")
        say(self._stills())

    def memory(self) -> None:
        options = self.options
        say(f"memory at first: {memory(self.cluster)}")
        self._write(options.keys, options.keys, options.value_bytes)
        say(f"memory with {options.keys:,} keys of {options.value_bytes} bytes: {memory(self.cluster)}")
        self._write(options.keys, options.keys, options.value_bytes)
        say(f"memory when each was written again: {memory(self.cluster)}")

    def writes(self) -> None:
        self._write(self.options.writes, 1_000, 100)
        say(self._stills())

    def _write(self, count: int, keys: int, value_bytes: int) -> None:
        began, shown = time.monotonic(), 0
        writers = Writers(self.cluster, self.options.clients, puts(count, keys, value_bytes))

        def tell(done: int) -> None:
            nonlocal shown
            if done - shown >= count / 20 or done == count:
                shown = done
                say(f"{done:,} writes, {done / (time.monotonic() - began):.0f}/s: {memory(self.cluster)}")

        writers.join(tell)
        assert not writers.errors, writers.errors[:3]

    def entries(self) -> None:
        options = self.options
        self._stop("n3")
        self._write(options.behind, options.behind, 100)
        self._catch_up(options.behind)

    def snapshot(self) -> None:
        self.filled("n1", "n2")
        self._catch_up(self.options.keys)

    def _catch_up(self, keys: int) -> None:
        options = self.options
        writers = Writers(self.cluster, options.clients, puts(1 << 40, keys, 100), options.rate)
        time.sleep(2)
        began = time.monotonic()
        time.sleep(WINDOW_S)
        starts = time.monotonic()
        self._start("n3")
        deadline, shown = time.monotonic() + options.patience_s, 0.0
        while True:
            row = own_row(self.cluster["n3"])
            if row.get("lag", 1 << 40) < options.level and row.get("last", 0) > options.keys:
                break
            if time.monotonic() - shown >= SHOWN_EVERY_S:
                shown = time.monotonic()
                others = {m["node"]: m["state"] for m in answer(self.cluster["n1"]).get("members", [])}
                lag = row.get("lag", "nobody knows how far")
                say(f"n3 lags {lag}: {row.get('state')}; the primary says: {others.get('n3')}; {self._stills()}")
            assert self.cluster["n3"].alive, f"n3 ended: {self.cluster['n3'].exiting}"
            assert time.monotonic() < deadline, f"not level after {options.patience_s} s: {row}"
            time.sleep(0.1)
        level = time.monotonic()
        time.sleep(WINDOW_S)
        ends = time.monotonic()
        writers.end()
        say(f"caught up in {level - starts:.1f} s")
        say(f"before  {writers.figures(began, starts)}")
        say(f"during  {writers.figures(starts, level)}")
        say(f"after   {writers.figures(level, ends)}")
        say(f"errors {len(writers.errors)}   {self._stills()}")
        say(f"memory: {memory(self.cluster)}")


def measured(keys: int, patience_s: float) -> dict[int, tuple[float, float]]:
    """Clients: (writes a second, daemons' processor time a write in us) of a cluster that holds so many keys."""
    found = {}
    with Cluster(3, log_level="warning") as cluster:
        scale = Scale(argparse.Namespace(keys=keys, value_bytes=100, patience_s=patience_s), cluster)
        scale.filled("n1", "n2", "n3")
        time.sleep(SETTLED_S)
        for clients in COST_CLIENTS:
            writers = Writers(cluster, clients, scattered(keys))
            time.sleep(WARM_S)
            began, spent, done = time.monotonic(), processor_s(cluster), len(writers.at)
            time.sleep(COST_S)
            took, spent, done = time.monotonic() - began, processor_s(cluster) - spent, len(writers.at) - done
            writers.end()
            assert not writers.errors, writers.errors[:3]
            found[clients] = (done / took, spent / done * 1e6)
    return found


def cost(options: argparse.Namespace) -> None:
    """Few keys and many in alternation, each on a cluster of its own."""
    sizes = (FEW_KEYS, options.keys)
    rounds = []
    for number in range(COST_ROUNDS):
        rounds.append({keys: measured(keys, options.patience_s) for keys in sizes})
        say(f"round {number + 1} of {COST_ROUNDS}")
    for clients in COST_CLIENTS:
        few, many = ([one[keys][clients] for one in rounds] for keys in sizes)
        rates = [statistics.median(rate for rate, _ in found) for found in (few, many)]
        costs = [statistics.median(us for _, us in found) for found in (few, many)]
        apart = [statistics.median(b[i] / a[i] for a, b in zip(few, many, strict=True)) for i in (0, 1)]
        say(
            f"{clients:3} clients, {sizes[0]:,} and {sizes[1]:,} keys: {rates[0]:.0f} and {rates[1]:.0f} writes/s "
            f"(x {apart[0]:.2f}); three daemons {costs[0]:.0f} and {costs[1]:.0f} us a write (x {apart[1]:.2f})"
        )


STAGES = ("start", "memory", "writes", "cost", "entries", "snapshot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=[])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=1024, help="of --keys; 100 for `memory` (default 1024)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0, help="writes a second of all clients; 0: as many as they can")
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--behind", type=int, default=1_000_000)
    parser.add_argument("--level", type=int, default=2_000, help="a backup that lags less has caught up (default 2000)")
    parser.add_argument("--patience-s", type=float, default=600)
    options = parser.parse_args()
    for stage in options.stages or STAGES:
        say(f"{stage}:")
        if stage == "cost":
            cost(options)
            continue
        with Cluster(3, log_level="warning") as cluster:
            getattr(Scale(options, cluster), stage)()


if __name__ == "__main__":
    main()
