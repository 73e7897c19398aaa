"""SQLite's write-ahead log, checked before SQLite opens it (https://www.sqlite.org/fileformat2.html#walformat).

Knows that format and nothing of what food stores. SQLite takes the frames in front of the first bad one for the whole
log, silently: damage in the middle would undo every transaction behind it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")  # page number, pages after a commit (else 0), two salts, two sums
_MAGIC = (0x377F0682, 0x377F0683)
_PAGES = [1 << power for power in range(9, 17)]  # their sizes: 512 to 65536 bytes


def damage(path: Path) -> int | None:
    """The offset of the first bad byte range that has something proven behind it; None when SQLite may go on.

    A crash tears what was not synced yet: the last transaction, in any order, since the kernel writes back as it
    likes, and what a transaction spilled before its commit. But what stands behind a commit was written only after
    that commit was synced (synchronous=FULL). So up to the last commit with a good frame behind it all must be good.
    """
    if not path.exists() or path.stat().st_size <= _HEADER.size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as wal:
        return _Wal(wal).damage()


class _Wal:
    def __init__(self, wal: mmap.mmap):
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
            commit = self._commit(at)
            if (commit or not behind) and self._good(at):
                if commit and behind:
                    return next((early for early in frames if early <= at and not self._good(early)), None)
                behind = True
        return None

    def _commit(self, at: int) -> bool:
        return bool(_FRAME.unpack_from(self._wal, at)[1])

    def _good(self, at: int) -> bool:
        """Whether this frame is of the log's generation and continues the one in front of it."""
        _, _, *salts, sum1, sum2 = _FRAME.unpack_from(self._wal, at)
        if salts != self._salts:
            return False
        start = self._first_sum
        if at > _HEADER.size:
            start = _FRAME.unpack_from(self._wal, at - self._frame_size)[4:6]
        return self._sum(at + 24, at + self._frame_size, self._sum(at, at + 8, start)) == (sum1, sum2)

    def _sum(self, begin: int, end: int, start: tuple[int, int]) -> tuple[int, int]:
        s0, s1 = start
        words = struct.unpack(f"{self._order}{(end - begin) // 4}I", self._wal[begin:end])
        for even, odd in zip(words[::2], words[1::2], strict=True):
            s0 = (s0 + even + s1) & 0xFFFFFFFF
            s1 = (s1 + odd + s0) & 0xFFFFFFFF
        return s0, s1
