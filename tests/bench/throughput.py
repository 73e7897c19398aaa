#!/usr/bin/env python3
"""Writes and reads a second of food beside etcd and Redis: three servers each, on one disk, under the same load.

    tests/bench/throughput.py [--rounds 5] [--seconds 4] [--clients 1,64,500] [--systems food,etcd] [--report FILE]

In each round the systems run one after another, never two at once, in an order that turns from round to round. Ratios
are taken pair by pair within a round; what is printed are medians of the rounds. etcd and Redis come from Debian's
packages, which are installed when they are missing (as root; no service is started); food runs with this Python if it
has pyzmq, else with Debian's. Everything is on loopback, so the load and all servers share the processors.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "deploy")]

from bench.systems import PACKAGES, SYSTEMS, BenchError, System
from testbed import LabError, packages, plot

HEADINGS = {"writes": "Writes", "reads": "Reads, linearizable but for Redis"}
KINDS = tuple(HEADINGS)
LABELS = {"plaintext": "plaintext food", "redis": "Redis"}
STAGE_EXTRA_S = 90.0  # a stage that takes so much longer than its seconds hangs
FSYNC_PROBES = 200


@dataclass(frozen=True)
class Row:
    """One stage: a system under a number of clients, in one round."""

    round: int
    system: str
    kind: str
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    own_cpu_us: float


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    clients: tuple[int, ...]
    systems: tuple[str, ...]
    kinds: tuple[str, ...]
    directory: Path


def measure(plan: Plan, tell: Callable[[str], object]) -> list[Row]:
    rows = []
    for number in range(plan.rounds):
        for name in turned(plan.systems, number):
            with system(name, plan.directory) as running:
                for kind in plan.kinds:
                    for clients in plan.clients:
                        row = stage(running, number, kind, clients, plan.seconds)
                        rows.append(row)
                        tell(f"round {number + 1} of {plan.rounds}  {line(row)}")
    return rows


def turned(those: Sequence[Any], by: int) -> Sequence[Any]:
    """So that none is always first."""
    by %= len(those)
    return [*those[by:], *those[:by]]


@contextlib.contextmanager
def system(name: str, parent: Path) -> Iterator[System]:
    """Started on an empty directory, which is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="food-bench-", dir=parent) as directory,
        SYSTEMS[name](Path(directory)) as it,
    ):
        yield it


def stage(running: System, number: int, kind: str, clients: int, seconds: float) -> Row:
    argv = running.load(clients, seconds, kind == "reads")
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds + STAGE_EXTRA_S
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{running.name}, {kind}, {clients} clients: not done after {error.timeout:g} s") from error
    if done.returncode != 0:
        raise BenchError(f"{running.name}, {kind}, {clients} clients: {done.stderr.strip()[-500:]}")
    (found,) = json.loads(done.stdout)
    names = ("per_second", "p50_ms", "p99_ms", "errors", "own_cpu_us")
    return Row(number, running.name, kind, clients, *(found[name] for name in names))


def line(row: Row) -> str:
    errors = f"  {row.errors} ERRORS" if row.errors else ""
    return (
        f"{row.system:<6} {row.kind:<6} {row.clients:>5} clients {row.per_second:>9,.0f}/s"
        f"   p50 {row.p50_ms:>7.2f} ms   p99 {row.p99_ms:>7.2f} ms   load's own {row.own_cpu_us:>5.0f} us{errors}"
    )


# --- What it comes to ---


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A map for each kind and number of clients: medians of each system, and food's ratio to each other one."""
    found = []
    for kind, clients in dict.fromkeys((row.kind, row.clients) for row in rows):
        of: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: row.round):
            if (row.kind, row.clients) == (kind, clients):
                of.setdefault(row.system, []).append(row)
        systems = {name: medians(of[name]) for name in sorted(of, key=list(SYSTEMS).index)}
        ratios = {}
        for name in systems:
            if name != "food" and "food" in of:
                pairs = zip(of["food"], of[name], strict=True)
                ratios[name] = spread([ours.per_second / theirs.per_second for ours, theirs in pairs], 3)
        found.append({"kind": kind, "clients": clients, "systems": systems, "ratios": ratios})
    return found


