"""The tests of quorum, entries and promotion notice whatever is changed there, or mutants.py says why they need not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import BROKEN, BY_OWN, EQUIVALENT, SURVIVED, mutants, report

ROOT = Path(__file__).resolve().parent.parent


def test_every_mutant_is_noticed_or_accounted_for() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tests/mutate", "--seeds", "20"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_mutant_differs_in_one_place_and_the_next_one_from_the_same_beginning() -> None:
    names = [mutant.name for mutant in mutants("quorum")]
    assert len(set(names)) == len(names)
    assert "quorum.majority: len(stores) // 2 + 1 -> len(stores) // 2 - 1" in names
    codes = {mutant.code for mutant in mutants("quorum")}
    assert len(codes) == len(names), "none is like another, nor like all together"


@pytest.mark.parametrize(
    ("code", "listed", "well"),
    [
        (BY_OWN, False, True),
        (SURVIVED, False, False),
        (SURVIVED, True, True),
        (BY_OWN, True, False),
        (BROKEN, 0, False),
    ],
)
def test_what_nobody_noticed_and_nobody_listed_fails(
    code: int, listed: bool, well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mutants.EQUIVALENT", {"quorum.x": "the reason"} if listed else {})
    assert report({"quorum.x": code}, ["quorum"]) == well


def test_a_line_of_the_list_that_fits_nothing_fails() -> None:
    assert EQUIVALENT and not report({}, ["promotion"])
