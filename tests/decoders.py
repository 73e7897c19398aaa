"""Every decoder of food as one function of bytes, for tests/test_decoders.py and tests/fuzz.

A decoder either takes the bytes (True), or refuses them as it promises to (False). Whatever else it raises is a
finding, and so is what it takes and cannot give back, an answer too few or too many, and a refusal that is no
short text. Runs without pytest and Hypothesis, so that the fuzzer runs with Debian's msgpack and pyzmq, too.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgpack
import zmq
from sim.node import Node
from sim.simulator import Simulation

from food import cli, codec, keyring, keys, member, pacemaker, settings, wal, watch, wire
from food.calls import Refused, Request, Worker
from food.client import Status, split_endpoints
from food.control import Control
from food.core.entries import pack_members, unpack_members
from food.core.following import Fetcher
from food.core.local import Local, blank
from food.core.message import Answer, Chunk, Entry, Epoch, Kind, Member, MemberList, Message, Position
from food.core.packed import unpackb
from food.core.replica import Replica, StoreUnusable
from food.core.snapshot import Source
from food.core.state import BadCommand, Session, State, decode
from food.daemon import Daemon
from food.directory import Directory, address
from food.guardian import Guardian
from food.journal import LINE_LIMIT_BYTES, PRIORITIES, Journal
from food.nodebook import NodeBook
from food.rundir import RunDirectory
from food.storage import Store, StoreBroken, _sum

IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # for files of one input
TEXT_MOST = 1_000  # characters of a refusal
SQLITE_MOST = 2**63
NOW_MS = 1_000_000
WORLDS_MOST = 30  # until every kind of message was said
ALL = [Member(f"n{number}", store) for number, store in enumerate("abc", 1)]
LIST = MemberList(1, "c", tuple(ALL))
EPOCH = Epoch(2, "b")


class Decoder(NamedTuple):
    name: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]  # all of them are taken


DECODERS: dict[str, Decoder] = {}


def decoder(*seeds: bytes, more: Callable[[], list[bytes]] = list) -> Callable[[Callable[[bytes], bool]], Any]:
    """Registers a decoder under its function's name."""

    def register(run: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        name = run.__name__.removesuffix("_")
        DECODERS[name] = Decoder(name, run, cache(lambda: [*seeds, *more()]))
        return run

    return register


def refused(error: Exception | str) -> bool:
    text = str(error)
    assert text, "a refusal says why"
    assert len(text) <= TEXT_MOST, f"a refusal of {len(text)} characters"
    return False


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def parts(data: bytes) -> list[bytes]:
    """An input that is a list of byte strings; nothing of food reads that form."""
    try:
        found = unpackb(data)
    except Exception:  # changed by the fuzzer into none: nothing to hand on
        return []
    return [part for part in found if type(part) is bytes] if isinstance(found, list) else []


def text(data: bytes) -> str:
    """As the operating system hands words over."""
    return data.decode("utf-8", "surrogateescape")


# --- Frames and messages ---


@decoder(pack([7, "w", b"x"]), pack({"a": 1, b"b": [None, True, 1.5, "ä", -1, 2**64 - 1]}))
def codec_(data: bytes) -> bool:
    try:
        value = codec.unpack(data, codec.FRAME_MOST_BYTES)
    except codec.BadFrame as error:
        return refused(error)
    try:
        again = codec.pack(value)
    except codec.BadFrame as error:
        return refused(error)  # nested more deeply than it can be packed
    assert codec.pack(codec.unpack(again, len(again))) == again
    return True


class Recording(Simulation):
    """A simulated world, and frames of what its nodes say to each other: of every kind some."""

    def __init__(self, seed: int, heard: Counter[type]) -> None:
        self.heard, self.frames = heard, list[bytes]()
        super().__init__(seed)

    def carry(self, source: Node, target: str, message: Message, published: bool = False) -> None:
        self.heard[type(message)] += 1
        if self.heard[type(message)] in (1, 10, 100):
            self.frames.append(wire.encode("c", source.disk.member, message))
        super().carry(source, target, message, published)


@cache
def recorded() -> list[bytes]:
    heard: Counter[type] = Counter()
    frames: list[bytes] = []
    for seed in range(WORLDS_MOST):
        world = Recording(seed, heard)
        world.run()
        frames += world.frames
        if len(heard) == len(Message.__args__):
            return frames
    raise AssertionError(f"only {', '.join(kind.__name__ for kind in heard)} were said in {WORLDS_MOST} worlds")


@decoder(more=recorded)
def wire_(data: bytes) -> bool:
    try:
        envelope = wire.decode(data)
    except codec.BadFrame as error:
        return refused(error)
    assert wire.decode(wire.encode(*envelope)) == envelope
    return True


def _commands() -> list[bytes]:
    ops = (["open"], ["close", 7], ["put", b"k", b"v"], ["del", b"k"], ["cas", b"k", 0, b"v"])
    return [pack([session, session, 0, *op]) for op in ops for session in (0, 1)]


@decoder(more=_commands)
def command(data: bytes) -> bool:
    state = State()
    state.apply(1, pack([0, 0, 0, "open"]))
    state.apply(2, pack([0, 0, 0, "put", b"k", b"v"]))
    try:
        state.check(data)
    except BadCommand as error:
        return refused(error)
    assert list(decode(pack(_flat(decode(data))))) == list(decode(data))
    result = state.apply(3, data)  # what was checked can be applied
    codec.pack([1, *result])
    return True


def _flat(found: tuple[int, int, int, str, list[Any]]) -> list[Any]:
    return [*found[:4], *found[4]]


@decoder(pack_members(LIST), pack_members(MemberList(3, "", ())))
def members(data: bytes) -> bool:
    try:
        found = unpack_members(data)
    except ValueError as error:
        return refused(error)
    assert unpack_members(pack_members(found)) == found
    assert all(type(part) is str for one in found.members for part in one)
    return True


def _sessions() -> list[bytes]:
    state = State()
    for index, body in enumerate([[0, 0, 0, "open"], [1, 1, 0, "put", b"k", b"v"], [1, 2, 0, "cas", b"k", 9, b""]], 1):
        state.apply(index, pack(body))
    return [Session().pack(), state.sessions[1].pack()]


@decoder(more=_sessions)
def session(data: bytes) -> bool:
    try:
        found = Session.unpack(data)
    except ValueError as error:
        return refused(error)
    assert Session.unpack(found.pack()) == found
    return True


# --- What comes from peers, over the core ---


def _local() -> Local:
    local = Local(blank(ALL[0]), "life", [one.node for one in ALL])
    local.promise_epoch(Epoch(1, "b"))
    founding = Entry(1, Epoch(1, "b"), Kind.MEMBERS, pack_members(LIST))
    local.append([founding, Entry(2, Epoch(1, "b"), Kind.COMMAND, pack([0, 0, 0, "put", b"k", b"v"]))])
    local.advance(1)
    local.take_ready(NOW_MS)
    return local


def _pieces() -> list[bytes]:
    state = State()
    for index in range(1, 7):
        state.apply(index, pack([0, 0, 0, *(["put", b"k%d" % index, b"v" * index] if index > 2 else ["open"])]))
    source = Source(Position(EPOCH, 9), LIST, state.open_view())
    chunks = [source.chunk(EPOCH, number) for number in (0, 1)]
    return [pack([chunk.data for chunk in chunks if chunk])]


@decoder(more=_pieces)
def snapshot(data: bytes) -> bool:
    """A header, then pieces. What is installed can be saved, and goes on with every session in it."""
    local = _local()
    fetcher = Fetcher(local, EPOCH, ALL[1], NOW_MS)
    chunks = parts(data)
    for number, piece in enumerate(chunks):
        chunk = Chunk(EPOCH, Position(EPOCH, 9), number, number == len(chunks) - 1, piece)
        if fetcher.got_chunk(chunk, NOW_MS):
            break
    ready = local.take_ready(NOW_MS)
    for event in ready.events:
        refused(event)
    if local.commit != 9:
        return False
    assert ready.save and ready.save.snapshot
    numbers = [n for piece in ready.save.staged for row in [*piece.rows, *piece.sessions] for n in row]
    assert all(-SQLITE_MOST <= number < SQLITE_MOST for number in numbers if type(number) is int), "cannot be saved"
    for index, (one, known) in enumerate(list(local.state.sessions.items()), 10):
        codec.pack([1, *local.state.apply(index, pack([one, known.seq + 1, 0, "put", b"k", b"v"]))])
    local.state.take_changes()
    return True


@decoder(more=lambda: [pack(recorded()[:20]), *([pack([frame]) for frame in recorded()])])
def peers(data: bytes) -> bool:
    """Frames at a backup that votes, one after the other: the daemon takes them, or counts what it drops.

    A peer whose messages contradict what is committed breaks an assertion: it lies, or we do, and the process ends.
    """
    shell = _Shell()
    for frame in parts(data):
        before = sum(shell.daemon._odd_frames.values())
        try:
            shell.daemon._step(frame, NOW_MS)
        except (AssertionError, StoreUnusable) as error:
            return refused(error)
        dropped = sum(shell.daemon._odd_frames.values()) - before
        assert dropped in (0, 1)
    shell.daemon.replica.tick(NOW_MS + 20)
    shell.daemon.replica.ready(NOW_MS + 20)
    for what in shell.daemon._odd_frames:
        refused(what)
    return not shell.daemon._odd_frames


class _Shell:
    """A daemon without sockets, disk and guardian: its answers are kept."""

    def __init__(self) -> None:
        local = _local()
        replica = Replica(local, 1500, NOW_MS)
        replica.peers.ask(NOW_MS)
        for one in ALL[1:]:
            said = Answer("life", 1, local.promise, local.log.last, 1, 1, (), "backup", 10, True, 0, 1, one.store, None)
            replica.peers.on_answer(one, said._replace(nodes=local.nodes))
        local.take_ready(NOW_MS)
        self.answers: list[tuple[Any, Any]] = []
        self.daemon = Daemon.__new__(Daemon)
        door = SimpleNamespace()
        transport = SimpleNamespace(
            local=door,
            keys=None,
            gate=SimpleNamespace(totals={}),
            endpoint="10.0.0.1:10001",
            client_endpoint=lambda node: None,
        )
        vars(self.daemon).update(
            replica=replica,
            _member=ALL[0],
            _transport=transport,
            _odd_frames=Counter(),
            answer=lambda whose, result: self.answers.append((whose, result)),
        )
        self.door: Any = door


def _requests() -> list[bytes]:
    bodies: list[list[Any]] = [["w", one] for one in _commands()]
    bodies += [[kind, body] for kind in "rs" for body in (["get", b"k"], ["range", b"", 10], ["count"])]
    bodies += [["m", ["found", ["n1", "n2"]]], ["m", ["add", 1, "n4", "d", False]], ["i", None], ["k", None]]
    return [pack([7, *body]) for body in bodies]


@decoder(more=_requests)
def clients(data: bytes) -> bool:
    """A request at a backup: one answer, now or in this turn."""
    shell = _Shell()
    shell.daemon._client_request(shell.door, [b"route", data], NOW_MS)
    answers = shell.answers + shell.daemon.replica.local.ready.answers
    assert len(answers) == 1, f"{len(answers)} answers"
    whose, result = answers[0]
    assert whose[:2] == (shell.door, [b"route"])
    codec.pack([whose[2], *result])
    if shell.daemon._odd_frames:
        assert sum(shell.daemon._odd_frames.values()) == 1 and result.status == "bad_request"
        return refused(result.value["text"])
    return True


class _NoLink:
    """The guardian does what it is told, later."""

    def order(self, **what: Any) -> int:
        json.dumps(what)
        return 1

    def tell(self, **what: Any) -> None:
        json.dumps(what)

    def waits_for(self, order: int) -> bool:
        return False

    def error(self, order: int) -> str:
        return ""


def _orders() -> list[bytes]:
    actions: list[dict[str, Any]] = [
        {"action": action} for action in ("monitor", "promote", "demote", "release", "status")
    ]
    live = {"degraded": "true", "log_level": None}
    actions += [{"action": action, "settings": live} for action in ("reload", "adopt", "monitor")]
    actions.append({"action": "notify", "type": "pre", "operation": "start", "start": ["n1"]})
    return [pack({"v": 1, "timeout_ms": 5_000, **action}) for action in actions]


@decoder(more=_orders)
def control(data: bytes) -> bool:
    """The agent's request: one answer, at the latest when its time is over."""
    lines: list[str] = []
    link: Any = _NoLink()
    replica = Replica(_local(), 1500, NOW_MS)
    own = Control(replica, link, "food", lambda level, line: lines.append(line), NOW_MS, external=len(data) % 2 == 0)
    replies: list[bytes] = []
    own.request(data, replies.append, NOW_MS)
    for now_ms in (NOW_MS + 20, NOW_MS + 700_000):
        replica.tick(now_ms)
        replica.ready(now_ms)
        own.finish_turn(now_ms)
    assert len(replies) == 1, f"{len(replies)} answers"
    found = codec.unpack(replies[0], codec.FRAME_MOST_BYTES)
    for line in (*lines, found["reason"] or "none"):
        refused(line)
    return "refused the request" not in found["reason"]


# --- The guardian: what an unprivileged daemon tells root ---


@cache
def _run_dir() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="food-fuzz-", dir=IN_MEMORY)


