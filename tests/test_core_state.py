"""What a committed command does: the same on every node, once for each session and sequence."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from food.core import state as state_module
from food.core.state import BadCommand, Draft, Result, Row, State


def packed(session: int, seq: int, done: int, op: str, *args: Any) -> bytes:
    data: bytes = msgpack.packb([session, seq, done, op, *args])
    return data


class Machine:
    """A state and its next index."""

    def __init__(self) -> None:
        self.state = State()

    def __call__(self, op: str, *args: Any, session: int = 0, seq: int = 0, done: int = 0) -> Result:
        command = packed(session, seq, done, op, *args)
        self.state.check(command)
        return self.state.apply(self.state.applied + 1, command)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_put_get_delete(machine: Machine) -> None:
    assert machine("put", b"k", b"v") == Result(0, 1)
    assert machine.state.query("get", [b"k"]) == Result(0, [b"v", 1])
    assert machine("del", b"k") == Result(0, 2)
    assert machine.state.query("get", [b"k"]) == Result(0, None)


def test_revision_rises_by_one_for_each_change_of_a_key_and_only_then(machine: Machine) -> None:
    machine("put", b"k", b"v")
    machine("del", b"absent")
    machine("cas", b"k", 7, b"no")
    machine("open")
    machine.state.skip(machine.state.applied + 1)
    assert machine.state.revision == 1
    machine("put", b"k", b"v")
    assert machine.state.revision == 2


def test_compare_and_put(machine: Machine) -> None:
    assert machine("cas", b"k", 0, b"1") == Result(0, 1)
    refused = machine("cas", b"k", 0, b"2")
    assert (refused.status, refused.value["revision"]) == ("compare", 1)
    assert machine("cas", b"k", 1, b"2") == Result(0, 2)


def test_deleting_what_is_absent_answers_zero(machine: Machine) -> None:
    assert machine("del", b"k") == Result(0, 0)


def test_range_by_prefix_with_limit(machine: Machine) -> None:
    for key in (b"b", b"ab", b"a", b"abc", b"\xff"):
        machine("put", key, key)
    found = machine.state.query("range", [b"a", 10]).value
    assert [row[0] for row in found] == [b"a", b"ab", b"abc"]
    assert [row[0] for row in machine.state.query("range", [b"", 2]).value] == [b"a", b"ab"]
    assert machine.state.query("range", [b"\xff", 5]).value == [[b"\xff", b"\xff", 5]]
    assert machine.state.query("range", [b"a", 0]).value == []


@pytest.mark.parametrize(("op", "args"), [("get", []), ("get", ["text"]), ("range", [b"a"]), ("put", [b"a", b"b"])])
def test_queries_that_are_none(machine: Machine, op: str, args: list[Any]) -> None:
    assert machine.state.query(op, args).status == "bad_request"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"\xc1", "bad_request"),
        (b"\x80", "bad_request"),
        (packed(0, 0, 0, "nonsense"), "bad_request"),
        (packed(0, 0, 0, "put", b"k"), "bad_request"),
        (packed(0, 0, 0, "put", "k", b"v"), "bad_request"),
        (packed(0, 0, 0, "cas", b"k", True, b"v"), "bad_request"),
        (packed(0, 0, 0, "put", b"", b"v"), "bad_request"),
        (packed(0, 0, 0, "put", b"k" * 1025, b"v"), "too_large"),
        (packed(0, 0, 0, "put", b"k", b"v" * (1024 * 1024 + 1)), "too_large"),
        (packed(0, 0, 0, "del", b""), "bad_request"),
        (packed(5, 0, 0, "put", b"k", b"v"), "bad_request"),
        (packed(5, 3, 3, "put", b"k", b"v"), "bad_request"),
        (packed(5, 3, -1, "put", b"k", b"v"), "bad_request"),
    ],
)
def test_commands_that_must_not_enter_the_log(machine: Machine, command: bytes, code: str) -> None:
    with pytest.raises(BadCommand) as refused:
        machine.state.check(command)
    assert refused.value.code == code


def test_a_retry_gets_the_stored_result_with_its_first_revision(machine: Machine) -> None:
    session = machine("open").value
    first = machine("put", b"k", b"1", session=session, seq=1)
    machine("put", b"k", b"2")
    assert machine("put", b"k", b"1", session=session, seq=1) == first
    assert machine.state.rows[b"k"].value == b"2"


def test_a_refused_comparison_is_a_result_too(machine: Machine) -> None:
    session = machine("open").value
    first = machine("cas", b"k", 9, b"1", session=session, seq=1)
    machine.state.apply(machine.state.applied + 1, packed(0, 0, 0, "put", b"k", b"x"))
    assert machine("cas", b"k", 9, b"1", session=session, seq=1) == first


def test_sequences_apply_in_order(machine: Machine) -> None:
    session = machine("open").value
    assert machine("put", b"k", b"2", session=session, seq=2).status == "order"
    assert machine("put", b"k", b"1", session=session, seq=1).status == 0
    assert machine("put", b"k", b"2", session=session, seq=2).status == 0


def test_an_unknown_session_is_never_executed(machine: Machine) -> None:
    refused = machine("put", b"k", b"v", session=99, seq=1)
    assert refused.status == "session"
    assert "outcome unknown" in refused.value["text"]
    assert b"k" not in machine.state.rows


def test_a_closed_session_is_unknown(machine: Machine) -> None:
    session = machine("open").value
    machine("close", session)
    assert machine("put", b"k", b"v", session=session, seq=1).status == "session"


def test_done_lets_results_go(machine: Machine) -> None:
    session = machine("open").value
    for seq in (1, 2, 3):
        machine("put", b"k", b"%d" % seq, session=session, seq=seq)
    machine("put", b"k", b"4", session=session, seq=4, done=2)
    assert sorted(machine.state.sessions[session].results) == [3, 4]
    assert machine("put", b"k", b"3", session=session, seq=3, done=2).status == 0
    assert machine("put", b"k", b"1", session=session, seq=1).status == "unknown"
    assert machine.state.revision == 4


def test_results_are_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "SESSION_RESULTS_MOST", 2)
    session = machine("open").value
    for seq in (1, 2, 3):
        machine("put", b"k", b"v", session=session, seq=seq)
    assert sorted(machine.state.sessions[session].results) == [2, 3]


def test_the_least_recently_used_session_is_evicted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "SESSIONS_MOST", 2)
    first, second = machine("open").value, machine("open").value
    machine("put", b"k", b"v", session=first, seq=1)
    third = machine("open").value
    assert set(machine.state.sessions) == {first, third}
    assert machine("put", b"k", b"v", session=second, seq=1).status == "session"


def test_the_same_commands_give_the_same_state_after_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction goes by use, which a snapshot must carry: also where two sessions were used by one entry."""
    monkeypatch.setattr(state_module, "SESSIONS_MOST", 3)
    live = Machine()
    one, two = live("open").value, live("open").value
    live("open", session=one, seq=1)
    restored = Machine()
    sessions = {number: live.state.sessions[number].pack() for number in reversed(list(live.state.sessions))}
    draft = Draft()
    draft.sessions = sessions
    restored.state.restore(live.state.applied, 0, 0, draft)
    for machine in (live, restored):
        machine("put", b"k", b"v", session=two, seq=1)
        machine("open")
        machine("open")
    assert list(live.state.sessions) == list(restored.state.sessions)


