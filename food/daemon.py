"""The daemon's loop: take every waiting message, step the core, publish, save, send, answer. In one thread.

Started by the guardian only, which hands over a pipe, a held lock and, in the first packet, the settings. It is
crash-only: a broken disk or a broken invariant ends the process with a reason that the guardian reports.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file: `daemon` names a path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgpack
import zmq

from food import driver, hugepages
from food.codec import FRAME_MOST_BYTES, REQUEST_ITEMS_MOST, BadFrame, pack, unpack
from food.control import Control
from food.core.local import Local
from food.core.members import parse
from food.core.message import Message
from food.core.ready import Save
from food.core.replica import Replica, StoreUnusable
from food.core.state import Result
from food.gate import client_keys
from food.journal import Journal
from food.keys import Keys
from food.link import GuardianGone, Link
from food.status import keys_text, report
from food.storage import Store, StoreBroken, StoreCorrupt, set_aside
from food.transport import CannotListen, Transport, take
from food.wire import decode, encode

TICK_MS = 20  # the longest sleep
PASS_MS = 5  # how often, under load, the core is told that time passes
PAUSE_MOST_MS = 400
MIB = 1024 * 1024
ROOM_EVERY_MS, ROOM_EVERY_BYTES = 200, MIB  # how often free space is looked at, and after how much of writing
GC_THRESHOLD = (3_000, 1, 1_000_000)  # young ones are looked at soon, while they are few, and old ones never
ODD_FRAMES_EVERY_MS = 60_000  # how often dropped frames are counted in the log
ODD_KINDS_MOST = 20
PR_SET_PDEATHSIG = 1
EXIT_INSTALLED = 5  # OCF's: this machine lacks something
LEAST_VERSIONS = {"pyzmq": (24, 0, 1), "msgpack": (1, 0, 3)}
FILES_MOST = 65_536


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Clock:
    """The core's time: monotonic, but a pause of this process (a slow disk, a stopped machine) counts little.

    After it, what the others said meanwhile may still be on its way through the sockets: silence that fell into
    our own pause is no silence of theirs. Watchdog and agent measure in real time.
    """

    def __init__(self) -> None:
        self._real_ms = self._now_ms = monotonic_ms()

    def read(self) -> int:
        real_ms = monotonic_ms()
        self._now_ms += min(real_ms - self._real_ms, PAUSE_MOST_MS)
        self._real_ms = real_ms
        return self._now_ms


class Daemon:
    """The shell around the core: what a turn's effects are carried out with (food/driver.py)."""

    def __init__(self, link: Link, hello: dict[str, Any]):
        self.settings: dict[str, Any] = hello["settings"]
        self._node: str = hello["node"]
        self._addresses: dict[str, str] = hello["nodes"]
        self.journal = Journal(self.settings["id"], "daemon", self.settings["log_level"])
        self._link = link
        self._stopping = False
        self._odd_frames: Counter[str] = Counter()
        self._odd_frames_ms = 0
        self._room_ms, self._room_bytes = -ROOM_EVERY_MS, 0
        self._data_dir = Path(self.settings["data_dir"])
        self._store = self._open_store()
        address = self.settings.get("address") or self._addresses[self._node]
        run_dir = Path(self.settings["run_dir"])
        self._transport = Transport(address, self.settings["port"], run_dir, keys=_keys(hello["keys"]))
        self._connect()
        self._transport.watch(link.fileno())
        self._clock = Clock()
        now_ms = self._clock.read()
        recovered = self._store.recovered
        self._member = recovered.member
        local = Local(recovered, secrets.token_hex(8), list(self._addresses))
        self._members = local.log.members
        self.replica = Replica(local, self.settings["isolation_ms"], now_ms)
        external = bool(self.settings.get("external"))
        self._control = Control(self.replica, link, self.settings["id"], self.journal.log, now_ms, external=external)
        for error in self._apply_settings():
            raise CannotListen(error)
        self.journal.notice(
            f"up: store {local.store}, start {local.starts}, epoch {local.promise.number}, log to"
            f" {local.log.last.index}, committed to {local.commit}, {len(local.state.rows)} keys, on {address}"
        )
        self._tell_keys()

    def _open_store(self) -> Store:
        """The store; one that cannot be trusted is set aside, and this node starts again as an empty learner."""
        try:
            return Store(self._data_dir, self._node, self._beat)
        except StoreCorrupt as error:
            self._set_aside(str(error))
            return Store(self._data_dir, self._node, self._beat)

    def _beat(self) -> None:
        self._link.beat(monotonic_ms())

    def _set_aside(self, why: str) -> None:
        place = set_aside(self._data_dir, why, time.strftime("%Y%m%d-%H%M%S"))
        self.journal.error(f"{why}; the store was moved to {place}; this node comes back as an empty learner")

    def retire(self, why: str) -> str:
        """Ends with a store that must not vote any more; returns the reason."""
        self.close()
        try:
            self._set_aside(why)
        except StoreBroken as error:
            return str(error)
        return why

    # --- The loop ---

    def run(self) -> None:
        transport, replica = self._transport, self.replica
        signal.signal(signal.SIGTERM, self._stop)
        next_ms, ordering = 0, (transport.control, self._link.fileno())
        while not self._stopping:
            ready = transport.wait(TICK_MS / 1000)
            now_ms = self._clock.read()
            if self._link.fileno() in ready:
                self._take_guardian()
            if transport.log in ready:
                for frames in take(transport.log):
                    self._step(frames[0], now_ms)
            if transport.peers in ready:
                for frames in take(transport.peers):
                    self._step(frames[-1], now_ms)
            for door in (transport.clients, transport.local):
                if door in ready:
                    for frames in take(door):
                        self._client_request(door, frames, now_ms)
            if transport.control in ready:
                for frames in take(transport.control):
                    self._control_request(frames, now_ms)
            # Between two of a thousand turns a second the clock has nothing to tell; an action under way is in a hurry.
            passing = now_ms >= next_ms or self._control.busy or not ready.isdisjoint(ordering)
            if passing:
                next_ms = now_ms + PASS_MS
                replica.tick(now_ms)
                transport.relink(now_ms)
            driver.finish_turn(replica, self, now_ms)
            if replica.local.log.members is not self._members:
                self._forget_others()
            if passing or self._control.role != replica.role:
                self._control.finish_turn(now_ms)
            self._store.fold()
            self._beat()
            self._look_for_room(now_ms)
            self._report_odd_frames(now_ms)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def close(self) -> None:
        self._store.close()
        self._transport.close()
        self.journal.notice("stopped")

    # --- Taking ---

    def _take_guardian(self) -> None:
        for packet in self._link.take():
            if packet.get("error"):
                self.journal.warning(f"an order was not carried out: {packet['error']}")
            if "settings" in packet:
                self.settings = packet["settings"]
                for error in self._apply_settings():
                    self.journal.log("error", error)
            if "adopted" in packet:
                self._control.adopted_by(packet["adopted"])
            if "keys" in packet:
                for error in self._transport.change_keys(_keys(packet["keys"])):
                    self.journal.log("error", error)
                self._tell_keys()
            if nodes := packet.get("nodes"):
                self._change_nodes(nodes)

    def _change_nodes(self, nodes: dict[str, str]) -> None:
        self._addresses |= nodes
        self.replica.local.nodes = tuple(sorted(nodes))
        self._forget_others()
        self.journal.notice(f"the cluster's nodes are now {', '.join(sorted(nodes))}")

    def _forget_others(self) -> None:
        """A node that Corosync no longer names still votes until an entry says otherwise: its address is kept."""
        self._members = members = self.replica.local.log.members
        voting = {member.node for member in members.members} if members else set[str]()
        known = voting | {*self.replica.local.nodes}
        self._addresses = {node: at for node, at in self._addresses.items() if node in known}
        self._connect()

    def _connect(self) -> None:
        self._transport.set_peers({node: at for node, at in self._addresses.items() if node != self._node})

    def _step(self, frame: bytes, now_ms: int) -> None:
        try:
            envelope = decode(frame)
        except BadFrame as error:
            self._odd(f"from a peer: {error}")
            return
        members = self.replica.local.log.members
        if members and envelope.cluster and envelope.cluster != members.cluster:
            self._odd(f"from {envelope.sender.node!r:.40}, which belongs to another cluster")
            self.replica.peers.on_stranger(envelope.sender.node, now_ms)
            return
        self.replica.step(envelope.sender, envelope.message, now_ms)

    def _client_request(self, door: zmq.Socket[bytes], frames: list[bytes], now_ms: int) -> None:
        route, request_id = frames[:-1], 0
        try:
            match unpack(frames[-1], FRAME_MOST_BYTES, REQUEST_ITEMS_MOST):
                case [int(number), kind, body]:
                    request_id = number
                case _:
                    raise BadFrame("a request is [id, kind, body]")
            whose = (door, route, request_id)
            match kind, body:
                case "w", bytes(command):
                    self.replica.propose(whose, command)
                case "r", [op, *args]:
                    self.replica.read(whose, op, args, now_ms)
                case "s", [op, *args]:
                    self.replica.read_stale(whose, op, args)
                case "m", ["found", [*names]] if names and all(type(name) is str for name in names):
                    self.replica.found(whose, names)
                case "m", [*fields] if change := parse(fields):
                    self.replica.change_members(whose, change, now_ms)
                case "i", _:
                    self.answer(whose, Result(0, report(self.replica, self._transport, now_ms)))
                case "k", _ if door is self._transport.local:
                    self.answer(whose, Result(0, self._client_keys()))
                case "k", _:
                    raise BadFrame("keys are given on a node's own client.sock only")
                case _:
                    raise BadFrame(
                        "a request's kind and body are w and bytes, r or s and [op, args…], m and [op, list, node,"
                        " store, force] or [found, nodes], or i or k and nil"
                    )
        except BadFrame as error:
            self._odd(f"from a client: {error}")
            self.answer((door, route, request_id), Result("bad_request", {"text": str(error)}))

    def _client_keys(self) -> dict[str, bytes] | None:
        """For those whom client.sock's permissions let in: they can read and write everything already."""
        keys = self._transport.keys
        found = client_keys(keys) if keys else None
        return {"server": found.server, "secret": found.secret} if found else None

    def _control_request(self, frames: list[bytes], now_ms: int) -> None:
        route = frames[:-1]
        self._control.request(frames[-1], self._replier(route), now_ms)

    def _replier(self, route: list[bytes]) -> Callable[[bytes], None]:
        def answer(frame: bytes) -> None:
            self._transport.reply(self._transport.control, route, frame)

        return answer

    def _tell_keys(self) -> None:
        keys = self._transport.keys
        self._control.keys = keys_text(keys)
        self.journal.log("notice" if keys else "warning", f"tcp: {keys_text(keys)}")

    def _apply_settings(self) -> list[str]:
        """What can change on a live daemon, watchdog_ms is the guardian's; what could not be taken over."""
        self.journal.set_level(self.settings["log_level"])
        self.replica.isolation_ms = self.settings["isolation_ms"]
        self._control.degraded = bool(self.settings.get("degraded"))
        further = (self.settings.get("client_addresses") or "").split(",")
        return self._transport.hear_clients_at([address for address in further if address])

    def _look_for_room(self, now_ms: int) -> None:
        """Each node looks at its own disk; a primary that is short takes only what frees space."""
        written_bytes = self._store.written_bytes
        if now_ms - self._room_ms < ROOM_EVERY_MS and written_bytes - self._room_bytes < ROOM_EVERY_BYTES:
            return
        self._room_ms, self._room_bytes = now_ms, written_bytes
        local, room = self.replica.local, self._store.room()
        short = self._store.short = room.short(bool(local.no_space))
        local.sweep_due = self._store.sweep_due
        left, reserve = room.left // MIB, room.reserve // MIB
        text = f"{left} MiB are left for {self._data_dir} on {self._node}, {reserve} are reserved"
        if short and not local.no_space:
            self.journal.warning(f"no space: {text}: make room; as primary this node takes only deletes")
        elif local.no_space and not short:
            self.journal.notice("there is space again: all writes are taken")
        local.no_space = f"no space: {text}: make room there, or delete keys" if short else ""

    def _odd(self, what: str) -> None:
        known = what in self._odd_frames or len(self._odd_frames) < ODD_KINDS_MOST
        self._odd_frames[what if known else "of yet other kinds"] += 1

    def _report_odd_frames(self, now_ms: int) -> None:
        """And those whom the gate turned away."""
        refused = self._transport.gate.refused
        if (self._odd_frames or refused) and now_ms - self._odd_frames_ms >= ODD_FRAMES_EVERY_MS:
            self._odd_frames_ms = now_ms
            for what, count in self._odd_frames.most_common():
                self.journal.warning(f"dropped {count} frames {what}")
            for what, count in refused.most_common():
                self.journal.warning(f"refused {count} connections {what}")
            self._odd_frames.clear()
            refused.clear()

    # --- driver.Shell ---

    def _frame(self, message: Message) -> bytes:
        members = self.replica.local.log.members
        return encode(members.cluster if members else "", self._member, message)

    def publish(self, message: Message) -> None:
        self._transport.publish(self._frame(message))

    def save(self, save: Save) -> None:
        self._store.save(save)
        self._beat()  # a turn may save several times, each on a slow disk

    def send(self, node: str, message: Message) -> None:
        self._transport.send(node, self._frame(message))

    def answer(self, whose: object, result: Result) -> None:
        assert isinstance(whose, tuple)
        door, route, request_id = whose
        status, value = result
        if status == "not_primary":
            value = value | self._primary_hint()
        if not self._transport.reply(door, route, pack([request_id, status, value])):
            self._odd("for a client that is gone or does not read")

    def _primary_hint(self) -> dict[str, str]:
        following = self.replica.following
        endpoint = following and self._transport.client_endpoint(following.primary.node)
        return {"node": self._node} | ({"primary": endpoint} if endpoint else {})

    def event(self, text: str) -> None:
        self.journal.notice(text)


