"""Looks for the seed that shows each seeded defect, and writes the table of tests/sim/shown.py anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType
from pathlib import Path

from .defects import DEFECTS
from .shown import SHOWN, Shown, scripted
from .simulator import counted
from .tempers import BY_NAME

TABLE = Path(__file__).with_name("shown.py")
BEGIN = "SHOWN: dict[str, Shown] = {"
RULE_MOST_CHARACTERS = 55
SEEDS_MOST = 1_000
STRIDE = (
    50  # seeds of each temper in turn, so that a defect which one temper shows early is not sought in another first
)
# What a defect must end in: a rule of PROTOCOL.md, an assertion of the core's own, or a store that does not add up.
# Anything else is a mistake in the defect.
NOTICED = ("Violation: ", "AssertionError: ", "ValueError: ")


def broken_by(defect: str, seed: int, temper: str | None) -> str | None:
    """The rule that is broken in that world with the defect."""
    with DEFECTS[defect]():
        broken = counted(seed, BY_NAME[temper] if temper else None).broken
    if broken and not broken.startswith(NOTICED):
        raise RuntimeError(f"{defect}, seed {seed}: {broken}")
    return broken


def _one(job: tuple[str, int, str | None]) -> tuple[int, str | None, str | None]:
    defect, seed, temper = job
    return seed, temper, broken_by(defect, seed, temper)


def _first(pool: PoolType, defect: str) -> Shown | None:
    """Any world shows most of them; where none does in the first stride, the tempers are tried in turn."""
    known = SHOWN.get(defect)
    if known and (rule := broken_by(defect, known.seed, known.temper)):
        return known._replace(rule=rule)
    for since in range(0, SEEDS_MOST, STRIDE):
        for temper in (None, *BY_NAME):
            jobs = [(defect, seed, temper) for seed in range(since, since + STRIDE)]
            for seed, steer, rule in pool.imap(_one, jobs, chunksize=5):
                if rule:
                    return Shown(seed, steer, rule)
    return None


def search(names: Sequence[str]) -> int:
    """Seeks and prints a world for each of `names`; without names, for all that no script shows, and writes the table.

    Returns how many no seed shows.
    """
    wanted = names or [name for name in DEFECTS if name in SHOWN or not scripted(name)]
    lines: list[str] = []
    with Pool(os.cpu_count()) as pool:
        for name in wanted:
            if shown := _first(pool, name):
                temper = f'"{shown.temper}"' if shown.temper else None
                rule = shown.rule.split(" [")[0].replace('"', "'")[:RULE_MOST_CHARACTERS]
                lines.append(f'    "{name}": Shown({shown.seed}, {temper}, "{rule}"),')
            print(lines[-1] if shown else f"    # {name}: no seed below {SEEDS_MOST} of any temper", flush=True)
    if not names:
        TABLE.write_text(TABLE.read_text().partition(BEGIN)[0] + BEGIN + "\n".join(["", *lines, "}", ""]))
    return len(wanted) - len(lines)
