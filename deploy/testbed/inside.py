"""A process inside a host, held from outside: nsenter is its parent, and signals go past nsenter to the program."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

ENTER = ("nsenter", "--net", "--mount", "--uts", "--ipc", "--pid", "--target")
FORK_TIMEOUT_S = 2.0
POLL_S = 0.002


def argv_inside(pid: int, argv: list[str]) -> list[str]:
    """The command line that runs `argv` in the namespaces of `pid`; the program dies with its nsenter."""
    return [*ENTER, str(pid), "--", "setpriv", "--pdeathsig", "KILL", *argv]


def child_of(pid: int) -> int | None:
    """The oldest child of a process, or None."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


class Inside(subprocess.Popen[Any]):
    """Popen of a program inside a host. `pid` is nsenter's; send_signal, terminate and kill reach the program.

    Killing nsenter itself would leave the program's body to the machine's first process, and a node cannot end before
    that one has reaped it.
    """

    def send_signal(self, sig: int) -> None:
        deadline = time.monotonic() + FORK_TIMEOUT_S
        while self.poll() is None:
            program = child_of(self.pid)
            if program is not None:
                try:
                    os.kill(program, sig)
                except ProcessLookupError:
                    continue
                return
            if time.monotonic() > deadline:
                super().send_signal(sig)
                return
            time.sleep(POLL_S)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
