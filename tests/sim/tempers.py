"""What a world tends to: chance alone meets some schedules too rarely, so each temper steers towards a few."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from .network import FAIR, Weather


class Temper(NamedTuple):
    name: str
    sizes: tuple[int, ...]
    small: float = 0.6  # chance of small limits
    hostile: float = 0.4  # share of the manager's steps that a sane one would not do
    stale: float = 0.1  # chance that the manager knows but an older score of a node
    manage_ms: int = 200  # at most between two steps of the manager
    faults_ms: tuple[int, ...] = (200, 400, 800)  # at most between two faults
    strike: float = 0.2  # share of crashes, pauses and cuts that hit a primary
    wipes: float = 0.1
    lists: float = 0.0  # changes of members, and of Corosync's nodes
    fewer: float = 0.0  # chance that the first start is made with fewer nodes
    weathers: tuple[Weather, ...] = (
        FAIR,
        Weather(loss=0.02, double=0.02, slow=0.05),
        Weather(loss=0.1, double=0.05, slow=0.1, slow_ms=300),
        Weather(loss=0.01, double=0.1, slow=0.3, slow_ms=150),
    )


ANY = (1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 7)
USUAL = Temper("usual", ANY, lists=0.02, fewer=0.1)
CALM = Temper("calm", ANY, hostile=0.1, manage_ms=500, faults_ms=(800, 1500), wipes=0.0)
# Primaries die or are cut off as soon as they lead, and little arrives: old tails, Raft's figure 8.
CHURN = Temper("churn", (3, 3, 4, 5), hostile=0.7, manage_ms=150, faults_ms=(200, 400), strike=0.8)
# Lists change all the time, many of them never committed.
LISTS = Temper(
    "lists", (2, 3, 3, 4, 4, 5), manage_ms=150, faults_ms=(100, 200), strike=0.5, wipes=0.1, lists=0.5, fewer=0.2
)
# Snapshots: small limits, backups long away.
LAG = Temper("lag", (2, 3, 3, 5), small=1.0, hostile=0.2, faults_ms=(150, 300), strike=0.1, wipes=0.2, lists=0.2)
TEMPERS = (USUAL, USUAL, CALM, CHURN, LISTS, LAG)

# Only for those who ask: what chance meets too rarely to show a defect soon.
# Much comes late, twice and out of order, from primaries that are primaries again by then.
LATE = Temper(
    "late",
    (3, 3, 4, 5),
    small=0.9,
    hostile=0.8,
    manage_ms=150,
    faults_ms=(150, 300),
    strike=0.8,
    wipes=0.0,
    weathers=(Weather(loss=0.05, double=0.2, slow=0.5, slow_ms=1_500),),
)
# One voter, and others that only listen.
ALONE = Temper("alone", (1, 2, 2, 3), faults_ms=(100, 200), strike=0.8, wipes=0.02, lists=0.2, fewer=0.9)
# Disks are lost and rolled back all the time.
DISKS = Temper("disks", (3, 3, 4, 5), hostile=0.5, faults_ms=(100, 200), strike=0.5, wipes=0.5, lists=0.2)
BY_NAME = {temper.name: temper for temper in (*TEMPERS, LATE, ALONE, DISKS)}


def temper(rng: Random) -> Temper:
    return rng.choice(TEMPERS)
