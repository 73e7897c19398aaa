"""Three real nodes (agent, guardian, daemon; the cluster's tools are stand-ins) with this process as their Pacemaker.

Made for tests/failpoints.py: a point is armed at a node, something is done that passes it, what died is recovered as
Pacemaker would, and then everything is looked at: writes, reads, states, processes, scores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO, cast
from unittest import mock

import test_agent as agent_test
from failpoints import BY_NAME, ROOT, Point, arm
from fake_tools import FakeTools, eventually, write_secret
from load import Final, Report, _parser, check, read_history
from load import Load as Writers
from real_node import RealNode

from food import locks
from food.calls import FoodError
from food.client import Client
from food.gate import client_keys
from food.keys import KeyUnusable, client_file, derive
from food.member import change

LAUNCHER = ROOT / "tests" / "failpoints.py"
PORT = 18_700
NODES = ("n1", "n2", "n3")
KILLED = -signal.SIGKILL  # the agent itself
KILLING = ("die", "both", "parent")
HIT_S = 30.0  # a donor keeps its log for a reader that has gone for 10 s
ENDS_S = 0.3  # what a failed call ends is gone by then, or stays
SERVES_S = 20.0
RECURRING = {"OCF_RESKEY_CRM_meta_interval": "10000"}
LOG_SHOWN = 3_000  # characters of each node's log, when something is wrong
LET_GO_S = 0.4  # then no log is kept any more for a reader that is gone
LOOK_S = 0.05  # between two steps of a member command
BIG = 100_000  # bytes: some of these, and the log is compacted past whoever is down


def launched(node: agent_test.Node) -> list[str]:
    """Has failpoints' guardian for its command; returns what runs failpoints' agent."""
    lines = [f"#!{sys.executable} -Es", "import sys", f"sys.path.insert(0, {str(ROOT / 'tests')!r})"]
    lines += ["from failpoints import main", "sys.exit(main('guardian', sys.argv[1:]))"]
    Path(node.environment["FOOD_COMMAND"]).write_text("\n".join(lines))
    node.environment["FOOD_FAILPOINTS"] = str(node.directory)
    return [sys.executable, "-Es", str(LAUNCHER), "agent"]


class Node(RealNode):
    """What it runs are failpoints' agent, guardian and daemon; its tools are the cluster's."""

    def __init__(self, directory: Path, name: str, address: str, tools: FakeTools):
        directory.mkdir()
        super().__init__(directory, address)
        self.name, self.address, self.tools = name, address, tools
        self.endpoint = f"{address}:{PORT + 2}"
        self.program = launched(self)
        self.environment |= {
            **tools.environment(),
            "OCF_RESKEY_daemon": str(LAUNCHER),
            "OCF_RESKEY_port": str(PORT),
            "OCF_RESKEY_watchdog_ms": "5000",  # a busy machine is not what is tested here
            "OCF_RESKEY_CRM_meta_on_node": name,
        }

    @property
    def lives(self) -> bool:
        return bool(self.pid(locks.GUARDIAN_LOCK) and self.pid(locks.DAEMON_LOCK))

    @property
    def score(self) -> int | None:
        """What the CIB shows."""
        path = self.tools.directory / ("score" if self.name == "n1" else f"score.{self.name}")
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(path.read_text())
        return None

    @property
    def hit(self) -> bool:
        return (self.directory / "hit").exists()

    def own_processes(self) -> set[int]:
        """Without the tools that a guardian runs now and then."""
        return {pid for pid in self.processes() if LAUNCHER.name in _command(pid) or "/food" in _command(pid)}


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


class Out:
    """A history's file, with the writes counted that were acknowledged."""

    def __init__(self, path: Path):
        self.path, self.acknowledged = path, 0
        self._file = path.open("w", encoding="utf-8")
        self.flush, self.close = self._file.flush, self._file.close

    def write(self, line: str) -> int:
        self.acknowledged += line.startswith('["w"') and '"ack"' in line
        return self._file.write(line)


