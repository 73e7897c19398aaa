"""Kills the next process of food's agent that carries out one action, some time after it began. Runs inside a node.

    strike.py ACTION DELAY_MS LIMIT_S

Says `ready` when it looks, and `struck` when it has killed one that still ran.
"""

from __future__ import annotations

import os
import signal
import sys
import time

AGENT = b"/usr/lib/ocf/resource.d/food/food"
LOOK_EVERY_S = 0.003


def running(action: bytes) -> int | None:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if AGENT in words and action in words:
                return int(entry)
    return None


def main() -> None:
    action, delay_s, limit_s = sys.argv[1].encode(), float(sys.argv[2]) / 1000, float(sys.argv[3])
    print("ready", flush=True)
    give_up = time.monotonic() + limit_s
    while time.monotonic() < give_up:
        pid = running(action)
        if pid is not None:
            time.sleep(delay_s)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it had ended: the next one
            print("struck", flush=True)
            return
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    main()
