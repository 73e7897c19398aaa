"""Partitions as nftables text: which packets a node drops. Pure; the warden hands the text to `nft`.

Only the other nodes' addresses are matched, so the client host always gets through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed import layout
from testbed.errors import LabError

_PROTOCOLS = {"food": "meta l4proto tcp ", "corosync": "meta l4proto udp ", "all": ""}
_HOOKS = {"in": ("input",), "out": ("output",), "both": ("input", "output")}
_MATCH = {"input": "ip saddr", "output": "ip daddr"}
LINKS = tuple(_PROTOCOLS)
DIRECTIONS = tuple(_HOOKS)


@dataclass(frozen=True)
class Cut:
    """What one node drops: `links` food (TCP), corosync (UDP) or all; `direction` as that node sees it."""

    links: str = "all"
    direction: str = "both"
    percent: int = 100
    peers: tuple[str, ...] = ()  # empty: all other nodes

    def __post_init__(self) -> None:
        if self.links not in LINKS:
            raise LabError(f"links={self.links!r}: one of {', '.join(LINKS)}")
        if self.direction not in DIRECTIONS:
            raise LabError(f"direction={self.direction!r}: one of {', '.join(DIRECTIONS)}")
        if not 1 <= self.percent <= 100:
            raise LabError(f"percent={self.percent}: 1 to 100")


def ruleset(node: str, nodes: Sequence[str], cuts: Sequence[Cut]) -> str:
    """The whole table of one node; without cuts, one that drops nothing. Loading it replaces the one before."""
    rules: dict[str, list[str]] = {"input": [], "output": []}
    for cut in cuts:
        peers = cut.peers or tuple(other for other in nodes if other != node)
        addresses = ", ".join(layout.address_of(peer) for peer in peers)
        chance = "" if cut.percent == 100 else f"numgen random mod 100 < {cut.percent} "
        for hook in _HOOKS[cut.direction]:
            rules[hook].append(f"{_MATCH[hook]} {{ {addresses} }} {_PROTOCOLS[cut.links]}{chance}drop")
    lines = ["table inet food_lab", "delete table inet food_lab", "table inet food_lab {"]
    for hook, drops in rules.items():
        lines.append(f"  chain {hook} {{ type filter hook {hook} priority 0; policy accept;")
        lines.extend(f"    {drop}" for drop in drops)
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"
