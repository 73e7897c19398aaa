#!/usr/bin/env python3
"""What a monitor action costs, whole process, beside `python3 -c "import zmq, msgpack"` in turn, in a lab node.

    tests/bench/agent_cost.py [ROUNDS]
Prints both medians in milliseconds, and their ratio. Needs root.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from testbed import Lab

AGENT = "/usr/lib/ocf/resource.d/food/food"
ENVIRONMENT = {"OCF_ROOT": "/usr/lib/ocf", "OCF_RESOURCE_INSTANCE": "food", "OCF_RESKEY_CRM_meta_interval": "10000"}
COMMANDS = {
    "monitor": [AGENT, "monitor"],
    "import zmq, msgpack": ["/usr/bin/python3", "-Es", "-c", "import zmq, msgpack"],
}


def inside(rounds: int) -> None:
    """Runs in the node, so that entering it costs nothing."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, argv in COMMANDS.items():
            began = time.perf_counter()
            code = subprocess.run(argv, env=ENVIRONMENT, check=False).returncode
            times[name].append((time.perf_counter() - began) * 1000)
            assert code in (0, 8), f"{name} ended with {code}"
    medians = [statistics.median(values) for values in times.values()]
    cells = "  ".join(f"{name} {median:.1f} ms" for name, median in zip(times, medians, strict=True))
    print(f"{cells}  ratio {medians[0] / medians[1]:.2f}")


def main() -> None:
    rounds = sys.argv[1] if len(sys.argv) > 1 else "20"
    with Lab("bench", install=True) as lab:
        create = ["pcs", "resource", "create", "food", "ocf:food:food", "promotable", "notify=true"]
        lab.run("n1", create)
        lab.run("n1", ["crm_resource", "--wait", "--timeout=60"], timeout_s=70)
        time.sleep(3)
        print(lab.run("n1", ["/usr/bin/python3", __file__, "inside", rounds], timeout_s=120).stdout, end="")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(int(sys.argv[2]))
    else:
        main()
