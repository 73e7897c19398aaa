"""food, etcd and Redis as the bench runs them: three servers on loopback, a directory each, ended by pid.

`with Etcd(directory) as system:` returns when it serves; `system.load(...)` is the command line of its generator, and
`system.unlike` says what a reader of the figures must know. Servers die with this process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = Path(__file__).with_name("generator.py")
PACKAGES = ("etcd-server", "redis-server")
SIZE = 3
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 2.0
POLL_S = 0.02
PORTS = range(20_000, 30_000, 10)  # below those that the kernel gives away by itself
PORTS_TRIED_MOST = 50


class BenchError(Exception):
    """Something that the bench needs did not work: names it, and the remedy."""


class System:
    """`addresses` are this system's own part of loopback; `port` and the two after it are free on all of them."""

    name = ""
    unlike = ""
    subnet = 0

    def __init__(self, directory: Path):
        self.directory = directory / self.name
        self.directory.mkdir()
        self.addresses = [f"127.0.{self.subnet}.{number}" for number in range(1, SIZE + 1)]
        self.port = free_ports(self.addresses)
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @classmethod
    def version(cls) -> str:
        raise NotImplementedError

    def load(self, clients: int, seconds: float, reads: bool) -> list[str]:
        options = ["--clients", str(clients), "--seconds", f"{seconds:g}", *["--reads"][: int(reads)]]
        return [sys.executable, str(GENERATOR), self.name, self._target(), *options]

    def _start(self) -> None:
        raise NotImplementedError

    def _target(self) -> str:
        """Whom the clients connect to."""
        raise NotImplementedError

    def _spawn(self, name: str, argv: Sequence[str]) -> None:
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
            self._servers.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            for server in self._servers:
                if server.poll() is not None:
                    raise BenchError(f"a server of {self.name} ended with {server.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not serve after {START_TIMEOUT_S:g} s: {self._last_words()}")
            time.sleep(POLL_S)

    def _last_words(self) -> str:
        return " | ".join(log.read_text(errors="replace")[-500:].strip() for log in self.directory.glob("*.log"))

    def _end(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait(END_TIMEOUT_S)
        self._servers.clear()


class Food(System):
    """The daemons as tests run them, without Pacemaker, with keys; the load is `foodctl bench`."""

    name = "food"
    subnet = 1
    plaintext = False

    @classmethod
    def version(cls) -> str:
        line = "import food, sys, zmq, msgpack; print(food.__version__, 'Python', sys.version.split()[0], 'pyzmq', "
        line += "zmq.__version__, 'libzmq', zmq.zmq_version(), 'msgpack', '.'.join(map(str, msgpack.version)))"
        return _said([sys.executable, "-c", line])

    def load(self, clients: int, seconds: float, reads: bool) -> list[str]:
        options = ["--clients", str(clients), "--seconds", f"{seconds:g}", *["--reads"][: int(reads)]]
        argv = [sys.executable, "-m", "food.cli", "--endpoints", self._target(), "--output", "json"]
        return [*argv, "bench", *options]

    def _start(self) -> None:
        from daemons import Cluster  # needs pyzmq, which the program looks for first

        self._cluster = Cluster(
            SIZE, port=self.port, log_level="warning", stores=self.directory, plaintext=self.plaintext
        )
        self._cluster.__enter__()
        self._cluster.promote("n1")

    def _target(self) -> str:
        return ",".join(self._cluster.endpoints)

    def _end(self) -> None:
        if hasattr(self, "_cluster"):
            self._cluster.__exit__(None, None, None)


class Plaintext(Food):
    name = "plaintext"
    unlike = "the same without keys (plaintext=insecure-no-keys), to show what keys cost"
    plaintext = True


class Etcd(System):
    """Defaults but for names, places and less log. All clients are at the leader, the fastest place for them."""

    name = "etcd"
    unlike = "spoken to through its JSON gateway (HTTP/1.1), not by gRPC; all clients connect to the leader"
    subnet = 2

    @classmethod
    def version(cls) -> str:
        return _said(["etcd", "--version"]).splitlines()[0].removeprefix("etcd Version: ")

    def _start(self) -> None:
        peers = {f"e{n}": f"http://{address}:{self.port + 1}" for n, address in enumerate(self.addresses)}
        cluster = ",".join(f"{name}={url}" for name, url in peers.items())
        for (name, peer), address in zip(peers.items(), self.addresses, strict=True):
            client = f"http://{address}:{self.port}"
            argv = ["etcd", "--name", name, "--data-dir", str(self.directory / name), "--logger", "zap"]
            argv += ["--log-level", "error", "--initial-cluster", cluster, "--initial-cluster-state", "new"]
            argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
            argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            self._spawn(name, argv)
        self._await(lambda: len(self._leaders()) == 1)

    def _target(self) -> str:
        (leader,) = self._leaders()
        return f"{leader}:{self.port}"

    def _leaders(self) -> set[str]:
        """Addresses of those that are leader; empty unless all three agree on one."""
        states = {address: self._status(address) for address in self.addresses}
        leaders = {state.get("leader", "0") for state in states.values()}
        if len(leaders) != 1:
            return set()
        return {address for address, state in states.items() if state.get("header", {}).get("member_id") in leaders}

    def _status(self, address: str) -> dict[str, Any]:
        request = urllib.request.Request(f"http://{address}:{self.port}/v3/maintenance/status", data=b"{}")
        try:
            with urllib.request.urlopen(request, timeout=ASK_TIMEOUT_S) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (urllib.error.URLError, OSError):
            return {}


class Redis(System):
    """A primary with two replicas, each syncing its file before it answers; a write waits for one replica."""

    name = "redis"
    unlike = (
        "asynchronous replication with WAIT 1 after each SET (sent as one request); reads are GET on the primary, "
        "not linearizable; nothing here would fail over"
    )
    subnet = 3

    @classmethod
    def version(cls) -> str:
        found = re.search(r"v=(\S+)", _said(["redis-server", "--version"]))
        return found[1] if found else "unknown"

    def _start(self) -> None:
        for number, address in enumerate(self.addresses):
            place = self.directory / f"r{number}"
            place.mkdir()
            argv = ["redis-server", "--bind", address, "--port", str(self.port), "--dir", str(place), "--save", ""]
            argv += ["--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
            if number:
                argv += ["--replicaof", f"{self.addresses[0]} {self.port}"]
            self._spawn(place.name, argv)
        self._await(lambda: self._info().count("state=online") == SIZE - 1)

    def _target(self) -> str:
        return f"{self.addresses[0]}:{self.port}"

    def _info(self) -> str:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.addresses[0], self.port), ASK_TIMEOUT_S) as link,
        ):
            link.sendall(b"INFO replication\r\n")
            return link.recv(65536).decode()
        return ""


SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Food, Plaintext, Etcd, Redis)}


def free_ports(addresses: Sequence[str], count: int = 3) -> int:
    """The first of `count` ports in a row that nobody listens on, on any of the addresses."""
    for port in random.sample(PORTS, PORTS_TRIED_MOST):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for address in addresses:
                for number in range(port, port + count):
                    stack.enter_context(socket.socket()).bind((address, number))
            return port
    raise BenchError(f"no {count} free ports in a row among {PORTS_TRIED_MOST} places tried")


def _said(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30).stdout.strip()
