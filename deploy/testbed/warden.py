"""The process outside the nodes that holds the lab: parent of all hosts, answers requests, gives and takes power.

`python -m testbed.warden DIRECTORY` with the Settings as one JSON line on standard input. On standard output it tells
its progress and ends with `ready` or `error REASON`. While the standard input stays open the lab lives; at its end,
at SIGTERM or at the request `down` everything is taken away. A second line, `background`, cuts that tie.

Requests are one JSON line on a socket, answers too: {"do": "kill", "nodes": ["n1"]} -> {} or {"error": "..."}.
One thread: the kernel ties the nodes' lives to the thread that started them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed import faults, install, layout, network, seed
from testbed.errors import LabError
from testbed.faults import Cut
from testbed.layout import Settings
from testbed.nodes import Host
from testbed.ownership import owned

Answer = dict[str, Any]
REQUEST_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 65536
QUIET = ("status", "list")
# A request that is wrong, or that the system refuses, is its sender's trouble; the lab goes on.
EXPECTED = (LabError, OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError, AttributeError)


class Warden:
    """All hosts of one lab and what may be done to them."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._settings = settings
        self._directory = directory
        self._cuts: dict[str, list[Cut]] = {node: [] for node in settings.node_names}
        self._power_on_at: dict[str, float] = {}  # monotonic seconds, by node: reboots under way
        self.client = Host(directory, layout.CLIENT, settings)
        self.nodes = {node: Host(directory, node, settings) for node in settings.node_names}
        self.requests: dict[str, Callable[..., Answer]] = {
            "kill": self.kill,
            "start": self.start,
            "shutdown": self.shut_down,
            "cut": self.cut,
            "heal": self.heal,
            "status": self.status,
        }
        self.fence_requests: dict[str, Callable[..., Answer]] = {
            "off": lambda node: self.kill([node]),
            "on": lambda node: self.start([node]),
            "reboot": self.reboot,
            "status": lambda node: {"on": self._host(node).on},
            "list": lambda node: {"nodes": list(self.nodes)},
        }

    def power_up(self) -> None:
        self.client.boot()
        network.lay_bridge(self.client.pid)
        self.client.go()
        self.start(self._settings.first_names)

    def start(self, nodes: list[str]) -> Answer:
        """Boot nodes that are off; the others are left alone. A cut is the network's fault and outlives a boot."""
        booting = [host for host in map(self._host, nodes) if not host.on]
        for node in nodes:
            self._power_on_at.pop(node, None)
        for host in booting:
            host.kill()  # what is left of a node that ended by itself
            host.boot()
        for host in booting:
            network.plug(self.client.pid, host.name, host.pid, host.boots)
            if self._cuts[host.name]:
                self._load_cuts(host)
        for host in booting:
            host.go()
        return {}

    def kill(self, nodes: list[str]) -> Answer:
        """Pull the plug: first the wire, so that no dying socket tells its peer, then everything inside."""
        running = [host for host in map(self._host, nodes) if host.on]
        for node in nodes:
            self._power_on_at.pop(node, None)
        if running:
            network.silence(self.client.pid, [host.port for host in running])
        for host in running:
            host.kill()
        return {}

    def reboot(self, node: str) -> Answer:
        self.kill([node])
        if self._settings.reboot:
            self._power_on_at[node] = time.monotonic() + self._settings.reboot_delay_s
        return {}

    def shut_down(self, nodes: list[str]) -> Answer:
        for node in nodes:
            self._host(node).shut_down()
        return {}

    def cut(self, node: str, links: str, direction: str, percent: int, peers: list[str]) -> Answer:
        for peer in peers:
            self._host(peer)
        host = self._host(node)
        self._cuts[node].append(Cut(links, direction, percent, tuple(peers)))
        if host.on:
            self._load_cuts(host)
        return {}

    def heal(self, node: str) -> Answer:
        host = self._host(node)
        self._cuts[node].clear()
        if host.on:
            self._load_cuts(host)
        return {}

    def status(self) -> Answer:
        nodes = {
            name: {"on": host.on, "pid": host.pid, "boots": host.boots, "cuts": [vars(cut) for cut in self._cuts[name]]}
            for name, host in self.nodes.items()
        }
        return {"nodes": nodes, "client": self.client.pid, "warden": os.getpid()}

    def next_timer(self) -> float | None:
        """Seconds until the next reboot's second half, or None."""
        return max(0.0, min(self._power_on_at.values()) - time.monotonic()) if self._power_on_at else None

    def run_timers(self) -> None:
        now = time.monotonic()
        due = [node for node, when in self._power_on_at.items() if when <= now]
        if due:
            try:
                self.start(due)
            except EXPECTED as error:
                note(f"power on {due}: {error}")

    def power_down(self) -> None:
        for host in (*self.nodes.values(), self.client):
            host.kill()
            if self._settings.disk_mib:
                subprocess.run(["umount", "-n", "--lazy", str(host.disk / layout.DISK)], check=False)

    def _host(self, node: str) -> Host:
        try:
            return self.nodes[node]
        except KeyError:
            raise LabError(f"no node {node!r} in this lab; it has {', '.join(self.nodes)}") from None

    def _load_cuts(self, host: Host) -> None:
        rules = faults.ruleset(host.name, list(self.nodes), self._cuts[host.name])
        network.in_network_of(host.pid, ["nft", "-f", "-"], rules)


