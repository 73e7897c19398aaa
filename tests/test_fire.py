"""The store under fire: power losses, failing disks, flipped bits; and that the trials notice what they are to notice.

More seeds, and every fault at every call: tests/storefire.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from fire.defects import DEFECTS
from fire.fleet import run, run_all
from fire.layer import Record, build
from fire.platter import WAYS, Platter

JOBS = (
    *(("power_losses", seed) for seed in range(3)),
    *(("fault_each", seed) for seed in range(2)),
    *(("flips", seed) for seed in range(2)),
)
SEEDS_MOST = 6
NOTICED_BY = {  # a seed with which the trial notices it; else one of the next: a change of food changes the lives
    "saved_without_a_sync": 0,
    "synced_at_folding_only": 0,
    "folded_without_a_sync": 0,
    "a_save_is_two_transactions": 0,
    "the_log_is_set_aside_first": 11,
    "a_torn_tail_is_called_damage": 0,
    "a_failed_save_is_passed_over": 0,
    "what_was_not_synced_is_built_upon": 2,
    "a_failed_sync_of_the_directory_is_passed_over": 0,
    "a_failed_read_is_called_corruption": 1,
    "sums_are_not_looked_at": 3,
    "the_write_ahead_log_is_not_looked_at": 0,
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


def test_the_store_stands_every_fault(shim: Path) -> None:
    outcomes = list(run_all(shim, JOBS))
    broken = [f"{one.trial}, {one.broken}" for one in outcomes if one.broken]
    assert not broken, "\n".join(["tests/storefire --seeds 1 --from SEED shows it", *broken])

    def total(trial: str, words: str) -> int:
        return sum(
            count for one in outcomes if one.trial == trial for name, count in one.counts.items() if words in name
        )

    # The trials are worth something.
    assert total("power_losses", "disks") >= 1_500
    assert total("fault_each", "faults") >= 300 and total("fault_each", "ended") >= 200
    assert total("flips", "refused") >= 15


def test_every_defect_is_noticed(shim: Path) -> None:
    assert NOTICED_BY.keys() == DEFECTS.keys()

    def broken(name: str) -> str:
        seeds = range(NOTICED_BY[name], NOTICED_BY[name] + SEEDS_MOST)
        return next((text for seed in seeds if (text := run(shim, DEFECTS[name][0], seed, name).broken)), "")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(NOTICED_BY, pool.map(broken, NOTICED_BY), strict=True))
    assert not [name for name, text in found.items() if not text or text.startswith("the trial itself failed")], found


def test_a_trial_beside_the_shim_is_refused() -> None:
    """Else it would hold whatever the store does."""
    assert "the shim is not preloaded" in run(Path("/dev/null"), "power_losses", 0).broken


# --- The model of a disk ---

ROOT = Path("/the/store")
OPEN_DIRECTORY = Record("o", 4, 0, b"/the/store")
SYNC_DIRECTORY = Record("s", 4, 0, b"")


def opened(name: str = "a", fd: int = 3) -> Record:
    return Record("o", fd, 0, f"{ROOT}/{name}".encode())


def wrote(data: bytes, offset: int = 0) -> Record:
    return Record("w", 3, offset, data)


SYNCED, SYNC_FAILED = Record("s", 3, 0, b""), Record("f", 3, 0, b"")


def left(platter: Platter, way: str, seeds: int = 200) -> set[tuple[tuple[str, bytes], ...]]:
    return {tuple(sorted(platter.left(way, Random(seed)).items())) for seed in range(seeds)}


def told(*records: Record) -> Platter:
    platter = Platter(ROOT, {})
    for record in records:
        platter.step(record)
    return platter


def test_what_is_synced_is_left_and_what_is_not_may_be() -> None:
    named = told(opened(), wrote(b"one"), SYNCED, OPEN_DIRECTORY, SYNC_DIRECTORY)
    assert all(left(named, way) == {(("a", b"one"),)} for way in WAYS)
    named.step(wrote(b"two", 3))
    assert left(named, "none") == {(("a", b"one"),)} and left(named, "all") == {(("a", b"onetwo"),)}
    assert left(named, "some writes") == {(("a", b"one"),), (("a", b"onetwo"),)}


def test_a_write_is_torn_by_sectors() -> None:
    torn = told(opened(), SYNCED, OPEN_DIRECTORY, SYNC_DIRECTORY, wrote(b"x" * 1024, 256))
    found = {content[256:1280] for ((_, content),) in left(torn, "some sectors")}
    hole = bytes(512)
    assert {b"", b"x" * 256, bytes(256) + b"x" * 512, b"x" * 1024, bytes(256) + hole + b"x" * 256} <= found


def test_a_name_is_left_once_its_directory_was_synced() -> None:
    unnamed = told(opened(), wrote(b"one"), SYNCED, OPEN_DIRECTORY)
    assert left(unnamed, "some writes") == {(), (("a", b"one"),)}
    unnamed.step(SYNC_DIRECTORY)
    unnamed.step(Record("r", 0, 0, b"/the/store/a\n/the/store/b"))
    assert left(unnamed, "some writes") == {(("a", b"one"),), (("b", b"one"),)}
    unnamed.step(Record("u", 0, 0, b"/the/store/b"))
    assert left(unnamed, "all") == {()} and left(unnamed, "none") == {(("a", b"one"),)}


def test_a_failed_sync_is_forgotten_until_the_page_is_written_again() -> None:
    failed = told(opened(), SYNCED, OPEN_DIRECTORY, SYNC_DIRECTORY, wrote(b"one"), SYNC_FAILED, SYNCED)
    assert failed.seen == {"a": b"one"}
    assert all(left(failed, way) == {(("a", b""),)} for way in WAYS)
    failed.step(wrote(b"two", 3))
    failed.step(SYNCED)
    assert all(left(failed, way) == {(("a", b"onetwo"),)} for way in WAYS)
