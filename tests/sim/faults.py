"""What goes wrong while faults last: processes, disks, links, clocks, and Corosync's list changed.

How much may go wrong at once: tests/sim/budget.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .clock import SPEEDS
from .network import FAIR
from .node import CRASH_POINTS, Node

if TYPE_CHECKING:
    from .simulator import Simulation

PUB_ROOM = (0, 0, 3, 30)  # messages that a publisher still takes in for a subscriber that does not read
LEAP_MOST_MS = 3_000


class Faults:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        rng = world.rng
        self.most_ms = rng.choice(world.temper.faults_ms)
        self.weather = rng.choice(world.temper.weathers)
        for node in world.nodes:
            node.clock.change(0, speed=rng.choice(SPEEDS), leap_ms=rng.randrange(1_000_000))
        world.after(rng.choice((0, 700)), self.step)

    def step(self) -> None:
        if not self.world.chaos:
            return
        rng, temper = self.world.rng, self.world.temper
        if rng.random() < temper.lists:
            self.change_nodes() if rng.random() < 0.1 else self.world.operators.change()
        elif rng.random() < temper.wipes:
            self._lose_disk()
        else:
            self.harm(self._victim())
        self.world.after(rng.randrange(self.most_ms), self.step)

    def _victim(self) -> Node:
        rng, nodes = self.world.rng, self.world.nodes
        leaders = [node for node in nodes if node.replica and (node.replica.leading or node.replica.promotion)]
        if leaders and rng.random() < self.world.temper.strike:
            return rng.choice(leaders)
        return rng.choice(nodes)

    def harm(self, node: Node) -> None:
        world, rng = self.world, self.world.rng
        chance = rng.random()
        if chance < 0.3:
            node.armed = rng.choice(CRASH_POINTS)  # counted when it dies there
        elif chance < 0.4:
            if node.up:
                world.count("crash")
                node.crash()
                world.after(world.mostly_short(2_000), node.start)
        elif chance < 0.5:
            world.count("pause")
            node.paused_until_ms = world.now + world.mostly_short(2_500)
        elif chance < 0.7:
            self._cut(node)
        elif chance < 0.8:
            self._fill_queues(node)
        elif chance < 0.88:
            self._harm_disk(node)
        elif chance < 0.93:
            world.count("clock")
            node.clock.change(world.now, speed=rng.choice(SPEEDS), leap_ms=rng.choice((0, rng.randrange(LEAP_MOST_MS))))
        else:
            world.count("weather")
            world.network.weather = rng.choice((FAIR, self.weather, self.weather))

    # --- Links ---

    def _cut(self, node: Node) -> None:
        world = self.world
        kind = world.rng.choice(("in", "out", "both", "both"))
        world.count(f"cut {kind}")
        world.network.isolate(node.name, world.names, kind != "out", kind != "in")
        world.after(world.mostly_short(2_500), self.heal, node.name)

    def heal(self, name: str) -> None:
        network = self.world.network
        network.cuts = {cut: None for cut in network.cuts if name not in cut}

    def _fill_queues(self, node: Node) -> None:
        """One subscriber of that node, or all, do not keep up."""
        world, rng = self.world, self.world.rng
        world.count("PUB at its high-water mark")
        others = [name for name in world.names if name != node.name]
        until_ms = world.now + world.mostly_short(1_500)
        for name in others if rng.random() < 0.5 else others[:1]:
            world.network.fill(node.name, name, rng.choice(PUB_ROOM), until_ms)

    # --- Disks ---

    def _harm_disk(self, node: Node) -> None:
        """Nothing on it is lost. A failed save ends the process, and what was to be saved may be there or not."""
        world, rng = self.world, self.world.rng
        chance = rng.random()
        if chance < 0.5:
            world.count("disk nearly full")
            node.short_until_ms = world.now + world.mostly_short(3_000)
        else:
            world.count("disk error")
            node.armed = rng.choice(("save", "saved"))
            node.unreadable_until_ms = world.now + world.mostly_short(2_000)

    def _lose_disk(self) -> None:
        world = self.world
        node, chance = world.rng.choice(world.nodes), world.rng.random()
        if chance < 0.4:
            able = [node for node in world.nodes if world.budget.may_roll_back(node)]
            if able:
                self._lose(world.rng.choice(able), "disk rolled back", Node.roll_back)
            if world.watch.members is not None:
                for node in world.nodes:
                    node.image = node.image or node.disk.copy()
        elif world.budget.may_lose(node):
            if chance < 0.6:
                self._lose(node, "disk damaged", Node.damage)
            else:
                self._lose(node, "disk lost", Node.wipe)

    def _lose(self, node: Node, what: str, way: Callable[[Node], None]) -> None:
        self.world.count(what)
        way(node)
        for other in self.world.nodes:
            other.forget_changes()  # what a paused node is yet to read was asked for before this disk could be missed
        self.world.after(self.world.mostly_short(2_000), node.start)

    # --- Corosync ---

    def change_nodes(self) -> None:
        """A node is taken out of Corosync, or put back; every other node hears of it in its own time."""
        world, rng = self.world, self.world.rng
        name = rng.choice(world.names)
        if name in world.corosync and not world.budget.data_left(world.node(name)):
            return
        world.count("Corosync's nodes changed")
        if name in world.corosync:
            world.node(name).crash()
        world.corosync = sorted({*world.corosync} ^ {name})
        for node in world.nodes:
            world.after(rng.randrange(300), node.hear_of_nodes)
        if name in world.corosync:
            world.node(name).start()
