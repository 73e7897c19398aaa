"""foodctl: words, exit codes, JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from standin import StandIn

from food import cli
from food.client import Client, Status

NOBODY = "127.0.0.1:1"


class Result(SimpleNamespace):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Foodctl:
    """Runs foodctl in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], endpoints: str):
        self.capsys, self.endpoints = capsys, endpoints

    def __call__(self, *words: str) -> Result:
        if "--endpoints" not in words:
            words = ("--endpoints", self.endpoints, *words)
        code = cli.main(words)
        return Result(code=code, **self.capsys.readouterr()._asdict())


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    with StandIn() as cluster:
        yield cluster


@pytest.fixture
def foodctl(cluster: StandIn, capsys: pytest.CaptureFixture[str]) -> Foodctl:
    return Foodctl(capsys, ",".join(cluster.endpoints))


def test_put_get_del(foodctl: Foodctl) -> None:
    assert foodctl("put", "k", "v").out == "revision 1\n"
    assert foodctl("get", "k").out == "v"
    assert foodctl("get", "--stale", "k").out == "v"
    assert foodctl("del", "k").out == "revision 2\n"
    assert foodctl("del", "k").out == "was absent\n"
    missing = foodctl("get", "k")
    assert (missing.code, missing.out, missing.err) == (1, "", "foodctl: k: no such key\n")


def test_put_if_revision(foodctl: Foodctl) -> None:
    assert foodctl("put", "k", "v", "--if-revision", "0").code == 0
    failed = foodctl("put", "k", "w", "--if-revision", "0")
    assert (failed.code, failed.err) == (5, "foodctl: the key is at revision 1, not 0\n")
    assert foodctl("--output", "json", "put", "k", "w", "--if-revision", "7").json() == {
        "error": "the key is at revision 1, not 7",
        "code": 5,
        "revision": 1,
    }


def test_put_from_standard_input(foodctl: Foodctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\x00\xff")))
    assert foodctl("put", "k", "-").code == 0
    assert foodctl("get", "k", "--output", "json").json() == {"value_base64": "AP8=", "revision": 1}


def test_keys_are_taken_and_shown_safely(foodctl: Foodctl) -> None:
    """A key that was not text when typed, and one that would move a terminal's cursor."""
    foodctl("put", "\udcff", "ä")
    foodctl("put", "x\x1b[2J", "a\nb")
    assert foodctl("list").out.splitlines()[1:] == ["x\\x1b[2J  2         a\\nb", "\\xff      1         ä"]
    assert foodctl("list", "--output", "json").json() == [
        {"key": "x\x1b[2J", "value": "a\nb", "revision": 2},
        {"key_base64": "/w==", "value": "ä", "revision": 1},
    ]


def test_list(foodctl: Foodctl) -> None:
    for key in ("a/1", "a/2", "b"):
        foodctl("put", key, "v")
    assert foodctl("list", "a/").out == "KEY  REVISION  VALUE\na/1  1         v\na/2  2         v\n"
    cut = foodctl("list", "--limit", "2")
    assert len(cut.out.splitlines()) == 3
    assert "There may be more than these 2: raise --limit" in cut.err
    assert foodctl("list", "nothing").out == ""


def test_status_shows_every_member(foodctl: Foodctl, cluster: StandIn) -> None:
    status = foodctl("status")
    assert status.code == 0
    assert status.out.splitlines() == [
        f"n1 is primary, epoch 1, at {cluster.endpoints[0]}. Revision 0.",
        "",
        "NODE  ROLE     EPOCH  POSITION  LAG  SCORE  SINCE  STATE",
        "n1    primary  1      0         0    100    12 s   in sync",
        "n2    backup   1      0         0    99     12 s   in sync",
        "n3    backup   1      0         0    98     12 s   in sync",
    ]
    found = foodctl("status", "--output", "json").json()
    assert found["leader"] == cluster.endpoints[0]
    assert found["answers"][cluster.endpoints[1]]["role"] == "backup"


def test_status_without_a_primary(foodctl: Foodctl, cluster: StandIn) -> None:
    cluster.primary = None
    status = foodctl("status")
    assert status.code == 1
    assert status.out.startswith("Nobody is primary: nothing can be written. Promoting is Pacemaker's work")
    assert "n3    backup" in status.out


def test_status_of_nodes_that_do_not_answer(foodctl: Foodctl, cluster: StandIn) -> None:
    cluster.stopped.add(2)
    status = foodctl("status")
    assert status.code == 0
    assert status.out.endswith(f"\nNo answer from {cluster.endpoints[2]} (stopped, cut off, or not food).\n")
    nobody = foodctl("--endpoints", NOBODY, "status")
    assert (nobody.code, nobody.err) == (3, f"foodctl: no node answered: {NOBODY}\n")


def test_status_names_an_old_primary(foodctl: Foodctl, cluster: StandIn) -> None:
    cluster.claims[0] = 1
    cluster.promote(1)
    assert "n2 is primary, epoch 2, " in foodctl("status").out
    assert "n1 still claims the role, of an older epoch" in foodctl("status").out


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"members": 7},
        {"members": [7, {}]},
        {"node": 7, "epoch": "x", "last": [], "role": None, "cluster": 1},
        {"epoch": True, "last": [0, True]},
        {"members": [{"node": "n", "since_s": since_s} for since_s in (float("nan"), float("inf"), -(2**63))]},
        {"self": {"refused": {"a": 1, b"b": None}, "no_space": b"x", "store": [1]}},
        {"node": "\x1b[31m", "role": "\n", "members": [{"node": "\0", "lag": "\r", "score": "\x7f"}]},
    ],
)
def test_status_survives_any_answer(answer: dict[str, Any]) -> None:
    shown = cli.describe(Status("a:1", {"a:1": answer, "b:1": {"role": "primary", **answer}}))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert json.loads(json.dumps(cli._plain({"a:1": answer})))
    assert cli.describe(Status(None, {"a:1": answer, "b:1": None}))
    assert cli.describe(Status("a:1", {"a:1": answer, "b:1": {"role": "primary"}}))