class _OneGuardian:
    """Without processes: what it would run is looked at."""

    def __init__(self) -> None:
        raw: dict[str, object] = {"id": "food", "plaintext": settings.INSECURE}
        self.lines: list[str] = []
        book = NodeBook("n1", None)
        book.listed("nodelist.node.0.ring0_addr (str) = 10.0.0.1\nnodelist.node.0.name (str) = n1\n")
        self.guardian = Guardian.__new__(Guardian)
        vars(self.guardian).update(
            raw=raw,
            given=raw,
            config={},
            settings=settings.settle(raw, {}),
            identity="food",
            resource="food",
            external=False,
            files=RunDirectory(_run_dir().name),
            journal=SimpleNamespace(log=lambda level, line: self.lines.append(line), set_level=PRIORITIES.get),
            watch=watch.Watch(0.0, 1500),
            book=book,
            sent_keys=None,
            unsent=[],
            master=True,
        )

    def hear(self, packets: list[bytes]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with closing(ours), closing(theirs):
            ours.setblocking(False)
            self.guardian.pipe = ours
            for packet in packets:
                if packet:
                    theirs.send(packet)
                    self.guardian.hear_daemon(1.0)
        self.guardian.pipe = None

    def jobs(self) -> list[list[str]]:
        """The tools that it would run in the next moments, each of which fails."""
        argvs = []
        for step in range(20):
            job = self.guardian.watch.next_job(2.0 + step, False)
            if job:
                argvs.append(self.guardian.command(job))
                self.guardian.watch.done(job, False, None, "failed", 2.0 + step)
        return argvs


def _packets() -> list[bytes]:
    packets: list[dict[str, Any]] = [
        {"beat": 1},
        {"role": "primary"},
        {"exiting": "a reason"},
        {"settings": {"degraded": "true", "watchdog_ms": None}},
        {"order": 1, "score": 100, "why": "in sync", "unless_alone": False},
        {"order": 2, "score": None, "why": "isolated", "unless_alone": True},
        {"order": 3, "attributes": {"food-state": "backup, epoch 3", "food-keys": None}},
        {"order": 4, "fail": "superseded"},
        {"order": 5, "adopt": {"degraded": None}},
        {"order": 6, "release": True},
    ]
    frames = [json.dumps(packet).encode() for packet in packets]
    return [*(pack([frame]) for frame in frames), pack(frames)]


@decoder(more=_packets)
def guardian(data: bytes) -> bool:
    """What the daemon says through the pipe: done, or said in the log not to be understood."""
    one = _OneGuardian()
    one.hear([part[:65_000] for part in parts(data)])
    for argv in one.jobs():
        for word in argv:
            assert b"\0" not in os.fsencode(word), f"cannot be run: {argv}"
    assert len(one.guardian.files.attributes) <= watch.ATTRIBUTES_MOST, "names without bound"
    one.guardian.files.write_attributes()
    assert all(isinstance(line, str) for line in one.lines)
    return not any("not understood" in line for line in one.lines)


CMAP = (
    b"nodelist.local_node_pos (u32) = 0\nnodelist.node.0.name (str) = n1\nnodelist.node.0.ring0_addr (str) = 10.0.0.1\n"
    b"nodelist.node.1.nodeid (u32) = 2\nnodelist.node.1.ring0_addr (str) = n2.example.org\n"
)


@decoder(CMAP, b"100\n", b"-INFINITY", b"(null)", b"10.0.0.1   STREAM n1\n10.0.0.1   DGRAM\n", b"")
def pacemaker_(data: bytes) -> bool:
    """What Pacemaker's and Corosync's tools print."""
    output = data.decode(errors="replace")
    for status in (0, 1, 105):
        answered, score = pacemaker.read_score(status, output)
        assert score is None or (answered and type(score) is int)
        pacemaker.allows_promotion(score)
        pacemaker.read_attribute(status, output)
    book = NodeBook(None, None)
    book.listed(output)
    for name in book.unresolved():
        book.resolved(name, pacemaker.read_resolved(output) or "10.0.0.9")
    found = book.nodes()
    assert found is None or all(found)
    return True


# --- Parameters, keys, log ---


@decoder(
    b"--id food --port 9999",
    b"--id=food --address ::1 --client-addresses 10.0.0.1,10.0.0.2 --foreground",
    b"--id food --plaintext insecure-no-keys --degraded yes --watchdog-ms 300 --log-level debug --config /a",
    b"--id food --user food --isolation-ms 000000000000600 --data-dir /a/b --key-file /k --node n1 --daemon /d",
)
def arguments(data: bytes) -> bool:
    try:
        words = shlex.split(text(data))
    except ValueError:
        return False
    try:
        raw, _ = settings.read_arguments(words)
        settled = settings.settle(raw, {})
    except settings.BadSetting as error:
        assert str(error)
        return False
    for name in ("port", "watchdog_ms", "isolation_ms"):
        assert not raw.get(name) or settled[name] == int(raw[name]), f"{name} is not what was said"
    assert settings.settle({k: v for k, v in settled.items() if v is not None}, {}) == settled
    return True


@decoder(b'port = 9999\ndegraded = true\nlog_level = "debug"\n', b"watchdog_ms = 300 # short\n", b"")
def config(data: bytes) -> bool:
    try:
        found = settings.read_config(data.decode())
        settings.settle({"id": "food"}, found)
    except (settings.BadSetting, UnicodeDecodeError) as error:  # guardian.read_config_file names the file
        assert str(error)
        return False
    return True


CLIENT_KEYS = keys.ClientKeys(bytes(range(32)), bytes(range(32, 64)))


@decoder(keys.client_file(CLIENT_KEYS, "of food").encode())
def client_key(data: bytes) -> bool:
    descriptor = os.memfd_create("client-key")
    try:
        os.write(descriptor, data)
        os.fchmod(descriptor, 0o600)
        found = keys.read_client_file(f"/proc/self/fd/{descriptor}")
    except keys.KeyUnusable as error:
        return refused(error)
    finally:
        os.close(descriptor)
    assert len(found.server) == len(found.secret) == 32
    return True


@decoder(pack([1, 0, None]), pack([1, 0, {"server": CLIENT_KEYS.server, "secret": CLIENT_KEYS.secret}]))
def given_key(data: bytes) -> bool:
    """What a daemon answers who is asked for the clients' key."""
    try:
        found = keyring.given(data)
    except codec.BadFrame as error:
        return refused(error)
    assert found is None or len(found.server) == len(found.secret) == 32
    return True


@decoder(b"a line", b"two\nlines \xff \x1b[31m", "ä".encode() * 3_000)
def journal(data: bytes) -> bool:
    """Whatever is logged becomes one line, in the form that journald and syslog read."""
    sent: list[bytes] = []
    one = Journal("food", "daemon", foreground=True)
    one._socket = SimpleNamespace(send=sent.append)  # type: ignore[assignment]
    for one._native in (True, False):
        one.error(text(data))
    native, syslog = sent
    fields = [field.partition(b"=") for field in native.split(b"\n")]
    assert [name for name, _, _ in fields] == [b"PRIORITY", b"SYSLOG_IDENTIFIER", b"SYSLOG_PID", b"MESSAGE", b""]
    assert len(fields[3][2]) <= LINE_LIMIT_BYTES and b"\n" not in syslog
    assert not any(byte < 32 or byte == 127 for byte in fields[3][2]), "what a terminal would obey"
    return True


# --- The disk ---


def _checksummed(data: bytes) -> bytes:
    """The write-ahead log with sums that fit, as far as it has whole frames: SQLite's own arithmetic, written anew."""
    found = bytearray(data)
    if len(found) < 32:
        return data
    order = ">" if found[3] & 1 else "<"
    page = struct.unpack_from(">I", found, 8)[0]

    def add(sums: tuple[int, int], begin: int, end: int) -> tuple[int, int]:
        first, second = sums
        for at in range(begin, end - 7, 8):
            one, other = struct.unpack_from(f"{order}2I", found, at)
            first = (first + one + second) % 2**32
            second = (second + other + first) % 2**32
        return first, second

    sums = add((0, 0), 0, 24)
    struct.pack_into(">2I", found, 24, *sums)
    at = 32
    while 0 < page <= 65_536 and at + 24 + page <= len(found):
        found[at + 8 : at + 16] = found[16:24]
        sums = add(add(sums, at, at + 8), at + 24, at + 24 + page)
        struct.pack_into(">2I", found, at + 16, *sums)
        at += 24 + page
    return bytes(found)


def _wals() -> list[bytes]:
    head = struct.pack(">8I", 0x377F0683, 3007000, 512, 0, 7, 9, 0, 0)
    frames = b"".join(struct.pack(">6I", n, n % 2, 0, 0, 0, 0) + bytes([n]) * 512 for n in (1, 2, 3))
    return [b"\1" + head + frames, b"\0" + _checksummed(head + frames), b"\1" + head[:3] + b"\x82" + head[4:] + frames]


@decoder(more=_wals)
def wal_(data: bytes) -> bool:
    """The first byte says whether its sums are made to fit. What is found lies inside of it."""
    found = _checksummed(data[1:]) if data[:1] == b"\1" else data[1:]
    descriptor = os.memfd_create("wal")
    try:
        os.write(descriptor, found)
        damaged = wal.damage(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    assert damaged is None or 0 <= damaged < len(found)
    return damaged is None


COLUMNS = {"meta": ("name", "value"), "log": ("first", "data"), "sessions": ("id", "data")}


class _Disk:
    """A closed store with something of everything in it, to be copied."""

    def __init__(self) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="food-fuzz-", dir=IN_MEMORY)
        self.directory = Path(self._kept.name)
        with closing(Store(self.directory, "n1")) as store:
            local = Local(store.recovered, "life", [one.node for one in ALL])
            local.promise_epoch(Epoch(1, "b"))
            local.append([Entry(1, Epoch(1, "b"), Kind.MEMBERS, pack_members(LIST))])
            bodies: list[list[Any]] = [["open"], ["put", b"k", b"v"], ["put", b"l", b"w"]]
            for index, body in enumerate(bodies, 2):
                local.append([Entry(index, Epoch(1, "b"), Kind.COMMAND, pack([0, 0, 0, *body]))])
            local.advance(3)
            ready = local.take_ready(NOW_MS)
            assert ready.save
            store.save(ready.save)
        self.rows: list[tuple[str, str, Any, bytes]] = []
        with closing(sqlite3.connect(self.directory / "food.db")) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            for table, (name, column) in COLUMNS.items():
                self.rows += [
                    (table, column, key, data)
                    for key, data in db.execute(f"SELECT {name}, {column} FROM {table} ORDER BY {name}")
                ]


@cache
def _disk() -> _Disk:
    return _Disk()


@decoder(more=lambda: [pack([row[3] for row in _disk().rows]), pack([])])
def store(data: bytes) -> bool:
    """What the rows hold, one after the other, each with a checksum that fits: opened, or refused as what it is."""
    disk = _disk()
    place = disk.directory / "copy"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shutil.copy(disk.directory / "food.db", place)
    with closing(sqlite3.connect(place / "food.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        for (table, column, key, _), changed in zip(disk.rows, parts(data), strict=False):
            statement = f"UPDATE {table} SET {column} = ?, sum = ? WHERE {COLUMNS[table][0]} = ?"
            db.execute(statement, (changed, _sum(key, changed), key))
    try:
        with closing(Store(place, "n1")) as found:
            recovered = found.recovered
    except StoreBroken as error:
        assert str(error)
        return False
    assert recovered.state.applied <= recovered.commit <= recovered.log.last.index
    return True


# --- The client and foodctl ---


def _replies() -> list[bytes]:
    shell = _Shell()
    shell.daemon._client_request(shell.door, [b"", pack([7, "i", None])], NOW_MS)
    info = shell.answers[0][1].value
    probe = (1 << 62) | 1
    primary = {**info, "role": "primary", "epoch": [3, "a"], "revision": 7}
    frames = [[probe, 0, info], [probe, 0, primary], [1, 0, 7], [1, "not_primary", {"text": "no", "primary": "h:1"}]]
    codes = "busy no_space no_quorum unknown session too_large refused list_changed bad_request"
    frames += [[1, code, {"text": "why"}] for code in codes.split()]
    frames += [[1, "compare", {"text": "t", "revision": 3}], [1, "behind", {"text": "t", "behind": 3}]]
    return [pack([pack(frame)]) for frame in frames] + [pack([pack(frame) for frame in frames[:3]])]


@decoder(more=_replies)
def replies(data: bytes) -> bool:
    """Frames from a server: an outcome of the request, or it goes on; and foodctl can show what was said."""
    directory = Directory(["10.0.0.1:10001", "10.0.0.2:10001"])
    worker = Worker(directory)
    worker.submit(Request("w", "put", (b"k", b"v")), 0.0, 10.0)
    directory.on_info("10.0.0.1:10001", {"role": "primary", "epoch": [2, "a"], "node": "n1"}, 0.0)
    for number, frame in enumerate(parts(data)[:50]):
        now = number / 10
        if worker.busy and (target := worker.due(now)):
            address(target)
            worker.frame()
            worker.sent(target, now)
        outcome = worker.receive("10.0.0.1:10001", frame, now)
        if outcome and outcome.error:
            refused(outcome.error)
    refused(directory.describe(9.0))
    if (late := worker.expire(20.0)) and late.error:
        refused(late.error)
    infos = directory.answered(0.0)
    leader = next(iter(infos), None)
    status = Status(leader, {**dict.fromkeys(directory.endpoints), **infos})
    shown = cli.describe(status)
    assert not any(c != "\n" and not c.isprintable() for c in shown), "what a terminal would obey"
    view = member.view_of(infos.get(leader or "", {}))
    for op in ("add", "remove", "replace"):
        for node in {"n2", *view.voting, *view.learners}:
            try:
                member.next_step(op, node, view)
            except Refused as error:
                assert str(error)
    member._ways(status), member._named(status)
    return True


@decoder(b"10.0.0.1:10001", b"tcp://n1.example.org:10001", b"[::1]:10001", b"/run/food/food/client.sock", b"n1:1,n2:2")
def endpoints(data: bytes) -> bool:
    """What is taken for an endpoint is one: ZeroMQ connects there, now or later."""
    try:
        found = split_endpoints(text(data))
    except ValueError as error:
        assert str(error)
        return False
    for endpoint in found[:20]:
        with _context().socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.IPV6, 1)
            dealer.connect(address(endpoint))
    return True


@cache
def _context() -> zmq.Context[zmq.Socket[bytes]]:
    return zmq.Context()


@decoder(
    b"put k v --if-revision 3",
    b"--endpoints h:1 get k --stale",
    b"list a --limit 3 --output json",
    b"member replace n2 --force",
    b"member found n1 n2 --yes --timeout 3",
    b"bench --clients 1,2 --seconds 1 --value-bytes 3 --reads",
    b"client-key /file --id food",
    b"status --key-file f",
)
def foodctl(data: bytes) -> bool:
    try:
        words = shlex.split(text(data))
    except ValueError:
        return False
    said = StringIO()
    try:
        with redirect_stderr(said):
            options = cli.parser().parse_args([word for word in words if word not in ("-h", "--help")])
    except SystemExit as error:
        assert error.code == 2 and said.getvalue()
        return False
    assert callable(options.run)
    return True
