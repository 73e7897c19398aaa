"""The memory of a large state in huge pages: among a million scattered keys, each step of a write is on another page.

Asked of the kernel by a thread beside the loop, which goes on meanwhile: the calls hold no lock of the interpreter's.
A kernel that cannot at once (before 6.1) does it by and by (khugepaged), and one whose operator set
transparent_hugepage to `never` is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HUGE_BYTES = 2 * 1024 * 1024  # x86-64's, and ARM's with pages of 4 KiB; where they are larger, the kernel declines
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # madvise(2)
LOOK_EVERY_S = 10.0
GROWN_BYTES, GROWN = 32 * 1024 * 1024, 1.25  # less than that is not worth a walk through all pages
IDLE = 20  # times as long as it works, so that a loop under load hardly notices
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep() -> None:
    """From now on, whenever this process has grown by a good part."""
    threading.Thread(target=_keep, name="hugepages", daemon=True).start()


def _keep() -> None:
    done_bytes = 0
    with contextlib.suppress(OSError):  # a kernel without huge pages
        while True:
            time.sleep(LOOK_EVERY_S)
            if resident_bytes() > GROWN * done_bytes + GROWN_BYTES:
                collapse()
                done_bytes = resident_bytes()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def collapse() -> None:
    """Moves what lies in small pages into huge ones, at leisure: 2 MiB takes some ms. Raises OSError without any."""
    if "[never]" in ENABLED.read_text():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _stretches():
        # A refusal, or a stretch that was given back meanwhile, costs speed only.
        madvise(start, end - start, MADV_HUGEPAGE)
        for page in range(start, end, HUGE_BYTES):
            began = time.monotonic()
            madvise(page, HUGE_BYTES, MADV_COLLAPSE)
            time.sleep(IDLE * (time.monotonic() - began))


def _stretches() -> Iterator[tuple[int, int]]:
    """Where this process's own memory fills whole huge pages."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, mode, _, _, inode, *name = line.split(maxsplit=5)
        if mode != "rw-p" or inode != "0" or name == ["[stack]"]:
            continue
        start, end = (int(address, 16) for address in place.split("-"))
        start, end = -(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES
        if start < end:
            yield start, end
