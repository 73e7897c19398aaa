"""SQLite's write-ahead log, checked before SQLite opens it (https://www.sqlite.org/fileformat2.html#walformat).

Knows that format and nothing of what food stores. SQLite takes the frames in front of the first bad one for the whole
log, silently: damage in the middle would undo every transaction behind it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")  # page number, pages after a commit (else 0), two salts, two sums
_SECTOR_BYTES = 512  # written as a whole or not at all
_MAGIC = (0x377F0682, 0x377F0683)
_PAGES = [1 << power for power in range(9, 17)]  # their sizes: 512 to 65536 bytes


def damage(path: Path) -> int | None:
    """The offset of the first bad byte range that has something proven behind it; None when SQLite may go on.

    A crash tears what was not synced yet: the last transaction, in any order, since the kernel writes back as it
    likes, and what a transaction spilled before its commit. But what stands behind a commit was written only after
    that commit was synced (synchronous=FULL). So up to the last commit with a good frame behind it all must be good.
    What is damaged in the last transaction cannot be told from a torn one: that one is lost.
    """
    # Read, not mapped: where the disk fails, that is an OSError and not a SIGBUS.
    wal = path.read_bytes() if path.exists() else b""
    return _Wal(wal).damage() if len(wal) > _HEADER.size else None


def rewrite(path: Path) -> None:
    """Writes it again as it is, durably.

    Where a sync failed, the kernel shows what was to be written and need never write it. Built upon by the next life,
    and lost with the power then, it would leave a mixture of two transactions in the database.
    """
    if path.exists():
        with path.open("r+b") as file:
            wal = file.read()
            file.seek(0)
            file.write(wal)
            file.flush()
            os.fsync(file.fileno())


class _Wal:
    def __init__(self, wal: bytes):
        self._wal = wal
        magic, _, page, _, *self._salts, sum1, sum2 = _HEADER.unpack_from(wal)
        self._order = ">" if magic == _MAGIC[1] else "<"
        self._first_sum = (sum1, sum2)
        # Synced before the first frame is written, in one sector: a bad one is no torn one.
        whole = magic in _MAGIC and page in _PAGES
        self._header_good = whole and self._sum(0, 24, (0, 0)) == self._first_sum
        self._frame_size = page + _FRAME.size

    def damage(self) -> int | None:
        """Where the first bad frame in front of a proven commit begins."""
        if not self._header_good:
            return 0
        frames = range(_HEADER.size, len(self._wal) - self._frame_size + 1, self._frame_size)
        behind = False  # whether a good frame was seen
        for at in reversed(frames):
            if behind and self._commit(at):
                return next((early for early in frames if early <= at and not self._good(early)), None)
            behind = behind or self._good(at)
        return None

    def _commit(self, at: int) -> bool:
        """Whether a transaction of the log's generation ends here. Its frame may be bad, but not torn: a good one
        behind it was written only after it was synced. A header that two sectors share may be half another one's."""
        _, pages, *salts, _, _ = _FRAME.unpack_from(self._wal, at)
        return bool(pages) and salts == self._salts and ((at + 8) % _SECTOR_BYTES != 0 or self._good(at))

    def _good(self, at: int) -> bool:
        """Whether this frame is of the log's generation and continues the one in front of it."""
        _, _, *salts, sum1, sum2 = _FRAME.unpack_from(self._wal, at)
        if salts != self._salts:
            return False
        return any(self._sum_of(at, start) == (sum1, sum2) for start in self._starts(at))

    def _starts(self, at: int) -> Iterator[tuple[int, int]]:
        """What the sum of this frame may continue: the sum that stands in the one in front, or that one's true sum."""
        if at == _HEADER.size:
            yield self._first_sum
            return
        front = at - self._frame_size
        yield _FRAME.unpack_from(self._wal, front)[4:6]
        yield self._sum_of(front, next(self._starts(front)))

    def _sum_of(self, at: int, start: tuple[int, int]) -> tuple[int, int]:
        return self._sum(at + 24, at + self._frame_size, self._sum(at, at + 8, start))

    def _sum(self, begin: int, end: int, start: tuple[int, int]) -> tuple[int, int]:
        s0, s1 = start
        words = struct.unpack(f"{self._order}{(end - begin) // 4}I", self._wal[begin:end])
        for even, odd in zip(words[::2], words[1::2], strict=True):
            s0 = (s0 + even + s1) & 0xFFFFFFFF
            s1 = (s1 + odd + s0) & 0xFFFFFFFF
        return s0, s1
