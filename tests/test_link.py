"""The daemon's end of the pipe: in order, bounded, never waiting, and over when the guardian is gone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from food.link import BEAT_MS, TEXT_MOST_CHARS, UNSENT_MOST, GuardianGone, Link


class Guardian:
    """The other end."""

    def __init__(self, end: socket.socket):
        self.end = end

    def says(self, **packet: Any) -> None:
        self.end.send(json.dumps(packet).encode())

    def heard(self) -> list[dict[str, Any]]:
        packets = []
        self.end.setblocking(False)
        while True:
            try:
                packets.append(json.loads(self.end.recv(65536)))
            except BlockingIOError:
                return packets


@pytest.fixture
def pipe() -> Iterator[tuple[Link, Guardian]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link, guardian = Link(theirs.detach()), Guardian(ours)
    guardian.says(hello={"node": "n1"})
    assert link.hello() == {"node": "n1"}
    yield link, guardian
    ours.close()
    link._socket.close()


def full(link: Link) -> None:
    """The guardian does not read: beat until the pipe is full."""
    while not link._unsent:
        link.tell(beat=0)


def test_an_order_is_awaited_until_it_is_done(pipe: tuple[Link, Guardian]) -> None:
    link, guardian = pipe
    first, second = link.order(score=100, why="in sync"), link.order(fail="gone")
    assert guardian.heard() == [
        {"order": first, "score": 100, "why": "in sync"},
        {"order": second, "fail": "gone"},
    ]
    assert link.waits_for(first) and link.waits_for(second)
    guardian.says(done=first, error=None)
    guardian.says(nodes={"n1": "10.0.0.1"})
    assert link.take() == [{"done": first, "error": None}, {"nodes": {"n1": "10.0.0.1"}}]
    assert not link.waits_for(first) and link.waits_for(second)
    assert link.take() == []


def test_beats_come_as_often_as_due_and_not_more(pipe: tuple[Link, Guardian]) -> None:
    link, guardian = pipe
    for now_ms in range(10_000, 11_000, 5):
        link.beat(now_ms)
    beats = [packet["beat"] for packet in guardian.heard()]
    assert beats == list(range(1, 1000 // BEAT_MS + 1))


def test_a_guardian_that_does_not_read_is_not_waited_for(pipe: tuple[Link, Guardian]) -> None:
    link, guardian = pipe
    full(link)
    begun = time.monotonic()
    order = link.order(score=None, why="late")
    for now_ms in range(100_000, 200_000, BEAT_MS):
        link.beat(now_ms)  # not one of these is kept: they would only say that we were alive once
    assert time.monotonic() - begun < 1 and len(link._unsent) == 2
    guardian.heard()
    link.beat(300_000)
    heard = guardian.heard()
    assert heard[1] == {"order": order, "score": None, "why": "late"} and "beat" in heard[2]


def test_a_guardian_that_never_reads_is_none(pipe: tuple[Link, Guardian]) -> None:
    link, _ = pipe
    full(link)
    with pytest.raises(GuardianGone, match=f"left {UNSENT_MOST} packets unread"):
        for _ in range(UNSENT_MOST):
            link.order(fail="again")


@pytest.mark.parametrize("use", ["take", "tell", "beat"])
def test_without_a_guardian_there_is_no_daemon(pipe: tuple[Link, Guardian], use: str) -> None:
    link, guardian = pipe
    guardian.end.close()
    with pytest.raises(GuardianGone):
        if use == "take":
            link.take()
        elif use == "tell":
            link.tell(role="backup")
        else:
            link.beat(1 << 40)


def test_a_guardian_gone_before_hello(pipe: tuple[Link, Guardian]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    link = Link(theirs.detach())
    with pytest.raises(GuardianGone):
        link.hello()
    link._socket.close()


def test_texts_are_cut_so_that_a_packet_stays_one(pipe: tuple[Link, Guardian]) -> None:
    link, guardian = pipe
    link.tell(exiting="x" * 1_000_000)
    assert guardian.heard() == [{"exiting": "x" * TEXT_MOST_CHARS}]


def test_the_last_word_waits_for_a_slow_guardian(pipe: tuple[Link, Guardian]) -> None:
    link, guardian = pipe
    full(link)
    heard: list[dict[str, Any]] = []
    reader = threading.Timer(0.1, lambda: heard.extend(guardian.heard()))
    reader.start()
    link.last_word("the disk is full")
    reader.join()
    assert {"exiting": "the disk is full"} in heard + guardian.heard()


def test_the_last_word_does_not_wait_for_ever(pipe: tuple[Link, Guardian]) -> None:
    link, _ = pipe
    full(link)
    begun = time.monotonic()
    link.last_word("nobody listens")
    assert time.monotonic() - begun < 2
