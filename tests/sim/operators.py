"""Operators who change members by command: at any node, with what an old look at the list told them, sent twice.

They go the way of the daemon's requests (Replica.change_members, Replica.found), ask for nonsense too, and keep two
limits of README: nothing is asked for within the moment in which a lost disk is not yet missed (tests/sim/budget.py),
and fewer nodes found only a cluster that no other node has ever run in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from food.core.members import Change
from food.core.message import Member, MemberList
from food.core.state import Result

from .invariants import Violation
from .node import Node, Request

if TYPE_CHECKING:
    from .simulator import Simulation

TELL_MS = 300
DELAY_MS = 400  # of a request sent again
KNOWN = (0, "busy", "refused", "list_changed", "behind", "not_primary", "unknown")


class Order(NamedTuple):
    """Whose answer it is: an operator's."""

    change: Change | None
    names: tuple[str, ...] = ()


class Operators:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.asked = world.watch.asked = set()
        rng, names = world.rng, world.names
        self.founders: tuple[str, ...] = ()
        if len(names) > 1 and rng.random() < world.temper.fewer:
            self.founders = tuple(sorted(rng.sample(names, rng.randrange(1, len(names)))))
            world.after(rng.randrange(TELL_MS), self._tell)

    # --- Changes of members ---

    def change(self) -> None:
        """Adds or removes anybody, as some node's list suggests it."""
        world, rng = self.world, self.world.rng
        views = [node.running.local.log.members for node in world.nodes if node.replica]
        lists = [members for members in views if members]
        if not lists:
            return
        current = rng.choice(lists)
        here = [node.disk.member for node in world.nodes]
        if rng.random() < 0.5:
            change = Change(current.number, "add", rng.choice(here), rng.random() < 0.2)
        else:
            change = Change(current.number, "remove", rng.choice(current.members), rng.random() < 0.2)
        self.send(change, rng.randrange(10))
        if rng.random() < 0.3:
            self.send(change, rng.randrange(DELAY_MS))

    def send(self, change: Change, delay_ms: int) -> None:
        self.asked.add((change.number, change.op, change.member))
        world = self.world
        leaders = [node for node in world.nodes if node.replica and node.replica.leading]
        target = world.rng.choice(leaders if leaders and world.rng.random() < 0.8 else world.nodes)
        world.after(delay_ms, self._arrive, target, change)

    def _arrive(self, target: Node, change: Change) -> None:
        if self.world.budget.may_change_members():
            self.world.count("member command")
            target.take(Request(Order(change), None, None, change=change))

    def answered(self, node: Node, order: Order, result: Result) -> None:
        if result.status not in KNOWN:
            raise Violation(f"an operator is answered {result}")
        if result.status == 0 and order.change:
            self.world.count("member command done")
            self.world.watch.on_list_answer(node, order.change, result.value)

    # --- Founding with fewer ---

    def _tell(self) -> None:
        """Tells one of the named nodes; a restart makes it forget."""
        world, rng = self.world, self.world.rng
        others = [node for node in world.nodes if node.name not in self.founders]
        if world.watch.lists or any(node.disk.starts for node in others):
            return
        node = world.node(rng.choice(self.founders))
        node.take(Request(Order(None, self.founders), None, None, names=self.founders))
        world.after(rng.randrange(TELL_MS), self._tell)

    def may_start(self, node: Node) -> bool:
        """Whether a node is no longer one that is missing at the first start."""
        if not self.founders or node.name in self.founders or self.world.watch.lists:
            return True
        return self.world.now > self.world.late_ms

    # --- When all is calm: every node becomes a member again ---

    def mend(self) -> bool:
        """One step of what `foodctl member replace` and `add` do; True once every store that is here votes."""
        world = self.world
        primaries = [node for node in world.nodes if node.up and node.running.role == "primary"]
        if not primaries:
            return False
        current = primaries[0].running.local.log.members
        assert current is not None
        change = self._mending(current)
        if change:
            self.send(change, 0)
        return change is None and world.watch.members == current

    def found_all(self) -> None:
        """All are here: they found together."""
        names = tuple(self.world.names)
        for node in self.world.nodes:
            node.take(Request(Order(None, names), None, None, names=names))

    def _mending(self, current: MemberList) -> Change | None:
        here = [node.disk.member for node in self.world.nodes]
        gone: list[Member] = [member for member in current.members if member not in here]
        new = [member for member in here if member not in current.members]
        if gone:
            return Change(current.number, "remove", gone[0], False)
        return Change(current.number, "add", new[0], False) if new else None
