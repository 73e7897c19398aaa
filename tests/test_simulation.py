"""Random schedules over the core and the driver that ship: PROTOCOL.md's invariants hold at every step, a seed
replays exactly, and rules left out on purpose are noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest
from sim import invariants
from sim.counting import Counting
from sim.defects import DEFECTS
from sim.invariants import Violation
from sim.rules import RULES
from sim.search import broken_by
from sim.shown import SHOWN, scripted
from sim.simulator import Outcome, counted, run
from sim.tempers import BY_NAME
from sim.trace import USEFUL_LINES

SEEDS = int(os.environ.get("FOOD_SEEDS", "4000"))
DEFECT_SEEDS_MOST = 300
CLIENTS_SEEDS_MOST = 50
KINDS = {
    *("crash", "crash publish", "crash save", "crash saved", "crash send", "crash answer", "pause", "clock"),
    *("cut in", "cut out", "cut both", "weather", "PUB at its high-water mark", "published message dropped"),
    *("message lost", "message doubled", "message late"),
    *("disk error", "start: read error", "disk nearly full", "disk lost", "disk damaged", "start: damage found"),
    *("disk rolled back", "rollback recognised"),
    *("promoted anybody", "promoted two at once", "promoted twice", "promote late", "promote timed out"),
    *("demoted anybody", "demote lost", "demote late", "demote timed out", "moved", "stale score"),
    *("member command", "member command done", "founded with fewer", "Corosync's nodes changed"),
    *("session lost", "result lost"),
    *("stays down", "stays cut off: in", "stays cut off: out", "stays cut off: both"),
}


@pytest.mark.timeout(1_200)  # some 150 s on two idle cores
def test_every_seed_holds() -> None:
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        outcomes: list[Outcome] = pool.map(counted, range(SEEDS), chunksize=20)
    broken = [f"seed {outcome.seed}: {outcome.broken}" for outcome in outcomes if outcome.broken]
    assert not broken, "\n".join(["tests/simulate --trace --seeds 1 --from SEED shows the schedule", *broken[:10]])
    # The worlds are worth something: work was done in them, and disturbed.
    assert sum(outcome.commits for outcome in outcomes) >= 200 * SEEDS
    assert sum(outcome.acknowledged for outcome in outcomes) >= 100 * SEEDS
    assert sum(outcome.reads for outcome in outcomes) >= 50 * SEEDS
    assert sum(outcome.promotions for outcome in outcomes) >= 5 * SEEDS
    kinds = sum((Counter(outcome.faults) for outcome in outcomes), Counter())
    assert kinds.keys() == KINDS or (SEEDS < 1_000 and kinds.keys() < KINDS)  # a few worlds lack the rare ones
    assert kinds["member command done"] >= SEEDS and kinds["founded with fewer"] >= SEEDS // 100
    assert sum(number for name, number in kinds.items() if "message" not in name) >= 30 * SEEDS


def test_what_broke_is_explained() -> None:
    """The lines that concern it, and no more."""
    with DEFECTS["matched_not_reset"]():
        seed = next(seed for seed in range(DEFECT_SEEDS_MOST) if run(seed).broken)
        outcome = run(seed, trace=True)
    assert outcome.broken and "README rule 7" in outcome.broken and outcome.broken in outcome.useful[-1]
    assert 10 <= len(outcome.useful) <= USEFUL_LINES < len(outcome.trace)
    assert not any("Ask" in line for line in outcome.useful)


def test_every_rule_is_checked() -> None:
    source = Path(invariants.__file__).read_text()
    assert [name for name in RULES if f"rules.{name}" not in source] == []


@pytest.mark.parametrize("arguments", [("--seeds", "6", "--from", "100"), ("--minutes", "0.02")])
def test_simulate(arguments: tuple[str, ...]) -> None:
    simulate = Path(__file__).with_name("simulate")
    done = subprocess.run([sys.executable, simulate, *arguments], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    found = re.match(r"(\d+) seeds from (\d+), 0 broken, .* (\d+) commits, .* (\d+) promotions, .* crash", last)
    assert found, done.stdout
    assert int(found[1]) == 6 or arguments[0] == "--minutes"


@pytest.mark.parametrize("name", SHOWN)
def test_a_rule_left_out_is_noticed(name: str) -> None:
    """In one world, which holds without it. Once worlds have changed, `tests/simulate --defects` finds others."""
    shown = SHOWN[name]
    assert broken_by(name, shown.seed, shown.temper), "not in this world: run tests/simulate --defects"
    assert counted(shown.seed, BY_NAME[shown.temper] if shown.temper else None).broken is None


@pytest.mark.parametrize("name", ["duplicates_applied_again", "served_before_the_barrier"])
def test_clients_alone_notice_it(name: str) -> None:
    """With every rule about nodes silent, what clients saw still is not linearizable."""
    with DEFECTS[name](), patch.object(invariants, "must", lambda *_: None):
        assert any("not linearizable" in str(counted(seed).broken) for seed in range(CLIENTS_SEEDS_MOST))


def test_every_defect_is_shown() -> None:
    """By a world, or where chance is too slow by a script."""
    assert [name for name in DEFECTS if name not in SHOWN and not scripted(name)] == []
    assert SHOWN.keys() <= DEFECTS.keys()
    assert len(DEFECTS) >= 60


COUNT_TO, PROMOTIONS_LEAST = 20_000, 50  # tests/simulate --counter 1000000 is the long form


def test_counters_are_exact() -> None:
    world = Counting(1, COUNT_TO, PROMOTIONS_LEAST)
    outcome = world.run()
    assert outcome.broken is None
    assert world.counters.counted >= COUNT_TO and outcome.promotions >= PROMOTIONS_LEAST
    world.counters.incrementers[0].counted += 1
    with pytest.raises(Violation, match="1 counters on n1 are not exact"):
        world.counters.compare()


def test_a_retry_that_is_executed_again_is_noticed_by_those_who_count() -> None:
    with DEFECTS["duplicates_applied_again"]():
        assert any(Counting(seed, 5_000, 5).run().broken for seed in range(5))


REPLAY = """
import sys
sys.path[:0] = sys.argv[1:3]
from hashlib import blake2b
from sim.simulator import run
for seed in (3, 11, 20, 28):
    print(blake2b("\\n".join(run(seed, trace=True).trace).encode()).hexdigest())
"""


def test_a_seed_replays_exactly() -> None:
    """Also where sets and hashes of text are ordered differently: nothing in the core may depend on that."""
    tests = Path(__file__).resolve().parent
    found = {
        subprocess.run(
            [sys.executable, "-c", REPLAY, str(tests.parent), str(tests)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(found) == 1
    assert len(set(found.pop().split())) == 4
