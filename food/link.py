"""The daemon's end of the pipe to its guardian: orders out, confirmations in, the loop's beat.

One JSON object a packet (SOCK_SEQPACKET). The guardian carries the orders out; nothing here knows Pacemaker's tools.
"""

from __future__ import annotations

import json
import socket
from typing import Any

PACKET_MOST_BYTES = 64 * 1024
BEAT_MS = 50
UNSENT_MOST = 1_000
TEXT_MOST_CHARS = 2_000
LAST_WORD_MS = 500  # how long an exiting daemon tries to say why


class GuardianGone(Exception):
    """Without a guardian there must be no daemon."""


class Link:
    def __init__(self, descriptor: int):
        self._socket = socket.socket(fileno=descriptor)
        self._order = 0
        self._waiting: set[int] = set()
        self._refused = (0, "")  # the last order that was not carried out, and why
        self._unsent: list[dict[str, Any]] = []  # in order; only while the guardian is slow to read
        self._beat_ms = 0
        self._beats = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def hello(self) -> dict[str, Any]:
        """The first packet: settings, node name, node list. Waits for it."""
        found: dict[str, Any] = self._receive()["hello"]
        self._socket.setblocking(False)
        return found

    def take(self) -> list[dict[str, Any]]:
        """What the guardian said since; its `done` is taken note of here."""
        packets: list[dict[str, Any]] = []
        while True:
            try:
                packet = self._receive()
            except BlockingIOError:
                return packets
            if "done" in packet:
                self._waiting.discard(packet["done"])
                if packet.get("error"):
                    self._refused = packet["done"], packet["error"]
            packets.append(packet)

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._socket.recv(PACKET_MOST_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise GuardianGone("the guardian is gone")
        packet: dict[str, Any] = json.loads(data)
        return packet

    def order(self, **what: Any) -> int:
        """Gives an order; returns its number, for `waits_for`."""
        self._order += 1
        self._waiting.add(self._order)
        self.tell(order=self._order, **what)
        return self._order

    def waits_for(self, order: int) -> bool:
        return order in self._waiting

    def error(self, order: int) -> str:
        """Why the guardian did not carry this order out, if it is the last such."""
        refused, why = self._refused
        return why if refused == order else ""

    def tell(self, **packet: Any) -> None:
        if len(self._unsent) >= UNSENT_MOST:
            raise GuardianGone(f"the guardian left {UNSENT_MOST} packets unread")
        self._unsent.append({name: _bounded(value) for name, value in packet.items()})
        self._flush()

    def last_word(self, reason: str) -> None:
        """Why this process exits; waits a moment for a guardian that is slow to read."""
        self._socket.settimeout(LAST_WORD_MS / 1000)
        self.tell(exiting=reason)

    def beat(self, now_ms: int) -> None:
        """A sign of life, as often as it is due."""
        self._flush()
        if now_ms - self._beat_ms >= BEAT_MS and not self._unsent:
            self._beat_ms = now_ms
            self._beats += 1
            self.tell(beat=self._beats)

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._socket.send(json.dumps(self._unsent[0]).encode())
            except (BlockingIOError, TimeoutError):
                return
            except OSError:
                raise GuardianGone("the guardian is gone") from None
            self._unsent.pop(0)


def _bounded(value: Any) -> Any:
    return value[:TEXT_MOST_CHARS] if isinstance(value, str) else value