class Load:
    """tests/load.py's writers and readers, in a thread."""

    def __init__(self, clone: Clone, name: str, shared: bool):
        self.out = Out(clone.directory / f"{name}.jsonl")
        argv = ["--endpoints", ",".join(node.endpoint for node in clone), "--key-file", str(clone.key_file)]
        argv += [
            "--seconds",
            "600",
            "--name",
            name,
            "--writers",
            "3",
            "--readers",
            "1",
            "--rate",
            "60",
            "--timeout",
            "60",
        ]
        options = _parser().parse_args([*argv, *(["--shared"] if shared else [])])
        self._writers = Writers(options, cast("TextIO", self.out))
        self.complete = self._given_up = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.complete = self._writers.run()
        except (FoodError, KeyUnusable, ValueError):
            assert self._given_up

    def end(self) -> Report:
        self._writers.stop = True
        self._thread.join(SERVES_S)
        assert self.complete, "the load came to no end"
        self.out.close()
        self.history, final = read_history(self.out.path)
        assert final
        return Report(**check(self.history, final))

    def give_up(self) -> None:
        """It may not end for long: its cluster is gone."""
        self._given_up = self._writers.stop = True
        self.out.close()

    def again(self, client: Client) -> Report:
        """Whether it is all there still, much later."""
        rows = {key: (value, revision) for key, value, revision in self._writers._rows(client)}
        return Report(**check(self.history, Final(rows, None)))


@dataclasses.dataclass
class Tally:
    """What a run of points came to."""

    points: int = 0
    acknowledged: int = 0
    reads: int = 0
    promotions: int = 0
    starts: int = 0
    slowest_start_s: float = 0.0

    def __iadd__(self, other: Tally) -> Self:
        for name, value in vars(other).items():
            slowest = name == "slowest_start_s"
            setattr(self, name, max(getattr(self, name), value) if slowest else getattr(self, name) + value)
        return self

    def __str__(self) -> str:
        return (
            f"{self.points} times passed, {self.acknowledged} writes acknowledged, {self.reads} reads,"
            f" {self.promotions} promotions, {self.starts} starts, the slowest {self.slowest_start_s:.1f} s"
        )


