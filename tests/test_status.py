"""What operators see: one line for crm_mon, a map for foodctl. True, complete, and calm."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from food.core import snapshot
from food.core.entries import Log, pack_members
from food.core.local import Local, Recovered
from food.core.message import (
    NO_EPOCH,
    START,
    Ack,
    Answer,
    Digest,
    Entry,
    Epoch,
    Fetch,
    FetchChunk,
    Heartbeat,
    Kind,
    Member,
    MemberList,
    Position,
    Seal,
    Sealed,
)
from food.core.replica import Replica
from food.core.snapshot import Source
from food.core.state import State
from food.keys import derive
from food.status import report, summary
from food.transport import Transport

PORT = 19_950
N1, N2, N3, LEARNER = Member("n1", "a"), Member("n2", "b"), Member("n3", "c"), Member("n4", "d")
E1 = Epoch(1, "b")
MEMBERS = MemberList(1, "cluster", (N1, N2, N3))
NODES = ("n1", "n2", "n3", "n4", "n5")


@pytest.fixture
def transport() -> Iterator[Transport]:
    with tempfile.TemporaryDirectory(prefix="food-", dir="/tmp") as name:
        opened = Transport("127.0.3.1", PORT, Path(name), keys=derive(bytes(64), "food", "/k"))
        opened.set_peers({f"n{number}": f"127.0.3.{number}" for number in range(2, 6)})
        yield opened
        opened.close()


@pytest.fixture
def replica() -> Replica:
    log = Log(entries=[Entry(1, E1, Kind.MEMBERS, pack_members(MEMBERS)), Entry(2, E1, Kind.BARRIER, b"")])
    return Replica(Local(Recovered(N1, 4, E1, log, 1, State(), {}), "life", list(NODES)), 1500, 0)


def answer(replica: Replica, sender: Member, now_ms: int, **more: object) -> None:
    replica.tick(now_ms)
    base = Answer(
        "life", replica.peers.round, E1, Position(E1, 2), 2, 1, NODES, "backup", 100, True, 9_000, 1, "x", None
    )
    replica.step(sender, base._replace(**more), now_ms)  # type: ignore[arg-type]


def lead(replica: Replica, now_ms: int) -> Epoch:
    replica.promote(now_ms, now_ms + 5000)
    answer(replica, N2, now_ms)
    epoch = replica.local.promise
    replica.ready(now_ms)
    replica.saved(now_ms)
    replica.step(N2, Sealed(epoch, Position(E1, 2), 1, NODES), now_ms)
    replica.ready(now_ms)
    replica.saved(now_ms)
    replica.step(N2, Ack(epoch, 3, 0), now_ms)
    replica.tick(now_ms)
    assert replica.role == "primary"
    return epoch


def test_a_backup_says_why_it_has_which_score(replica: Replica) -> None:
    assert summary(replica, 0) == "backup, epoch 1, starting"
    replica.tick(0)
    assert summary(replica, 0) == "backup, epoch 1, isolated: no answer from n2, n3"
    answer(replica, N2, 300)
    replica.tick(300)
    assert summary(replica, 300) == "backup, epoch 1, in sync"


def test_a_primary_says_how_many_are_in_sync(replica: Replica) -> None:
    lead(replica, 300)
    assert summary(replica, 300) == "primary, epoch 2, 2 of 3 in sync"
    replica.tick(3_000)
    assert summary(replica, 3_000) == "primary, epoch 2, isolated: no majority answers over food's links"


def test_a_deposed_primary_says_by_whom(replica: Replica) -> None:
    lead(replica, 300)
    replica.step(N3, Seal(Epoch(7, "c")), 400)
    assert summary(replica, 400) == "failed in epoch 7: superseded by n3 in epoch 7"


def test_one_line_does_not_change_while_nothing_does(replica: Replica) -> None:
    """Every change is a write to the CIB."""
    epoch = lead(replica, 300)
    lines = set()
    for now_ms in range(400, 5_000, 50):
        replica.step(N2, Ack(epoch, 3, now_ms), now_ms)
        answer(replica, N2, now_ms, last=Position(epoch, now_ms), commit=now_ms)
        replica.tick(now_ms)
        lines.add(summary(replica, now_ms))
    assert lines == {"primary, epoch 2, 2 of 3 in sync"}


def test_the_report_names_every_member_learner_and_silent_node(replica: Replica, transport: Transport) -> None:
    answer(replica, N2, 300, role="primary", score=1000)
    answer(replica, LEARNER, 600, last=Position(E1, 1), matched=False, score=None, since_ms=61_000)
    replica.step(N2, Heartbeat(E1, Position(E1, 2), 2, 1), 700)
    replica.tick(3_000)
    found = report(replica, transport, 3_000)
    rows = {row["node"]: row for row in found["members"]}
    assert list(rows) == ["n1", "n2", "n3", "n4", "n5"]
    assert [row["voting"] for row in rows.values()] == [True, True, True, False, False]
    assert len({frozenset(row) for row in rows.values()}) == 1  # every row has the same fields
    assert rows["n1"]["role"] == "backup" and rows["n1"]["last"] == 2 and rows["n1"]["since_s"] == 3
    assert rows["n2"]["role"] == "primary" and rows["n2"]["state"] == "no answer for 2 s"
    assert rows["n3"]["state"] == "never answered this process" and rows["n3"]["last"] is None
    assert rows["n4"]["lag"] == 1 and rows["n4"]["since_s"] == 61
    assert found["primary"] == {"node": "n2", "endpoint": f"127.0.3.2:{PORT + 2}"}
    assert (found["commit"], found["last"], found["applied"], found["cluster"]) == (2, 2, 2, "cluster")
    assert found["self"]["starts"] == 4 and found["self"]["member_list"] == 1


def test_the_report_of_a_primary_names_itself(replica: Replica, transport: Transport) -> None:
    epoch = lead(replica, 300)
    found = report(replica, transport, 300)
    assert found["primary"] == {"node": "n1", "endpoint": f"127.0.3.1:{PORT + 2}"} and found["epoch"] == list(epoch)


def test_the_report_says_how_much_of_a_snapshot_has_come(
    replica: Replica, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the node that receives it and on the primary that gives it."""
    monkeypatch.setattr(snapshot, "CHUNK_MOST_BYTES", 1)
    donor = State()
    for index in range(1, 9):
        donor.apply(index, msgpack.packb([0, 0, 0, "put", b"%d" % index, b"v"]))
    source = Source(Position(E1, 8), MEMBERS, donor.open_view())
    answer(replica, N2, 300)
    replica.step(N2, Heartbeat(E1, Position(E1, 9), 8, 1), 300)
    for number in range(4):
        chunk = source.chunk(E1, number)
        assert chunk
        replica.step(N2, chunk, 300)
    (own,) = (row for row in report(replica, transport, 300)["members"] if row["node"] == "n1")
    assert own["state"].endswith(": snapshot, 3 of 8 keys (37 %)") and own["lag"] == 8


