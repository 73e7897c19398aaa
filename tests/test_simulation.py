"""Random schedules over the core and the driver that ship: PROTOCOL.md's invariants hold at every step, a seed
replays exactly, and rules left out on purpose are noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from sim.defects import DEFECTS
from sim.simulator import Outcome, counted, run
from sim.tempers import LISTS

SEEDS = int(os.environ.get("FOOD_SEEDS", "2000"))
DEFECT_SEEDS_MOST = 300

# Caught by chance among the seeds below; the others are caught by the scripts in tests/scenarios.
BY_CHANCE = (
    "half_is_enough_for_even_lists",
    "same_number_promised_twice",
    "promise_not_saved",
    "restart_keeps_leading",
    "seal_answered_without_stepping_down",
    "donor_not_awaited",
    "matched_not_reset",
    "commit_up_to_what_is_held",
    "every_append_cuts_the_tail",
    "acknowledged_before_the_save",
    "replayed_past_the_commit",
    "sessions_outside_the_snapshot",
    "results_outside_the_snapshot",
    "pieces_of_snapshots_mixed",
    "list_that_cannot_commit",
    "old_look_at_the_list",
    "list_answered_at_its_append",
    "read_without_a_round",
    "duplicates_applied_again",
    "a_key_forgotten_on_one_node",
)


STEERED = {"list_that_cannot_commit": LISTS}  # rare elsewhere


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
    changes, fewer = (
        sum(o.faults.get(name, 0) for o in outcomes) for name in ("member command done", "founded with fewer")
    )
    assert changes >= SEEDS and fewer >= SEEDS // 100
    faults = sum(n for outcome in outcomes for name, n in outcome.faults.items() if not name.startswith("message"))
    assert faults >= 30 * SEEDS


@pytest.mark.parametrize("name", BY_CHANCE)
def test_a_rule_left_out_is_noticed(name: str) -> None:
    with DEFECTS[name]():
        found = any(run(seed, steer=STEERED.get(name)).broken for seed in range(DEFECT_SEEDS_MOST))
    assert found, f"{name} was not noticed"


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
