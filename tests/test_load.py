"""The checker finds what it is for, in made-up histories; the load finds it in a cluster that does wrong."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from load import LAST_LOOK, Final, History, Load, Read, Touch, Write, check, main, merge, read_history, write_gap_ms
from standin import StandIn

from food.core.state import Row


def good() -> tuple[History, Final]:
    """Marks at 1 and 7; in between two keys, and a counter written three times."""
    writes = [
        Write("a/0", "a/w/0", "v0", 1.0, 1.1, "ack", 2, None, False),
        Write("a/0", "a/c", "c1", 1.2, 1.3, "ack", 3, 0, True),
        Write("a/0", "a/w/1", "v1", 1.4, 1.5, "ack", 4, 0, False),
        Write("a/0", "a/c", "c2", 1.6, 1.7, "ack", 5, 3, True),
        Write("a/0", "a/c", "c3", 1.8, 1.9, "ack", 6, 5, True),
    ]
    reads = [
        Read("r", "a/c", None, 0.5, 0.6, "ack", 0),
        Read("r", "a/c", "c1", 1.25, 1.35, "ack", 3),
        Read("r", "a/c", "c1", 1.65, 1.75, "ack", 3),
        Read("q", "a/c", "c2", 1.65, 1.75, "ack", 5),
        Read("r", "a/c", None, 1.7, 9.0, "failed", 0),
        Read("r", "a/c", "c3", 2.0, 2.1, "ack", 6),
    ]
    rows = {"a/w/0": ("v0", 2), "a/w/1": ("v1", 4), "a/c": ("c3", 6)}
    return History(writes, reads, end=2.1), Final(rows, (1, 7))


def counts(history: History, final: Final) -> dict[str, int]:
    report = check(history, final)
    report.pop("problems")
    return {name: number for name, number in report.items() if number and name not in ("acknowledged", "reads")}


def test_a_good_history() -> None:
    report = check(*good())
    assert report["acknowledged"] == 5
    assert report["reads"] == 5
    assert not report["problems"]
    assert counts(*good()) == {}


Change = Callable[[History, Final], None]


def row(key: str, value: tuple[str, int] | None) -> Change:
    def change(history: History, final: Final) -> None:
        final.rows.pop(key)
        if value:
            final.rows[key] = value

    return change


def span(last: int) -> Change:
    def change(history: History, final: Final) -> None:
        final.span = (1, last)

    return change


def write(number: int, **fields: Any) -> Change:
    def change(history: History, final: Final) -> None:
        history.writes[number] = history.writes[number]._replace(**fields)

    return change


def read(number: int, **fields: Any) -> Change:
    def change(history: History, final: Final) -> None:
        history.reads[number] = history.reads[number]._replace(**fields)

    return change


BAD: dict[str, tuple[list[Change], dict[str, int]]] = {
    "a key is gone": ([row("a/w/0", None), span(6)], {"lost": 1}),
    "a key holds something else": ([row("a/w/0", ("x", 2))], {"lost": 1}),
    "a key was put again later": ([row("a/w/0", ("v0", 7)), span(8)], {"duplicated": 1}),
    "a write hides behind its own repetition": ([span(8)], {"duplicated": 1}),
    "three of them": ([span(10)], {"duplicated": 3}),
    "revisions went back": ([span(5)], {"lost": 2}),
    "the counter went back by one": ([row("a/c", ("c2", 5)), span(6)], {"lost": 1}),
    "the counter went back by two": ([row("a/c", ("c1", 3)), span(5)], {"lost": 2}),
    "the counter is gone": ([row("a/c", None), span(6)], {"lost": 1}),
    "the counter's last write was repeated": ([row("a/c", ("c3", 7)), span(8)], {"duplicated": 1}),
    "a compare found an older revision": (
        [write(4, outcome="compare", revision=3), row("a/c", ("c1", 3)), read(5, value="c1", revision=3), span(5)],
        {"lost": 2, "stale_reads": 1},  # seen by the compare, and in the end
    ),
    "a compare found the write itself": ([write(4, outcome="compare", revision=6)], {"duplicated": 1}),
    "a key was there before it was made": ([write(2, outcome="compare", revision=4)], {"duplicated": 1}),
    "an unknown write that is there": ([write(0, outcome="unknown", revision=0)], {"unknown": 1}),
    "an unknown write that is not": (
        [write(0, outcome="unknown", revision=0), row("a/w/0", None), span(6)],
        {"unknown": 1},
    ),
    "an unknown counter that took effect": ([write(4, outcome="unknown", revision=0)], {"unknown": 1}),
    "an unknown counter that was overwritten since": ([write(3, outcome="unknown", revision=0)], {"unknown": 1}),
    "an unknown counter that did not": (
        [write(4, outcome="unknown", revision=0), row("a/c", ("c2", 5)), read(5, value="c2", revision=5), span(6)],
        {"unknown": 1},
    ),
    "an unknown key that was executed twice": (
        [write(0, outcome="unknown", revision=0), row("a/w/0", ("v0", 7)), span(8)],
        {"unknown": 1, "duplicated": 1},
    ),
    "refused, and there": ([write(0, outcome="failed", revision=0)], {"failed": 1, "phantom": 1}),
    "refused, and in the counter": ([write(4, outcome="failed", revision=0)], {"failed": 1, "phantom": 1}),
    "older than acknowledged": ([read(5, value="c2", revision=5)], {"stale_reads": 1}),
    "absent after it was there": ([read(5, value=None, revision=0)], {"stale_reads": 1}),
    "older than read by another": ([read(2, start=1.76, end=1.78)], {"stale_reads": 1}),
    "read before it was written": ([read(1, value="c3", start=1.0, end=1.1, revision=0)], {"phantom": 1}),
    "never written": ([read(5, value="x")], {"phantom": 1}),
    "one revision for two writes": ([write(2, revision=5), row("a/w/1", ("v1", 5))], {"out_of_order": 2}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history(name: str) -> None:
    changes, expected = BAD[name]
    history, final = good()
    for change in changes:
        change(history, final)
    assert counts(history, final) == expected
    wrong = sum(number for key, number in expected.items() if key not in ("unknown", "failed"))
    assert bool(check(history, final)["problems"]) == bool(wrong)


def test_without_a_span_other_changes_do_not_matter() -> None:
    history, final = good()
    final.span = None
    assert counts(history, final) == {}


def test_two_loads_are_checked_together() -> None:
    """The readers of one read the counters of the other."""
    history, final = good()
    other = History([], [Read("b/r", "a/c", "c1", 1.95, 2.0, "ack", 3)], end=2.0)
    assert counts(merge([history, other]), final) == {"stale_reads": 1}


# --- What many change ---


def touched() -> tuple[History, Final]:
    """Between marks at 1 and 7: a key put and deleted, a number that two add to; a compare that failed."""
    touches = [
        Touch("a", "put", "k", "a:1", 0, "ack", 2, 1.0, 1.1),
        Touch("b", "cas", "n+", "1 b:1", 0, "ack", 3, 1.0, 1.2),
        Touch("a", "del", "k", None, 0, "ack", 4, 1.2, 1.3),
        Touch("a", "cas", "n+", "1 a:3", 0, "compare", 3, 1.3, 1.4),
        Touch("a", "del", "k", None, 0, "ack", 0, 1.4, 1.5),
        Touch("a", "cas", "n+", "2 a:5", 3, "ack", 5, 1.5, 1.6),
        Touch("b", "put", "k", "b:2", 0, "ack", 6, 1.5, 1.7),
        Touch(f"load/{LAST_LOOK}", "get", "n+", "2 a:5", 0, "ack", 5, 2.0, 2.1),
    ]
    return History(touches=touches, end=2.1), Final({}, (1, 7))


def touch(number: int, **fields: Any) -> Change:
    def change(history: History, final: Final) -> None:
        history.touches[number] = history.touches[number]._replace(**fields)

    return change


TOUCHED: dict[str, tuple[list[Change], dict[str, int]]] = {
    "good": ([], {}),
    "an addition is gone": ([touch(7, value="1 b:1")], {"lost": 1}),
    "the number is gone": ([touch(7, value=None)], {"lost": 1}),
    "an addition was done twice": ([touch(7, value="3 a:5")], {"duplicated": 1}),
    "an unknown addition is there": ([touch(5, outcome="unknown", revision=0)], {}),
    "an unknown addition is not": ([touch(5, outcome="unknown", revision=0), touch(7, value="1 b:1"), span(6)], {}),
    "a put was done twice": ([span(8)], {"duplicated": 1}),
    "a revision is missing": ([touch(6, revision=5), span(6)], {"lost": 1, "out_of_order": 1}),
    "a revision after a later one": ([touch(0, revision=6), touch(6, revision=2)], {"out_of_order": 3}),
}


@pytest.mark.parametrize("name", TOUCHED)
def test_what_contenders_saw(name: str) -> None:
    changes, expected = TOUCHED[name]
    history, final = touched()
    for change in changes:
        change(history, final)
    assert counts(history, final) == expected


# --- The gap ---


def acks(writer: str, *times: float) -> list[Write]:
    return [Write(writer, "k", "v", when - 0.01, when, "ack", 1, None, False) for when in times]


@pytest.mark.parametrize(
    ("times", "expected_ms"),
    [
        ([8.0, 9.5, 10.2, 10.9, 11.0, 39.9], 28900),  # 11.0 → 39.9
        ([x / 10 for x in range(500)], 100),
        ([1.0, 9.4, 9.5, *[x / 10 for x in range(96, 500)]], 400),  # what began before counts from 9.0
        ([*[x / 10 for x in range(390)], 39.5, 45.0], 5500),  # what ends later counts whole
        ([*[x / 10 for x in range(301)]], 10000),  # never again: as far as the window goes
    ],
)
def test_write_gap(times: list[float], expected_ms: float) -> None:
    history = History(acks("a", *times), end=60.0)
    assert write_gap_ms(history, 10.0) == pytest.approx(expected_ms)


def test_write_gap_is_the_worst_writers() -> None:
    history = History(acks("a", *[x / 10 for x in range(500)]) + acks("b", *[x / 2 for x in range(100)]), end=50.0)
    assert write_gap_ms(history, 10.0) == pytest.approx(500)
    history.writes.append(Write("c", "k", "v", 12.0, 50.0, "unknown", 0, None, False))
    assert write_gap_ms(history, 10.0) == pytest.approx(31000), "a writer that is never answered"


# --- The load itself ---


def run(
    cluster: StandIn, path: Path, seconds: float = 1.0, during: Callable[[Load], None] | None = None, **more: Any
) -> dict[str, Any]:
    options = argparse.Namespace(
        key_file=None,
        endpoints=",".join(cluster.endpoints),
        seconds=seconds,
        writers=3,
        readers=2,
        rate=200.0,
        timeout=20.0,
        contenders=12,
        contender_rate=40.0,
        keys=5,
        name="load",
        shared=False,
        read_counters=None,
    )
    vars(options).update(more)
    with open(path, "w", encoding="utf-8") as out:
        load = Load(options, out)
        thread = threading.Thread(target=during, args=(load,)) if during else None
        if thread:
            thread.start()
        assert load.run()
        if thread:
            thread.join()
    history, final = read_history(path)
    assert final
    return check(history, final)


def trouble(cluster: StandIn) -> Callable[[Load], None]:
    def make(load: Load) -> None:
        for node in (1, 2, 0):
            time.sleep(0.4)
            cluster.faults.extend(["mute", "ignore", "twice", "busy", "unknown"])
            cluster.promote(node)

    return make


def test_a_cluster_that_does_right(tmp_path: Path) -> None:
    with StandIn() as cluster:
        report = run(cluster, tmp_path / "load", 2.0, trouble(cluster))
    assert report["acknowledged"] > 300
    assert report["reads"] > 100
    assert report["problems"] == []
    assert report["unknown"] == 0
    assert not cluster.state.sessions, "all are closed"


def test_unknown_writes_are_settled(tmp_path: Path) -> None:
    def lose(load: Load) -> None:
        time.sleep(0.3)
        cluster.faults.extend(["mute", "ok", "ignore"] * 20)
        time.sleep(0.8)
        cluster.faults.clear()

    with StandIn() as cluster:
        report = run(cluster, tmp_path / "load", 1.5, lose, timeout=0.3)
    assert report["unknown"] > 0
    assert report["problems"] == []


def test_a_cluster_that_forgets_what_it_executed(tmp_path: Path) -> None:
    with StandIn() as cluster:
        cluster.amnesia = True
        report = run(cluster, tmp_path / "load", 2.0, trouble(cluster))
    assert report["duplicated"] > 0
    assert report["lost"] == 0


def test_a_cluster_that_loses(tmp_path: Path) -> None:
    def lose(load: Load) -> None:
        time.sleep(0.5)
        state = cluster.state
        for key in [key for key in state.rows if b"/w00" in key][-5:]:
            del state.rows[key]
            state.keys.remove(key)

    with StandIn() as cluster:
        report = run(cluster, tmp_path / "load", 1.0, lose)
    assert report["lost"] == 5


def test_a_cluster_that_reads_late(tmp_path: Path) -> None:
    def go_back(load: Load) -> None:
        time.sleep(0.5)
        row = cluster.state.rows[b"load/c001"]
        cluster.state.rows[b"load/c001"] = Row.of(b"load/c001", b"load/1:2", 3)
        time.sleep(0.1)
        cluster.state.rows[b"load/c001"] = row

    with StandIn() as cluster:
        report = run(cluster, tmp_path / "load", 1.0, go_back)
    assert report["stale_reads"] > 0
    assert report["lost"] > 0, "its compare found an older revision"


def test_it_may_start_before_the_cluster_and_be_ended_early(tmp_path: Path) -> None:
    def serve(load: Load) -> None:
        time.sleep(0.5)
        cluster.promote(0)
        time.sleep(0.5)
        load.stop = True

    with StandIn() as cluster:
        cluster.primary = None
        report = run(cluster, tmp_path / "load", 60.0, serve)
    assert report["acknowledged"] > 50
    assert report["problems"] == []


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "load")
    with StandIn() as cluster:
        endpoints = ",".join(cluster.endpoints)
        assert main(["--endpoints", endpoints, "--seconds", "0.3", "--out", path, "--writers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["acknowledged"] > 10
    assert main(["--check", path]) == 0
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(path).write_text("".join(line for line in lines if "w000/000000001" not in line[:30]), encoding="utf-8")
    assert main(["--check", path]) == 1
    Path(path).write_text("".join(lines[:-1]) + lines[-1][:5], encoding="utf-8")
    assert main(["--check", path]) == 3, "no end, no verdict"
