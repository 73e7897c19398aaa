#!/usr/bin/env python3
"""A load for etcd's JSON gateway or for Redis, of the shape of `foodctl bench`, at the least cost that Python allows.

    tests/bench/generator.py etcd|redis HOST:PORT,… [--clients N,…] [--seconds S] [--value-bytes N] [--reads]

Every client has a connection (spread over the endpoints), one request outstanding, and one key that it overwrites.
Frames are made before the clock starts; a request is one send and, as a rule, one recv on a raw socket. Prints what
`foodctl --output json bench` prints. Any answer but the one expected ends the run: a peer that fails is not measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from food.bench import Figures

ANSWER_TIMEOUT_S = 10.0
RECEIVE_BYTES = 65536
FILES_SPARE = 64


class Refused(Exception):
    """The peer answered something else than it should."""


class Ask(NamedTuple):
    """A request, and what says whether the bytes received so far are the whole, right answer to it."""

    frame: bytes
    whole: Callable[[bytes], bool]


# --- The peers' languages ---


def redis_write(key: bytes, value: bytes) -> Ask:
    """SET, and WAIT until one replica has it: sent as one, answered as two."""
    return Ask(_resp(b"SET", key, value) + _resp(b"WAIT", b"1", b"0"), _redis_stored)


def redis_read(key: bytes, value: bytes) -> Ask:
    answer = b"$%d\r\n%b\r\n" % (len(value), value)
    return Ask(_resp(b"GET", key), lambda data: _is_whole(data, answer))


def _redis_stored(data: bytes) -> bool:
    return _is_whole(data, b"+OK\r\n:1\r\n", b"+OK\r\n:2\r\n")


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _is_whole(data: bytes, *answers: bytes) -> bool:
    """Whether it is one of the answers; False for the beginning of one."""
    if data in answers:
        return True
    if any(answer.startswith(data) for answer in answers):
        return False
    raise Refused(f"answered {data[:200]!r}")


def etcd_write(key: bytes, value: bytes) -> Ask:
    return Ask(_post("/v3/kv/put", key=key, value=value), lambda data: _http_body(data) is not None)


def etcd_read(key: bytes, value: bytes) -> Ask:
    """A range without `serializable` is linearizable."""
    expected = b'"value":"%b"' % base64.b64encode(value)

    def whole(data: bytes) -> bool:
        body = _http_body(data)
        if body is not None and expected not in body:
            raise Refused(f"answered {body[:200]!r}")
        return body is not None

    return Ask(_post("/v3/kv/range", key=key), whole)


def _post(path: str, **fields: bytes) -> bytes:
    body = json.dumps({name: base64.b64encode(value).decode() for name, value in fields.items()}).encode()
    return b"POST %b HTTP/1.1\r\nHost: etcd\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)


def _http_body(data: bytes) -> bytes | None:
    """The body, once it is whole."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    at = head.find(b"\r\nContent-Length: ")
    if at < 0 or not head.startswith(b"HTTP/1.1 200 "):
        raise Refused(f"answered {data[:200]!r}")
    return body if len(body) == int(head[at + 18 :].partition(b"\r\n")[0]) else None


PEERS = {"etcd": (etcd_write, etcd_read), "redis": (redis_write, redis_read)}


# --- The load ---


class Client:
    __slots__ = ("ask", "begun", "first", "received", "socket")

    def __init__(self, endpoint: str, first: Ask, ask: Ask):
        host, _, port = endpoint.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), ANSWER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.first, self.ask = first, ask
        self.received = b""
        self.begun = 0.0


class Load:
    """One number of clients. The clock starts once every client has had its first answer, to a write of its key."""

    def __init__(self, peer: str, endpoints: Sequence[str], clients: int, value_bytes: int, reads: bool):
        write, read = PEERS[peer]
        self.kind = "reads" if reads else "writes"
        run, value = os.urandom(4).hex(), os.urandom(value_bytes)
        self.clients: dict[int, Client] = {}
        self.epoll = select.epoll()
        for number in range(clients):
            key = f"bench/{run}/{number}".encode()
            first = write(key, value)
            ask = read(key, value) if reads else first
            client = Client(endpoints[number % len(endpoints)], first, ask)
            self.clients[client.socket.fileno()] = client
            self.epoll.register(client.socket, select.EPOLLIN)

    def close(self) -> None:
        for client in self.clients.values():
            client.socket.close()
        self.epoll.close()

    def run(self, seconds: float) -> Figures:
        for client in self.clients.values():
            client.socket.send(client.first.frame)
        self._collect(first=True)
        took = array("d")
        started, cpu = time.monotonic(), time.process_time()
        for client in self.clients.values():
            client.begun = started
            client.socket.send(client.ask.frame)
        now = self._measure(started + seconds, took)
        cpu = time.process_time() - cpu
        figures = Figures.of(len(self.clients), self.kind, now - started, took, cpu, 0, ())
        self._collect(first=False)
        return figures

    def _measure(self, end: float, took: array[float]) -> float:
        """Answers come, the next requests go. The time at the end."""
        clients, poll, monotonic = self.clients, self.epoll.poll, time.monotonic
        now, heard = monotonic(), monotonic()
        while now < end:
            ready = poll(ANSWER_TIMEOUT_S)
            now = monotonic()
            if not ready:
                raise Refused(f"no answer to any of {len(clients)} clients for {now - heard:.0f} s")
            heard = now
            for fd, _ in ready:
                client = clients[fd]
                data = client.socket.recv(RECEIVE_BYTES)
                if client.received or not data:
                    data = self._joined(client, data)
                if client.ask.whole(data):
                    now = monotonic()
                    took.append(now - client.begun)
                    client.begun, client.received = now, b""
                    client.socket.send(client.ask.frame)
                else:
                    client.received = data
        return now

    def _collect(self, first: bool) -> None:
        """One answer of each client, without another request."""
        waiting = set(self.clients)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while waiting:
            for fd, _ in self.epoll.poll(0.1):
                client = self.clients[fd]
                client.received = self._joined(client, client.socket.recv(RECEIVE_BYTES))
                if (client.first if first else client.ask).whole(client.received):
                    client.received = b""
                    waiting.discard(fd)
            if waiting and time.monotonic() > deadline:
                raise Refused(f"{len(waiting)} of {len(self.clients)} clients had no answer in {ANSWER_TIMEOUT_S:g} s")

    def _joined(self, client: Client, data: bytes) -> bytes:
        if not data:
            raise Refused("the connection was closed")
        return client.received + data


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("endpoints")
    parser.add_argument("--clients", default="1,64,500")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--reads", action="store_true")
    options = parser.parse_args(argv)
    counts = [int(count) for count in options.clients.split(",")]
    _allow_files(max(counts) + FILES_SPARE)
    results = []
    for count in counts:
        load = Load(options.peer, options.endpoints.split(","), count, options.value_bytes, options.reads)
        try:
            results.append(load.run(options.seconds).as_map())
        except Refused as error:
            print(f"generator: {options.peer}, {count} clients: {error}", file=sys.stderr)
            return 1
        finally:
            load.close()
    print(json.dumps(results))
    return 0


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


if __name__ == "__main__":
    sys.exit(main())
