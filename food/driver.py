"""The order of a turn: step, publish, save, send. The daemon and the simulator run this same function.

A write's way: a client's frame is proposed to the core (step), goes out to the backups (publish), to the own disk
(save), and once a majority has it the answer leaves (send). Everything taken in one turn shares one save: that is
the group commit.
"""

from __future__ import annotations

from typing import Protocol

from .core.message import Message
from .core.ready import Save
from .core.replica import Replica
from .core.state import Result

ROUNDS_MOST = 8  # of save and count in one turn: a promise, a barrier, a commit; more is a bug


class Shell(Protocol):
    """What a turn's effects are carried out with."""

    def publish(self, message: Message) -> None:
        """To every node that listens; may be dropped silently."""

    def save(self, save: Save) -> None:
        """One transaction, durable on return. Any failure must end the process."""

    def send(self, node: str, message: Message) -> None:
        """To one node; may be dropped silently."""

    def answer(self, whose: object, result: Result) -> None:
        """To whoever asked."""

    def event(self, text: str) -> None:
        """One log line."""


def finish_turn(replica: Replica, shell: Shell, now_ms: int) -> None:
    """Carries out what the steps of this turn want, until nothing is left to save.

    A primary may publish before its own save, because it counts itself only after; nothing else leaves this node
    before the save that it speaks of.
    """
    turns = []
    while True:
        ready = replica.ready(now_ms)
        turns.append(ready)
        for message in ready.publish:
            shell.publish(message)
        if ready.save is None:
            break
        shell.save(ready.save)
        replica.saved(now_ms)
        assert len(turns) <= ROUNDS_MOST, "a turn does not come to rest"
    for ready in turns:
        for message in ready.publish_saved:
            shell.publish(message)
        for node, message in ready.send:
            shell.send(node, message)
        for whose, result in ready.answers:
            shell.answer(whose, result)
        for text in ready.events:
            shell.event(text)
