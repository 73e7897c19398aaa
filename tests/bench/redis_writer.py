#!/usr/bin/env python3
"""A load for a Redis that fails over: SET and WAIT 1, at the node that is primary, again until it is acknowledged.

    tests/bench/redis_writer.py HOST:PORT,… --out FILE [--writers 4] [--rate 100]

The same as tests/load.py makes for food: so many writers, each with one write outstanding and a key of its own for
each write, and a history of the same form. Every node is asked for its role as often as food's load asks, on a
connection of its own, so that no writer waits at the wrong node for longer than a look. SIGTERM ends it: then all keys
that were acknowledged are read back, and the last line printed says how many there are and how many are lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

LOOK_EVERY_S = 0.025
LOOK_TIMEOUT_S = 1.0
WAIT_MS = 500  # for the replica, until the write is asked again
ANSWER_TIMEOUT_S = 1.0
FINAL_S = 30.0
KEYS_AT_ONCE = 100


class Link:
    """A connection to one node. Any trouble is an OSError."""

    def __init__(self, endpoint: str, timeout_s: float):
        host, _, port = endpoint.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *commands: Sequence[str]) -> None:
        frames = []
        for words in commands:
            frames.append(f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words))
        self.socket.sendall("".join(frames).encode())

    def line(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        return line[:-2].decode()

    def read(self, size: int) -> bytes:
        return self._file.read(size)


class Load:
    def __init__(self, endpoints: Sequence[str], rate: float, out: TextIO):
        self.endpoints, self.pause_s, self.out = endpoints, 1 / rate, out
        self.primary = ""
        self.stop = False
        self.acked: list[str] = []
        self._lock = threading.Lock()

    def run(self, writers: int) -> None:
        looks = [threading.Thread(target=self._look, args=(endpoint,)) for endpoint in self.endpoints]
        writes = [threading.Thread(target=self._write, args=(number,)) for number in range(writers)]
        for thread in (*looks, *writes):
            thread.start()
        for thread in (*writes, *looks):
            thread.join()

    def lost(self) -> int:
        """How many acknowledged keys the primary does not have."""
        deadline = time.monotonic() + FINAL_S
        while True:
            try:
                return self._absent()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_EVERY_S)

    def _absent(self) -> int:
        found = 0
        with contextlib.closing(Link(self.primary or self.endpoints[0], ANSWER_TIMEOUT_S)) as link:
            for first in range(0, len(self.acked), KEYS_AT_ONCE):
                link.send(["EXISTS", *self.acked[first : first + KEYS_AT_ONCE]])
                found += int(link.line().removeprefix(":"))
        return len(self.acked) - found

    def _look(self, endpoint: str) -> None:
        """Whether this node is primary, again and again."""
        link = None
        while not self.stop:
            try:
                link = link or Link(endpoint, LOOK_TIMEOUT_S)
                link.send(["INFO", "replication"])
                size = int(link.line().removeprefix("$"))
                if b"role:master" in link.read(size + 2):
                    self.primary = endpoint
                elif self.primary == endpoint:
                    self.primary = ""
            except (OSError, ValueError) as error:
                if self.primary == endpoint and not isinstance(error, TimeoutError):  # slow is not gone
                    self.primary = ""
                if link:
                    link.close()
                link = None
            time.sleep(LOOK_EVERY_S)
        if link:
            link.close()

    def _write(self, number: int) -> None:
        link: Link | None = None
        at, turn, next_start = "", 0, time.monotonic()
        while not self.stop:
            turn += 1
            key, start = f"load/{number}/{turn}", time.monotonic()
            while not self.stop:
                try:
                    if link is None or at != self.primary:
                        if link:
                            link.close()
                        link, at = None, self.primary
                        link = Link(at, LOOK_TIMEOUT_S) if at else None
                    if link and self._acknowledged(link, at, key):
                        break
                except (OSError, ValueError):
                    if link:
                        link.close()
                    link = None
                time.sleep(LOOK_EVERY_S)
            else:
                break
            self._record(number, key, start)
            next_start = max(time.monotonic(), next_start + self.pause_s)
            time.sleep(max(0.0, next_start - time.monotonic()))
        if link:
            link.close()

    def _acknowledged(self, link: Link, at: str, key: str) -> bool:
        """Gives up when another node has become primary meanwhile."""
        link.send(["SET", key, "x" * 100], ["WAIT", "1", str(WAIT_MS)])
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        link.socket.settimeout(LOOK_EVERY_S)
        data = b""
        while data.count(b"\r\n") < 2:
            if time.monotonic() > deadline or at != self.primary:
                raise TimeoutError(f"{at} does not answer")
            with contextlib.suppress(TimeoutError):
                part = link.socket.recv(4096)
                if not part:
                    raise ConnectionError("the connection was closed")
                data += part
        return data.startswith(b"+OK\r\n:") and data != b"+OK\r\n:0\r\n"

    def _record(self, number: int, key: str, start: float) -> None:
        with self._lock:
            self.acked.append(key)
            row = ["w", f"load/{number}", key, "", start, time.monotonic(), "ack", len(self.acked), None, False]
            self.out.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoints")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=100.0, help="of each writer, a second")
    options = parser.parse_args()
    with options.out.open("w") as out:
        load = Load(options.endpoints.split(","), options.rate, out)

        def stop(signum: int, frame: object) -> None:
            load.stop = True

        signal.signal(signal.SIGTERM, stop)
        load.run(options.writers)
        lost = load.lost()
    print(json.dumps({"acknowledged": len(load.acked), "lost": lost}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
