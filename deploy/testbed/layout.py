"""Where a lab keeps what, and how it is named: paths and addresses only, no process is started here.

A lab's directory:

    warden.sock       requests from `Lab` and deploy/lab
    fence.sock        requests from the fence agents inside the nodes (bind-mounted there)
    lab.json          the `Settings` it was started with
    warden.log        the warden's own output after the start
    layer/{usr,etc}   files that every node sees: fence agent, the lab's agents, corosync.conf
    install/...       what deploy/install wrote, a read-only layer of every node
    hosts/NAME/       one node: its disk (upper layers, log, food, pacemaker, corosync), `pid`, `init.json`
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from testbed.errors import LabError

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = PACKAGE.parents[1]

# A real disk first, so that an fsync in a node costs what it costs. /dev/shm is for machines whose disk is itself
# an overlay (containers): an overlay cannot be the upper layer of another.
BASES = (Path("/var/lib/food-lab"), Path("/dev/shm/food-lab"))

CLIENT = "client"
MAX_NODES = 7
SUBNET = "10.77.0"
PREFIX_LENGTH = 24
CLIENT_ADDRESS = f"{SUBNET}.254"
# Directories of a node's disk and where the node sees them.
PERSISTENT = {
    "log": "/var/log",
    "food": "/var/lib/food",
    "pacemaker": "/var/lib/pacemaker",
    "corosync": "/var/lib/corosync",
    "pcsd": "/var/lib/pcsd",
}
DISK = "food"  # of PERSISTENT: what `Settings.disk_mib` limits
COROSYNC_CONF = "/etc/corosync/corosync.conf"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a lab is. Fixed from `up` to `down`."""

    name: str
    nodes: int = 3
    fencing: bool = True
    token_ms: int = 500
    install: bool = False
    reboot: bool = False
    reboot_delay_s: float = 1.0
    properties: dict[str, str] = field(default_factory=dict)
    spare: int = 0
    disk_mib: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LabError(f"lab name {self.name!r}: use 1 to 24 of a-z, 0-9 and -, starting with a letter or digit")
        if not 2 <= self.nodes <= MAX_NODES:
            raise LabError(f"nodes={self.nodes}: a lab has 2 to {MAX_NODES} nodes")
        if not 0 <= self.spare <= self.nodes - 2:
            raise LabError(f"spare={self.spare}: a cluster begins with two nodes or more")

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def first_names(self) -> list[str]:
        """The nodes that the cluster begins with; the spare ones are off, and Corosync does not know them."""
        return self.node_names[: self.nodes - self.spare]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls(**json.loads(text))


def number_of(node: str) -> int:
    """The node's number, which is its Corosync id and the last part of its address."""
    return int(node.removeprefix("n"))


def address_of(node: str) -> str:
    return f"{SUBNET}.{number_of(node)}"


def find(name: str) -> Path | None:
    """The directory of the lab with this name, running or left behind; None where there is none."""
    for base in BASES:
        if (base / name).is_dir():
            return base / name
    return None


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def start_time(pid: int) -> str:
    """The kernel's start time of a process: with the pid it names one process for ever. Empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def write_pid(path: Path, pid: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(f"{pid} {start_time(pid)}\n")
    os.replace(temporary, path)


def read_pid(path: Path) -> int | None:
    """The pid in a file of `write_pid`; None when there is no such file or that very process is gone."""
    try:
        pid, started = path.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if started == start_time(int(pid)) else None