def test_status_shows_what_is_wrong() -> None:
    members = [
        {"node": "n1", "voting": True, "role": "primary", "epoch": 3, "last": 9, "lag": 0, "score": 1000},
        {"node": "n2", "voting": False, "role": None, "score": None, "state": "never answered this process"},
        {"node": "n3", "role": "backup", "epoch": 3, "last": 4, "lag": 5, "score": 5, "since_s": 9000, "state": "x"},
    ]
    answer = {"node": "n1", "role": "primary", "epoch": [3, "s"], "revision": 8, "members": members, "cluster": "c"}
    text = cli.describe(Status("a:1", {"a:1": answer, "b:1": {"node": "n4", "cluster": "d", "role": "backup"}}))
    assert text.splitlines()[2:] == [
        "NODE  ROLE     EPOCH  POSITION  LAG  SCORE  SINCE  STATE",
        "n1    primary  3      9         0    1000   ?      ?",
        "n2    ?        ?      ?         ?    none   ?      never answered this process (no vote)",
        "n3    backup   3      4         5    5      2 h    x",
        "n4    backup   ?      ?         ?    none   ?      ?",
        "",
        "These nodes belong to different clusters: c, d.",
    ]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--endpoints", NOBODY, "--timeout", "0.2", "put", "k", "v"], 3, "put k: no primary answered within 0.2 s"),
        (["--endpoints", "n1", "get", "k"], 2, "host:port is expected"),
        (["--endpoints", ",", "get", "k"], 2, "no endpoint given"),
        (["put", "", "v"], 6, "key '' has 0 bytes: 1 to 1024"),
    ],
)
def test_errors_have_codes_and_say_why(foodctl: Foodctl, words: list[str], code: int, text: str) -> None:
    result = foodctl(*words)
    assert result.code == code
    assert text in result.err
    assert result.out == ""


def test_an_unknown_outcome_has_its_own_code(foodctl: Foodctl, cluster: StandIn) -> None:
    cluster.faults.extend(["ok", *["mute"] * 9])
    result = foodctl("--timeout", "0.3", "put", "k", "v")
    assert result.code == 4
    assert "It took effect once, or not at all" in result.err


def test_interrupted(foodctl: Foodctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "put", interrupt)
    assert foodctl("put", "k", "v").code == 130


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["get"], ["bench", "--clients", "0"], ["bench", "--clients", "x"], ["--timeout", "0", "status"]],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: foodctl" in capsys.readouterr().err


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "outcome unknown: the write took effect once, or not at all" in capsys.readouterr().out


@pytest.mark.parametrize("reads", [False, True])
def test_bench_measures_and_cleans_up(foodctl: Foodctl, cluster: StandIn, reads: bool) -> None:
    words = ["bench", "--clients", "1,20", "--seconds", "0.3", *["--reads"][: int(reads)]]
    result = foodctl(*words)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == [
        "CLIENTS",
        "READS/S" if reads else "WRITES/S",
        "P50",
        "MS",
        "P99",
        "MS",
        "WORST",
        "ERRORS",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["1", "20"]
    assert cluster.state.rows == {}
    assert cluster.state.sessions == {}
    figures = foodctl(*words, "--output", "json").json()
    assert [stage["clients"] for stage in figures] == [1, 20]
    assert all(stage["per_second"] > 100 and 0 < stage["p50_ms"] <= stage["p99_ms"] for stage in figures)
    assert all(stage["errors"] == 0 for stage in figures)


def test_bench_counts_errors_and_says_which(foodctl: Foodctl, cluster: StandIn) -> None:
    cluster.faults.extend(["ok"] * 50 + ["bad_request"])
    result = foodctl("bench", "--clients", "1", "--seconds", "0.3")
    assert result.out.splitlines()[1].split()[-1] == "1"
    assert "the test wants bad_request" in result.err


def test_bench_without_a_cluster(foodctl: Foodctl) -> None:
    result = foodctl("--endpoints", NOBODY, "--timeout", "0.3", "bench", "--clients", "2")
    assert result.code == 3
    assert "put bench/" in result.err
