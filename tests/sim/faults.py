"""What goes wrong while faults last: crashes, pauses, cuts, bad weather, lost disks and member changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from food.core.message import Member, MemberList

from .network import FAIR, Weather
from .node import CRASH_POINTS

if TYPE_CHECKING:
    from .simulator import Simulation


class Faults:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        rng = world.rng
        self.every_ms = rng.choice((60, 120, 250))
        self.members = rng.random() < 0.4
        self.wipes = rng.random() < 0.4
        self.weather = rng.choice(
            (
                FAIR,
                Weather(loss=0.02, double=0.02, slow=0.05),
                Weather(loss=0.1, double=0.05, slow=0.1, slow_ms=300),
                Weather(loss=0.01, double=0.1, slow=0.3, slow_ms=150),
            )
        )
        self.lost: dict[str, None] = {}  # stores whose disk is gone

    def step(self) -> None:
        world, rng = self.world, self.world.rng
        node = rng.choice(world.nodes)
        chance = rng.random()
        if chance < 0.25:
            if node.replica:
                node.armed = rng.choice(CRASH_POINTS)  # counted when it dies there
        elif chance < 0.35:
            if node.replica:
                world.count("crash")
                node.crash()
                world.after(rng.randrange(20, 1500), node.start)
        elif chance < 0.45:
            world.count("pause")
            node.paused_until_ms = world.now + rng.randrange(50, 2_500)
        elif chance < 0.65:
            kind = rng.choice(("in", "out", "both", "both"))
            world.count(f"cut {kind}")
            world.network.isolate(node.name, world.names, kind != "out", kind != "in")
            world.after(rng.randrange(100, 2_000), self.heal, node.name)
        elif chance < 0.75:
            world.count("weather")
            world.network.weather = rng.choice((FAIR, self.weather, self.weather))
        elif chance < 0.8 and self.wipes:
            self.wipe()
        elif chance < 0.95 and self.members:
            self.change_members()

    def heal(self, name: str) -> None:
        network = self.world.network
        network.cuts = {cut: None for cut in network.cuts if name not in cut}

    def wipe(self) -> None:
        world = self.world
        node = world.rng.choice(world.nodes)
        store = node.disk.member.store
        if world.watch.members is None or not world.watch.may_lose(store, {**self.lost, store: None}):
            return
        world.count("disk lost")
        self.lost[store] = None
        node.wipe()
        world.after(world.rng.randrange(20, 1500), node.start)

    def change_members(self) -> None:
        """An operator at some primary: replaces a lost store, adds a learner, or removes anybody."""
        world, rng = self.world, self.world.rng
        leaders = [n for n in world.nodes if n.replica and n.replica.leading and n.paused_until_ms <= world.now]
        if not leaders:
            return
        leader = rng.choice(leaders)
        leading, current = leader.running.leading, leader.running.local.log.members
        assert leading and current
        here = {node.disk.member for node in world.nodes}
        gone = [m for m in current.members if m not in here]
        learners = [node.disk.member for node in world.nodes if node.disk.member not in current.members]
        changes: list[tuple[Member, ...]] = [tuple(m for m in current.members if m != dead) for dead in gone]
        if not gone or rng.random() < 0.3:
            changes += [tuple(sorted((*current.members, learner))) for learner in learners]
            if rng.random() < 0.4:
                changes += [tuple(m for m in current.members if m != leaver) for leaver in current.members]
        allowed = [
            new for new in changes if sum(m.store not in self.lost for m in new) >= len(new) // 2 + 1 and new
        ]
        if allowed:
            new = MemberList(current.number + 1, current.cluster, rng.choice(allowed))
            why_not = leading.change_members(new)
            world.count("list refused" if why_not else "list changed")
            leader.turn()