def test_entries_are_applied_once_and_in_order(machine: Machine) -> None:
    machine("put", b"k", b"v")
    with pytest.raises(AssertionError, match="applied twice"):
        machine.state.apply(1, packed(0, 0, 0, "put", b"k", b"v"))


def test_a_row_is_one_object_and_its_hash_part_of_the_protocol() -> None:
    row = Row.of(b"k", b"v", 7)
    assert (row.value, row.revision, row.hash, row.size) == (b"v", 7, 0xF212_169F_2201_EBFC, 1)
    assert Row.of(b"k", b"", 2**63).value == b""


def test_the_hash_depends_on_the_rows_only() -> None:
    one, other = Machine(), Machine()
    one("put", b"a", b"1")
    one("put", b"b", b"2")
    one("put", b"c", b"3")
    one("del", b"c")
    draft = Draft()
    for row in ((b"b", b"2", 2), (b"a", b"1", 1)):
        draft.add(*row)
    other.state.restore(4, 4, one.state.hash, draft)
    assert other.state.hash == one.state.hash
    assert list(other.state.keys) == [b"a", b"b"]
    with pytest.raises(ValueError, match="state hash"):
        other.state.restore(4, 4, one.state.hash, Draft())


def test_a_draft_takes_rows_in_any_order_and_each_key_once() -> None:
    draft = Draft()
    draft.add(b"b", b"2", 2)
    draft.add(b"a", b"1", 1)
    state = State()
    state.restore(4, 4, draft.hash, draft)
    assert list(state.keys) == [b"a", b"b"] and state.bytes == 4
    draft.add(b"a", b"1", 1)
    draft.add(b"a", b"1", 1)
    with pytest.raises(ValueError, match="2 keys of 4 rows"):
        State().restore(4, 4, draft.hash, draft)


