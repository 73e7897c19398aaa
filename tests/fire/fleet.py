"""Runs trials on all cores, each worker beneath the shim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent


class Outcome(NamedTuple):
    trial: str
    seed: int
    broken: str  # which rule, if one was
    counts: Counter[str]


def run(shim: Path, trial: str, seed: int, defect: str | None = None) -> Outcome:
    argv = [sys.executable, "-m", "fire.worker", trial, *([defect] if defect else [])]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ended = subprocess.run(argv, input=f"{seed}\n", env=environment, capture_output=True, text=True, check=False)
    if ended.returncode or not ended.stdout:
        return Outcome(trial, seed, f"the trial itself failed: {ended.stderr[-2000:]}", Counter())
    found = json.loads(ended.stdout)
    return Outcome(
        trial, seed, found["broken"] and f"{found['broken']} {ended.stderr[-2000:]}", Counter(found["counts"])
    )


def run_all(shim: Path, jobs: Sequence[tuple[str, int]]) -> Iterator[Outcome]:
    """In the order of the jobs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda job: run(shim, *job), jobs)