class Clone:
    """`with Clone() as clone: clone.endure(point)`."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="food-", dir="/tmp")
        self.directory = Path(self._temporary.name)
        self.key_file = self.directory / "client-key"
        self.key_file.touch(0o600)
        tools = FakeTools(self.directory / "tools")
        self.nodes = {
            name: Node(self.directory / name, name, f"127.0.4.{number}", tools) for number, name in enumerate(NODES, 1)
        }
        lines = ["nodelist.local_node_pos (u32) = 0"]
        for number, node in enumerate(self):
            lines += [f"nodelist.node.{number}.name (str) = {node.name}"]
            lines += [f"nodelist.node.{number}.ring0_addr (str) = {node.address}"]
        (tools.directory / "nodelist").write_text("\n".join(lines) + "\n")
        self.primary: Node | None = None
        self.loads: list[Load] = []
        self.commands: list[subprocess.Popen[bytes]] = []
        self.tally = Tally()
        self.broken = False
        self._turns = 0
        self.change_secret()

    def __enter__(self) -> Self:
        for node in self:
            self.start(node)
        self.lead()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for load in self.loads:
            load.give_up()
        for command in self.commands:
            command.kill()
            command.wait()
        for node in self:
            node.close()
        self._temporary.cleanup()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def change_secret(self) -> None:
        """In the nodes' files, and in the clients'."""
        secret = os.urandom(64)
        for node in self:
            write_secret(Path(node.environment["OCF_RESKEY_key_file"]), secret)
        self.key_file.write_text(client_file(client_keys(derive(secret, "food", "")), "of the test"))

    def client(self, node: Node | None = None) -> Client:
        endpoints = [str(node.run_dir / "client.sock")] if node else [node.endpoint for node in self]
        return Client(endpoints, timeout_s=SERVES_S, key_file=str(self.key_file))

    # --- What Pacemaker does ---

    def start(self, node: Node) -> None:
        """One try: what a death left behind must not keep it from starting."""
        assert node("start") == 0, f"{node.name} does not start: {node.errors}"
        self.tally.starts += 1
        self.tally.slowest_start_s = max(self.tally.slowest_start_s, node.took_s)

    def stop(self, node: Node) -> None:
        assert node("stop") == 0, f"{node.name} does not stop: {node.errors}"
        # At once, but for a guardian whose start was killed before it had its lock: it ends by itself, with nothing up.
        eventually(f"no processes left on {node.name} after its stop", lambda: not node.own_processes())
        assert node.score is None, f"{node.name} has a score after its stop"

    def lead(self, without: Node | None = None) -> Node:
        """Promotes the best of those that live."""
        deadline = time.monotonic() + SERVES_S
        while time.monotonic() < deadline:
            able = [node for node in self if node is not without and node.lives and (node.score or -1) >= 0]
            if able:
                best = max(able, key=lambda node: node.score or 0)
                if best("promote") == 0:
                    self.primary = best
                    self.tally.promotions += 1
                    return best
                # Such as one that did not know yet that it is a member no more. Until it stops it is a failed primary.
                best("demote")
                self.stop(best)
                self.start(best)
            time.sleep(0.02)
        raise AssertionError(f"nobody could be promoted: {[(node.name, node.score, node.errors) for node in self]}")

    def recover(self, hurt: Node, needed: bool) -> None:
        """After a failed action or monitor: demote, stop, start, and who is best leads meanwhile."""
        leaderless = self.primary in (hurt, None)
        if leaderless:
            hurt("demote")
            self.primary = None
            if not needed:
                self.lead(without=hurt)
        self.stop(hurt)
        self.start(hurt)
        if leaderless and needed:
            self.lead()

    def _recover_all(self) -> None:
        """The old primary last: what it has acknowledged must be with the others."""
        late, self.primary = self.primary, None
        for node in self:
            eventually(f"{node.name} is gone", lambda n=node: not n.lives)
            self.stop(node)
        for node in self:
            if node is not late:
                self.start(node)
        self.lead()
        if late:
            self.start(late)

    # --- One point ---

    @property
    def backups(self) -> list[Node]:
        """In another order each time."""
        self._turns += 1
        found = [node for node in self if node is not self.primary]
        return found if self._turns % 2 else found[::-1]

    def endure(self, point: Point, later: int = 0) -> None:
        """Passes the point (so many passes later), recovers what died, and looks at everything."""
        self.broken = True  # until the end is reached
        try:
            self._endure(point, later)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._describe()}") from error
        self.broken = False

    def _describe(self) -> str:
        lines = [f"primary: {self.primary and self.primary.name}"]
        for node in self:
            lines += [f"{node.name}: lives: {node.lives}, score {node.score}; {node.errors}", node.log[-LOG_SHOWN:]]
        return "\n".join(lines)

    def _endure(self, point: Point, later: int) -> None:
        provoke = PROVOCATIONS[point.provoke]
        load = Load(self, f"load{len(self.loads)}", shared=provoke in WRITING)
        self.loads.append(load)
        eventually("the load begins", lambda: load.out.acknowledged, SERVES_S)
        before = {node.name: len(node.log) for node in self}
        hurt, afterwards = provoke(self, point, point.at + later)
        eventually(f"{point.name} is passed", lambda: hurt.hit, HIT_S)
        self._hear(hurt, point, before[hurt.name])
        for node in self:
            assert node is hurt or point.mode == "all" or node.lives, f"{node.name} died, too"
        if point.mode == "all":
            self._recover_all()
        elif self._needs_recovery(hurt, point):
            self.recover(hurt, needed=provoke is _change_members)
        if afterwards:
            afterwards()
        self._judge(load)
        self.tally.points += 1

    def _hear(self, hurt: Node, point: Point, log_from: int) -> None:
        """What is said of a failure: in the log, or by the action that was under way."""
        said = hurt.errors
        eventually(
            f"{hurt.name} says {point.words!r}",
            lambda: re.search(point.words, said + hurt.log[log_from:]),
        )

    def _needs_recovery(self, hurt: Node, point: Point) -> bool:
        """Whether Pacemaker would see a failure: an action of the agent's that was killed, or a monitor that fails."""
        if point.process in ("agent", "foodctl"):
            return point.process == "agent"
        if point.mode in KILLING:
            eventually(f"{hurt.name} is not whole any more", lambda: not hurt.lives)
            return True
        return self._failed(hurt, point)

    def _failed(self, hurt: Node, point: Point) -> bool:
        """After a call that failed: it goes on rightly, or has ended and says why."""
        said = point.words or hurt.reason
        give_up = time.monotonic() + ENDS_S
        while hurt.lives and time.monotonic() < give_up:
            time.sleep(0.01)
        status = hurt("monitor", **RECURRING)
        if hurt.lives and status == (8 if hurt is self.primary else 0):
            return False
        assert said or hurt.reason, f"{hurt.name}: monitor says {status}, and no reason"
        return True

    def _judge(self, load: Load) -> None:
        size = load.out.acknowledged
        eventually("writes go on", lambda: load.out.acknowledged > size, SERVES_S)
        report = load.end()
        assert report.clean, report.problems
        assert report.acknowledged, "nothing was written"
        self.tally.acknowledged += report.acknowledged
        self.tally.reads += report.reads
        self.level()

    def level(self) -> None:
        """Three nodes, one state, two processes each, one primary with its score."""
        with self.client() as client:
            eventually("equal states", lambda: len(_states(client)) == 1, SERVES_S)
        eventually("scores", lambda: all((node.score == 1000) == (node is self.primary) for node in self), SERVES_S)
        eventually("every backup may lead", lambda: all(node.score is not None for node in self), SERVES_S)
        for node in self:
            pids = {node.pid(locks.GUARDIAN_LOCK), node.pid(locks.DAEMON_LOCK)}
            eventually(f"no orphan on {node.name}", lambda n=node, p=pids: n.own_processes() == p)

    def finish(self) -> None:
        """Everything that was ever acknowledged is there; then all stop, and nothing is left."""
        with self.client() as client:
            for load in self.loads:
                report = load.again(client)
                assert report.clean, report.problems
        self.level()
        assert self.primary
        assert self.primary("demote") == 0
        for node in self:
            self.stop(node)
        assert not list((self.directory / "tools").glob("attribute.*")), "attributes are left"