def test_changes_are_what_the_tables_lack(machine: Machine) -> None:
    session = machine("open").value
    machine("put", b"a", b"1", session=session, seq=1)
    machine("put", b"b", b"2")
    machine("del", b"b")
    changes = machine.state.take_changes()
    assert changes.rows == {b"a": Row.of(b"a", b"1", 1), b"b": None}
    assert set(changes.sessions) == {session}
    assert (changes.applied, changes.revision, changes.hash) == (4, 3, machine.state.hash)
    again = machine.state.take_changes()
    assert not again.rows
    assert not again.sessions


def test_a_view_shows_one_index_while_writes_go_on(machine: Machine) -> None:
    for key in (b"d", b"c", b"b", b"a"):
        machine("put", key, b"old")
    view = machine.state.open_view()
    items = view.items()
    assert next(items) == (b"a", b"old", 4)
    machine("put", b"a", b"new")
    machine("del", b"b")
    machine("put", b"b", b"back again")
    machine("del", b"c")
    machine("put", b"bb", b"new")
    machine("put", b"d", b"new")
    machine("put", b"d", b"newer")
    assert list(items) == [(b"b", b"old", 3), (b"c", b"old", 2), (b"d", b"old", 1)]


@pytest.mark.parametrize("stride", [1, 2, 3, 1_000])
def test_a_view_shows_one_index_whatever_changes_between_its_strides(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    monkeypatch.setattr(state_module, "VIEW_STRIDE_KEYS", stride)
    chance = random.Random(stride)
    keys = [b"%02d" % number for number in range(30)]
    for _ in range(50):
        for key in chance.sample(keys, 15):
            machine("put", key, b"old")
        wanted = [(key, row.value, row.revision) for key, row in sorted(machine.state.rows.items())]
        view = machine.state.open_view()
        found: list[Any] = []
        for item in view.items():
            found.append(item)
            for key in chance.sample(keys, 3):
                if chance.random() < 0.5:
                    machine("put", key, b"new")
                else:
                    machine("del", key)
        assert found == wanted
        assert view.size == (0, len(wanted))


def test_a_view_keeps_only_what_it_has_not_read_out(machine: Machine) -> None:
    for key in (b"a", b"b", b"c"):
        machine("put", key, b"old")
    view = machine.state.open_view()
    items = view.items()
    next(items)
    next(items)
    for key in (b"a", b"b", b"c"):
        machine("put", key, b"new")
    assert list(view._kept) == [b"c"]
    assert next(items) == (b"c", b"old", 3)
    assert not view._kept


def test_a_view_holds_the_sessions_of_its_index(machine: Machine) -> None:
    session = machine("open").value
    view = machine.state.open_view()
    before = machine.state.sessions[session].pack()
    machine("put", b"a", b"1", session=session, seq=1)
    machine("open")
    assert list(view.items()) == [(session, before)]


def test_a_closed_view_costs_nothing(machine: Machine) -> None:
    machine("put", b"a", b"1")
    view = machine.state.open_view()
    view.close()
    machine("put", b"a", b"2")
    assert machine.state.view is None
    assert not view._kept


def test_closing_an_old_view_leaves_a_newer_one(machine: Machine) -> None:
    machine("put", b"a", b"1")
    old, new = machine.state.open_view(), machine.state.open_view()
    old.close()
    machine("put", b"a", b"2")
    assert list(new.items()) == [(b"a", b"1", 1)]
