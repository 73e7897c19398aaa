"""What goes wrong while faults last: crashes, pauses, cuts, bad weather, lost disks, and Corosync's list changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .network import FAIR
from .node import CRASH_POINTS, Node

if TYPE_CHECKING:
    from .simulator import Simulation


class Faults:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        rng = world.rng
        self.most_ms = rng.choice(world.temper.faults_ms)
        self.weather = rng.choice(world.temper.weathers)
        self.lost: dict[str, None] = {}  # stores whose disk is gone
        world.after(rng.choice((0, 700)), self.step)

    def step(self) -> None:
        if not self.world.chaos:
            return
        rng, temper = self.world.rng, self.world.temper
        chance = rng.random()
        if chance < temper.lists:
            self.change_nodes() if rng.random() < 0.1 else self.world.operators.change()
        elif rng.random() < temper.wipes:
            self.roll_back() if rng.random() < 0.4 else self.wipe()
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
        if chance < 0.35:
            node.armed = rng.choice(CRASH_POINTS)  # counted when it dies there
        elif chance < 0.45:
            if node.up:
                world.count("crash")
                node.crash()
                world.after(world.mostly_short(2_000), node.start)
        elif chance < 0.6:
            world.count("pause")
            node.paused_until_ms = world.now + world.mostly_short(2_500)
        elif chance < 0.85:
            kind = rng.choice(("in", "out", "both", "both"))
            world.count(f"cut {kind}")
            world.network.isolate(node.name, world.names, kind != "out", kind != "in")
            world.after(world.mostly_short(2_500), self.heal, node.name)
        else:
            world.count("weather")
            world.network.weather = rng.choice((FAIR, self.weather, self.weather))

    def heal(self, name: str) -> None:
        network = self.world.network
        network.cuts = {cut: None for cut in network.cuts if name not in cut}

    def wipe(self) -> None:
        """A disk is lost, unless a list that may rule would lose its majority of disks."""
        world = self.world
        node = world.rng.choice(world.nodes)
        store = node.disk.member.store
        if not world.watch.may_lose(store, self.lost) or not self._data_left(node):
            return
        world.count("disk lost")
        self.lost[store] = None
        node.wipe()
        world.after(world.mostly_short(2_000), node.start)

    def roll_back(self) -> None:
        """A store becomes an older image of itself, where everybody remembers it as further on than that."""
        world = self.world
        if world.watch.members is None:
            return
        able = [node for node in world.nodes if self._remembered(node)]
        if able:
            node = world.rng.choice(able)
            world.count("disk rolled back")
            self.lost[node.disk.member.store] = None
            node.roll_back()
            world.after(world.mostly_short(2_000), node.start)
        for node in world.nodes:
            node.image = node.image or node.disk.copy()

    def _remembered(self, node: Node) -> bool:
        store, starts = node.disk.member.store, node.disk.starts
        others = [other.disk.remembers.get(store, (0, ""))[0] for other in self.world.nodes if other is not node]
        older = node.image is not None and node.image.starts < starts
        # The limit: whoever was alone in the list of that time asks nobody before it leads.
        members = node.image.members if node.image else None
        older = older and (members is None or len(members.members) > 1)
        older = older and bool(others) and min(others) >= starts
        return older and self.world.watch.may_lose(store, self.lost) and self._data_left(node)

    def _data_left(self, without: Node) -> bool:
        """The limit: if no node that Corosync names has a log, they are a first start, whoever else has one."""
        world = self.world
        return any(node.name in world.corosync and node is not without and node.disk.last.index for node in world.nodes)

    def change_nodes(self) -> None:
        """A node is taken out of Corosync, or put back; every other node hears of it in its own time."""
        world, rng = self.world, self.world.rng
        name = rng.choice(world.names)
        if name in world.corosync and not self._data_left(world.node(name)):
            return
        world.count("Corosync's nodes changed")
        if name in world.corosync:
            world.node(name).crash()
        world.corosync = sorted({*world.corosync} ^ {name})
        for node in world.nodes:
            world.after(rng.randrange(300), node.hear_of_nodes)
        if name in world.corosync:
            world.node(name).start()
