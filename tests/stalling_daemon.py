"""The daemon on a disk that stands still for a second, every ten seconds on average, anywhere in a save.

For the parameter `daemon`, and for tests/false_alarms.py. Each stall leaves a byte in the data directory's `stalls`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from food.core.ready import Save
from food.daemon import main
from food.storage import Store

STALL_S = 1.0
EVERY_S = 10.0

_save = Store.save
_dice = random.Random()
_next = time.monotonic() + _dice.expovariate(1 / EVERY_S)


def _save_slowly(self: Store, save: Save) -> None:
    global _next
    _save(self, save)
    if time.monotonic() >= _next:
        time.sleep(STALL_S)
        _next = time.monotonic() + _dice.expovariate(1 / EVERY_S)
        with self.path.with_name("stalls").open("ab") as file:
            file.write(b".")


Store.save = _save_slowly  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
