"""One node with nothing replaced but the cluster's tools: the agent, its guardian and its daemon, on loopback.

Corosync's list names this node alone, so that it founds, serves and writes by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from test_agent import Node

from food.client import Client

ADDRESS = "127.0.3.1"
PORT = 18_600
NODES = "nodelist.local_node_pos (u32) = 0\nnodelist.node.0.name (str) = n1\nnodelist.node.0.ring0_addr (str) = {}\n"


class RealNode(Node):
    """`node(action, **environment)` runs the agent; beside it, what a client and crm_mon would see."""

    def __init__(self, directory: Path, address: str = ADDRESS) -> None:
        super().__init__(directory)
        self.data_dir = directory / "data"
        self.log_dir = directory / "log"
        self.log_dir.mkdir()
        (self.tools.directory / "nodelist").write_text(NODES.format(address))
        for name in ("FAKE_DAEMON", "OCF_RESKEY_daemon"):
            del self.environment[name]
        self.environment |= {"OCF_RESKEY_port": str(PORT), "FOOD_LOG_DIRECTORY": str(self.log_dir)}

    def client(self, timeout_s: float = 5.0) -> Client:
        return Client([str(self.run_dir / "client.sock")], timeout_s=timeout_s)

    def up(self, **environment: str) -> None:
        """Started and promoted."""
        assert self("start", **environment) == 0, self.errors
        assert self("promote", **environment) == 0, self.errors

    def report(self) -> dict[str, Any]:
        """What the daemon says of itself to a client."""
        with self.client() as client:
            (answer,) = client.status().answers.values()
        assert answer
        return answer

    @property
    def log(self) -> str:
        path = self.log_dir / "food.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        for pid in self.processes():  # also what started under a name of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()

    def processes(self) -> list[int]:
        """Every process of this node's food, with a lock or without."""
        mark = f"FOOD_RUN_DIR={self.environment['FOOD_RUN_DIR']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # gone meanwhile
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found
