"""Who holds a lab's directory: a lock on it that ends with its warden, and the removal of what a killed one left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from testbed import layout
from testbed.errors import LabError


@contextlib.contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Hold the lab's directory: made here, what an earlier lab of that name left is removed first, gone afterwards."""
    if directory.exists():
        remove_stale(directory)
    directory.mkdir(parents=True)
    handle = os.open(directory, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        remove(directory)
        os.close(handle)


def is_live(directory: Path) -> bool:
    """True while a warden holds the directory."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def remove_stale(directory: Path) -> None:
    """Clear up after a warden that was killed. LabError if it lives."""
    if is_live(directory):
        raise LabError(f"lab {directory.name} is up; end it with: deploy/lab --name {directory.name} down")
    for pid_file in directory.glob("hosts/*/pid"):
        pid = layout.read_pid(pid_file)
        if pid is not None:  # the kernel kills nodes with their warden, so this is rare
            os.kill(pid, signal.SIGKILL)
    remove(directory)


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)  # a node's last file may have come in while the first pass ran
    with contextlib.suppress(OSError):
        directory.parent.rmdir()  # the base, when no other lab is there
