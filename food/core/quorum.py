"""Majorities: how many members must hold an entry, and up to where they do.

R = W = floor(N/2) + 1 for every N, so that any two majorities of one list, and of two lists that differ by one
store, share a store. Nothing here knows who the members are or what an entry is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def majority(stores: Collection[str]) -> int:
    """How many of `stores` make a majority."""
    return len(stores) // 2 + 1


def holds(stores: Collection[str], present: Collection[str]) -> bool:
    """Whether the listed ones among `present` are a majority of `stores`."""
    return sum(store in present for store in stores) >= majority(stores)


def reached(stores: Collection[str], values: Mapping[str, int]) -> int:
    """The greatest value that a majority of `stores` has reached; a store without a value has reached 0.

    Counts indexes (what is committed), read rounds (what is confirmed) and times of contact (since when a
    majority has not been heard) alike.
    """
    descending = sorted([values.get(store, 0) for store in stores], reverse=True)
    return descending[majority(stores) - 1] if descending else 0
