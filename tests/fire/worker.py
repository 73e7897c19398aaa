"""One process of tests/storefire, beneath the shim: seeds on its standard input, a line of JSON for each."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from .defects import planted
from .layer import Layer
from .trial import Broken, Trial

MEMORY = Path("/dev/shm")  # nothing is synced in earnest: what is safe, the journal of calls says


def main() -> int:
    trial_name, defect = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    layer = Layer()
    for line in sys.stdin:
        directory = Path(tempfile.mkdtemp(prefix="food-fire-", dir=MEMORY if MEMORY.is_dir() else None))
        trial, broken = Trial(int(line), directory, layer), ""
        try:
            with planted(defect):
                getattr(trial, trial_name)()
        except Broken as error:
            broken = str(error)
        finally:
            shutil.rmtree(directory)
        print(json.dumps({"seed": int(line), "broken": broken, "counts": trial.counts}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
