"""Puts stores to the trial: lives beneath the shim, disks that a power loss may leave of them, and what a start finds.

What must hold (`Verdict`): nothing that a save had returned for is lost, nothing is there that was not begun, all of
a transaction or nothing; a store is called corrupt only where bytes are wrong that were synced.
"""

from __future__ import annotations

import os
import pickle
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from food.storage import Store, StoreCorrupt

from .layer import ALL, CHANGING, FAILING, FULL, NO_FAULT, READ, SHORT, WRITE, Layer, Record, read
from .platter import PAGE_BYTES, WAYS, Platter, Tree, lies, write
from .story import BEGUN, BLANK, KEPT, NODE, Facts, Told, live, of_start

DISKS_OF_NEXT_LIFE = 1.0
FURTHER_LIVES = 0.2  # of stores in which a flipped bit was not noticed
REMEDIES = ("make room", "replace the disk", "must be there")  # what the end of a daemon says is to be done


class Broken(Exception):
    """A rule was broken; the text says how."""


class Window(NamedTuple):
    """States, by number, of which a start must find one."""

    kept: int
    begun: int

    def of(self, states: list[Facts]) -> list[Facts]:
        return states[self.kept : self.begun + 1]


class Fault(NamedTuple):
    """The `at`-th call of these kinds fails, and with `lasting` all behind it."""

    kinds: int = ALL
    at: int = 0
    what: int = NO_FAULT
    lasting: bool = False


NONE = Fault()
FAULTS = (
    Fault(ALL, 0, FAILING),
    Fault(ALL, 0, FAILING, lasting=True),
    Fault(READ, 0, FAILING, lasting=True),
    Fault(CHANGING, 0, FULL),
    Fault(CHANGING, 0, FULL, lasting=True),
    Fault(WRITE, 0, SHORT),
)


