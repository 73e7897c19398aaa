"""guardian, daemon or both killed at random instants of every action: no orphan, and the next start works.

FOOD_ROUNDS=N rounds of each (else 2 of an action and 1 of a move, since tests/cluster/test_soak.py does more of it;
20 with FOOD_LONG=yes), FOOD_SEED=N repeats one.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import rounds
from cluster.operations import CLONE, LONG, RESOURCE, Cluster, assert_clean
from testbed import packages

pytestmark = pytest.mark.cluster

ROUNDS = int(os.environ.get("FOOD_ROUNDS") or (20 if LONG else 2))
MOVES = int(os.environ.get("FOOD_ROUNDS") or (20 if LONG else 1))
NAME, PORT = "rounds", 9200
ROUND_LIMIT_S = 120
KILL_WITHIN_S = 1.5  # of the beginning of `pcs resource move`: until its last action has begun
PATTERNS = {"guardian": f"local/bin/food --id {RESOURCE}", "daemon": "food.daemon import"}


@pytest.fixture
def seed() -> int:
    found = int(os.environ.get("FOOD_SEED") or random.randrange(1 << 32))
    print(f"FOOD_SEED={found}")
    return found


def test_a_kill_at_any_instant_of_an_action(settled: Cluster, figures: Any, seed: int) -> None:
    """The agent by itself, so that every instant is hit; the other two members are there for the promotes."""
    with settled.by_hand(NAME, PORT):
        argv = [packages.PYTHON, str(Path(rounds.__file__)), NAME, str(PORT), str(seed), str(ROUNDS)]
        done = settled.lab.run("n1", argv, check=False, timeout_s=ROUND_LIMIT_S * ROUNDS)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()][1:]
    assert len(found) == ROUNDS * len(rounds.ACTIONS)
    assert [one for one in found if one["problems"]] == []
    figures("kills at random instants of start, promote, demote, stop: rounds", len(found), "rounds")


def test_a_kill_at_any_instant_of_a_move(settled: Cluster, figures: Any, seed: int) -> None:
    """Under Pacemaker: whatever dies while the role moves, the cluster is whole again by itself."""
    chance = random.Random(seed)
    for number in range(MOVES):
        old = settled.primary()
        new = chance.choice(settled.backups())
        node, victims = chance.choice([old, new]), chance.choice(rounds.VICTIMS)
        at = chance.uniform(0, KILL_WITHIN_S)
        with settled.load() as load:
            move = settled.lab.popen(old, ["pcs", "resource", "move", CLONE, new, "--promoted"])
            time.sleep(at)
            began = time.monotonic()
            pattern = "|".join(PATTERNS[victim] for victim in victims)
            settled.operator("pkill", "-KILL", "-f", pattern, node=node)
            status = move.wait(180)
            settled.operator("pcs", "resource", "clear", CLONE)
            settled.settle()
            seconds = time.monotonic() - began
        settled.say(
            f"round {number + 1}: {old} to {new}, {' and '.join(victims)} of {node} killed after {at * 1000:.0f} ms: "
            f"pcs ended with {status}, {settled.primary()} is primary, whole after {seconds:.1f} s"
        )
        settled.reasons()
        for each in settled.lab.nodes:
            for part, pattern in PATTERNS.items():
                assert len(settled.lab.pids_of(each, pattern)) == 1, f"not one {part} on {each}"
        assert_clean(load)
        settled.repair()
    figures("kills at random instants of a move: rounds", MOVES, "rounds")