def answer(connection: socket.socket, requests: dict[str, Callable[..., Answer]]) -> str:
    """Read one request, carry it out, reply. The name of what was asked, for the caller's `down`."""
    name = ""
    request: Any = None
    connection.settimeout(REQUEST_TIMEOUT_S)
    with connection, contextlib.suppress(OSError):
        reply: Answer
        try:
            with connection.makefile("rb") as stream:
                request = json.loads(stream.readline(MAX_REQUEST_BYTES))
            name = request.pop("do")
            if name not in requests:
                raise LabError(f"unknown request {name!r}")
            reply = requests[name](**request)
        except EXPECTED as error:
            reply = {"error": str(error)}
        if name not in QUIET:
            note(f"{name} {request} {reply.get('error', 'done')}")
        connection.sendall(json.dumps(reply).encode() + b"\n")
    return name


def note(text: str) -> None:
    """A line in the lab's log: what was done to which node when."""
    now_ms = time.time_ns() // 1_000_000
    print(f"{time.strftime('%H:%M:%S', time.localtime(now_ms // 1000))}.{now_ms % 1000:03} {text}", flush=True)


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    path.chmod(0o600)
    return listener


def serve(warden: Warden, listeners: list[tuple[socket.socket, dict[str, Callable[..., Answer]]]]) -> None:
    """Answer until `down`, or until the standard input ends and has not said `background` before."""
    with selectors.DefaultSelector() as selector:
        for listener, requests in listeners:
            selector.register(listener, selectors.EVENT_READ, requests)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(warden.next_timer()):
                if key.data is None:
                    if sys.stdin.readline() != "background\n":
                        return
                    selector.unregister(sys.stdin)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                if answer(key.fileobj.accept()[0], key.data) == "down":
                    return
            warden.run_timers()


def run(directory: Path, settings: Settings) -> None:
    """The lab's whole life."""
    with owned(directory), contextlib.ExitStack() as stack:
        layout.write(directory / "lab.json", settings.to_json(), 0o600)
        seed.write_shared_layer(directory / "layer", settings)
        if settings.install:
            install.run(directory, print)
        control = stack.enter_context(listen(directory / "warden.sock"))
        fence = stack.enter_context(listen(directory / "fence.sock"))
        warden = Warden(directory, settings)
        stack.callback(warden.power_down)
        warden.power_up()
        down: dict[str, Callable[..., Answer]] = {"down": lambda: {"warden": os.getpid()}}
        print("ready", flush=True)
        detach_output(directory / "warden.log")
        serve(warden, [(control, warden.requests | down), (fence, warden.fence_requests)])


def detach_output(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def main() -> int:
    directory = Path(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        run(directory, Settings.from_json(sys.stdin.readline()))
    except (LabError, OSError) as error:
        print(f"error {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
