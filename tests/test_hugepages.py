"""Memory in huge pages: a large state's is, nothing in it changes, and a kernel that must not is not asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench.scale import fill_disks
from daemons import ROOT, Cluster, Node, wait

from food import hugepages
from food.client import Client

PORT = 20_020
KEYS = 200_000

GROWS = """
import re
from pathlib import Path
from food import hugepages
hugepages.ENABLED = Path({enabled!r})
rows = {{number: b"%0120d" % number for number in range(400_000)}}
before = hugepages.resident_bytes()
hugepages.collapse()
after = hugepages.resident_bytes()
assert after < 1.1 * before, (before, after)
assert all(int(row) == number for number, row in rows.items())
huge = re.search(r"AnonHugePages:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]
asked = len(re.findall(r"^VmFlags:.* hg", Path("/proc/self/smaps").read_text(), re.MULTILINE))
print(huge, after // 1024, asked)
"""


def grown(enabled: str) -> tuple[int, int, int]:
    """KiB in huge pages, and in memory at all, of a process that holds many rows and was to collapse them once; for how
    many of its mappings it asked for huge pages."""
    done = subprocess.run(
        [sys.executable, "-c", GROWS.format(enabled=enabled)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    huge, resident, asked = map(int, done.stdout.split())
    return huge, resident, asked


def huge_kib(node: Node) -> int:
    assert node.process
    found = re.search(r"AnonHugePages:\s+(\d+)", Path(f"/proc/{node.process.pid}/smaps_rollup").read_text())
    assert found
    return int(found[1])


def test_rows_come_to_lie_in_huge_pages() -> None:
    huge, resident, asked = grown(str(hugepages.ENABLED))
    if "[never]" in hugepages.ENABLED.read_text():
        assert huge == asked == 0
    else:
        assert huge > resident / 2
        assert asked


def test_never_means_never(tmp_path: Path) -> None:
    never = tmp_path / "enabled"
    never.write_text("always madvise [never]\n")
    assert grown(str(never))[2] == 0


def test_a_kernel_without_huge_pages_ends_the_thread_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugepages, "ENABLED", tmp_path / "missing")
    monkeypatch.setattr(hugepages, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(hugepages, "GROWN_BYTES", 0)
    hugepages._keep()


def test_a_daemon_keeps_a_large_state_in_huge_pages() -> None:
    with Cluster(1, PORT, log_level="warning") as cluster:
        node = cluster["n1"]
        cluster.promote("n1")
        with Client([node.endpoint]) as client:
            client.put(b"first", b"1")
        node.kill()
        fill_disks(cluster, KEYS, 100, ["n1"])
        node.start()
        cluster.promote("n1")
        if "[never]" not in hugepages.ENABLED.read_text():
            wait(lambda: huge_kib(node) > KEYS * 100 // 1024, 30, "the state does not move into huge pages")
        with Client([node.endpoint]) as client:
            assert client.get(b"scale/%012d" % 7)
