"""A world without chance: nothing moves unless a script says so. Nodes, disks and invariants are the simulator's.

Messages wait on the wire until they are passed on or dropped; time stands still until it is told to pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from food.core.members import Change
from food.core.message import Answer, Ask, Digest, Member, MemberList, Message
from food.core.state import Result, Row

from .clients import Whose
from .invariants import Invariants
from .limits import Sessions
from .node import Node, Request


class NoChance:
    def randrange(self, *_: int) -> int:
        return 0

    def random(self) -> float:
        return 0.0


class Wired:
    """One message under way."""

    def __init__(self, source: str, target: str, sender: Member, message: Message) -> None:
        self.source, self.target, self.sender, self.message = source, target, sender, message

    def __repr__(self) -> str:
        return f"{self.source} -> {self.target} {type(self.message).__name__}"


class Stage:
    """Is the world of its nodes, as Simulation is."""

    def __init__(self, size: int) -> None:
        self.names = [f"n{number}" for number in range(1, size + 1)]
        self.corosync = self.names
        self.now = 1_000
        self.rng: Any = NoChance()
        self.sessions = Sessions(10_000, 256)
        self.watch = Invariants(self)  # type: ignore[arg-type]  # has what the invariants look at
        self.clients = self
        self.wire: list[Wired] = []
        self.answers: list[tuple[Any, Result]] = []
        self.log: list[str] = []
        self.nodes = [Node(self, name) for name in self.names]  # type: ignore[arg-type]  # as above
        self._reads = self._commands = 0
        for node in self.nodes:
            node.start()

    # --- What nodes want of their world ---

    def node(self, name: str) -> Node:
        return self.nodes[self.names.index(name)]

    def may_start(self, node: Node) -> bool:
        return True

    def after(self, delay_ms: int, action: Callable[..., None], *args: Any) -> None:
        """Nothing happens by itself."""

    def mostly_short(self, most_ms: int) -> int:
        return most_ms

    def carry(self, source: Node, target: str, message: Message, published: bool = False) -> None:
        self.wire.append(Wired(source.name, target, source.disk.member, message))

    def count(self, fault: str) -> None:
        self.log.append(f"fault: {fault}")

    def note(self, who: str, text: str) -> None:
        self.log.append(f"{who}: {text}")

    def answered(self, node: Node, whose: Any, result: Result) -> None:
        if isinstance(whose, Whose) and whose.read and result.status == 0:
            assert whose.floor is not None
            self.watch.on_read_answer(node, whose.key, whose.floor, result.value)
        elif isinstance(whose, Whose) and whose.seq:
            self.watch.on_write_answer(node, whose.session, whose.seq, result)
        self.answers.append((whose, result))

    # --- What scripts say ---

    def turn(self, *names: str) -> None:
        for name in names or self.names:
            if self.node(name).up:
                self.node(name).turn()

    def tick(self, *names: str, ms: int = 50) -> None:
        """Time passes for all; those named (or all) have a turn with a tick."""
        self.now += ms
        self.turn(*names)

    def deliver(self, wired: Wired) -> None:
        self.wire.remove(wired)
        node = self.node(wired.target)
        if node.up:
            node.take((wired.sender, wired.message))
            node.turn()

    def pass_on(self, source: str, target: str, kind: type[Any]) -> Any:
        """Delivers the oldest such message, and returns it; there must be one."""
        wired = next(w for w in self.wire if (w.source, w.target) == (source, target) and type(w.message) is kind)
        self.deliver(wired)
        return wired.message

    def waits(self, source: str, target: str, kind: type[Any]) -> bool:
        """Whether such a message is under way."""
        return any((w.source, w.target) == (source, target) and type(w.message) is kind for w in self.wire)

    def take_off(self, source: str, target: str, kind: type[Any]) -> Wired:
        """Takes the oldest such message off the wire, to be delivered later with `late`."""
        wired = next(w for w in self.wire if (w.source, w.target) == (source, target) and type(w.message) is kind)
        self.wire.remove(wired)
        return wired

    def late(self, wired: Wired) -> None:
        self.wire.append(wired)
        self.deliver(wired)

    def drop(self, source: str = "", target: str = "", kind: type[Any] | None = None) -> None:
        """Loses what waits and fits; everything when nothing is named."""
        self.wire = [
            w
            for w in self.wire
            if (source and w.source != source)
            or (target and w.target != target)
            or (kind and not isinstance(w.message, kind))
        ]

    def flow(self, *names: str, most: int = 3_000) -> None:
        """Delivers everything between those named (or all) until nothing waits; what goes to others is lost."""
        among = names or tuple(self.names)
        for _ in range(most):
            wired = next((w for w in self.wire if w.source in among and w.target in among), None)
            if wired is None:
                break
            self.deliver(wired)
        else:
            raise AssertionError("the wire does not come to rest")
        self.wire = []

    def flow_until(self, source: str, target: str, kind: type[Any], *names: str) -> None:
        """As `flow`, up to where such a message waits; it stays on the wire."""
        among = names or tuple(self.names)
        while not any((w.source, w.target) == (source, target) and isinstance(w.message, kind) for w in self.wire):
            wired = next((w for w in self.wire if w.source in among and w.target in among), None)
            assert wired is not None, f"{source} sends {target} no {kind.__name__}"
            self.deliver(wired)

    def flow_only_questions(self) -> None:
        """Delivers the questions and answers that promise nothing."""
        while wired := next((w for w in self.wire if isinstance(w.message, Ask | Answer | Digest)), None):
            self.deliver(wired)

    def run(self, ms: int, *names: str) -> None:
        """Time passes in ticks, and messages flow between those named (or all)."""
        for _ in range(ms // 50):
            self.tick(*names)
            self.flow(*names)

    def promote(self, name: str, *names: str, ms: int = 5_000) -> None:
        """Orders it, and lets messages flow between those named (or all)."""
        node = self.node(name)
        node.running.promote(self.now, self.now + ms)
        node.turn()
        self.flow(*names)

    def demote(self, name: str) -> None:
        self.node(name).running.demote(self.now, 0)
        self.tick(name)

    def propose(self, name: str, value: bytes, key: bytes = b"k") -> None:
        """A write without a session arrives; its answer's `whose` is the value."""
        self.node(name).take(Request(value, msgpack.packb([0, 0, 0, "put", key, value]), None))
        self.node(name).turn()

    def ask(self, name: str, key: bytes = b"k") -> int:
        """A linearizable read arrives; returns its number."""
        self._reads += 1
        whose = Whose(0, 0, 0, self._reads, key, self.watch.floor(key))
        self.node(name).take(Request(whose, None, key))
        self.node(name).turn()
        return self._reads

    def answer_to(self, value: bytes) -> Any:
        """Status of the write of `value`; None while there is none."""
        return next((result.status for whose, result in self.answers if whose == value), None)

    def read_answer(self, number: int) -> Result | None:
        return next((r for w, r in self.answers if isinstance(w, Whose) and w.read == number), None)

    def change(self, name: str, *stores: str) -> str | None:
        """Asks that primary for the list of the stores named."""
        node = self.node(name)
        current = node.running.local.log.members
        assert current and node.running.leading
        members = tuple(Member(store.partition(".")[0], store) for store in stores)
        refused = node.running.leading.change_members(MemberList(current.number + 1, current.cluster, members))
        node.turn()
        return refused

    def command(self, name: str, op: str, store: str, number: int | None = None, force: bool = False) -> str:
        """An operator's change of members arrives there; returns whose answer it is."""
        members = self.node(name).running.local.log.members
        if number is None:
            number = members.number if members else 0
        self._commands += 1
        whose = f"command {self._commands}"
        change = Change(number, op, Member(store.partition(".")[0], store), force)
        self.node(name).take(Request(whose, None, None, change=change))
        self.node(name).turn()
        return whose

    def tell(self, name: str, *names: str) -> str:
        """An operator names the nodes that are to found the cluster."""
        self._commands += 1
        whose = f"command {self._commands}"
        self.node(name).take(Request(whose, None, None, names=names))
        self.node(name).turn()
        return whose

    def flip(self, name: str, key: bytes = b"k", value: bytes = b"flipped") -> None:
        """A key's value is another one in that node's memory, and whatever is computed from it agrees."""
        node = self.node(name)
        state = node.running.local.state
        self.watch.flipped.add(node.disk.member.store)
        old = state.rows[key]
        state.rows[key] = new = Row.of(key, value, old.revision)
        state.hash ^= old.hash ^ new.hash

    def tamper(self, name: str, key: bytes = b"k", value: bytes = b"tampered") -> None:
        """The same in its state's tables, the stored hash included; it starts with them, and no checksum tells."""
        node, disk = self.node(name), self.node(name).disk
        node.crash()
        self.watch.flipped.add(disk.member.store)
        old = disk.rows[key]
        disk.rows[key] = new = Row.of(key, value, old.revision)
        disk.hash ^= old.hash ^ new.hash
        self.start(name)

    def result(self, asked: str) -> Result | None:
        return next((result for whose, result in self.answers if whose == asked), None)

    def start(self, name: str) -> None:
        """Starts it and lets it ask around, as long as nothing but questions and answers moves."""
        self.node(name).start()
        self.tick(name)
        self.flow_only_questions()

    def restart(self, name: str) -> None:
        self.node(name).crash()
        self.start(name)

    def role(self, name: str) -> str:
        return self.node(name).running.role

    def epochs(self, name: str) -> list[int]:
        """Numbers of the epochs in that node's log, entry by entry behind its base."""
        log = self.node(name).running.local.log
        return [entry.epoch.number for entry in log.after(log.base.index, 1 << 40)]

    def values(self, name: str) -> list[Any]:
        """What the entries of that node's log put, or their kind: the log as a script speaks of it."""
        log = self.node(name).running.local.log
        shown: list[Any] = []
        for entry in log.after(log.base.index, 1 << 40):
            shown.append(msgpack.unpackb(entry.data)[-1] if entry.kind == 0 else ("-", "barrier", "list")[entry.kind])
        return shown


def founded(size: int) -> Stage:
    """A cluster whose n1 is primary in epoch 1, everybody level."""
    stage = Stage(size)
    stage.run(1_000)
    stage.promote("n1")
    stage.run(500)
    assert stage.role("n1") == "primary"
    assert all(node.running.local.commit == 1 for node in stage.nodes)
    return stage