def medians(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "per_second": spread([row.per_second for row in rows], 1),
        "p50_ms": statistics.median(row.p50_ms for row in rows),
        "p99_ms": statistics.median(row.p99_ms for row in rows),
        "own_cpu_us": statistics.median(row.own_cpu_us for row in rows),
        "errors": sum(row.errors for row in rows),
    }


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    names = list(report["versions"])
    others = [name for name in names if name != "food" and "food" in names]
    head = ["", *(LABELS.get(name, name) for name in names), *(f"food ÷ {LABELS.get(name, name)}" for name in others)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for entry in report["summary"]:
        cells = [f"{entry['kind']}/s, {entry['clients']} clients"]
        for name in names:
            found = entry["systems"][name]
            cells.append(f"{found['per_second']['median']:,.0f} ({_ms(found['p50_ms'])} / {_ms(found['p99_ms'])} ms)")
        cells += [f"{entry['ratios'][name]['median']:.2f}" for name in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def picture(report: dict[str, Any]) -> str:
    """SVG."""
    colours = {"food": plot.BLUE, "plaintext": plot.LIGHT_BLUE, "etcd": plot.GREY, "redis": plot.OCHRE}
    series = {name: LABELS.get(name, name) for name in report["versions"]}
    panels = []
    for kind in report["plan"]["kinds"]:
        groups = []
        for entry in report["summary"]:
            if entry["kind"] == kind:
                found = {
                    series[name]: plot.Bar(*(value["per_second"][part] for part in ("median", "least", "most")))
                    for name, value in entry["systems"].items()
                }
                notes = [
                    f"{ratio['median']:.2f} × {series[name]}"
                    for name, ratio in entry["ratios"].items()
                    if name != "plaintext"
                ]
                clients = f"{entry['clients']} client{'s' if entry['clients'] > 1 else ''}"
                groups.append(plot.Group(clients, found, notes))
        panels.append(plot.Panel(HEADINGS[kind], groups))
    notes = [f"{series[name]}: {unlike}." for name, unlike in report["unlike"].items()]
    return plot.bars(
        "food beside etcd and Redis: requests a second",
        subtitle(report),
        "per second",
        {series[name]: colours[name] for name in series},
        panels,
        [
            *notes,
            "Bars: medians, on a logarithmic scale; lines: least and most. Below: food's ratio, the median of pairs.",
        ],
    )


def subtitle(report: dict[str, Any]) -> str:
    found, plan = report["machine"], report["plan"]
    size = f"{found['processors']} processors, {found['memory_gib']:.0f} GiB, fsync {found['fsync_ms']:.2g} ms"
    rounds = f"{plan['rounds']} round{'s' if plan['rounds'] > 1 else ''}"
    return f"Three servers each on loopback, 100-byte values; {size}; {rounds}, {report['date'][:10]}"


# --- Where it was measured ---


def machine(directory: Path) -> dict[str, Any]:
    return {
        "processors": os.cpu_count(),
        "processor": _first_of("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "fsync_ms": fsync_ms(directory),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _first_of(path: str, name: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as lines:
        for text in lines:
            if text.startswith(name):
                return text.partition(":")[2].strip()
    return ""


def file_system(directory: Path) -> str:
    done = subprocess.run(
        ["stat", "--file-system", "--format", "%T", str(directory)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def fsync_ms(directory: Path) -> float:
    """The median of appending 4 KiB and syncing them."""
    times = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(FSYNC_PROBES):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 3)


# --- The program ---


def run(plan: Plan, tell: Callable[[str], object]) -> dict[str, Any]:
    if file_system(plan.directory) == "tmpfs":
        raise BenchError(f"{plan.directory} is in memory, where an fsync costs nothing: choose a disk with --directory")
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(plan.directory),
        "plan": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(plan).items()},
        "versions": {},
        "unlike": {name: SYSTEMS[name].unlike for name in plan.systems if SYSTEMS[name].unlike},
    }
    for name in plan.systems:
        report["versions"][name] = SYSTEMS[name].version()
    tell(json.dumps({"machine": report["machine"], "versions": report["versions"]}, indent=1))
    rows = measure(plan, tell)
    return report | {"summary": summary(rows), "rows": [asdict(row) for row in rows]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each stage")
    parser.add_argument("--clients", default="1,64,500", metavar="N,…")
    parser.add_argument("--systems", default=",".join(SYSTEMS), metavar="A,B,…", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it as SVG")
    options = parser.parse_args(argv)
    systems, kinds = tuple(options.systems.split(",")), tuple(options.kinds.split(","))
    if unknown := [name for name in (*systems, *kinds) if name not in (*SYSTEMS, *KINDS)]:
        parser.error(f"no {', '.join(unknown)}")
    clients = tuple(int(count) for count in options.clients.split(","))
    plan = Plan(options.rounds, options.seconds, clients, systems, kinds, options.directory)
    try:
        packages.ensure(PACKAGES if {"etcd", "redis"}.intersection(systems) else ())
        if importlib.util.find_spec("zmq") is None:
            packages.ensure(packages.FOOD)
            return subprocess.run([packages.PYTHON, *sys.argv], check=False).returncode
        report = run(plan, lambda text: print(text, flush=True))
    except (BenchError, LabError) as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(report)}")
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        options.plot.write_text(picture(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
