"""Real daemons, guardians and agents, each ended or failed at every point of tests/failpoints.py's table, under load.

Nothing acknowledged is lost, twice or stale; nobody else dies; a plain start comes up at the first try; no process,
lock or score is left; the three states are equal. One side of each call here, both with FOOD_LONG=yes, and at random
passes, often, by `tests/failpoints`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from clone import Clone
from failpoints import POINTS, Point

LONG = os.environ.get("FOOD_LONG") == "yes"  # tests/run --long


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


@pytest.mark.parametrize("point", [point for point in POINTS if point.brief or LONG], ids=lambda point: point.name)
def test_a_point(clones: Clones, point: Point) -> None:
    clones.get().endure(point)


def test_at_the_end_everything_is_there_and_nothing_is_left(clones: Clones) -> None:
    clones.get().finish()
