"""Who is primary, as far as this process was told, and where to ask next.

Pure: answers and time are passed in, sockets are somebody else's. Knows nothing of requests. One Directory may
serve many clients of a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .codec import pack
from .settings import SOCKET_PATH_LIMIT_BYTES, is_numeric_address

PROBE_EVERY_S = 0.1  # how often everybody is asked while somebody waits
CLAIM_FRESH_S = 1.0  # claims heard within this time of each other compete by epoch; older ones are history
LEARNED_MOST = 16  # endpoints taken from hints, beside those configured
ENDPOINT_MOST_CHARS = 256

PROBE_BIT = 1 << 62  # marks the ids of questions for "who is primary", so that any socket can carry them


def address(endpoint: str) -> str:
    """ZeroMQ's form of an endpoint `host:port` or `/path/of/client.sock`. Raises ValueError."""
    bare = endpoint.removeprefix("ipc://")
    if bare.startswith("/") and bare.isprintable() and len(bare.encode()) <= SOCKET_PATH_LIMIT_BYTES:
        return f"ipc://{bare}"
    bare = endpoint.removeprefix("tcp://")
    host, _, port = bare.rpartition(":")
    if not _is_host(host) or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise ValueError(
            f"endpoint {endpoint!r}: host:port is expected (the port is the clone's `port` + 2, 10001 if it has "
            "none), or the path of a client.sock"
        )
    return f"tcp://{host}:{port}"


def _is_host(host: str) -> bool:
    """A name or a number that ZeroMQ takes: for what it does not take it raises, at a time when nobody expects it."""
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host:
        bare, _, scope = host[1:-1].partition("%")
        return bracketed and is_numeric_address(bare) and scope.isascii() and (scope.isalnum() or not scope)
    return host.isascii() and host[:1].isalnum() and all(c.isalnum() or c in "-._" for c in host)


class Claim(NamedTuple):
    number: int  # of the epoch that the node says it leads
    heard: float


class Seen(NamedTuple):
    """What an endpoint said last, for the texts of errors."""

    heard: float
    text: str


