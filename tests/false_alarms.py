"""Whether watchdog and isolation limits raise false alarms: full load, and a disk that stands still for seconds.

    python tests/false_alarms.py --seconds 600

Three daemons on loopback (tests/stalling_daemon.py) under `foodctl bench`. An alarm is a gap between two beats that is
longer than the watchdog waits, a member that calls itself isolated, or a daemon or a role that is gone. Prints a
line for each and a verdict; exit code 1 when there was one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemons import ROOT, Cluster, Node

WATCHDOG_MS = 1_500
PORT = 19_940


class Watch:
    """The times between one node's beats, and what it orders."""

    def __init__(self, node: Node):
        self.node = node
        self.alarms: list[str] = []
        self.longest_ms = 0.0
        self.over_ms = dict.fromkeys((250, 500, 1_000, 1_250), 0)
        self._beat = 0.0
        node.on_packet = self.hear

    def hear(self, packet: dict[str, Any]) -> None:
        now = time.monotonic()
        if "beat" in packet:
            self._gap((now - self._beat) * 1000 if self._beat else 0.0)
            self._beat = now
        if "isolated" in str(packet.get("why", "")) and packet.get("score") is None and self._beat:
            self._alarm(packet["why"])
        if "exiting" in packet or "fail" in packet:
            self._alarm(packet.get("exiting") or packet["fail"])

    def _gap(self, gap_ms: float) -> None:
        self.longest_ms = max(self.longest_ms, gap_ms)
        for limit in self.over_ms:
            self.over_ms[limit] += gap_ms > limit
        if gap_ms > WATCHDOG_MS:
            self._alarm(f"{gap_ms:.0f} ms between two beats")

    def _alarm(self, text: str) -> None:
        print(f"alarm: {self.node.name}: {text}", flush=True)
        self.alarms.append(text)


def bench(cluster: Cluster, clients: int, seconds: float) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "food.cli", "bench", "--endpoints", ",".join(cluster.endpoints), "--output", "json"]
    argv += ["--clients", str(clients), "--seconds", str(seconds), "--timeout", "30"]
    run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"bench ended with {run.returncode}: {run.stderr}")
    found = json.loads(run.stdout)
    return found if isinstance(found, list) else [found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--steady", action="store_true", help="the daemon as it is, on this machine's disk")
    options = parser.parse_args()
    program = ["-m", "food.daemon"] if options.steady else [str(Path(__file__).with_name("stalling_daemon.py"))]
    with Cluster(3, options.port, program=program, log_level="notice") as cluster:
        cluster.promote("n1", within_s=30)
        time.sleep(2)  # the first connections
        watches = [Watch(node) for node in cluster]
        figures = bench(cluster, options.clients, options.seconds)
        roles = [node.request("monitor")["rc"] if node.alive else None for node in cluster]
        stalls = sum(len(path.read_bytes()) for path in cluster.directory.glob("*/data/stalls"))
    for watch in watches:
        watch.node.on_packet = None
        print(f"{watch.node.name}: longest gap {watch.longest_ms:.0f} ms; longer than {watch.over_ms}")
    alarms = sum(len(watch.alarms) for watch in watches) + (roles != [8, 0, 0])
    longest = max(watch.longest_ms for watch in watches)
    rate, worst = figures[0].get("per_second"), figures[0].get("worst_ms")
    print(
        f"false alarms: {alarms} in {options.seconds:.0f} s with {stalls} stalls; longest gap between beats"
        f" {longest:.0f} ms of {WATCHDOG_MS}; {rate} writes/s, worst {worst} ms; roles {roles}"
    )
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
