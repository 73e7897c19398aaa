"""The shim (shim.c): built, preloaded, and told what to do."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SHIM = Path(__file__).with_name("shim.c")
HEAD = struct.Struct("<IIqQ")
NO_FAULT = 0
SHORT, HANG = -1, -2  # faults that are no errno
LOOK, READ, NAME, WRITE, SYNC = 1, 2, 4, 8, 16
ALL = LOOK | READ | NAME | WRITE | SYNC
CHANGING = NAME | WRITE | SYNC  # what a full disk refuses
FULL, FAILING = errno.ENOSPC, errno.EIO


class Record(NamedTuple):
    op: str
    fd: int
    offset: int
    data: bytes


def build(directory: Path) -> Path:
    """The shim as a library. Raises RuntimeError when it cannot be built: no test may pass for want of a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: install gcc and libc6-dev")
    library = directory / "shim.so"
    argv = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{SHIM} does not compile: {run.stderr}")
    return library


class Layer:
    """The shim in this process, which must have been started with it preloaded."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)
        try:
            self._shim.fire_arm.argtypes = [ctypes.c_char_p] + [ctypes.c_int] * 2 + [ctypes.c_long] + [ctypes.c_int] * 2
            self._shim.fire_mark.argtypes = [ctypes.c_int, ctypes.c_long]
            self._shim.fire_count.restype = ctypes.c_long
        except AttributeError:
            raise RuntimeError("the shim is not preloaded: start this by tests/storefire") from None

    def arm(
        self,
        root: Path,
        journal: Path,
        kinds: int = ALL,
        at: int = 0,
        fault: int = NO_FAULT,
        lasting: bool = False,
    ) -> None:
        """Watches `root` from here on; the call number `at` of these kinds fails, and with `lasting` all behind it."""
        fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._shim.fire_arm(os.fsencode(root), fd, kinds, at, fault, int(lasting))

    def mark(self, op: str, number: int) -> None:
        self._shim.fire_mark(ord(op), number)

    @property
    def calls(self) -> int:
        """Of the kinds that were armed, since then."""
        return int(self._shim.fire_count())


def read(journal: Path) -> Iterator[Record]:
    data, at = journal.read_bytes(), 0
    while at < len(data):
        op, fd, offset, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        yield Record(chr(op), fd, offset, data[at : at + size])
        at += size
