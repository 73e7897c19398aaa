#!/usr/bin/env python3
"""`foodctl bench` against three real daemons on loopback, without Pacemaker: tests/bench/throughput.py [ROUNDS]."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from daemons import Cluster

BENCH = ["bench", "--clients", "1,64,500", "--seconds", "5", "--value-bytes", "100"]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with Cluster(3, log_level="warning") as cluster:
        cluster.promote("n1")
        argv = [sys.executable, "-m", "food.cli", "--endpoints", ",".join(cluster.endpoints), *BENCH]
        for _ in range(rounds):
            subprocess.run(argv, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
