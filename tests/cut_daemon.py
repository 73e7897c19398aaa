"""The daemon with links that a test can cut: while `cut` lies in the data directory, no peer hears it or is heard."""

from __future__ import annotations

import sys
from typing import Any

from food.core.message import Message
from food.daemon import Daemon, main

_step, _publish, _send = Daemon._step, Daemon.publish, Daemon.send


def _is_cut(self: Daemon) -> bool:
    return (self._data_dir / "cut").exists()


def _cut_step(self: Daemon, *arguments: Any) -> None:
    if not _is_cut(self):
        _step(self, *arguments)


def _cut_publish(self: Daemon, message: Message) -> None:
    if not _is_cut(self):
        _publish(self, message)


def _cut_send(self: Daemon, node: str, message: Message) -> None:
    if not _is_cut(self):
        _send(self, node, message)


# Methods are replaced on purpose: the daemon that ships is run, with nothing but its links taken away.
Daemon._step = _cut_step  # type: ignore[method-assign,assignment]
Daemon.publish = _cut_publish  # type: ignore[method-assign]
Daemon.send = _cut_send  # type: ignore[method-assign]
sys.exit(main())
