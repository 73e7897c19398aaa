"""The checker of histories is right: about known ones, and about all tiny ones, where every order can be tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import linear
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import check

Row = tuple[Any, ...]


def put(value: str, revision: int | None, invoked: float, returned: float | None = None, key: str = "k") -> Row:
    return ("c", "put", key, value, revision, invoked, returned)


def get(value: str | None, revision: int, invoked: float, returned: float, key: str = "k") -> Row:
    return ("c", "get", key, None, (value, revision), invoked, returned)


def delete(revision: int | None, invoked: float, returned: float | None = None, key: str = "k") -> Row:
    return ("c", "del", key, None, revision, invoked, returned)


def cas(
    expected: int, value: str, result: int | Row | None, invoked: float, returned: float | None = None, key: str = "k"
) -> Row:
    return ("c", "cas", key, (expected, value), result, invoked, returned)


GOOD: dict[str, list[Row]] = {
    "empty": [],
    "one after the other": [put("a", 1, 0, 1), get("a", 1, 2, 3), put("b", 2, 4, 5), get("b", 2, 6, 7)],
    "absent, then deleted": [
        get(None, 0, 0, 1),
        put("a", 1, 2, 3),
        delete(2, 4, 5),
        delete(0, 6, 7),
        get(None, 0, 8, 9),
    ],
    "a read beside a write sees either": [put("a", 1, 0, 1), put("b", 2, 2, 9), get("a", 1, 3, 4), get("b", 2, 5, 6)],
    "writes beside each other": [put("a", 2, 0, 9), put("b", 1, 0, 9), get("b", 1, 1, 8), get("a", 2, 10, 11)],
    "unknown, never": [put("a", 1, 0, 1), put("b", None, 2), get("a", 1, 3, 4), get("a", 1, 90, 91)],
    "unknown, at once": [put("a", None, 0), get("a", 7, 1, 2), get("a", 7, 3, 4)],
    "unknown, late": [put("a", 1, 0, 1), put("b", None, 2), get("a", 1, 3, 4), put("c", 2, 5, 6), get("b", 3, 7, 8)],
    "unknown delete, late": [put("a", 1, 0, 1), delete(None, 2), get("a", 1, 3, 4), get(None, 0, 5, 6)],
    "unknown put, then a delete that found it": [put("a", None, 0), delete(5, 1, 2), get(None, 0, 3, 4)],
    "two unknown of one value": [put("a", None, 0), put("a", None, 1), get("a", 1, 2, 3), get("a", 4, 4, 5)],
    "unknown compare after unknown put": [put("a", None, 0), cas(3, "b", None, 1), get("b", 4, 2, 3)],
    "unknown compare after unknown delete": [
        put("a", 1, 0, 1),
        delete(None, 2),
        cas(0, "b", None, 3),
        get("b", 9, 4, 5),
    ],
    "compares": [cas(0, "a", 1, 0, 1), cas(0, "b", ("compare", 1), 2, 3), cas(1, "c", 2, 4, 5), get("c", 2, 6, 7)],
    "compare that found what was only written later": [cas(4, "b", ("compare", 2), 0, 9), put("a", 2, 3, 4)],
    "two keys, revisions in order": [put("a", 1, 0, 1), put("a", 2, 2, 3, key="l"), put("b", 3, 4, 5)],
    "equal times are no order": [put("a", 1, 0, 5), get(None, 0, 5, 5), get("a", 1, 5, 5)],
    "a read of unknown outcome says nothing": [("c", "get", "k", None, None, 3, None)],
}

BAD: dict[str, list[Row]] = {
    "stale read": [put("a", 1, 0, 1), put("b", 2, 2, 3), get("a", 1, 4, 5)],
    "stale read of nothing": [put("a", 1, 0, 1), get(None, 0, 2, 3)],
    "reads go back": [put("a", 1, 0, 1), put("b", 2, 2, 9), get("b", 2, 3, 4), get("a", 1, 5, 6)],
    "lost write": [put("a", 1, 0, 1), put("b", 2, 2, 3), get("a", 1, 4, 5), put("c", 3, 6, 7), get("c", 3, 8, 9)],
    "lost write, its revision used again": [put("a", 1, 0, 1), put("b", 1, 2, 3), get("b", 1, 4, 5)],
    "doubled write": [put("a", 1, 0, 1), put("b", 2, 2, 3), get("a", 3, 4, 5)],
    "doubled write, same value still": [put("a", 1, 0, 1), get("a", 2, 2, 3)],
    "reordered": [put("a", 2, 0, 1), put("b", 1, 2, 3)],
    "reordered on two keys": [put("a", 2, 0, 1), put("b", 1, 2, 3, key="l")],
    "compare: both won": [put("a", 1, 0, 1), cas(1, "b", 2, 2, 9), cas(1, "c", 3, 2, 9)],
    "compare: both won an absent key": [cas(0, "b", 1, 0, 9), cas(0, "c", 2, 0, 9)],
    "compare: won against an older state": [put("a", 1, 0, 1), put("b", 2, 2, 3), cas(1, "c", 3, 4, 5)],
    "compare: refused though it fits": [put("a", 1, 0, 1), cas(1, "b", ("compare", 1), 2, 3)],
    "compare: found what was gone": [put("a", 1, 0, 1), put("b", 2, 2, 3), cas(5, "c", ("compare", 1), 4, 5)],
    "unknown takes effect twice": [put("a", None, 0), get("a", 1, 1, 2), put("b", 2, 3, 4), get("a", 3, 5, 6)],
    "unknown takes effect before it was asked for": [get("a", 1, 0, 1), put("a", None, 2)],
    "unknown delete takes effect twice": [
        put("a", 1, 0, 1), delete(None, 2), get(None, 0, 3, 4), put("b", 3, 5, 6), get(None, 0, 7, 8)
    ],
    "unknown compare takes effect though it does not fit": [
        put("a", 1, 0, 1), put("b", 2, 2, 3), cas(1, "c", None, 4), get("c", 3, 5, 6)
    ],
    "deleted what was absent": [get(None, 0, 0, 1), delete(1, 2, 3)],
    "deleted nothing though it was there": [put("a", 1, 0, 1), delete(0, 2, 3)],
    "comes back after its delete": [put("a", 1, 0, 1), delete(2, 2, 3), get("a", 1, 4, 5)],
    "nobody wrote it": [put("a", 1, 0, 1), get("b", 2, 2, 3)],
    "another value at its revision": [put("a", 1, 0, 1), get("b", 1, 2, 3)],
    "another key's revision": [put("a", 1, 0, 1), put("a", None, 0, key="l"), get("a", 1, 2, 3, key="l")],
    "known of on another key, read too early here": [
        put("a", 1, 0, 1), put("b", 2, 2, 30), put("c", 3, 3, 4, key="l"), get("a", 1, 10, 11)
    ],
    "gone before another key's earlier change was asked for": [
        put("a", 1, 0, 1), delete(5, 2, 20), put("b", 4, 8, 9, key="l"), get(None, 0, 3, 4)
    ],
    "deleted, though all that could have written it does not fit": [cas(5, "a", None, 0), delete(7, 1, 2)],
    "unknown, but before one known of on another key": [
        put("a", None, 0), put("c", 5, 1, 2, key="l"), get(None, 0, 3, 4), get("a", 4, 5, 6)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert check(GOOD[name]) is None
    assert check(list(reversed(GOOD[name]))) is None


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    wrong = check(BAD[name])
    assert wrong is not None and "key " in wrong
    assert check(list(reversed(BAD[name]))) is not None


def test_a_whole_history_accounts_for_every_revision() -> None:
    doubled = [put("a", 1, 0, 1), put("a", 3, 2, 3)]
    assert check(doubled) is None
    assert "done twice" in str(check(doubled, whole=True))
    assert check([*doubled, put("b", None, 0)], whole=True) is None


def test_nonsense_is_refused() -> None:
    rows: list[Row] = [
        ("c", "add", "k", 1, 2, 0, 1),
        ("c", "get", "k", None, ("a", 0), 0, 1),
        ("c", "put", "k", "a", 0, 0, 1),
        ("c", "put", "k", "a", 1, 0, None),
        ("c", "put", "k", "a", 1, 3, 2),
        ("c", "cas", "k", "a", 1, 3, 4),
    ]
    for row in rows:
        with pytest.raises(ValueError, match=r"invocation|not an operation"):
            check([row])


def busy(rounds: int, clients: int = 1, keys: int = 1, lost_every: int = 0) -> list[Row]:
    """Clients that write and read beside each other; every operation takes effect in the middle of its time."""
    rows: list[Row] = []
    revision, held = 0, dict.fromkeys((f"k{number}" for number in range(keys)), (None, 0))
    for number in range(rounds * clients):
        client, key = number % clients, f"k{number % keys}"
        invoked, returned = number - clients / 2, number + clients / 2
        if number % 3:
            rows.append((client, "get", key, None, held[key], invoked, returned))
            continue
        unknown = lost_every and number // 3 % lost_every == 0
        if not (unknown and number % 2):
            revision += 1
            held[key] = (f"v{number}", revision)  # type: ignore[assignment]
        outcome = (None, None) if unknown else (revision, returned)
        rows.append((client, "put", key, f"v{number}", outcome[0], invoked, outcome[1]))
    return rows


@pytest.mark.parametrize(("clients", "keys"), [(1, 1), (300, 50), (300, 1)])
def test_long_histories_take_seconds(clients: int, keys: int) -> None:
    """Bounded by the test's own timeout; tests/linear.py on a real load's file shows the figure."""
    count = 30_000 if keys > 1 else 10_000
    rows = busy(count // clients, clients, keys, lost_every=50)
    assert check(rows) is None
    at, row = next((at, row) for at, row in enumerate(rows) if at > count * 2 // 3 and row[1] == "get")
    early = next(other for other in rows if other[1] == "get" and other[2] == row[2] and other[4][0])
    rows[at] = (*row[:4], early[4], *row[5:])
    wrong = check(rows)
    assert wrong is not None
    assert len(wrong.splitlines()) <= linear.SHOWN_MOST + 2


def test_the_window_is_small() -> None:
    """Of a thousand operations, the stale read, the write that it misses, and hardly more."""
    rows = [*busy(1000), put("x", 5001, 1100, 1101, key="k0"), put("y", 5002, 1102, 1103, key="k0")]
    rows += [get("y", 5002, 1104, 1105, key="k0"), get("x", 5001, 1106, 1107, key="k0")]
    wrong = check(rows)
    assert wrong is not None
    assert len(wrong.splitlines()) <= 4
    assert "('x', 5001)" in wrong


def test_too_many_unknown_writes_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CONFIGURATIONS_MOST", 100)
    rows = [put(f"v{number}", None, 0) for number in range(20)]
    rows += [delete(2 * number + 1, number + 1, number + 1.5) for number in range(20)]
    with pytest.raises(linear.Undecided, match="more than 100 orders"):
        check(rows)


# --- All orders tried ---


def allowed(rows: Sequence[Row]) -> bool:
    """Tries every order of every subset of the unknown, with every revision that is named or lies between two."""
    named = {0}
    for _, op, _, argument, result, _, _ in rows:
        named |= {result} if isinstance(result, int) else {result[1]} if result else set()
        named |= {argument[0]} if op == "cas" else set()
    between = {Fraction(a + b, 2) for a in named for b in (*named, max(named) + 2)}
    revisions = sorted({*map(Fraction, named), *between})

    def fits(left: frozenset[int], last: Fraction, state: dict[str, tuple[Any, Fraction]]) -> bool:
        if all(rows[number][4] is None for number in left):
            return True
        for number in left:
            _, op, key, argument, result, invoked, _ = rows[number]
            if any(rows[o][4] is not None and rows[o][6] < invoked for o in left):
                continue
            rest, (held, at) = left - {number}, state.get(key, (None, Fraction(0)))
            if op == "get":
                if result == (held, at) and fits(rest, last, state):
                    return True
                continue
            if op == "del" and held is None:
                if result in (0, None) and fits(rest, last, state):
                    return True
                continue
            if op == "cas" and argument[0] != at:
                if (result is None or result == ("compare", at)) and fits(rest, last, state):
                    return True
                continue
            value = None if op == "del" else argument[1] if op == "cas" else argument
            for revision in [r for r in revisions if r > last] if result is None else [result]:
                if isinstance(revision, int | Fraction) and revision > last:
                    after = (value, Fraction(0) if value is None else Fraction(revision))
                    if fits(rest, Fraction(revision), {**state, key: after}):
                        return True
        return False

    return fits(frozenset(range(len(rows))), Fraction(0), {})


VALUES = ("a", "b")


@st.composite
def executed(draw: st.DrawFn, keys: tuple[str, ...]) -> list[Row]:
    """An execution as it should be, of which one result may be made wrong."""
    rows: list[Row] = []
    state: dict[str, tuple[str | None, int]] = {}
    revision = 0
    for moment in range(draw(st.integers(0, 6))):
        key, op = draw(st.sampled_from(keys)), draw(st.sampled_from(("put", "get", "del", "cas")))
        held, at = state.get(key, (None, 0))
        invoked, returned = moment - draw(st.integers(0, 3)), moment + draw(st.integers(0, 3))
        value = draw(st.sampled_from(VALUES))
        result: Any = None
        expected = at if draw(st.booleans()) else draw(st.integers(0, 4))
        unknown = op != "get" and draw(st.integers(0, 2)) == 0
        if op == "get":
            result = (held, at)
        elif op == "cas" and expected != at:
            result = ("compare", at)
        elif op == "del" and held is None:
            result = 0
        elif not (unknown and draw(st.booleans())):
            revision += draw(st.integers(1, 2))
            state[key], result = ((None, 0) if op == "del" else (value, revision)), revision
        argument: Any = value if op == "put" else (expected, value) if op == "cas" else None
        rows.append(("c", op, key, argument, *((None, invoked, None) if unknown else (result, invoked, returned))))
    known = [number for number, row in enumerate(rows) if row[4] is not None]
    if draw(st.booleans()) and known:
        number = draw(st.sampled_from(known))
        _, op, key, argument, _, invoked, returned = rows[number]
        if draw(st.booleans()):
            invoked = returned = moment
        other = draw(st.integers(0, 5))
        results: dict[str, Any] = {
            "get": (draw(st.sampled_from(VALUES)), other) if other else (None, 0),
            "del": other,
            "put": other or 1,
            "cas": ("compare", other) if draw(st.booleans()) else other or 1,
        }
        rows[number] = ("c", op, key, argument, results[op], invoked, returned)
    return rows


@settings(max_examples=1000, deadline=None)
@given(executed(("k",)))
def test_one_key_against_all_orders(rows: list[Row]) -> None:
    assert (check(rows) is None) == allowed(rows)


@settings(max_examples=300, deadline=None)
@given(executed(("k", "l")))
def test_two_keys_never_refused_when_an_order_exists(rows: list[Row]) -> None:
    if check(rows) is not None:
        assert not allowed(rows)


# --- The command line ---


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, packed, load = (tmp_path / name for name in ("good", "bad", "packed.msgpack", "load"))
    good.write_text("".join(json.dumps(row) + "\n" for row in GOOD["compares"]) + '["torn')
    bad.write_text("".join(json.dumps(row) + "\n" for row in BAD["stale read"]))
    packed.write_bytes(b"".join(msgpack.packb(row) for row in BAD["lost write"]))
    lines: list[list[Any]] = [
        ["w", "a/0", "k", "v1", 1.0, 1.1, "ack", 2, None, False],
        ["w", "a/0", "c", "v2", 1.2, 1.3, "ack", 3, 0, True],
        ["w", "a/0", "c", "v3", 1.4, 9.0, "unknown", 0, 3, True],
        ["w", "a/0", "c", "v4", 1.5, 9.0, "failed", 0, 3, True],
        ["r", "a/r", "c", "v3", 1.6, 1.7, "ack", 5],
        ["r", "a/r", "c", None, 1.6, 1.7, "failed", 0],
        ["x", "a/x0", "put", "x", "p", 0, "ack", 6, 2.0, 2.1],
        ["x", "a/x1", "cas", "x", "q", 6, "ack", 7, 2.2, 2.3],
        ["x", "a/x0", "cas", "x", "r", 6, "compare", 7, 2.4, 2.5],
        ["x", "a/x1", "del", "x", None, 0, "ack", 8, 2.6, 2.7],
        ["x", "a/x1", "put", "x", "s", 0, "unknown", 0, 2.8, 9.0],
        ["x", "a/last look", "get", "x", None, 0, "ack", 0, 3.0, 3.1],
        ["state", "c", "v3", 5],
        ["state", "k", "v1", 2],
        ["end", [1, 7]],
    ]
    load.write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert [linear.main([str(path)]) for path in (good, bad, packed, load)] == [0, 1, 1, 0]
    out = capsys.readouterr().out
    assert "4 operations: linearizable" in out
    assert "NOT linearizable\nkey 'k': no order explains" in out
    load.write_text("".join(json.dumps(row) + "\n" for row in [row for row in lines if row[:2] != ["state", "k"]]))
    assert linear.main([str(load)]) == 1  # an acknowledged key is not in the final state
    assert "'k': no order explains" in capsys.readouterr().out
    load.write_text("".join(json.dumps(row) + "\n" for row in [row for row in lines if "del" not in row]))
    assert linear.main([str(load)]) == 1  # the last look found the key absent
    assert "'x': no order explains" in capsys.readouterr().out
    assert linear.main([str(tmp_path / "nothing")]) == 2
    assert linear.main([]) == 2
