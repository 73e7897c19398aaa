"""The core's clock: a pause of this process is nobody else's silence. And the clock of the wall: nobody looks at it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from food import daemon
from food.daemon import PAUSE_MOST_MS, Clock

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = [*sorted((ROOT / "food").rglob("*.py")), ROOT / "agent" / "food"]
OF_THE_WALL = {"time", "time_ns", "ctime", "gmtime", "localtime", "strftime", "CLOCK_REALTIME"}


def test_time_passes_as_it_does_but_a_pause_counts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    real_ms = 50_000
    monkeypatch.setattr(daemon, "monotonic_ms", lambda: real_ms)
    clock = Clock()
    begun = clock.read()
    for step_ms in (0, 20, PAUSE_MOST_MS):
        real_ms += step_ms
        assert clock.read() - begun == real_ms - 50_000
    before = clock.read()
    real_ms += 10_000
    assert clock.read() - before == PAUSE_MOST_MS
    real_ms += 20
    assert clock.read() - before == PAUSE_MOST_MS + 20


def reads_the_wall(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=attr) if attr in OF_THE_WALL:
                return True
            case ast.ImportFrom(module="time", names=names) if {name.name for name in names} & OF_THE_WALL:
                return True
            case ast.Import(names=names) if any(name.name == "datetime" for name in names):
                return True
            case ast.ImportFrom(module="datetime"):
                return True
    return False


def test_a_clock_that_jumps_only_changes_what_log_lines_say() -> None:
    """A machine's nodes share its clock, so a jump cannot be tried on the real cluster. But it is read by nobody except
    for the stamps of log lines, and the daemon's for the name of a store that is set aside."""
    assert [path.name for path in SHIPPED if reads_the_wall(path)] == ["daemon.py", "journal.py", "food"]
    daemon_py = (ROOT / "food" / "daemon.py").read_text()
    assert [line.strip() for line in daemon_py.splitlines() if "time.strftime" in line or "time.time" in line] == [
        'place = set_aside(self._data_dir, why, time.strftime("%Y%m%d-%H%M%S"))'
    ]
