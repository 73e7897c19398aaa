"""The budget of faults: how much a world may break while every promise must hold. Stated here and nowhere else.

**Disks** that are lost, damaged or rolled back. W = floor(N/2)+1 of the N stores of a member list keep their disks:
at most N-W are gone, in the newest committed list and in every list that was appended behind it and may yet rule. A
store that is gone counts until no such list names it: its node comes back as another store, a learner, and is healed
when an operator has removed the one and added the other. Three limits of README besides:
- one node that Corosync names has a log: where none has, they are a first start, whatever others hold;
- a disk is rolled back only where everybody remembers it as further on, and not as the only one of its list;
- nobody changes members in the moment in which a disk is gone and not yet missed, nor for those who stay away.

**Everything else** has no budget: any number of nodes may crash, pause, be cut off, run short of space, have clocks
that run or leap as they like, and the cluster manager may do anything. What is promised then is safety.

**When the faults stop** the cluster must serve. What may stay broken: nodes that are down, or cut off in one direction
or both, so many that with the disks that are gone the same rule holds, and that the cluster manager would have quorum
(a store that was away while lists changed asks that many nodes before it votes); and only once a list is committed (a
founding needs everybody). When it has served, these come back too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from food.core.members import ANSWERING_MS
from food.core.message import MemberList
from food.core.quorum import majority

from .clock import SPEEDS
from .node import TICK_MS, Node

if TYPE_CHECKING:
    from .simulator import Simulation

MISSED_MS = int(ANSWERING_MS / min(SPEEDS)) + TICK_MS  # then a node whose disk is gone counts no more as answering


class Budget:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._gone = world.watch.gone

    # --- Disks ---

    def may_lose(self, node: Node) -> bool:
        return self._affords(node.disk.member.store) and self.data_left(node)

    def may_roll_back(self, node: Node) -> bool:
        """To its image, which everybody remembers as older than it is by now."""
        store, starts, image = node.disk.member.store, node.disk.starts, node.image
        others = [other.disk.remembers.get(store, (0, ""))[0] for other in self._world.nodes if other is not node]
        if image is None or image.starts >= starts or not others or min(others) < starts:
            return False
        # Whoever was alone in the list of that time asks nobody before it leads.
        alone = image.members is not None and len(image.members.members) == 1
        return self._world.watch.members is not None and not alone and self.may_lose(node)

    def data_left(self, without: Node) -> bool:
        here = [node for node in self._world.nodes if node.name in self._world.corosync and node is not without]
        return any(node.disk.last.index and node.disk.member.store not in self._gone for node in here)

    # --- Members ---

    def may_change_members(self) -> bool:
        """Whether every disk that is gone is missed by now, and nobody has just gone away to stay away."""
        world = self._world
        if world.away:
            return False
        lately = any(world.now - node.wiped_ms <= MISSED_MS for node in world.nodes)
        return not lately and not any(node.disk.member.store in self._gone for node in world.nodes)

    # --- When the faults stop ---

    def stay_broken(self) -> list[Node]:
        """Nodes that may stay away for as long as nothing else goes wrong: some, or none."""
        world = self._world
        if world.watch.members is None:
            return []
        away: list[Node] = []
        most = len(world.nodes) - majority(world.names)
        for node in world.rng.sample(world.nodes, len(world.nodes)):
            if len(away) < most and self._affords(node.disk.member.store, *(other.disk.member.store for other in away)):
                away.append(node)
        return away

    # --- The rule ---

    def _affords(self, *stores: str) -> bool:
        """Whether every list that may rule keeps a majority of its stores without those, too."""
        gone = {*self._gone, *stores}
        return all(_keeps(members, gone) for members in self._may_rule())

    def _may_rule(self) -> list[MemberList]:
        watch = self._world.watch
        newest = watch.members.number if watch.members else 0
        return [members for number, lists in watch.lists.items() if number >= newest for members in lists]


def _keeps(members: MemberList, gone: Collection[str]) -> bool:
    return sum(store not in gone for store in members.stores) >= majority(members.stores)