def _keys(packet: dict[str, str] | None) -> Keys | None:
    """None stands there in so many words: without keys there is plaintext, and that must not come of a slip."""
    return None if packet is None else Keys.of_packet(packet)


def serve(link: Link) -> str | None:
    """Runs a daemon until it is told to stop (None) or must not go on (the reason)."""
    daemon: Daemon | None = None
    try:
        daemon = Daemon(link, link.hello())
        # What is loaded now is not worth looking at again; and looking through a whole state for cycles, of which
        # there are none, would stop the loop for as long as the watchdog waits.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        hugepages.keep()
        daemon.run()
        daemon.close()
        return None
    except (StoreUnusable, StoreCorrupt) as error:
        return daemon.retire(str(error)) if daemon else str(error)
    except (StoreBroken, CannotListen) as error:
        return str(error)
    except AssertionError as error:
        return f"a broken invariant, please report it: {error or 'no text'} ({_place(error)})"
    except GuardianGone:
        raise
    except Exception as error:
        return f"an unforeseen error, please report it: {type(error).__name__}: {error} ({_place(error)})"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "unknown place"


def main() -> int:
    if not __debug__:
        print("food's assertions guard its data: do not run it under python -O", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(description="food's daemon; the command `food` starts it")
    parser.add_argument("--guardian-fd", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True, help="held for as long as this process lives")
    arguments = parser.parse_args()
    parent = os.getppid()
    # Asked for here, after privileges were dropped: the change of user would clear it.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    os.umask(0o077)
    raise_file_limit()
    link = Link(arguments.guardian_fd)
    try:
        old = too_old()
        reason = old or serve(link)
        if reason is not None:
            link.last_word(reason)
    except GuardianGone:
        return 1
    return EXIT_INSTALLED if old else int(reason is not None)


def too_old() -> str | None:
    """Which package is older than the oldest that food was tried with, which is Debian 12's."""
    found = {"pyzmq": zmq.pyzmq_version_info(), "msgpack": msgpack.version}
    for name, least in LEAST_VERSIONS.items():
        if (version := tuple(found[name][:3])) < least:
            words = [".".join(map(str, numbers)) for numbers in (version, least)]
            return f"{name} {words[0]} of {sys.executable} is too old: install {words[1]} or newer"
    return None


def raise_file_limit() -> None:
    """Each client holds a descriptor, and the usual limit of 1024 would leave none for the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most = FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, FILES_MOST)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


if __name__ == "__main__":
    sys.exit(main())
