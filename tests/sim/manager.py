"""The cluster manager, as Pacemaker behaves and worse: anybody promoted, two at once, demote never delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import Node

if TYPE_CHECKING:
    from .simulator import Simulation

DRAIN_MS = 200


class Manager:
    def __init__(self, world: Simulation) -> None:
        self.world = world

    # --- Orders ---

    def promote(self, node: Node, budget_ms: int) -> None:
        if node.replica:
            node.ordered = True
            self.world.note(node.name, "order promote")
            node.replica.promote(self.world.now, self.world.now + budget_ms)
            node.poke()

    def demote(self, node: Node) -> None:
        if node.replica:
            self.world.note(node.name, "order demote")
            node.replica.demote(self.world.now, DRAIN_MS)
            node.poke()
        node.ordered = False

    # --- Steps ---

    def step(self) -> None:
        rng = self.world.rng
        if rng.random() < self.world.temper.hostile:
            self._mischief()
        else:
            self.sane(budget_ms=2_000)

    def sane(self, budget_ms: int) -> None:
        """One primary: the node with the best score; whoever failed or lost its score is demoted first."""
        up = [node for node in self.world.nodes if node.replica]
        scored = [node for node in up if node.running.wish.score is not None]
        for node in up:
            if node.running.deposed or (node.running.ordered and not node.ordered):  # its monitor says so
                self.demote(node)
        promoted = [node for node in up if node.ordered]
        for node in promoted:
            wish = node.running.wish
            others = [other for other in scored if other is not node]
            bad = wish.score is None and (not wish.unless_alone or bool(others))
            if bad and node.running.role != "candidate":
                self.demote(node)
        promoted = [node for node in up if node.ordered]
        for node in promoted[1:]:
            self.demote(node)
        if not promoted and scored and all(node.running.role == "backup" for node in up):
            best = max(scored, key=lambda node: (node.running.wish.score or 0, node.name))
            self.promote(best, budget_ms)

    def _mischief(self) -> None:
        rng = self.world.rng
        up = [node for node in self.world.nodes if node.replica]
        if not up:
            return
        chance = rng.random()
        if chance < 0.35:
            self.world.count("promoted anybody")
            self.promote(rng.choice(up), rng.randrange(100, 2_500))
        elif chance < 0.5:
            self.world.count("promoted two at once")
            for node in rng.sample(up, min(2, len(up))):
                self.promote(node, rng.randrange(300, 2_500))
        elif chance < 0.6:
            self.world.count("promoted twice")
            node = rng.choice(up)
            self.promote(node, rng.randrange(100, 2_000))
            self.promote(node, rng.randrange(100, 2_000))
        elif chance < 0.75:
            self.world.count("demoted anybody")
            self.demote(rng.choice(up))
        elif chance < 0.85:
            self.world.count("demote lost")
            rng.choice(up).ordered = False
        else:
            self.world.count("moved")
            for node in up:
                if node.ordered:
                    self.demote(node)
            self.promote(rng.choice(up), 2_000)