def test_a_primary_says_how_much_of_a_snapshot_it_has_given(
    replica: Replica, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_MOST_BYTES", 1)
    epoch = lead(replica, 300)
    for number in range(3):
        replica.propose(number, msgpack.packb([0, 0, 0, "put", b"%d" % number, b"v"]))
    replica.ready(300)
    replica.saved(300)
    replica.step(N2, Ack(epoch, 6, 0), 300)
    replica.local.log.compact(5)
    answer(replica, N3, 300, matched=False, last=START)
    replica.step(N3, Fetch(epoch, 0), 300)
    replica.step(N3, FetchChunk(epoch, Position(epoch, 6), 1), 300)
    (row,) = (row for row in report(replica, transport, 300)["members"] if row["node"] == "n3")
    assert row["state"] == "catching up: snapshot, 1 of 3 keys (33 %)"


def test_a_state_that_differs_is_named(replica: Replica, transport: Transport) -> None:
    """By the primary in its line and the other's row; by the odd one in its own line, with the remedy."""
    epoch = lead(replica, 300)
    assert report(replica, transport, 300)["members"][1]["differs"] is None
    replica.step(N2, Digest(((3, 0xABC),), False), 400)
    assert summary(replica, 400) == "primary, epoch 2, 2 of 3 in sync; the state of n2 differs"
    found = report(replica, transport, 400)
    row = found["members"][1]
    assert row["differs"] == {"entry": 3, "here": "0000000000000000", "there": "0000000000000abc"}
    assert row["state"] == "the state differs at entry 3: 0000000000000abc, here 0000000000000000"
    assert found["self"]["votes"] is True
    replica.demote(400, 0)
    replica.tick(400)
    newer = Epoch(epoch.number + 1, N2.store)
    replica.step(N2, Heartbeat(newer, Position(epoch, 3), 3, 1), 2_000)
    for now_ms in (2_000, 3_500):
        replica.step(N2, Digest(((3, 0xABC),), True), now_ms)
    replica.tick(3_500)
    odd = "the state differs from n2's at entry 3: here 0000000000000000, there 0000000000000abc: not voting; "
    odd += "move the data directory away, then foodctl member replace n1"
    assert summary(replica, 3_500) == f"backup, epoch 3, {odd}"
    found = report(replica, transport, 3_500)
    assert found["self"]["votes"] is False and found["self"]["why"] == odd
    assert found["members"][0]["state"] == odd


def test_the_report_before_the_founding(transport: Transport) -> None:
    blank = Replica(Local(Recovered(N1, 1, NO_EPOCH, Log(), 0, State(), {}), "life", list(NODES)), 1500, 0)
    found = report(blank, transport, 0)
    assert found["cluster"] is None and found["primary"] is None and found["self"]["member_list"] == 0
    assert [row["node"] for row in found["members"]] == list(NODES)
