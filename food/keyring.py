"""Where a client's key comes from, and why a connection does not come about.

A key file is named (`key_file`, FOOD_KEY_FILE), or this machine's food is asked through its client.sock, which lets in
only those who may read and write everything anyway. After a handshake that failed both are looked at again: the
cluster's keys may have been changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import zmq

from .calls import Unavailable
from .codec import BadFrame, pack, unpack
from .directory import address
from .gate import CRYPTOGRAPHIC, FAILED_AUTH, FAILED_PROTOCOL, MISMATCH
from .keys import KEY_BYTES, ClientKeys, KeyUnusable, read_client_file

LOCAL_WAIT_MS = 500  # for this machine's daemon to give the key out
RENEW_EVERY_S = 1.0
ANSWER_MOST_BYTES = 4096
KEY_HINT = "foodctl client-key, run on a node, prints one for --key-file or FOOD_KEY_FILE"


class Keyring:
    """`giver` finds the client.sock to ask, if there is no file; it may raise Unavailable."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key_file: str | None, giver: Callable[[], str]):
        """Raises KeyUnusable: a file that is named must be one."""
        self._context = context
        self._path = key_file or os.environ.get("FOOD_KEY_FILE") or None
        self._giver = giver
        self._keys = read_client_file(self._path) if self._path else None
        self._looked = self._path is not None
        self._renewed = 0.0

    def keys(self) -> ClientKeys | None:
        """For connections by tcp; None where there are none."""
        if not self._looked:
            self._looked = True
            self._keys = self._look()
        return self._keys

    def renew(self, now: float) -> bool:
        """After a handshake that failed: whether there is another key now."""
        if now - self._renewed < RENEW_EVERY_S:
            return False
        self._renewed = now
        before, self._keys = self._keys, self._look()
        return self._keys != before

    def _look(self) -> ClientKeys | None:
        try:
            return read_client_file(self._path) if self._path else ask(self._context, self._giver())
        except (KeyUnusable, Unavailable):
            return self._keys  # a file that is being replaced, a daemon that is being restarted


def ask(context: zmq.Context[zmq.Socket[bytes]], place: str) -> ClientKeys | None:
    """The key for clients, from the food behind a client.sock; None in plaintext. Raises Unavailable."""
    with context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, ANSWER_MOST_BYTES)
        socket.connect(address(place))
        socket.send(pack([1, "k", None]))
        if not socket.poll(LOCAL_WAIT_MS):
            raise Unavailable(f"food behind {place} does not answer")
        try:
            return given(socket.recv())
        except BadFrame:
            raise Unavailable(f"food behind {place} gives no key: is it of another version?") from None


def given(frame: bytes) -> ClientKeys | None:
    """The answer to the question above. Raises BadFrame."""
    match unpack(frame, ANSWER_MOST_BYTES):
        case [1, 0, None]:
            return None
        case [1, 0, {"server": bytes(server), "secret": bytes(secret)}] if len(server) == len(secret) == KEY_BYTES:
            return ClientKeys(server, secret)
    raise BadFrame("an answer without a key")


def explain(event: int, value: int, keyed: bool) -> str:
    """Why a handshake failed, for people. `keyed`: this side has a key."""
    if event == FAILED_PROTOCOL and value == MISMATCH:
        if keyed:
            return "it answers in plaintext, and this client only speaks with a key: is plaintext set there?"
        return f"it wants a key: {KEY_HINT}"
    if event == FAILED_AUTH:
        return f"it does not admit this client's key: {KEY_HINT}"
    if event == FAILED_PROTOCOL and value == CRYPTOGRAPHIC:
        return f"its key is not the one that this client expects: {KEY_HINT}"
    if keyed:
        return f"it closes the connection in the handshake: made for another key? {KEY_HINT}"
    return "it closes the connection in the handshake: not food's clients' port?"
