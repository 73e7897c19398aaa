"""What the nemesis does in which round: a pure function of seed and round, so a round is known before it is run.

Nodes are named by the role that they have when the fault begins, which is not known before. The same seed gives the
same faults at the same distances; what Pacemaker and the processes do between them, no seed says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

PRIMARY, BACKUP = "primary", "backup"
TWO_AT_ONCE, THREE_AT_ONCE = 0.3, 0.06  # how many rounds
HASTY = 0.25  # rounds after which the next one begins as soon as writes are acknowledged
APART_MOST_S = 1.5  # from one fault's beginning to the next one's
DIRECTIONS = ("both", "in", "out")
ACTIONS = ("promote", "demote", "notify")  # of a move's; killed midway


class Kind(NamedTuple):
    """`hold_s`: how long it lasts at least and at most. `alone`: nothing else may happen meanwhile. `small_disk`: only
    where the nodes have disks of their own that may be filled. `waits`: to end it waits for Pacemaker, which may itself
    wait for the end of another fault; such ones end last."""

    words: str
    weight: float
    hold_s: tuple[float, float] = (0.0, 0.0)
    victims: tuple[str, ...] = (PRIMARY, PRIMARY, BACKUP)
    alone: bool = False
    small_disk: bool = False
    waits: bool = False


KINDS = {
    "move": Kind("pcs resource move", 14, victims=(PRIMARY,), waits=True),
    "kill": Kind("kill -9 of the daemon", 13, (0.5, 1.5)),
    "kill_guardian": Kind("kill -9 of the guardian", 4, (0.5, 1.5)),
    "kill_both": Kind("kill -9 of guardian and daemon", 3, (0.5, 1.5)),
    "kill_agent": Kind("kill -9 of the agent midway", 7, victims=(PRIMARY,), waits=True),
    "stop": Kind("SIGSTOP of the daemon", 7, (0.2, 3.0)),
    "stop_guardian": Kind("SIGSTOP of the guardian", 3, (0.5, 4.0)),
    "cut_food": Kind("food's links cut", 7, (1.5, 4.0)),
    "cut_corosync": Kind("Corosync's links cut", 3, (1.5, 3.0)),
    "cut_all": Kind("all links cut", 3, (1.5, 3.0)),
    "loss": Kind("packets lost", 4, (2.0, 4.0)),
    "power_off": Kind("power off", 4, victims=(PRIMARY, PRIMARY, BACKUP)),
    "power_off_two": Kind("two nodes power off", 1, (0.0, 3.0), (PRIMARY, BACKUP)),
    "all_off": Kind("all nodes power off", 1, victims=(PRIMARY,)),
    "disk_error": Kind("the disk takes no more", 4, (1.0, 3.0)),
    "disk_full": Kind("disk full", 4, (1.0, 4.0), small_disk=True),
    "pacemaker": Kind("Pacemaker restarted", 3, waits=True),
    "pacemakerd": Kind("pacemakerd killed and started", 2, (0.0, 2.0)),
    "pacemaker_part": Kind("attrd or controld killed", 3, (0.5, 1.5)),
    "pacemaker_all": Kind("all of Pacemaker killed", 1),
    "maintenance": Kind("a death in maintenance", 3, (0.5, 2.5)),
    "standby": Kind("standby", 4, (0.0, 2.0)),
    "disable": Kind("clone disabled and enabled", 2, (0.0, 2.0), (PRIMARY,)),
    "fail": Kind("crm_resource --fail", 4, (0.5, 1.5)),
    "score": Kind("a score that lies", 5, (1.0, 3.0), (BACKUP,)),
    "disk_lost": Kind("disk lost and replaced", 1.5, victims=(PRIMARY, BACKUP), alone=True),
}


@dataclass(frozen=True)
class Fault:
    """`after_s` the round's beginning it begins, and lasts at least `hold_s`. What else it needs to know it draws from
    `dice`, whose seed stands here."""

    kind: str
    victim: str
    after_s: float
    hold_s: float
    seed: int

    def dice(self) -> random.Random:
        return random.Random(self.seed)

    @property
    def words(self) -> str:
        return KINDS[self.kind].words


@dataclass(frozen=True)
class Round:
    number: int
    faults: tuple[Fault, ...]
    hasty: bool


def plan(seed: int, number: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Round:
    """One round; `kinds` are those that may be in it."""
    dice = random.Random(f"{seed}/{number}")
    first = _fault(dice, kinds, 0.0)
    chance = dice.random()
    count = 1 if KINDS[first.kind].alone or chance >= TWO_AT_ONCE else 3 if chance < THREE_AT_ONCE else 2
    together = tuple(kind for kind in kinds if not KINDS[kind].alone)
    rest = [_fault(dice, together, dice.uniform(0.0, APART_MOST_S)) for _ in range(count - 1)]
    faults = sorted([first, *rest], key=lambda fault: fault.after_s)
    return Round(number, tuple(faults), dice.random() < HASTY)


def _fault(dice: random.Random, kinds: tuple[str, ...], after_s: float) -> Fault:
    (kind,) = dice.choices(kinds, [KINDS[kind].weight for kind in kinds])
    victim = dice.choice(KINDS[kind].victims)
    return Fault(kind, victim, after_s, dice.uniform(*KINDS[kind].hold_s), dice.getrandbits(32))
