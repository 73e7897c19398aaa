"""The cluster manager, as Pacemaker behaves and worse.

Anybody promoted, two at once, orders late or lost, actions given up midway, scores that are stale or of the dead.
Notify is lost for ever here: it tells the core nothing (food/control.py logs it), so nothing can depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from food.core.peers import Wish

from .node import Node

if TYPE_CHECKING:
    from .simulator import Simulation

DRAIN_MS = 200
LATE_MS = 1_500  # an order that comes when nobody expects it any more
NONE = Wish(None, "")


class Manager:
    def __init__(self, world: Simulation) -> None:
        self.world = world
        self._seen: dict[str, Wish] = {}  # the newest score that it has heard of, by node

    # --- Orders ---

    def promote(self, node: Node, budget_ms: int) -> None:
        if node.replica:
            node.ordered = True
            self.world.note(node.name, "order promote")
            node.replica.promote(node.now, node.now + budget_ms)
            node.poke()

    def demote(self, node: Node) -> None:
        if node.replica:
            self.world.note(node.name, "order demote")
            node.replica.demote(node.now, DRAIN_MS)
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
        seen = {node.name: self._score_of(node) for node in up}
        scored = [node for node in up if seen[node.name].score is not None]
        for node in up:
            if node.running.deposed or (node.running.ordered and not node.ordered):  # its monitor says so
                self.demote(node)
        promoted = [node for node in up if node.ordered]
        for node in promoted:
            wish = seen[node.name]
            others = [other for other in scored if other is not node]
            bad = wish.score is None and (not wish.unless_alone or bool(others))
            if bad and node.running.role != "candidate":
                self.demote(node)
        promoted = [node for node in up if node.ordered]
        for node in promoted[1:]:
            self.demote(node)
        if not promoted and scored and all(node.running.role == "backup" for node in up):
            best = max(scored, key=lambda node: (seen[node.name].score or 0, node.name))
            self.promote(best, budget_ms)

    def _score_of(self, node: Node) -> Wish:
        """As the cluster shows it: now and then an older one, of a former life perhaps."""
        if self.world.chaos and self.world.rng.random() < self.world.temper.stale:
            self.world.count("stale score")
            return self._seen.get(node.name, NONE)
        self._seen[node.name] = node.running.wish
        return node.running.wish

    def _mischief(self) -> None:
        world, rng = self.world, self.world.rng
        up = [node for node in world.nodes if node.replica]
        if not up:
            return
        node, chance = rng.choice(up), rng.random()
        if chance < 0.3:
            world.count("promoted anybody")
            self.promote(node, rng.randrange(100, 2_500))
        elif chance < 0.42:
            world.count("promoted two at once")
            for other in rng.sample(up, min(2, len(up))):
                self.promote(other, rng.randrange(300, 2_500))
        elif chance < 0.5:
            world.count("promoted twice")
            self.promote(node, rng.randrange(100, 2_000))
            self.promote(node, rng.randrange(100, 2_000))
        elif chance < 0.6:
            world.count("demoted anybody")
            self.demote(node)
        elif chance < 0.68:
            world.count("demote lost")
            node.ordered = False
        elif chance < 0.74:
            late = rng.choice((self.demote, self._promote_late))
            world.count("demote late" if late == self.demote else "promote late")
            node.ordered = False
            world.after(rng.randrange(LATE_MS), late, node)
        elif chance < 0.86:
            self._give_up_midway(node)
        else:
            world.count("moved")
            for other in up:
                if other.ordered:
                    self.demote(other)
            self.promote(node, 2_000)

    def _promote_late(self, node: Node) -> None:
        self.promote(node, 1_000)

    def _give_up_midway(self, node: Node) -> None:
        """The agent's action takes longer than its timeout: it is killed, and the node demoted, or stopped as well."""
        world, rng = self.world, self.world.rng
        if node.ordered:
            world.count("demote timed out")
            self.demote(node)
        else:
            world.count("promote timed out")
            self.promote(node, 2_000)
        follows = self._stop if node.ordered is False or rng.random() < 0.5 else self.demote
        world.after(rng.randrange(DRAIN_MS), follows, node)

    def _stop(self, node: Node) -> None:
        node.crash()
        self.world.after(self.world.mostly_short(1_000), node.start)
