"""Real daemons on loopback without Pacemaker: this process is their guardian and their agent.

Addresses 127.0.1.1, .2, .3 … with one port, as on real nodes. Everything is killed on exit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from food.codec import pack, unpack
from food.gate import client_keys, come_with
from food.keys import ClientKeys, client_file, derive

ROOT = Path(__file__).resolve().parent.parent


class Node:
    """One daemon and the test's end of its pipe. Orders are confirmed at once and kept in `orders`."""

    def __init__(self, cluster: Cluster, name: str, address: str):
        self.cluster, self.name, self.address = cluster, name, address
        self.run_dir = cluster.directory / name / "run"
        self.data_dir = cluster.stores / name / "data"
        self.run_dir.mkdir(parents=True)
        self.data_dir.mkdir(parents=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.orders: list[dict[str, Any]] = []
        self.score: int | None = None
        self.why = ""
        self.exiting: str | None = None
        self.settings: dict[str, Any] = {}
        self.on_packet: Callable[[dict[str, Any]], None] | None = None
        self._pipe: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._close_pipe()  # of a life that ended by itself
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lock = os.open(self.run_dir / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
        argv = [sys.executable, *self.cluster.program, "--guardian-fd", str(theirs.fileno()), "--lock-fd", str(lock)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **self.cluster.environment}
        self.process = subprocess.Popen(argv, pass_fds=(theirs.fileno(), lock), env=environment)
        theirs.close()
        os.close(lock)
        self.settings = {
            "id": "food",
            "port": self.cluster.port,
            "address": self.address,
            "run_dir": str(self.run_dir),
            "data_dir": str(self.data_dir),
            "isolation_ms": 1500,
            "log_level": self.cluster.log_level,
        }
        hello = {
            "settings": self.settings,
            "node": self.name,
            "nodes": self.cluster.addresses,
            "keys": self.cluster.keys.packet() if self.cluster.keys else None,
        }
        ours.send(json.dumps({"hello": hello}).encode())
        self._pipe, self.score, self.exiting = ours, None, None
        self._thread = threading.Thread(target=self._serve, args=(ours,), daemon=True)
        self._thread.start()

    def _serve(self, pipe: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while select.select([pipe], [], []) and (data := pipe.recv(65536)):
                packet = json.loads(data)
                if self.on_packet:
                    self.on_packet(packet)
                if "order" in packet:
                    self.orders.append(packet)
                    if "score" in packet:
                        self.score, self.why = packet["score"], packet["why"]
                    pipe.send(json.dumps({"done": packet["order"], "error": None}).encode())
                if "settings" in packet:  # a guardian judges them first
                    for name, value in packet["settings"].items():
                        if value is not None:
                            self.settings[name] = int(value) if value.isdigit() else value
                    pipe.send(json.dumps({"settings": self.settings}).encode())
                self.exiting = packet.get("exiting", self.exiting)

    def says(self, **packet: Any) -> None:
        """One packet of the guardian's."""
        assert self._pipe
        self._pipe.send(json.dumps(packet).encode())

    def request(self, action: str, timeout_ms: int = 10_000, **more: Any) -> dict[str, Any]:
        """One request of the agent's; raises TimeoutError."""
        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.setsockopt(zmq.LINGER, 0)
            req.connect(f"ipc://{self.run_dir}/control.sock")
            req.send(pack({"v": 1, "action": action, "timeout_ms": timeout_ms, **more}))
            if not req.poll(timeout_ms):
                raise TimeoutError(f"{self.name} did not answer {action} within {timeout_ms} ms")
            found: dict[str, Any] = unpack(req.recv(), 1 << 20)
            return found

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int = signal.SIGKILL, wait_for_end: bool = True) -> None:
        """Sends a signal; waits for the end when it is a deadly one."""
        assert self.process is not None
        self.process.send_signal(number)
        if wait_for_end and number not in (signal.SIGSTOP, signal.SIGCONT):
            self.process.wait()
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._pipe:
            self._pipe.close()
            self._pipe = None

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.cluster.port + 2}"


class Cluster:
    """`with Cluster(3) as cluster:` raises the daemons; `program` is what python runs."""

    def __init__(
        self,
        size: int = 3,
        port: int = 19_990,
        program: Sequence[str] = ("-m", "food.daemon"),
        environment: dict[str, str] | None = None,
        log_level: str = "info",
        stores: Path | None = None,
        plaintext: bool = False,
    ):
        """`stores`: where the nodes' stores are, when not beside their sockets, whose paths must be short."""
        self._temporary = tempfile.TemporaryDirectory(prefix="food-", dir="/tmp")
        self.directory = Path(self._temporary.name)
        self.port, self.program, self.environment, self.log_level = port, program, environment or {}, log_level
        self.stores = stores or self.directory
        self.addresses = {f"n{i}": f"127.0.1.{i}" for i in range(1, size + 1)}
        self.keys = None if plaintext else derive(os.urandom(64), "food", "the test")
        self.key_file = self.directory / "client-key"
        if self.keys:
            self.key_file.touch(0o600)
            self.key_file.write_text(client_file(client_keys(self.keys), "of the test"))
        self._key_file_before: str | None = None
        self.nodes = {name: Node(self, name, address) for name, address in self.addresses.items()}

    def __enter__(self) -> Self:
        """Clients in this process and its children find the key."""
        self._key_file_before = os.environ.pop("FOOD_KEY_FILE", None)
        if self.keys:
            os.environ["FOOD_KEY_FILE"] = str(self.key_file)
        for node in self.nodes.values():
            node.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for node in self.nodes.values():
            if node.process and node.process.poll() is None:
                node.kill(signal.SIGKILL)
            node._close_pipe()
        os.environ.pop("FOOD_KEY_FILE", None)
        if self._key_file_before is not None:
            os.environ["FOOD_KEY_FILE"] = self._key_file_before
        self._temporary.cleanup()

    def knock(self, socket: zmq.Socket[bytes], endpoint: str, *, as_node: bool = False) -> None:
        """Connects a bare socket, with a client's key, or a node's."""
        if self.keys and endpoint.startswith("tcp://"):
            keys = client_keys(self.keys)
            come_with(socket, ClientKeys(keys.server, self.keys.node) if as_node else keys)
        socket.connect(endpoint)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    @property
    def endpoints(self) -> list[str]:
        return [node.endpoint for node in self]

    def promote(self, name: str, within_s: float = 10.0) -> None:
        """Waits for a score, as Pacemaker would, then promotes."""
        wait(lambda: self[name].score is not None, within_s, f"{name} has no score: {self[name].why}")
        answer = self[name].request("promote")
        assert answer["rc"] == 0, answer


def wait(condition: Any, within_s: float, what: str) -> None:
    """Polls until `condition()` holds; raises AssertionError with `what`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
