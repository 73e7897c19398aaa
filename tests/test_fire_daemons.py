"""Real daemons on disks that fail, stand still, or change what is on them (tests/fire/shim.c)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Cluster, Node, wait
from fake_tools import eventually
from fire.layer import FAILING, FULL, HANG, SYNC, WRITE, build
from real_node import RealNode
from test_daemons import client, lead, level, report

from food import locks
from food.calls import FoodError
from food.client import Row
from food.storage import Store, StoreBroken

PORT = 19_880


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


def fire(shim: Path, root: Path, switch: Path) -> dict[str, str]:
    """The environment in which a daemon's disk does what `switch` says, once it is there."""
    return {"LD_PRELOAD": str(shim), "FIRE_ROOT": str(root), "FIRE_SWITCH": str(switch)}


def strike(switch: Path, kinds: int, fault: int) -> None:
    (switch.with_suffix(".new")).write_text(f"{kinds} {fault}\n")
    os.rename(switch.with_suffix(".new"), switch)


@pytest.mark.parametrize(("fault", "remedy"), [(FULL, "make room"), (FAILING, "replace the disk")])
def test_a_failing_disk_is_named_and_the_others_go_on(shim: Path, fault: int, remedy: str) -> None:
    cluster = Cluster(3, PORT)
    n1, switch = cluster["n1"], cluster.directory / "switch"
    cluster.environment |= fire(shim, n1.data_dir, switch)  # the others' stores are elsewhere
    with cluster:
        cluster.promote("n1")
        with client(cluster, timeout_s=20) as writer:
            first = writer.put(b"before", b"1")
            strike(switch, WRITE, fault)
            with pytest.raises(FoodError), client(cluster, "n1", timeout_s=1) as other:
                other.put(b"under way", b"")
            wait(lambda: n1.exiting, 10, "no reason was given")
            assert "saving failed" in str(n1.exiting) and str(n1.data_dir / "food.db") in str(n1.exiting)
            assert remedy in str(n1.exiting)
            n1.kill()
            assert lead(cluster) is not n1
            assert writer.get(b"before") == Row(b"1", first)
            writer.put(b"after", b"2")
            switch.unlink()
            n1.start()
            level(cluster, within_s=20)
            assert not list(n1.data_dir.glob("set-aside-*"))


def test_a_daemon_that_hangs_in_a_sync_ends_with_its_guardian(shim: Path, tmp_path: Path) -> None:
    """Nothing that was acknowledged is lost, nobody else can write meanwhile, and the next start is not stuck."""
    node, switch = RealNode(tmp_path), tmp_path / "switch"
    try:
        node.environment |= fire(shim, node.data_dir, switch) | {"OCF_RESKEY_watchdog_ms": "60000"}
        node.up()
        with node.client() as writer:
            revisions = {b"%d" % number: writer.put(b"%d" % number, b"v") for number in range(20)}
        strike(switch, SYNC, HANG)
        with node.client(timeout_s=1.0) as writer, pytest.raises(FoodError):
            writer.put(b"hangs", b"")
        with pytest.raises(StoreBroken, match="another process has it open"):
            Store(node.data_dir, "n1")
        guardian = locks.holder(str(node.run_dir / locks.GUARDIAN_LOCK))
        assert guardian
        os.kill(guardian, signal.SIGKILL)
        eventually("no orphan", lambda: locks.holder(str(node.run_dir / locks.DAEMON_LOCK)) is None)
        switch.unlink()
        node.up()
        with node.client() as reader:
            found = {row.key: row.revision for row in reader.range(b"", 1000)}
        assert found.items() >= revisions.items() and found.keys() - revisions.keys() <= {b"hangs"}
    finally:
        node.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(3, PORT) as raised:
        raised.promote("n1")
        yield raised


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def healed(cluster: Cluster, node: Node, stores: int) -> None:
    """Set aside, and an equal of the others again, as a learner."""
    wait(lambda: "learner" in report(node).get("self", {}).get("why", ""), 10, "it is no learner")
    level(cluster)
    assert len(list(node.data_dir.glob("set-aside-*/food.db"))) == stores


def test_damage_anywhere_is_set_aside_and_healed_by_the_others(cluster: Cluster) -> None:
    n3 = cluster["n3"]
    database = n3.data_dir / "food.db"
    with client(cluster) as writer:
        for number in range(20):
            writer.put(b"%d" % number, b"a value to be found" * 50)
        level(cluster)
        # The header, the schema's page, a row.
        for stores, (place, data) in enumerate(((18, b"\x42"), (100, b"\x00"), (None, b"A")), 1):
            n3.kill(signal.SIGTERM)  # everything is in the database then
            overwrite(database, place or database.read_bytes().index(b"a value to be found"), data)
            n3.start()
            healed(cluster, n3, stores)
        # What no start sees: a list of free pages that leads nowhere. The first save that needs a page does.
        n3.kill(signal.SIGTERM)
        overwrite(database, 32, (0xFFFFFF).to_bytes(4, "big") + (1).to_bytes(4, "big"))
        n3.start()
        for number in range(10):
            writer.put(b"%d" % number, bytes(50_000))
        wait(lambda: n3.exiting, 10, "no reason was given")
        assert "saving failed" in str(n3.exiting) and "malformed" in str(n3.exiting), n3.exiting
        n3.kill()
        n3.start()
        healed(cluster, n3, 4)
