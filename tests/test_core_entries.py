"""The log in memory: dense, epochs never fall, the last member list in it rules, committed or not."""

from __future__ import annotations

import msgpack
import pytest

from food.core.entries import ENTRY_BYTES, Log, pack_members, unpack_members
from food.core.message import START, Entry, Epoch, Kind, Member, MemberList, Position

ONE, TWO = Epoch(1, "a"), Epoch(2, "b")
FIRST = MemberList(1, "c", (Member("n1", "a"), Member("n2", "b")))
SECOND = MemberList(2, "c", (Member("n1", "a"),))


def command(index: int, epoch: Epoch = ONE, data: bytes = b"x") -> Entry:
    return Entry(index, epoch, Kind.COMMAND, data)


def members(index: int, lst: MemberList, epoch: Epoch = ONE) -> Entry:
    return Entry(index, epoch, Kind.MEMBERS, pack_members(lst))


def long_log() -> Log:
    return Log(entries=[members(1, FIRST), command(2), command(3), members(4, SECOND, TWO), command(5, TWO)])


def test_a_blank_log() -> None:
    log = Log()
    assert log.last == START
    assert log.members is None
    assert log.members_index == 0
    assert len(log) == 0
    assert log.has(START)
    assert log.after(0, 100) == ()


def test_positions_compare_by_epoch_first() -> None:
    assert Position(TWO, 3) > Position(ONE, 9)
    assert Position(ONE, 9) > Position(ONE, 3)
    assert Position(Epoch(2, "b"), 1) > Position(Epoch(2, "a"), 9)


def test_holes_and_falling_epochs_are_bugs() -> None:
    log = long_log()
    with pytest.raises(AssertionError, match="a hole"):
        log.append([command(7, TWO)])
    with pytest.raises(AssertionError, match="epoch"):
        log.append([command(6, ONE)])


def test_an_equal_position_is_here_or_not() -> None:
    log = long_log()
    assert log.has(Position(ONE, 3))
    assert log.has(Position(TWO, 5))
    assert not log.has(Position(TWO, 3))
    assert not log.has(Position(TWO, 6))


def test_the_last_list_rules_from_its_append() -> None:
    log = long_log()
    assert (log.members, log.members_index) == (SECOND, 4)
    assert log.members_at(3) == FIRST
    assert log.members_at(4) == SECOND
    assert log.members_at(0) is None


def test_truncation_undoes_a_list() -> None:
    log = long_log()
    log.truncate(4)
    assert (log.members, log.members_index) == (FIRST, 1)
    assert log.last == Position(ONE, 3)
    log.truncate(1)
    assert log.members is None
    assert log.last == START


def test_what_was_compacted_cannot_be_cut() -> None:
    log = long_log()
    log.compact(3)
    with pytest.raises(AssertionError, match="compacted"):
        log.truncate(3)


def test_compaction_keeps_position_and_list() -> None:
    log = long_log()
    log.compact(3)
    assert log.base == Position(ONE, 3)
    assert log.has(log.base)
    assert not log.has(Position(ONE, 2))
    assert log.members_at(3) == FIRST
    assert log.members == SECOND
    assert [entry.index for entry in log.after(3, 1000)] == [4, 5]
    log.compact(5)
    assert (log.base, log.last, log.members) == (Position(TWO, 5), Position(TWO, 5), SECOND)
    log.append([command(6, TWO)])
    assert log.last.index == 6


def test_what_was_compacted_is_not_here_and_the_rest_keeps_its_index() -> None:
    log = long_log()
    log.compact(2)
    assert [log.entry(index).index for index in (3, 4, 5)] == [3, 4, 5]
    for index in (2, 6):
        with pytest.raises(AssertionError, match=f"entry {index} is not in the log"):
            log.entry(index)
    log.compact(4)
    assert [entry.index for entry in log.after(4, 1000)] == [5]
    log.append([command(6, TWO), command(7, TWO)])
    log.truncate(6)
    assert (log.last, log.members) == (Position(TWO, 5), SECOND)
    assert [entry.index for entry in log.after(4, 1000)] == [5]


