"""Real daemons, guardians and agents, each ended or failed at every point of tests/failpoints.py's table, under load.

Nothing acknowledged is lost, twice or stale; nobody else dies; a plain start comes up at the first try; no process,
lock or score is left; the three states are equal. One side of each call here, both with FOOD_LONG=yes, and at random
passes, often, by `tests/failpoints`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

import pytest
from clone import Clone, launched
from failpoints import BY_NAME, EXTERNAL, POINTS, Point, arm
from fake_tools import eventually
from test_external import External

from food import locks

LONG = os.environ.get("FOOD_LONG") == "yes"  # tests/run --long


def chosen(points: list[Point]) -> list[Point]:
    return [point for point in points if point.brief or LONG]


class Clones:
    """One for all points; another one once it was broken."""

    def __init__(self) -> None:
        self._clone: Clone | None = None

    def get(self) -> Clone:
        if self._clone and self._clone.broken:
            self.close()
        if self._clone is None:
            self._clone = Clone().__enter__()
        return self._clone

    def close(self) -> None:
        if self._clone:
            self._clone.__exit__(None, None, None)
            self._clone = None


@pytest.fixture(scope="module")
def clones() -> Iterator[Clones]:
    found = Clones()
    yield found
    found.close()


def test_every_point_is_a_function_that_ships() -> None:
    missing = [point.name for point in BY_NAME.values() if not point.target.startswith("agent:") and not _there(point)]
    assert not missing, f"moved or renamed: {missing}"


def _there(point: Point) -> bool:
    module, path = point.target.split(":")
    owner: object = importlib.import_module(module)
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return callable(owner)


@pytest.mark.parametrize("point", chosen(POINTS), ids=lambda point: point.name)
def test_a_point(clones: Clones, point: Point) -> None:
    clones.get().endure(point)


def test_at_the_end_everything_is_there_and_nothing_is_left(clones: Clones) -> None:
    clones.get().finish()


# Started outside Pacemaker


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[External]:
    """One node, adopted and promoted."""
    found = External(tmp_path_factory.mktemp("unit"))
    found.program = launched(found)
    found.enable()
    found.promoted()
    yield found
    found.close()


@pytest.mark.parametrize("point", chosen(EXTERNAL), ids=lambda point: point.name)
def test_a_point_outside_pacemaker(unit: External, point: Point) -> None:
    """Adopting, releasing, and succeeding a guardian that was killed: whatever dies, the next start has it all."""
    with unit.client() as client:
        client.put(b"before", point.name.encode())
    if point.provoke == "adopt":
        assert unit("stop") == 0
    arm(unit.directory, (point, 1))
    if point.provoke == "succeed":
        unit.kill(locks.GUARDIAN_LOCK)
    else:
        unit("start" if point.provoke == "adopt" else "stop")
    eventually(f"{point.name} is passed", (unit.directory / "hit").exists, 10)
    assert unit("stop") == 0, unit.errors
    assert unit.tools.score is None, "a score is left"
    unit.promoted()
    with unit.client() as client:
        row = client.get(b"before")
        assert row and row.value == point.name.encode()
