"""R = W = floor(N/2)+1 for every N, N = 2 included; any two majorities share a store."""

from __future__ import annotations

from itertools import combinations

import pytest

from food.core.quorum import holds, majority, reached

STORES = "abcdefgh"


@pytest.mark.parametrize(("size", "wanted"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_more_than_half(size: int, wanted: int) -> None:
    assert majority(STORES[:size]) == wanted


@pytest.mark.parametrize("size", range(1, 8))
def test_two_majorities_of_one_list_share_a_store(size: int) -> None:
    stores = STORES[:size]
    majorities = [set(some) for some in combinations(stores, majority(stores))]
    assert all(one & other for one in majorities for other in majorities)


@pytest.mark.parametrize("size", range(1, 8))
def test_majorities_of_neighbouring_lists_share_a_store(size: int) -> None:
    smaller, larger = STORES[:size], STORES[: size + 1]
    for one in combinations(smaller, majority(smaller)):
        for other in combinations(larger, majority(larger)):
            assert set(one) & set(other)


def test_only_listed_stores_count() -> None:
    assert not holds("abc", {"a", "x", "y", "z"})
    assert holds("abc", {"a", "b", "x"})
    assert not holds("ab", {"a"})
    assert holds("a", {"a"})


def test_what_a_majority_has_reached() -> None:
    assert reached("abc", {"a": 7, "b": 5, "c": 3}) == 5
    assert reached("abcd", {"a": 7, "b": 5, "c": 3, "d": 1}) == 3
    assert reached("ab", {"a": 7, "b": 5}) == 5
    assert reached("a", {"a": 7}) == 7


def test_a_store_without_a_value_has_reached_nothing() -> None:
    assert reached("abc", {"a": 7}) == 0
    assert reached("abc", {"a": 7, "x": 9, "y": 9}) == 0


def test_nobody_has_reached_nothing() -> None:
    assert reached((), {"a": 7}) == 0
