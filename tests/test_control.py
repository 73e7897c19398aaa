"""The agent's requests: what is answered, and that nothing is answered before it is true."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from food import driver
from food.codec import pack, unpack
from food.control import (
    ATTRIBUTE_QUIET_MS,
    DRAIN_MOST_MS,
    FAIL_AGAIN_MS,
    PROMOTE_SHARE,
    ROLE_MOVE_MS,
    WAITING_MOST,
    Control,
)
from food.core.local import Local, blank
from food.core.message import START, Ack, Answer, Ask, Epoch, Heartbeat, Member, Message, Position, Seal, Sealed
from food.core.ready import Save
from food.core.replica import HAND_OVER_MS, Replica
from food.core.state import Result
from food.link import Link

GOLDEN = json.loads((Path(__file__).parent / "golden" / "control.json").read_text())
TURN_MS = 20
ME, OTHER, THIRD = Member("n1", "a"), Member("n2", "b"), Member("n3", "c")


class Node:
    """A replica, its Control, and this test as its guardian, its agent, its disk and its peers."""

    def __init__(self, nodes: tuple[str, ...] = ("n1",), confirming: bool = True, external: bool = False):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pipe, self.link = ours, Link(theirs.detach())
        self.link._socket.setblocking(False)
        self.pipe.setblocking(False)
        self.confirming = confirming
        self.now_ms = 1_000_000
        self.replica = Replica(Local(blank(ME), "life", list(nodes)), 1500, self.now_ms)
        self.log: list[str] = []
        self.control = Control(
            self.replica,
            self.link,
            "food",
            lambda level, text: self.log.append(f"{level}: {text}"),
            self.now_ms,
            external=external,
        )
        self.told: list[dict[str, Any]] = []
        self.sent: list[tuple[str, Message]] = []
        self.answers: list[tuple[object, Result]] = []

    def close(self) -> None:
        self.pipe.close()
        self.link._socket.close()

    # driver.Shell

    def publish(self, message: Message) -> None:
        pass

    def save(self, save: Save) -> None:
        pass

    def send(self, node: str, message: Message) -> None:
        self.sent.append((node, message))

    def answer(self, whose: object, result: Result) -> None:
        self.answers.append((whose, result))

    def event(self, text: str) -> None:
        self.log.append(text)

    # What happens to it

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ms += TURN_MS
            self.link.take()
            self.replica.tick(self.now_ms)
            driver.finish_turn(self.replica, self, self.now_ms)
            self.control.finish_turn(self.now_ms)
            self.hear()
            if self.confirming:
                self.confirm()

    def wait_ms(self, duration_ms: int) -> None:
        self.turn(duration_ms // TURN_MS)

    def hear(self) -> None:
        while True:
            try:
                self.told.append(json.loads(self.pipe.recv(65536)))
            except BlockingIOError:
                return

    def confirm(self, most: int | None = None) -> None:
        for packet in self.told:
            if "order" in packet and (most is None or packet["order"] <= most):
                self.pipe.send(json.dumps({"done": packet["order"], "error": None}).encode())

    def request(self, action: str, **more: Any) -> list[dict[str, Any]]:
        """The list that the answer will be in."""
        return self.frame(pack({"v": 1, "action": action, "timeout_ms": 10_000, **more}))

    def frame(self, frame: bytes) -> list[dict[str, Any]]:
        replies: list[dict[str, Any]] = []
        self.control.request(frame, lambda sent: replies.append(unpack(sent, 1 << 20)), self.now_ms)
        return replies

    def hears(self, sender: Member, message: Message) -> None:
        self.replica.step(sender, message, self.now_ms)

    def scores(self) -> list[int | None]:
        return [packet["score"] for packet in self.told if "score" in packet]

    def orders(self, kind: str) -> list[Any]:
        return [packet[kind] for packet in self.told if kind in packet]


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    made.turn(2)
    yield made
    made.close()


@pytest.fixture
def primary(node: Node) -> Node:
    reply = node.request("promote")
    node.turn(5)
    assert reply == [{"v": 1, "rc": 0, "reason": ""}] and node.replica.role == "primary"
    return node


@pytest.fixture
def three() -> Iterator[Node]:
    made = Node(("n1", "n2", "n3"))
    made.turn(2)
    yield made
    made.close()


# --- Promote and demote: answered when the score is in place ---


def test_promote_is_answered_only_after_its_score_was_confirmed(node: Node) -> None:
    """Here the barrier commits with the own save, behind the tick: the score is ordered in the same turn."""
    node.confirming = False
    reply = node.request("promote")
    node.turn()
    assert node.replica.role == "primary" and node.scores()[-1] == 1000
    newest = node.told[-1]["order"]
    node.confirm(most=newest - 1)
    node.turn(20)
    assert reply == []
    node.confirm()
    node.turn()
    assert reply == [{"v": 1, "rc": 0, "reason": ""}]


def test_demote_is_answered_once_nothing_is_left_to_confirm(node: Node) -> None:
    node.request("promote")
    node.turn()
    node.confirming = False
    node.turn(3)
    node.control._ordered = None  # an order that is under way when the demote comes
    node.turn()
    reply = node.request("demote")
    node.turn(10)
    assert node.replica.role == "backup" and reply == []
    node.confirm()
    node.turn()
    assert reply == [{"v": 1, "rc": 0, "reason": ""}]


def test_a_healthy_node_lowers_its_score_after_the_demote(primary: Node) -> None:
    reply = primary.request("demote")
    primary.turn(2)
    assert reply == [{"v": 1, "rc": 0, "reason": ""}] and primary.scores()[-1] == 1000
    primary.wait_ms(HAND_OVER_MS + 100)
    assert primary.scores()[-1] == 100


def test_a_guardian_that_does_not_confirm_is_waited_for_within_the_budget(node: Node) -> None:
    node.confirming = False
    reply = node.request("promote")
    node.wait_ms(9_400)
    assert reply == [] and node.replica.role == "primary"
    node.wait_ms(200)
    assert [answer["rc"] for answer in reply] == [0]


def test_promote_and_demote_are_idempotent(primary: Node) -> None:
    again = primary.request("promote")
    primary.turn()
    assert again == [{"v": 1, "rc": 0, "reason": ""}]
    for _ in range(2):
        reply = primary.request("demote")
        primary.turn(3)
        assert reply == [{"v": 1, "rc": 0, "reason": ""}]


def test_a_demote_waits_for_the_writes_in_flight(primary: Node) -> None:
    primary.replica.propose("client", msgpack.packb([0, 0, 0, "put", b"k", b"v"]))
    primary.request("demote")
    assert primary.replica.leading and primary.replica.leading.pending
    primary.turn()
    assert primary.answers == [("client", Result(0, 1))]


def test_a_promote_that_fails_drops_the_score_first_and_names_who_was_missed(three: Node) -> None:
    answered_blank(three)
    assert three.scores()[-1] == 10
    three.confirming, three.replica.isolation_ms = False, 60_000
    reply = three.request("promote", timeout_ms=10_000)
    three.wait_ms(int(10_000 * PROMOTE_SHARE) - 2 * TURN_MS)
    assert reply == [] and three.replica.role == "candidate"
    three.turn(4)
    assert three.replica.role == "backup" and three.scores()[-1] is None
    assert reply == []  # not before it is dropped
    three.confirm()
    three.turn()
    assert [answer["rc"] for answer in reply] == [1]
    assert "no answer from n2, n3" in reply[0]["reason"]


def test_a_demote_ends_a_promote_under_way(three: Node) -> None:
    promote = three.request("promote")
    three.turn(3)
    demote = three.request("demote")
    three.turn(3)
    assert [answer["rc"] for answer in promote + demote] == [1, 0]
    assert not three.replica.ordered


def test_what_waits_is_bounded(three: Node) -> None:
    replies = [three.request("promote") for _ in range(WAITING_MOST + 5)]
    assert [reply[0]["rc"] for reply in replies if reply] == [1] * 5
    assert three.request("monitor")[0]["rc"] == 0


def test_a_drain_is_a_small_part_of_the_budget(primary: Node) -> None:
    assert primary.replica.leading
    primary.replica.leading.pending[99] = "stuck"
    primary.request("demote", timeout_ms=60_000)
    primary.wait_ms(DRAIN_MOST_MS + 100)
    assert primary.replica.role == "backup"
    assert primary.answers[-1][1].status == "unknown"


# --- Deposed ---


@pytest.fixture
def deposed(primary: Node) -> Node:
    primary.hears(OTHER, Seal(Epoch(9, OTHER.store)))
    primary.turn()
    return primary


def test_a_deposed_primary_gives_its_score_up_at_once_and_its_monitor_says_9(deposed: Node) -> None:
    assert deposed.scores()[-1] is None
    [reply] = deposed.request("monitor")
    assert reply["rc"] == 9 and "superseded by n2 in epoch 9" in reply["reason"]


def test_a_role_that_stays_with_a_deposed_primary_is_failed_after_the_bound(deposed: Node) -> None:
    deposed.wait_ms(ROLE_MOVE_MS - 4 * TURN_MS)
    assert deposed.orders("fail") == []
    deposed.wait_ms(8 * TURN_MS)
    assert deposed.orders("fail") == ["superseded by n2 in epoch 9"]
    deposed.wait_ms(FAIL_AGAIN_MS)
    assert len(deposed.orders("fail")) == 1
    deposed.wait_ms(ROLE_MOVE_MS + 4 * TURN_MS)
    assert len(deposed.orders("fail")) == 2


def test_a_demote_settles_a_deposed_primary(deposed: Node) -> None:
    reply = deposed.request("demote")
    deposed.turn(2)
    assert [answer["rc"] for answer in reply] == [0]
    deposed.wait_ms(2 * ROLE_MOVE_MS)
    assert deposed.orders("fail") == []
    assert deposed.request("monitor")[0]["rc"] == 0


# --- Monitor, probe, notify, reload, status ---


def test_a_monitor_says_which_role(node: Node) -> None:
    assert node.request("monitor") == [{"v": 1, "rc": 0, "reason": "", "role": "backup"}]
    node.request("promote")
    node.turn(5)
    assert node.request("monitor") == [{"v": 1, "rc": 8, "reason": "", "role": "primary"}]


def test_degraded_states_are_reported_where_they_are_asked_for(three: Node) -> None:
    assert three.request("monitor")[0]["rc"] == 0
    three.control.degraded = True
    [reply] = three.request("monitor")
    assert reply["rc"] == 190 and "awaiting n2, n3" in reply["reason"]


def test_a_primary_short_of_members_is_degraded() -> None:
    node = found_three()
    node.control.degraded = True
    [reply] = node.request("monitor")
    node.close()
    assert reply["rc"] == 191 and "2 of 3 in sync" in reply["reason"]


def found_three() -> Node:
    """A primary of three members, of which n2 has acknowledged everything and n3 nothing since long."""
    node = Node(("n1", "n2", "n3"))
    node.request("promote")
    node.turn()
    answered_blank(node)
    epoch = node.replica.local.promise
    for peer in (OTHER, THIRD):
        node.hears(peer, Sealed(epoch, START, 0, ("n1", "n2", "n3")))
    node.turn(2)
    for _ in range(100):
        node.hears(OTHER, Ack(epoch, 1, 0))
        node.turn()
    assert node.replica.role == "primary"
    return node


def answered_blank(node: Node) -> None:
    """Both others answer: empty, and of the same mind."""
    ask = next(message for _, message in node.sent if isinstance(message, Ask))
    blanks = Answer(
        ask.life, ask.round, Epoch(0, ""), START, 0, 0, ("n1", "n2", "n3"), "backup", 10, False, 0, 1, "x", None
    )
    for peer in (OTHER, THIRD):
        node.hears(peer, blanks._replace(round=node.replica.peers.round, own_life=peer.node))
    node.turn(2)


def test_a_probe_has_the_score_set_again(primary: Node) -> None:
    before = len(primary.scores())
    primary.request("monitor", probe=False)
    primary.turn(5)
    assert len(primary.scores()) == before
    primary.request("monitor", probe=True)
    primary.turn(5)
    assert primary.scores()[before:] == [1000]


def test_notify_is_answered_at_once_whatever_it_says(node: Node) -> None:
    assert node.request("notify") == [{"v": 1, "rc": 0, "reason": ""}]
    assert node.request("notify", type="pre", operation="promote", promote=["n2"])[0]["rc"] == 0
    assert node.request("notify", type=7, operation=["x"], promote={"a": None})[0]["rc"] == 0
    assert any("pre-promote of n2" in line for line in node.log)


def test_a_reload_goes_to_the_guardian_as_it_came(node: Node) -> None:
    settings = {"isolation_ms": "900", "degraded": None}
    assert node.request("reload", settings=settings)[0]["rc"] == 0
    node.turn()
    assert node.orders("settings") == [settings]
    assert node.replica.isolation_ms == 1500  # until the guardian has judged them


def test_a_monitor_brings_the_values_of_a_reload_that_never_came(node: Node) -> None:
    old: dict[str, Any] = {"isolation_ms": "900", "degraded": None}
    new = {**old, "isolation_ms": "1200"}
    for settings in (old, old, new, new):
        assert node.request("monitor", settings=settings)[0]["rc"] == 0
    node.request("monitor", probe=True)
    node.turn()
    assert node.orders("settings") == [new], "the first one's were those of the start"
    node.request("reload", settings=old)
    node.request("monitor", settings=old)
    node.turn()
    assert node.orders("settings") == [new, old]
    assert node.request("monitor", settings={"a": 1})[0]["rc"] == 1


@pytest.mark.parametrize("settings", [None, [], {"a": 1}, {"a": b"x"}, {"a": {}}, {b"a": "x"}])
def test_a_reload_of_anything_else_is_refused(node: Node, settings: Any) -> None:
    assert node.request("reload", settings=settings)[0]["rc"] == 1
    node.turn()
    assert node.orders("settings") == []


def test_status_is_one_line_of_text(node: Node) -> None:
    [reply] = node.request("status")
    assert reply["rc"] == 0 and reply["status"] == "backup, epoch 0, ready for the first start"


NOISE = {
    "noise": (b"\xc1\xff", "not what food speaks"),
    "nothing": (b"", "not what food speaks"),
    "a list": (pack([1, 2]), "a request is a map with v: 1"),
    "another version": (pack({"v": 2, "action": "monitor", "timeout_ms": 1}), "of different versions"),
    "no timeout": (pack({"v": 1, "action": "monitor"}), "timeout_ms must be"),
    "a timeout of text": (pack({"v": 1, "action": "monitor", "timeout_ms": "1"}), "timeout_ms must be"),
    "true for a timeout": (pack({"v": 1, "action": "monitor", "timeout_ms": True}), "timeout_ms must be"),
    "no time at all": (pack({"v": 1, "action": "monitor", "timeout_ms": 0}), "timeout_ms must be"),
    "all the time": (pack({"v": 1, "action": "promote", "timeout_ms": 2**63}), "timeout_ms must be"),
    "no action": (pack({"v": 1, "timeout_ms": 1}), "knows no action None"),
    "an unknown action": (pack({"v": 1, "action": "explode", "timeout_ms": 1}), "knows no action 'explode'"),
    "a list for an action": (pack({"v": 1, "action": ["monitor"], "timeout_ms": 1}), "knows no action"),
    "too much": (pack({"v": 1, "action": "x" * 10_000, "timeout_ms": 1}), "the limit is 8192"),
}


@pytest.mark.parametrize("name", NOISE)
def test_what_is_no_request_is_refused_in_words(node: Node, name: str) -> None:
    frame, words = NOISE[name]
    [reply] = node.frame(frame)
    assert reply["rc"] == 1 and words in reply["reason"]


# --- Attributes ---


def test_attributes_wait_until_the_role_has_come_to_rest(primary: Node) -> None:
    assert primary.orders("attributes") == []
    primary.wait_ms(ATTRIBUTE_QUIET_MS + 100)
    state = {"food-state": "primary, epoch 1, 1 of 1 in sync", "food-store": "a, start 1"}
    assert primary.orders("attributes") == [state | {"food-keys": ""}]
    primary.wait_ms(5_000)
    assert len(primary.orders("attributes")) == 1
    primary.control.keys = "keys 01020304 from /key"
    primary.wait_ms(100)
    assert primary.orders("attributes")[1:] == [state | {"food-keys": "keys 01020304 from /key"}]


def test_the_guardian_hears_of_every_role(primary: Node) -> None:
    primary.request("demote")
    primary.turn(3)
    assert primary.orders("role")[0] == "backup" and primary.orders("role")[-2:] == ["primary", "backup"]


# --- The agent's frames ---


@pytest.mark.parametrize("name", GOLDEN["requests"])
def test_the_agents_golden_requests_are_understood(node: Node, name: str) -> None:
    reply = node.frame(bytes.fromhex(GOLDEN["requests"][name]["hex"]))
    node.turn(5)
    assert [answer["rc"] for answer in reply] == [0]


def reply_frame(node: Node, action: str) -> str:
    frames: list[bytes] = []
    node.control.request(pack({"v": 1, "action": action, "timeout_ms": 1000}), frames.append, node.now_ms)
    return frames[0].hex()


def test_the_golden_replies_are_what_the_daemon_says(node: Node) -> None:
    golden = {name: frame["hex"] for name, frame in GOLDEN["replies"].items()}
    assert reply_frame(node, "monitor") == golden["backup"]
    node.request("promote")
    node.turn(5)
    assert reply_frame(node, "monitor") == golden["primary"]
    node.hears(OTHER, Seal(Epoch(9, OTHER.store)))
    node.turn()
    node.replica.failure = "another node is primary"
    assert reply_frame(node, "monitor") == golden["deposed"]


def test_the_golden_reply_of_a_degraded_backup() -> None:
    node = found_three()
    node.hears(OTHER, Heartbeat(Epoch(9, OTHER.store), Position(Epoch(9, OTHER.store), 50), 1, 0))
    node.replica.demote(node.now_ms, 0)
    node.turn()
    node.control.degraded = True
    reply = node.request("monitor")[0]
    node.close()
    assert reply["rc"] == 190 and list(reply) == ["v", "rc", "reason", "role"]


# --- Started outside Pacemaker ---


@pytest.fixture
def outside() -> Iterator[Node]:
    made = Node(external=True)
    made.wait_ms(2_000)
    yield made
    made.close()


def guardian_adopts(node: Node, name: str | None = "food") -> None:
    node.control.adopted_by(name)


def test_a_daemon_that_was_not_adopted_is_not_running(outside: Node) -> None:
    assert outside.request("monitor")[0] == {"v": 1, "rc": 7, "reason": "not adopted by Pacemaker", "role": "backup"}
    assert outside.request("promote")[0]["rc"] == 7
    assert outside.scores() == [] and outside.orders("attributes") == [] and outside.orders("fail") == []
    assert outside.replica.wish.score is None, "and no other node waits for it to be promoted"
    assert outside.request("status")[0]["status"].endswith("not adopted by Pacemaker; ready for the first start")


def test_an_adopt_is_answered_when_the_guardian_has_it_and_the_score_comes_at_once(outside: Node) -> None:
    outside.confirming = False
    reply = outside.request("adopt", settings={"degraded": "true"})
    outside.turn(3)
    assert outside.orders("adopt") == [{"degraded": "true"}] and reply == []
    guardian_adopts(outside, "other")
    outside.confirm()
    outside.turn(2)
    assert reply == [{"v": 1, "rc": 0, "reason": ""}]
    assert outside.scores() == [10] and outside.request("monitor")[0]["rc"] == 0
    outside.wait_ms(ATTRIBUTE_QUIET_MS + 100)
    assert list(outside.orders("attributes")[0]) == ["other-state", "other-store", "other-keys"]


def test_who_is_adopted_again_says_all_of_itself_again(outside: Node) -> None:
    """Although nothing has changed: the release deleted it."""
    for _ in range(2):
        guardian_adopts(outside)
        outside.wait_ms(ATTRIBUTE_QUIET_MS + 100)
        guardian_adopts(outside, None)
        outside.wait_ms(ATTRIBUTE_QUIET_MS + 100)
    assert outside.scores() == [10, 10]
    first, again = outside.orders("attributes")
    assert first == again


def test_an_adopt_that_the_guardian_refuses_says_why(outside: Node) -> None:
    outside.confirming = False
    reply = outside.request("adopt", settings={})
    outside.turn()
    order = outside.told[-1]["order"]
    outside.pipe.send(json.dumps({"done": order, "error": "the start has ended"}).encode())
    outside.turn()
    assert reply == [{"v": 1, "rc": 1, "reason": "adopt was not carried out: the start has ended"}]
    assert outside.request("monitor")[0]["rc"] == 7


def test_a_release_demotes_and_orders_nothing_behind_it(outside: Node) -> None:
    guardian_adopts(outside)
    outside.turn(2)
    outside.request("promote")
    outside.turn(5)
    assert outside.replica.role == "primary"
    outside.confirming = False
    reply = outside.request("release")
    outside.turn(3)
    assert outside.replica.role == "backup" and outside.told[-1].get("release") and reply == []
    assert outside.request("adopt", settings={})[0]["rc"] == 1, "one after the other"
    outside.wait_ms(2_000)
    assert "release" in outside.told[-1], "no score, no attribute behind it"
    guardian_adopts(outside, None)
    outside.confirm()
    outside.turn()
    assert reply == [{"v": 1, "rc": 0, "reason": ""}]
    assert outside.request("monitor")[0]["rc"] == 7 and outside.replica.wish.score is None


def test_a_release_that_the_guardian_does_not_carry_out_is_an_error(outside: Node) -> None:
    guardian_adopts(outside)
    outside.turn(2)
    outside.confirming = False
    reply = outside.request("release")
    outside.wait_ms(9_600)
    assert [answer["rc"] for answer in reply] == [1] and "release was not carried out" in reply[0]["reason"]


def test_what_pacemaker_started_is_neither_adopted_nor_released(node: Node) -> None:
    for action in ("adopt", "release"):
        assert node.request(action, settings={})[0]["rc"] == 2
