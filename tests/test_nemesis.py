"""The nemesis: its plans are known from the seed, every fault is there, gaps and failovers are counted as they are."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from cluster.operations import Verdict
from load import Write
from nemesis import plan
from nemesis.faults import Faults
from nemesis.soak import Done, Gaps, Report, Tail, picture, text

SEED = 7


def rounds(number: int, seed: int = SEED) -> list[plan.Round]:
    return [plan.plan(seed, n) for n in range(number)]


def test_a_round_is_known_from_seed_and_number() -> None:
    assert rounds(50) == rounds(50)
    assert plan.plan(SEED, 40) == rounds(50)[40]
    assert rounds(50, SEED + 1) != rounds(50)


def test_all_that_may_happen_does() -> None:
    """In three hundred rounds, one after the other and at once."""
    seen = Counter(fault.kind for wanted in rounds(300) for fault in wanted.faults)
    assert set(seen) == set(plan.KINDS)
    assert {len(wanted.faults) for wanted in rounds(300)} == {1, 2, 3}
    assert {wanted.hasty for wanted in rounds(300)} == {True, False}
    together = {frozenset(fault.kind for fault in wanted.faults) for wanted in rounds(2000)}
    assert len(together) > 150


def test_a_round_keeps_its_limits() -> None:
    """A disk is lost only while all others are whole: what was acknowledged is on a majority, and on no more."""
    for wanted in rounds(2000):
        kinds = [fault.kind for fault in wanted.faults]
        if any(plan.KINDS[kind].alone for kind in kinds):
            assert len(kinds) == 1
        assert [fault.after_s for fault in wanted.faults] == sorted(fault.after_s for fault in wanted.faults)
        for fault in wanted.faults:
            least, most = plan.KINDS[fault.kind].hold_s
            assert 0 <= fault.after_s <= plan.APART_MOST_S and least <= fault.hold_s <= most


def test_only_what_is_wanted() -> None:
    for number in range(100):
        assert {fault.kind for fault in plan.plan(SEED, number, ("move", "kill")).faults} <= {"move", "kill"}


@pytest.mark.parametrize("kind", plan.KINDS)
def test_every_kind_can_be_done(kind: str) -> None:
    assert callable(getattr(Faults, kind))


def test_a_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    assert tail.lines() == []
    with path.open("a") as file:
        file.write("ee\n")
    assert tail.lines() == ["three"]
    assert Tail(path, end=True).lines() == []


def written(writer: str, *ends: float, outcome: str = "ack") -> list[str]:
    return [json.dumps(["w", *Write(writer, "k", "v", end - 0.01, end, outcome, 1, None, False)]) for end in ends]


def test_gaps() -> None:
    pending: list[str] = []

    def lines() -> list[str]:
        taken, pending[:] = pending[:], []
        return taken

    gaps = Gaps(lines)
    pending += written("a", 1.0, 9.0) + written("b", 1.0, 9.9)
    gaps.begin(10.0)
    pending += (
        written("a", 12.0, 12.1) + written("b", 10.1, 12.0) + ['["r", "x"]'] + written("b", 11.0, outcome="unknown")
    )
    since, until = gaps.end(12.2)
    assert (round(since, 3), until) == (9.8, 12.0), "what began long before counts from the round's beginning"
    gaps.begin(12.2)
    pending += written("a", 12.3)
    assert gaps.end(15.0) == (12.0, 15.0), "who waits has waited until now"
    assert gaps.acknowledged() == 12.3


def report(**verdict: int) -> Report:
    numbers = {"acknowledged": 1000, "unknown": 1, "lost": 0, "duplicated": 0, "stale": 0, "reads": 50} | verdict
    found = Report(SEED, 3, 0.0, verdict=Verdict(**numbers, problems=[]), took_s=90.0, state="all the same")
    for number, wanted in enumerate(itertools.islice(rounds(50), 20)):
        at = 1.0 + 10.0 * number
        notes = ["what was done", "cleaned up", "n1 stayed offline: switched off and on"][: 1 + number % 3]
        found.rounds.append(
            Done(wanted, at, notes, len(wanted.faults) - (number == 3), 1, (at, at + 0.5 + number / 10), 4)
        )
    return found


def test_the_report_tells_all() -> None:
    told = text(report())
    assert "20 failovers in 20 rounds, 3 nodes, 1.5 minutes, seed 7" in told
    assert "lost 0, duplicated 0, stale 0" in told and "linearizable" in told and "all the same" in told
    assert "1 that found nothing to break; afterwards by hand: 13 cleanups, 6 nodes switched off and on" in told
    (last,) = [line.split() for line in told.splitlines() if line.startswith("all  ")]
    assert last[:9] == ["all", "20", "20", "1.5", "s", "2.4", "s", "2.4", "s"]


@pytest.mark.parametrize("wrong", ["lost", "duplicated", "stale"])
def test_what_is_wrong_is_not_clean(wrong: str) -> None:
    assert report().clean
    assert not report(**{wrong: 1}).clean
    broken = report()
    broken.not_linearizable = "key k: no order"
    assert not broken.clean and "NOT linearizable: key k: no order" in text(broken)
    assert not Report(SEED, 3, 0.0).clean, "no verdict, no success"
    assert "no failovers in no rounds" in text(Report(SEED, 3, 0.0))


def test_the_picture_shows_each_round(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(line + "\n" for line in written("a", *(n / 10 for n in range(1, 2000)))))
    found = report()
    tree = ElementTree.fromstring(picture(path, found))
    names = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    for done in found.rounds:
        assert "+".join(fault.kind for fault in done.round.faults) in names
    assert {"0 min", "2 min"} <= set(names)
