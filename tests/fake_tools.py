"""Pacemaker's and Corosync's tools as one recording shell script, for tests where no cluster is.

`calls` has a line for each call; `score` is what the CIB shows of node n1, `score.NODE` of another, `attribute.NAME`
and `attribute.NAME.NODE` likewise. A file `hang.TOOL` lets that tool hang, `fail.TOOL` lets it fail with the file's
text; with `slow.TOOL` it takes 1.2 seconds.
"""

from __future__ import annotations

import time
from pathlib import Path

SCRIPT = """#!/bin/sh
tool=${0##*/}
cd "$FAKE_TOOLS" || exit 1
echo "$tool $*" >>calls
[ ! -e "hang.$tool" ] || exec sleep 60
[ ! -e "slow.$tool" ] || sleep 1.2
if [ -e "fail.$tool" ]; then cat "fail.$tool" >&2; exit 1; fi
action= name= node= value=
while [ $# -gt 0 ]; do
    case $1 in
        -v | -U) action=set value=$2; shift ;;
        -D) action=delete ;;
        -G) action=get ;;
        -N) node=$2; shift ;;
        -n) name=$2; shift ;;
        -r | -l) shift ;;
    esac
    shift
done
case $tool in
    corosync-cmapctl) cat nodelist; exit 0 ;;
    crm_resource | getent | cibadmin) exit 0 ;;
esac
file=score
[ -z "$name" ] || file=attribute.$name
[ "$node" = n1 ] || file=$file.$node
case $action in
    set) echo "$value" >"$file" ;;
    delete) rm -f "$file" ;;
    get) [ -e "$file" ] || exit 105; cat "$file" ;;
esac
"""
TOOLS = ("crm_master", "crm_attribute", "attrd_updater", "crm_resource", "cibadmin", "corosync-cmapctl", "getent")
NODE_LIST = """nodelist.local_node_pos (u32) = 0
nodelist.node.0.name (str) = n1
nodelist.node.0.ring0_addr (str) = 10.0.0.1
nodelist.node.1.name (str) = n2
nodelist.node.1.ring0_addr (str) = 10.0.0.2
"""


def write_secret(path: Path, secret: bytes = bytes(range(64)), mode: int = 0o400) -> Path:
    """A cluster's secret, as key_file names it."""
    path.unlink(missing_ok=True)
    path.write_bytes(secret)
    path.chmod(mode)
    return path


class FakeTools:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True, exist_ok=True)
        (directory / "nodelist").write_text(NODE_LIST)
        (directory / "calls").touch()
        for name in TOOLS:
            (self.bin / name).write_text(SCRIPT)
            (self.bin / name).chmod(0o755)

    def environment(self) -> dict[str, str]:
        return {"FAKE_TOOLS": str(self.directory), "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"}

    def calls(self, *words: str) -> list[str]:
        """The calls so far that contain all these words."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if all(word in line for word in words)]

    @property
    def score(self) -> str | None:
        path = self.directory / "score"
        return path.read_text().strip() if path.exists() else None


def eventually(what: str, found, limit_s: float = 5.0):  # type: ignore[no-untyped-def]
    """Waits for found() to be true and returns it."""
    give_up = time.monotonic() + limit_s
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < give_up, f"{what}: not within {limit_s} s"
        time.sleep(0.01)
