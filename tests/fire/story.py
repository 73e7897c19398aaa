"""A node's life with its store, at random: what the core (food/core/local.py) has saved in it, and what must be there.

Runs in a process of its own, beneath the shim. tests/sim/disk.py, a second implementation of what the store promises,
says what a start must find.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import msgpack
from sim.disk import Disk

from food import storage
from food.core import local as core_local
from food.core import snapshot as core_snapshot
from food.core.entries import pack_members
from food.core.local import Local, Recovered
from food.core.message import NO_EPOCH, START, Entry, Epoch, Kind, Member, MemberList, Position
from food.core.ready import Save
from food.core.snapshot import Assembly, Source
from food.core.state import Draft, Row, State
from food.storage import Store, StoreBroken, StoreCorrupt, set_aside

from .layer import Layer

NODE = "n1"
STEPS_MOST = 14
STAMP = "20300101-000000"
BEGUN, KEPT = "b", "k"  # marks: state number n may be there, must be there


class Facts(NamedTuple):
    """What a start finds, the count of this start left out."""

    member: Member | None  # None: a store that nobody has seen yet, whatever its name
    starts: int
    promise: Epoch
    base: Position
    base_members: MemberList | None
    entries: tuple[Entry, ...]
    commit: int
    remembers: dict[str, tuple[int, str]]
    applied: tuple[int, int, int]
    rows: dict[bytes, Row]
    sessions: dict[int, bytes]

    @property
    def brief(self) -> str:
        last = self.entries[-1].index if self.entries else self.base.index
        return f"start {self.starts}, promise {self.promise.number}, log to {last}, commit {self.commit}"

    def fits(self, found: Facts) -> bool:
        return self._replace(member=found.member if self.member is None else self.member) == found


BLANK = Facts(None, 0, NO_EPOCH, START, None, (), 0, {}, (0, 0, 0), {}, {})


def of_disk(disk: Disk) -> Facts:
    log = disk.base, disk.base_members, tuple(disk.entries), disk.commit
    state = (disk.applied, disk.revision, disk.hash), dict(disk.rows), dict(disk.sessions)
    return Facts(disk.member, disk.starts, disk.promise, *log, dict(disk.remembers), *state)


def to_disk(facts: Facts) -> Disk:
    disk = Disk(facts.member)  # type: ignore[arg-type]  # None until a start has told it
    disk.starts, disk.promise, disk.commit, disk.remembers = facts.starts, facts.promise, facts.commit, {}
    disk.base, disk.base_members, disk.entries = facts.base, facts.base_members, list(facts.entries)
    disk.remembers, disk.rows, disk.sessions = dict(facts.remembers), dict(facts.rows), dict(facts.sessions)
    disk.applied, disk.revision, disk.hash = facts.applied
    return disk


def of_start(found: Recovered) -> Facts:
    log, state = found.log, found.state
    entries = tuple(log.entry(index) for index in range(log.base.index + 1, log.last.index + 1))
    sessions = {number: session.pack() for number, session in state.sessions.items()}
    return Facts(
        found.member,
        found.starts - 1,
        found.promise,
        log.base,
        log.members_at(log.base.index),
        entries,
        found.commit,
        found.remembers,
        (state.applied, state.revision, state.hash),
        state.rows,
        sessions,
    )


class Told(NamedTuple):
    """How a life went. State number n became durable between its marks."""

    states: list[Facts]
    broken: str  # why it ended, when it was the disk
    corrupt: bool  # and whether the store was refused
    calls: int


@contextmanager
def small_limits(dice: Random) -> Iterator[None]:
    """So that a few steps compact, fold, stage in several pieces, spill and tidy up."""
    with (
        patch.object(core_local, "FLUSH_ENTRIES", dice.choice((3, 10))),
        patch.object(core_local, "KEEP_ENTRIES", dice.choice((3, 10))),
        patch.object(core_local, "COMPACT_MOST_ENTRIES", 7),
        patch.object(core_snapshot, "CHUNK_MOST_BYTES", 2_000),
        patch.object(storage, "FOLD_BYTES", dice.choice((20_000, 60_000))),
        patch.object(storage, "WAL_KEPT_MOST_BYTES", 40_000),
        patch.object(storage, "ROW_MOST_ENTRIES", 3),
        patch.object(storage, "TIDY_ROWS", 2),
        patch.object(storage, "SEGMENT_MOST_ROWS", 4),
        patch.object(storage, "HELD_SLACK_BYTES", 2_000),
    ):
        yield


class Life:
    def __init__(self, directory: Path, layer: Layer, dice: Random, begin: Facts) -> None:
        self._directory, self._layer, self._dice = directory, layer, dice
        self._disk = to_disk(begin)
        self.states = [begin]
        self._now_ms = 0
        self._store: Store | None = None
        self._local: Local
        self._receiving: Iterator[None] | None = None

    def tell(self) -> None:
        """Raises StoreBroken."""
        if self._dice.random() < 0.15:  # as a start does that finds damage, with a write-ahead log there
            self._set_aside()
        self._open()
        for _ in range(self._dice.randint(3, STEPS_MOST)):
            self._step()
        match self._dice.randrange(4):
            case 0:
                self._close()
            case 1:
                self._close()
                self._set_aside()
                self._open()

    # --- Opening and ending ---

    def _open(self) -> None:
        self._disk.starts += 1
        self._disk.staged = []
        self._begun(of_disk(self._disk))
        self._store = Store(self._directory, NODE)
        found = self._store.recovered
        facts = of_start(found)
        assert self.states[-2].fits(facts), f"a start found {facts}, not {self.states[-2]}"
        if self._dice.random() < 0.3:
            self._store._sql("PRAGMA cache_size=8")  # transactions spill before they commit
        self._disk.member = found.member
        self.states[-1] = of_disk(self._disk)
        self._kept()
        self._local = Local(found, f"life {found.starts}", ["n1", "n2", "n3"])

    def _close(self) -> None:
        assert self._store
        self._store.close()

    def _set_aside(self) -> None:
        self._begun(BLANK)
        set_aside(self._directory, "rolled back or copied", STAMP)
        self._kept()
        self._disk = to_disk(BLANK)

    def _begun(self, facts: Facts) -> None:
        self.states.append(facts)
        self._layer.mark(BEGUN, len(self.states) - 1)

    def _kept(self) -> None:
        self._layer.mark(KEPT, len(self.states) - 1)

    # --- A turn ---

    def _step(self) -> None:
        assert self._store
        for _ in range(self._dice.randint(1, 3)):
            self._dice.choice((self._promise, self._lead, self._lead, self._follow, self._commit, self._snapshot))()
        if self._dice.random() < 0.2:
            self._local.remember("b", self._dice.randrange(1, 9), "a life")
        self._now_ms += self._dice.choice((1, 700, 1_500))
        ready = self._local.take_ready(self._now_ms)
        if ready.save:
            self._save(ready.save)
        self._store.fold()
        self._store.room()
        self._local.sweep_due = self._store.sweep_due

    def _save(self, save: Save) -> None:
        assert self._store
        self._disk.save(save)
        self._begun(of_disk(self._disk))
        self._store.save(save)
        self._kept()

    # --- What a member does with its log ---

    def _promise(self) -> None:
        self._local.promise_epoch(Epoch(self._local.promise.number + 1, self._dice.choice("abc")))

    def _lead(self) -> None:
        local = self._local
        if local.promise == NO_EPOCH:
            self._promise()
        first = local.log.last.index + 1
        if first == 1:
            members = MemberList(1, "cluster", (local.member, Member("n2", "b"), Member("n3", "c")))
            local.append([Entry(1, local.promise, Kind.MEMBERS, pack_members(members))])
            return
        local.append(self._commands(first, local.promise))

    def _follow(self) -> None:
        """A new primary's entries, in place of some that are not committed."""
        local = self._local
        if local.log.last.index <= max(1, local.commit):
            return
        prev = local.log.position(self._dice.randint(max(1, local.commit), local.log.last.index - 1))
        self._promise()
        assert local.merge(prev, self._commands(prev.index + 1, local.promise), local.commit) is not None

    def _commit(self) -> None:
        self._local.advance(self._dice.randint(self._local.commit, self._local.log.last.index))

    def _snapshot(self) -> None:
        """Its next pieces; some are never whole."""
        for _ in range(self._dice.randint(1, 4)):
            if self._local.installing:
                return
            if self._receiving is None or next(self._receiving, True):
                self._receiving = self._pieces()

    def _pieces(self) -> Iterator[None]:
        """Puts a piece aside with each step, and takes the whole with the last."""
        local = self._local
        if not local.log.members:
            return
        donor, at = self._donor()
        source = Source(at, local.log.members, donor.open_view())
        header = source.chunk(at.epoch, 0)
        assert header
        assembly = Assembly("n2", at, header.data)
        local.stage(assembly.begin())
        yield
        while not source.ended and local.commit < at.index:
            chunk = source.chunk(at.epoch, assembly.next)
            assert chunk
            local.stage(assembly.add(chunk))
            yield
        if local.commit < at.index:  # else it was overtaken by entries
            local.install(assembly.snapshot, assembly.finish())

    def _donor(self) -> tuple[State, Position]:
        """A state ahead of ours, at an entry that is in our log (whose rest stays then) or behind its end."""
        local, state = self._local, State()
        draft = Draft()
        for key, row in local.state.rows.items():
            draft.add(key, row.value, row.revision)
        draft.sessions = {number: session.pack() for number, session in local.state.sessions.items()}
        state.restore(local.state.applied, local.state.revision, local.state.hash, draft)
        if local.commit < local.log.last.index and self._dice.random() < 0.5:
            at = local.log.position(self._dice.randint(local.commit + 1, local.log.last.index))
            entries = [local.log.entry(index) for index in range(local.commit + 1, at.index + 1)]
        else:
            entries = self._commands(local.log.last.index + 1, local.promise, self._dice.randint(1, 25))
            at = Position(local.promise, entries[-1].index)
        for entry in entries:
            if entry.kind == Kind.COMMAND:
                state.apply(entry.index, entry.data)
            else:
                state.skip(entry.index)
        return state, at

    def _commands(self, first: int, epoch: Epoch, count: int | None = None) -> list[Entry]:
        count = count or self._dice.choice((1, 1, 2, 8))
        return [Entry(index, epoch, Kind.COMMAND, self._command()) for index in range(first, first + count)]

    def _command(self) -> bytes:
        dice = self._dice
        known = list(self._local.state.sessions)
        session, seq = 0, 0
        if known and dice.random() < 0.5:
            session = dice.choice(known)
            seq = self._local.state.sessions[session].seq + 1
        key = b"key %d" % dice.randrange(30)
        value = dice.randbytes(dice.choice((0, 10, 100, 100, 1_000, 9_000)))
        op: list[Any] = dice.choice((["put", key, value], ["put", key, value], ["del", key], ["open"]))
        if known and dice.random() < 0.05:
            op = ["close", dice.choice(known)]
        packed: bytes = msgpack.packb([session, seq, 0, *op])
        return packed


def live(directory: Path, layer: Layer, dice: Random, begin: Facts) -> Told:
    """One life, to its end or until the disk fails it."""
    with small_limits(dice):
        life = Life(directory, layer, dice, begin)
        broken, corrupt = "", False
        try:
            life.tell()
        except StoreBroken as error:
            broken, corrupt = str(error), isinstance(error, StoreCorrupt)
        return Told(life.states, broken, corrupt, layer.calls)