class Trial:
    def __init__(self, seed: int, directory: Path, layer: Layer) -> None:
        self.seed, self.directory, self._layer = seed, directory, layer
        self.counts: Counter[str] = Counter()
        self._root, self._look = directory / "data", directory / "look"
        self._journal, self._result = directory / "journal", directory / "told"

    # --- Power losses ---

    def power_losses(self, lives: int = 3) -> None:
        """Every disk that is made of a life is looked at; the next life begins with one of them. Raises Broken."""
        dice, tree, begin = Random(self.seed), Tree(), BLANK
        for life in range(lives):
            self._renew(tree)
            told = self._live(Random(dice.random()), begin, NONE)
            self._expect(not told.broken, f"life {life} ended without a fault: {told.broken}")
            tree, begin = self._disks(Platter(self._root, tree), told, dice, f"seed {self.seed}, life {life}")

    def _disks(self, platter: Platter, told: Told, dice: Random, what: str) -> tuple[Tree, Facts]:
        """Looks at disks after every call of a life; returns one of them, and what it holds."""
        seen: set[tuple[int, Window]] = set()
        last, begin = platter.seen, told.states[0]
        for number, (record, window) in enumerate(self._replay(platter)):
            for way in ("none", "all", *dice.sample(WAYS[2:], 2)):
                tree = platter.left(way, dice)
                key = hash(tuple(sorted(tree.items()))), window
                if key in seen:
                    continue
                seen.add(key)
                self.counts["disks"] += 1
                found = self._check(tree, window.of(told.states), f"{what}, call {number} ({record.op}), {way} kept")
                if dice.random() < 2 / len(seen):
                    last, begin = tree, found
        return last, begin

    # --- Faults ---

    def faults(self) -> None:
        """Two lives are told again and again, with every fault at each of their calls in turn. Raises Broken."""
        self._faults((0, 1), FAULTS)

    def fault_each(self) -> None:
        """The first life of a store (even seeds), or its second, with one fault at each call. Raises Broken."""
        self._faults((self.seed % 2,), ())

    def _faults(self, lives: tuple[int, ...], faults: tuple[Fault, ...]) -> None:
        dice, tree, begin = Random(self.seed), Tree(), BLANK
        for life in range(max(lives) + 1):
            seed = dice.random()
            self._renew(tree)
            told = self._live(Random(seed), begin, NONE)
            self._expect(not told.broken, f"life {life} ended without a fault: {told.broken}")
            next_tree, next_begin = lies(self._root), told.states[-1]
            for number in range(1, told.calls + 1) if life in lives else ():
                for fault in faults or [FAULTS[(number + self.seed) % len(FAULTS)]]:
                    self._fault(seed, tree, begin, fault._replace(at=number), dice, life)
            tree, begin = next_tree, next_begin

    def _fault(self, seed: float, tree: Tree, begin: Facts, fault: Fault, dice: Random, life: int) -> None:
        what = f"seed {self.seed}, life {life}, {fault}"
        self._renew(tree)
        told = self._live(Random(seed), begin, fault)
        if told.calls < fault.at:
            return  # fewer calls are of these kinds
        self.counts["faults"] += 1
        self.counts["ended"] += bool(told.broken)
        self._expect(not told.corrupt, f"{what}: a store that is whole was refused: {told.broken}")
        if told.broken:
            named = str(self._root) in told.broken and any(remedy in told.broken for remedy in REMEDIES)
            self._expect(named, f"{what}: no file or no remedy is named: {told.broken}")
        platter = Platter(self._root, tree)
        window = list(self._replay(platter))[-1][1]
        begin = self._check(lies(self._root), window.of(told.states), f"{what}, started again")
        for way in WAYS:
            self._check(platter.left(way, dice), window.of(told.states), f"{what}, then a power loss, {way} kept")
        self._next_life(platter, window.of(told.states), begin, dice, what)

    def _next_life(self, platter: Platter, left: list[Facts], begin: Facts, dice: Random, what: str) -> None:
        """On the disk that failed: what a failed sync made the kernel forget is still seen, and not safe.

        Until this start is told of, what nobody was told of in the life before may yet be lost.
        """
        platter.die()
        forgot = any(record.op == "f" for record in read(self._journal))
        told = self._live(Random(dice.random()), begin, NONE)
        self._expect(not told.broken, f"{what}: the next life ended without a fault: {told.broken}")
        for number, (record, window) in enumerate(self._replay(platter)):
            # All disks while it opens on what was forgotten, else few, and most of those while it opens.
            if (forgot and not window.kept) or dice.random() < DISKS_OF_NEXT_LIFE / (number + 10):
                way = dice.choice(WAYS)
                where = f"{what}, then power lost in the next life at call {number} ({record.op}), {way} kept"
                allowed = window.of(told.states) if window.kept else left + window.of(told.states)
                self._check(platter.left(way, dice), allowed, where)

    # --- Flipped bits ---

    def flips(self, count: int = 150) -> None:
        """Bits of a store change while it lies there: refused as corrupt, or as if nothing were. Raises Broken.

        Damage that a start does not see (of free pages, of an index) may be noticed by a later save, or start.
        """
        dice = Random(self.seed)
        self._renew(Tree())
        told = self._live(Random(dice.random()), BLANK, NONE)
        self._expect(not told.broken, f"a life ended without a fault: {told.broken}")
        tree = lies(self._root)
        for _ in range(count):
            self._flip(tree, told.states, dice)

    def _flip(self, tree: Tree, states: list[Facts], dice: Random) -> None:
        name = dice.choice(sorted(path for path in tree if path in ("food.db", "food.db-wal")))
        content = bytearray(tree[name])
        at, bit = spot(content, dice), dice.randrange(8)
        if at >= len(content):
            return
        region = region_of(name, content, at)
        content[at] ^= 1 << bit
        what = f"seed {self.seed}, bit {bit} of byte {at} of {name} flipped ({region})"
        flipped = {**tree, name: bytes(content)}
        allowed = states[-2:] if region == LAST_TRANSACTION else states[-1:]
        try:
            found = self._start(flipped)
        except StoreCorrupt:
            self.counts[f"refused, {region}"] += 1
            return
        begin = self._fitting(found, allowed, what)
        self.counts[f"{'lost' if begin is not states[-1] else 'harmless so far'}, {region}"] += 1
        if dice.random() < FURTHER_LIVES and begin is states[-1]:
            self._renew(flipped)
            told = self._live(Random(dice.random()), begin, NONE)
            self._expect(
                told.corrupt or not told.broken, f"{what}: later it ended, and is not set aside: {told.broken}"
            )
            self._later(told, region, what)

    def _later(self, told: Told, region: str, what: str) -> None:
        try:
            found = None if told.corrupt else self._start(lies(self._root))
        except StoreCorrupt:
            found = None
        if found:
            self._fitting(found, told.states[-1:], f"{what}, lived with")
        else:
            self.counts[f"noticed later, {region}"] += 1

    # --- What all of them do ---

    def _renew(self, tree: Tree) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir()
        write(self._root, tree)

    def _live(self, dice: Random, begin: Facts, fault: Fault) -> Told:
        """A life in a process of its own, which ends without closing anything, as the daemon does."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._layer.arm(self._root, self._journal, *fault)
                told = live(self._root, self._layer, dice, begin)
                self._layer.arm(Path("/nowhere"), Path(os.devnull))
                self._result.write_bytes(pickle.dumps(told))
                status = 0
            except BaseException:  # a child process: its parent sees the status, and fails
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        self._expect(not status, "a life ended by a crash, see above")
        found: Told = pickle.loads(self._result.read_bytes())
        return found

    def _replay(self, platter: Platter) -> Iterator[tuple[Record, Window]]:
        """Each call after which another disk may be left, and what must be on it."""
        kept = begun = 0
        for record in read(self._journal):
            if record.op == BEGUN:
                begun = record.offset
            elif record.op == KEPT:
                kept = record.offset
            elif platter.step(record):
                yield record, Window(kept, begun)
        self._expect(platter.seen == lies(self._root), "the shim missed a call")
        yield Record("end", 0, 0, b""), Window(kept, begun)

    def _start(self, tree: Tree) -> Facts:
        """What a start finds on this disk. Raises StoreCorrupt; Broken for other troubles."""
        shutil.rmtree(self._look, ignore_errors=True)
        self._look.mkdir()
        write(self._look, tree)
        self.counts["starts"] += 1
        try:
            store = Store(self._look, NODE)
        except StoreCorrupt:
            raise
        except Exception as error:
            raise Broken(f"a start failed: {type(error).__name__}: {error}") from error
        store.close()
        return of_start(store.recovered)

    def _fitting(self, found: Facts, allowed: list[Facts], what: str) -> Facts:
        fitting = [facts for facts in reversed(allowed) if facts.fits(found)]
        self._expect(bool(fitting), f"{what}: a start found {found.brief}, not {[facts.brief for facts in allowed]}")
        return fitting[0]

    def _check(self, tree: Tree, allowed: list[Facts], what: str) -> Facts:
        """Starts on a disk where every sync was honoured; which of these states it holds."""
        try:
            return self._fitting(self._start(tree), allowed, what)
        except StoreCorrupt as error:
            raise Broken(f"{what}: refused: {error}") from error

    @staticmethod
    def _expect(holds: bool, text: str) -> None:
        if not holds:
            raise Broken(text)


# --- Where a bit flips ---

LAST_TRANSACTION = "the write-ahead log's last transaction"


def spot(content: bytearray, dice: Random) -> int:
    """Most of what SQLite keeps about rows stands at the head of a page; the rest is hit by chance."""
    if dice.random() < 0.5:
        return dice.randrange(len(content))
    return dice.randrange(0, len(content), PAGE_BYTES) + dice.randrange(60)


def region_of(name: str, content: bytearray, at: int) -> str:
    if name == "food.db":
        return "the database's header" if at < 100 else "a page's head" if at % PAGE_BYTES < 60 else "a page"
    if at < 32:
        return "the write-ahead log's header"
    frames = [
        begin for begin in range(32, len(content), PAGE_BYTES + 24) if content[begin + 8 : begin + 16] == content[16:24]
    ]
    commits = [at for at in frames if content[at + 4 : at + 8] != bytes(4)]
    if not commits or at >= commits[-1] + PAGE_BYTES + 24:
        return "behind the write-ahead log's end"
    return LAST_TRANSACTION if len(commits) < 2 or at >= commits[-2] + PAGE_BYTES + 24 else "a frame"
