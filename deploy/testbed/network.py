"""Wires between the hosts: a bridge in the client host's network namespace, one veth pair a node.

Everything is made inside namespaces and dies with them: no name in /run/netns, no interface on the machine.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from testbed import layout
from testbed.errors import LabError

BRIDGE = "lab"
_COMMAND_TIMEOUT_S = 15.0


def in_network_of(pid: int, argv: Sequence[str], text: str) -> None:
    """Run a command in the network namespace of `pid`, with `text` on its standard input; LabError if it fails."""
    done = subprocess.run(
        ["nsenter", "--target", str(pid), "--net", "--", *argv],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} in the lab's network failed: {done.stderr.strip()} (given: {text.strip()})")


def _ip(pid: int, lines: Sequence[str]) -> None:
    in_network_of(pid, ["ip", "-batch", "-"], "".join(line + "\n" for line in lines))


def lay_bridge(client_pid: int) -> None:
    _ip(
        client_pid,
        [
            "link set lo up",
            f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0",
            f"addr add {layout.CLIENT_ADDRESS}/{layout.PREFIX_LENGTH} dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ],
    )


def port_of(node: str, boot: int) -> str:
    """The bridge's end of a node's wire. A boot's number is in it: the kernel removes an old one in its own time."""
    return f"{node}-{boot}"


def plug(client_pid: int, node: str, node_pid: int, boot: int) -> None:
    """Connect a node that just booted. Its hardware address never changes, so that peers' ARP entries stay right."""
    port = port_of(node, boot)
    hardware = f"02:00:00:00:00:{layout.number_of(node):02x}"
    _ip(
        client_pid,
        [
            f"link add {port} type veth peer name eth0 address {hardware} netns {node_pid}",
            f"link set {port} master {BRIDGE} up",
        ],
    )
    _ip(
        node_pid,
        [
            "link set lo up",
            f"addr add {layout.address_of(node)}/{layout.PREFIX_LENGTH} dev eth0",
            "link set eth0 up",
        ],
    )


def silence(client_pid: int, ports: Sequence[str]) -> None:
    """Take wires down at the bridge. Done before a power-off: dying sockets must not say goodbye to their peers."""
    _ip(client_pid, [f"link set {port} down" for port in ports])