class Directory:
    """Only a node that says so of itself is believed to be primary; what others say is where to ask next.
    `version` rises with every change of `target` or of its epoch: that is what makes a waiting request go out again.
    """

    def __init__(self, endpoints: Sequence[str], probe_every_s: float = PROBE_EVERY_S):
        if not endpoints:
            raise ValueError("no endpoint given: name at least one node, as host:port")
        for endpoint in endpoints:
            address(endpoint)
        self.configured = list(dict.fromkeys(endpoints))
        self.learned: dict[str, None] = {}
        self.probe_every_s = probe_every_s
        self.target: str | None = None
        self.number = -1  # epoch of the target's claim; -1: only a hint
        self.version = 0
        self.usual_s = 1.0  # how long answers took lately, smoothed; long while nothing is known
        self.wanted = True  # somebody waits for a primary
        self.infos: dict[str, dict[str, Any]] = {}  # the last answer to a probe, by endpoint
        self.failed: dict[str, str] = {}  # why no connection comes about, by endpoint
        self._claims: dict[str, Claim] = {}
        self._refused: dict[str, float] = {}
        self._seen: dict[str, Seen] = {}
        self._next_probe = 0.0
        self._probes = 0
        self._lower_since: float | None = None  # since when only older epochs than the target's are claimed

    @property
    def endpoints(self) -> list[str]:
        return [*self.configured, *self.learned]

    def probes(self, now: float) -> list[str]:
        """The endpoints to ask now; empty most of the time."""
        if not self.wanted or now < self._next_probe:
            return []
        self._next_probe = now + self.probe_every_s
        self.wanted = False
        return self.endpoints

    def probe_frame(self) -> bytes:
        self._probes += 1
        frame: bytes = pack([PROBE_BIT | self._probes, "i", None])
        return frame

    def on_info(self, endpoint: str, info: Any, now: float) -> None:
        """An answer to a probe. Anything may be in it: what does not fit is taken as nothing said."""
        if not isinstance(info, dict):
            return
        self.infos[endpoint] = info
        self.failed.pop(endpoint, None)
        role, primary = info.get("role"), info.get("primary")
        node = info.get("node")
        named = isinstance(node, str) and isinstance(role, str)
        self._seen[endpoint] = Seen(now, f"{node:.60} is {role:.20}" if named else "answers, unnamed")
        if role == "primary":
            match info.get("epoch"):
                case [int(number), *_]:
                    self._refused.pop(endpoint, None)
                    self._claims[endpoint] = Claim(number, now)
        else:
            self._deny(endpoint, now)
            if isinstance(primary, dict):
                self._hint(primary.get("endpoint"), primary.get("node"), now)
        self._choose(now)

    def on_refused(self, endpoint: str, hint: Any, text: str, now: float) -> None:
        """`endpoint` said not_primary, and perhaps who is."""
        self._seen[endpoint] = Seen(now, text)
        self._deny(endpoint, now)
        self._hint(hint, None, now)
        self._choose(now)
        self.wanted = self.wanted or self.target is None

    def on_failed(self, endpoint: str, text: str, now: float) -> None:
        """No connection comes about; `text` says why. It says nothing about who leads."""
        self._seen[endpoint] = Seen(now, text)
        self.infos.pop(endpoint, None)
        self.failed[endpoint] = text

    def answered(self, since: float) -> dict[str, dict[str, Any]]:
        """What the endpoints said of themselves after `since`."""
        return {e: info for e, info in self.infos.items() if self._seen[e].heard >= since}

    def confirmed(self, since: float) -> bool:
        """The target has claimed the role after `since`."""
        claim = self._claims.get(self.target or "")
        return claim is not None and claim.heard > since

    def describe(self, now: float) -> str:
        """What is known of every endpoint, for an error's text."""
        parts = []
        for endpoint in self.endpoints:
            seen = self._seen.get(endpoint)
            if seen is None:
                parts.append(f"{endpoint}: no answer")
            else:
                age = f", {now - seen.heard:.1f} s ago" if now - seen.heard > 2 * self.probe_every_s else ""
                parts.append(f"{endpoint}: {seen.text}{age}")
        return "; ".join(parts)

    def _deny(self, endpoint: str, now: float) -> None:
        """`endpoint` says that it is not primary."""
        self._claims.pop(endpoint, None)
        self._refused[endpoint] = now
        if self.target == endpoint:
            self._turn_to(None, -1)

    def _hint(self, endpoint: Any, node: Any, now: float) -> None:
        """Somebody says that `endpoint` leads. Believed only while nobody fresh claims the role itself."""
        if isinstance(node, str):  # a node we know by an endpoint of our own: that one works from here
            own = [known for known in self.configured if self.infos.get(known, {}).get("node") == node]
            endpoint = own[0] if own else endpoint
        if not isinstance(endpoint, str) or len(endpoint) > ENDPOINT_MOST_CHARS:
            return
        try:
            address(endpoint)
        except ValueError:
            return
        if endpoint not in self.configured and endpoint not in self.learned:
            self.learned[endpoint] = None
            self._next_probe = now  # it may be all that is left: ask it without waiting for the next round
            while len(self.learned) > LEARNED_MOST:
                del self.learned[next(iter(self.learned))]
        if self.target is None and now - self._refused.get(endpoint, now - 1) > self.probe_every_s:
            self._turn_to(endpoint, -1)

    def _choose(self, now: float) -> None:
        fresh = {e: c for e, c in self._claims.items() if now - c.heard <= CLAIM_FRESH_S}
        if not fresh:
            return
        number = max(claim.number for claim in fresh.values())
        known = fresh.get(self.target or "")
        if known and known.number == number:
            self._lower_since = None
            if number != self.number:
                self._turn_to(self.target, number)
            return  # one node may be known by two endpoints: stay
        if number < self.number:
            # Most likely a deposed primary that answered sooner than its successor; but a cluster founded anew
            # starts again at 1. Who is right shows within the time that claims stay fresh.
            if self._lower_since is None:
                self._lower_since = now
            if now - self._lower_since < CLAIM_FRESH_S:
                return
        self._lower_since = None
        self._turn_to(next(e for e, c in fresh.items() if c.number == number), number)

    def _turn_to(self, endpoint: str | None, number: int) -> None:
        # That a hint proves right is no reason to send again what went there already.
        news = endpoint != self.target or self.number >= 0
        self.target, self.number = endpoint, number
        self.version += news