def test_nothing_is_forgotten_of_a_log_that_was_not_founded() -> None:
    log = Log(entries=[command(1)])
    with pytest.raises(AssertionError, match="founded"):
        log.compact(1)


def test_its_size_is_that_of_what_is_here() -> None:
    log = Log(entries=[members(1, FIRST)])
    one = log.size
    assert one == ENTRY_BYTES + len(pack_members(FIRST))
    log.append(command(index, data=bytes(index)) for index in (2, 3, 4))
    assert log.size == one + 3 * ENTRY_BYTES + 2 + 3 + 4
    log.truncate(4)
    assert log.size == one + 2 * ENTRY_BYTES + 2 + 3
    log.compact(2)
    assert log.size == ENTRY_BYTES + 3
    assert log.appended == one + 3 * ENTRY_BYTES + 2 + 3 + 4, "however much of it is gone"


def test_how_much_is_to_go_until_the_rest_fits() -> None:
    log = Log(entries=[members(1, FIRST), *(command(index, data=bytes(100)) for index in (2, 3, 4))])
    log.compact(1)
    each = ENTRY_BYTES + 100
    assert [log.beyond(3 * each, 10), log.beyond(3 * each - 1, 10)] == [1, 2]
    assert [log.beyond(each, 10), log.beyond(each - 1, 10), log.beyond(0, 10)] == [3, 4, 4]
    assert log.beyond(0, 2) == 3, "so many at most"


def test_a_piece_is_bounded_and_never_empty() -> None:
    log = Log(entries=[members(1, FIRST), *(command(index, data=b"x" * 100) for index in range(2, 12))])
    assert [len(log.after(1, 3 * 116 - 1)), len(log.after(1, 3 * 116))] == [2, 3]
    assert len(log.after(1, 1)) == 1
    assert len(log.after(1, 1 << 20)) == 10
    assert log.after(11, 1 << 20) == ()


def test_a_snapshot_keeps_a_suffix_that_continues_it() -> None:
    log = long_log()
    suffix = log.reset(Position(ONE, 3), FIRST)
    assert [entry.index for entry in suffix] == [4, 5]
    assert log.base == Position(ONE, 3)
    assert log.members == SECOND
    assert log.last == Position(TWO, 5)


def test_a_snapshot_keeps_a_suffix_of_a_log_whose_front_is_gone() -> None:
    log = long_log()
    log.compact(2)
    assert [entry.index for entry in log.reset(Position(ONE, 3), FIRST)] == [4, 5]
    assert [entry.index for entry in log.reset(Position(ONE, 3), FIRST)] == [4, 5], "at its own base"


def test_a_snapshot_drops_a_suffix_of_another_epoch() -> None:
    log = long_log()
    assert not log.reset(Position(TWO, 3), FIRST)
    assert log.last == log.base == Position(TWO, 3)
    assert log.members == FIRST


def test_a_snapshot_beyond_the_log() -> None:
    log = long_log()
    assert not log.reset(Position(TWO, 9), SECOND)
    assert log.last == Position(TWO, 9)


def test_member_lists_survive_packing() -> None:
    assert unpack_members(pack_members(FIRST)) == FIRST
    for data in (b"\x93\x01\x02\x03", b"\x01", msgpack.packb([-1, "c", []]), msgpack.packb([True, "c", []])):
        with pytest.raises(ValueError, match="not a member list"):
            unpack_members(data)
    for member in (["n1"], ["n1", 1], "ab", 7, {"n1": "a", "n2": "b"}):
        with pytest.raises(ValueError, match="a member is"):
            unpack_members(msgpack.packb([1, "c", [member]]))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 1_015 + b"\xc0", b"\x91" * 5_000, b"\xdd\x00\x01\x00\x00"])
def test_what_is_no_msgpack_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w{5}"):
        unpack_members(data)


def test_names_of_stores() -> None:
    assert FIRST.node_of("b") == "n2"
    assert FIRST.node_of("z") == "z"