def _states(client: Client) -> set[object]:
    """How far every node has come, and to what; something else for one that does not answer."""
    answers = client.status().answers
    return {(answer["applied"], answer["self"]["state_hash"]) if answer else at for at, answer in answers.items()}


# --- What makes a process pass a point: arms the node that is hurt, and returns it, and what is left to do ---

Provoked = tuple[Node, Callable[[], None] | None]
Provocation = Callable[[Clone, Point, int], Provoked]
PROVOCATIONS: dict[str, Provocation] = {}
WRITING: set[Provocation] = set()  # these write beside the load


def provocation(name: str, writes: bool = False) -> Callable[[Provocation], Provocation]:
    def register(function: Provocation) -> Provocation:
        PROVOCATIONS[name] = function
        if writes:
            WRITING.add(function)
        return function

    return register


@provocation("write at primary")
def _write_at_primary(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    arm(clone.primary.directory, (point, at))
    return clone.primary, None


@provocation("write at backup")
def _write_at_backup(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    arm(node.directory, (point, at))
    return node, None


@provocation("lose half a reply")
def _lose_half_a_reply(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    arm(clone.primary.directory, (BY_NAME["daemon-first-part-after-pass"], 1), (point, 1))
    return clone.primary, None


@provocation("start")
def _start(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    clone.stop(node)
    arm(node.directory, (point, at))
    node("start")
    return node, None


@provocation("stop")
def _stop(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    arm(node.directory, (point, at))
    assert node("stop") in (0, KILLED), f"a stop failed: {node.errors}"
    return node, None


@provocation("stop without guardian")
def _stop_without_guardian(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    node.kill(locks.GUARDIAN_LOCK)
    arm(node.directory, (point, at))
    assert node("stop") in (0, KILLED), f"a stop failed: {node.errors}"
    return node, None


@provocation("promote")
def _promote(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    _demoted(clone)
    arm(node.directory, (point, at))
    if node("promote") == 0:
        clone.primary = node
    return node, None


@provocation("promote another")
def _promote_another(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    old = _demoted(clone)
    arm(node.directory, (point, at))
    if old("promote") == 0:
        clone.primary = old
    return node, None


@provocation("demote")
def _demote(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    node, clone.primary = clone.primary, None
    arm(node.directory, (point, at))
    node("demote")
    return node, None


@provocation("demote the dead")
def _demote_the_dead(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    node, clone.primary = clone.primary, None
    node.kill(locks.DAEMON_LOCK)
    arm(node.directory, (point, at))
    node("demote")
    return node, None


@provocation("fall behind", writes=True)
def _fall_behind(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    _left_behind(clone, node)
    arm(node.directory, (point, at))
    node("start")
    return node, None


@provocation("let another fall behind", writes=True)
def _let_another_fall_behind(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    donor, node = clone.primary, clone.backups[0]
    _left_behind(clone, node)
    arm(donor.directory, (point, at))
    clone.start(node)
    return donor, None


@provocation("start with half a snapshot", writes=True)
def _half_a_snapshot(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    _left_behind(clone, node)
    arm(node.directory, (BY_NAME["daemon-half-snapshot-after-die"], 1))
    node("start")
    eventually("it dies while it receives", lambda: node.hit, HIT_S)
    clone.stop(node)
    arm(node.directory, (point, at))
    node("start")
    return node, None


@provocation("cut a tail")
def _cut_a_tail(clone: Clone, point: Point, at: int) -> Provoked:
    """The primary saves what nobody else has heard of, and dies; another goes on in its place."""
    assert clone.primary
    node = clone.primary
    arm(node.directory, (BY_NAME["daemon-lose-append-before-skip"], 1), (BY_NAME["daemon-commit-after-die"], 1))
    eventually("a tail that nobody has", lambda: node.hit, HIT_S)
    node("demote")
    clone.lead(without=node)
    clone.stop(node)
    arm(node.directory, (point, at))
    node("start")
    return node, None


@provocation("damage the store")
def _damage_the_store(clone: Clone, point: Point, at: int) -> Provoked:
    """Nobody can read it any more. At the end its place is given to the new one."""
    node = clone.backups[0]
    clone.stop(node)
    with contextlib.closing(sqlite3.connect(node.data_dir / "food.db")) as store:
        store.execute("UPDATE meta SET sum = x'00' WHERE name = 'promise'")
        store.commit()
    arm(node.directory, (point, at))
    node("start")

    def replace() -> None:
        deadline = time.monotonic() + SERVES_S
        with clone.client() as client:
            while node.score is None and time.monotonic() < deadline:  # the old one seems to answer for a moment
                _change(client, "replace", node)
                time.sleep(0.05)

    return node, replace


@provocation("change members")
def _change_members(clone: Clone, point: Point, at: int) -> Provoked:
    return _members_changed(clone, clone.primary, point, at)


@provocation("change members at backup")
def _change_members_at_backup(clone: Clone, point: Point, at: int) -> Provoked:
    return _members_changed(clone, None, point, at)


@provocation("reload")
def _reload(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    arm(node.directory, (point, at))
    value = str(5000 + clone._turns % 7)
    node("reload-agent", OCF_RESKEY_isolation_ms=value)
    return node, None


@provocation("change keys")
def _change_keys(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    clone.change_secret()
    arm(node.directory, (point, at))
    for other in (node, *(other for other in clone if other is not node)):
        other("reload-agent")
    return node, None


@provocation("kill the primary's daemon")
def _kill_the_primarys_daemon(clone: Clone, point: Point, at: int) -> Provoked:
    assert clone.primary
    arm(clone.primary.directory, (point, at))
    clone.primary.kill(locks.DAEMON_LOCK)
    return clone.primary, None


@provocation("kill a backup's daemon")
def _kill_a_backups_daemon(clone: Clone, point: Point, at: int) -> Provoked:
    node = clone.backups[0]
    arm(node.directory, (point, at))
    node.kill(locks.DAEMON_LOCK)
    return node, None


def _change(client: Client, op: str, node: Node) -> None:
    with mock.patch("food.member.LOOK_S", LOOK_S):
        change(client, op, node.name, op != "replace", SERVES_S, lambda _: None)


def _demoted(clone: Clone) -> Node:
    assert clone.primary
    old, clone.primary = clone.primary, None
    assert old("demote") == 0, old.errors
    return old


def _left_behind(clone: Clone, node: Node) -> None:
    """Down, and what it lacks is compacted away."""
    clone.stop(node)
    with clone.client() as client:
        for number in range(8):
            if number == 6:
                time.sleep(LET_GO_S)
            client.put(b"big %d" % number, os.urandom(BIG))


def _members_changed(clone: Clone, hurt: Node | None, point: Point, at: int) -> Provoked:
    """A backup is taken out of the list, and put in again."""
    leaver, stayer = clone.backups
    hurt = hurt or stayer
    argv = [sys.executable, "-Es", str(LAUNCHER), "foodctl", "member", "remove", leaver.name, "--force"]
    argv += ["--endpoints", ",".join(node.endpoint for node in clone), "--key-file", str(clone.key_file)]
    argv += ["--timeout", "20"]
    if point.process == "foodctl":
        environment = {**os.environ, "FOOD_FAILPOINTS": str(hurt.directory)}
    else:
        environment = dict(os.environ)
    arm(hurt.directory, (point, at))
    command = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clone.commands.append(command)
    eventually("the point, or the command's end", lambda: hurt.hit or command.poll() is not None, HIT_S)

    def restore() -> None:
        command.wait(SERVES_S)
        with clone.client() as client:
            for op in ("remove", "add") if point.process == "foodctl" else ("add",):
                _change(client, op, leaver)

    return hurt, restore
