"""A node's locks: one says that the guardian runs, one that the daemon does, one that a tool may be at work.

flock, because it belongs to the open file and not to the process: the guardian takes the daemon's lock and hands it
over by letting the daemon inherit the descriptor. The holder's pid stands inside, for whoever has to kill it, and
behind it, in the guardian's, the word `external` if it was started outside Pacemaker: not the agent's to end.

The third is shared by the guardian and the tools that it starts. A tool outlives a guardian that is killed, and would
write into Pacemaker what whoever clears up behind it has just deleted.
"""

import contextlib
import fcntl
import os
import time

GUARDIAN_LOCK = "guardian.lock"
DAEMON_LOCK = "daemon.lock"
TOOLS_LOCK = "tools.lock"
# Looking whether a lock is held means to take it shared for a moment: try again before believing that it is held.
TAKE_PATIENCE_S = 0.2
TAKE_PAUSE_S = 0.01
SHARED_LEAST = 10  # the descriptor's number: clear of those that a tool is given


class Held(Exception):
    """Somebody else holds the lock; `pid` as written inside, 0 if nothing is."""

    def __init__(self, path: str, pid: int) -> None:
        super().__init__(f"{path} is held by process {pid or 'unknown'}")
        self.pid = pid


def take(path: str) -> int:
    """The lock's descriptor, locked. Raises Held. Never follows a link: the directory may belong to the food user."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    if _lock(descriptor, fcntl.LOCK_EX, TAKE_PATIENCE_S):
        os.ftruncate(descriptor, 0)  # until it is signed it names nobody: the last holder's pid may be another's by now
        return descriptor
    pid = _read_pid(descriptor)
    os.close(descriptor)
    raise Held(path, pid)


def _lock(descriptor: int, how: int, limit_s: float) -> bool:
    give_up = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        if time.monotonic() > give_up:
            return False
        time.sleep(TAKE_PAUSE_S)


def share(path: str) -> int:
    """A shared lock's descriptor. Raises OSError, and Held."""
    found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    descriptor: int = fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, SHARED_LEAST)
    os.close(found)
    if _lock(descriptor, fcntl.LOCK_SH, TAKE_PATIENCE_S):
        return descriptor
    os.close(descriptor)
    raise Held(path, 0)


def outlast(path: str, limit_s: float) -> bool:
    """Waits until nobody shares the lock; whether that came within the limit."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return _lock(descriptor, fcntl.LOCK_EX, limit_s)
    finally:
        os.close(descriptor)


def sign(descriptor: int, pid: int, note: str = "") -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid} {note}".rstrip().encode() + b"\n", 0)


def holder(path: str) -> int | None:
    """The pid in a held lock (0 where none is written yet), None where nobody holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _read_pid(descriptor: int) -> int:
    with contextlib.suppress(ValueError, IndexError):
        return int(os.pread(descriptor, 32, 0).split()[0])
    return 0
