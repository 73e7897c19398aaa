"""Faults in random order, many of them at once, until the role was taken over twenty times. The long form: tests/soak.

FOOD_SEED=N repeats a run's faults, FOOD_FAILOVERS=N ends later.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from cluster.operations import Cluster
from nemesis.soak import Soak, text

pytestmark = pytest.mark.cluster

FAILOVERS = int(os.environ.get("FOOD_FAILOVERS") or 20)


def test_whatever_happens_nothing_is_lost(settled: Cluster, figures: Any) -> None:
    seed = int(os.environ.get("FOOD_SEED") or random.randrange(1 << 32))
    print(f"FOOD_SEED={seed}")
    soak = Soak(settled, seed)
    try:
        report = soak.run(FAILOVERS)
    except BaseException:  # ended by hand, too: the history tells what was seen till then
        soak.keep(settled.directory)
        raise
    print(text(report))
    if not report.clean:
        soak.keep(settled.directory)
    figures(f"soak, seed {seed}: failovers", report.failovers, "")
    figures("soak: took", round(report.took_s), "s", "180")
    assert report.clean, f"history and logs: {settled.directory}"
