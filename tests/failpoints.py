"""Failpoints: what ships, run with an end or a failure at a point of the table below.

    python tests/failpoints.py [agent|guardian|foodctl] ARGUMENTS…      (without a name: the daemon)

food has no hooks. Here each function of the table is wrapped, and nothing else is changed. What is to happen stands in
the file `armed` in the directory FOOD_FAILPOINTS, a line each, one after the other: a point's name and at which of its
passes. When the last has happened the file is called `hit`. Without that file a process runs as it ships.
"""

import errno
import functools
import importlib
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = os.environ.get("FOOD_FAILPOINTS", "/nonexistent")
ARMED, HIT = f"{DIRECTORY}/armed", f"{DIRECTORY}/hit"
LATE_S = 0.01
_open, _rename, _kill = os.open, os.rename, os.kill  # the table wraps some of these


class Point(NamedTuple):
    """`mode`: die (SIGKILL), late (a moment later), both (the guardian, too), all (all nodes at that instant), parent
    (only the guardian, and on), skip (the call is left out), pass (nothing), or an error that the call raises: `before`
    instead of its work, `after` it. What is said of it is `words`."""

    process: str
    step: str
    target: str  # module:function, or module:Class.method
    provoke: str  # what makes the process pass here (tests/clone.py)
    where: str = ""  # a pattern that the call's arguments show
    side: str = "before"
    mode: str = "die"
    words: str = ""
    at: int = 1  # which pass
    brief: bool = True  # among those that CI runs

    @property
    def name(self) -> str:
        return f"{self.process}-{self.step}-{self.side}-{self.mode}".replace(" ", "-")


def _sides(process: str, *rows: tuple[str, ...]) -> list[Point]:
    """Each dies before the call and after it; of three calls CI takes the one, the other, and none."""
    return [
        Point(process, step, target, provoke, "".join(where), side, brief=n % 3 == number)
        for n, (step, target, provoke, *where) in enumerate(rows)
        for number, side in enumerate(("before", "after"))
    ]


def _some(*points: Point) -> list[Point]:
    """Every other one in CI."""
    return [point._replace(brief=n % 2 == 0) for n, point in enumerate(points)]


STORE, DAEMON, TRANSPORT = "food.storage:Store.", "food.daemon:Daemon.", "food.transport:Transport."
GUARDIAN, TOOL, RUN_DIR = "food.guardian:Guardian.", "food.guardian:Tool.__init__", "food.rundir:RunDirectory."
IO, BUSY, FULL = "sqlite SQLITE_IOERR", "sqlite SQLITE_BUSY", "sqlite SQLITE_FULL"

POINTS = [
    # --- The daemon: a write's way ---
    *_sides(
        "daemon",
        ("publish", DAEMON + "publish", "write at primary", "Append"),
        ("save", STORE + "save", "write at primary"),
        ("begin", STORE + "_sql", "write at primary", "BEGIN"),
        ("log-row", STORE + "_append", "write at primary"),
        ("commit", STORE + "_sql", "write at primary", "'COMMIT'"),
        ("backup-commit", STORE + "_sql", "write at backup", "'COMMIT'"),
        ("count", "food.core.replica:Replica.saved", "write at primary"),
        ("acknowledge", DAEMON + "send", "write at backup", "Ack"),
        ("answer", DAEMON + "answer", "write at primary", "Result"),
        ("segments", STORE + "_add_segments", "write at primary"),
        ("sweep", STORE + "_sweep", "write at primary"),
        ("session-rows", STORE + "_insert_sessions", "write at backup"),
        ("state-meta", STORE + "_put", "write at primary", "'state'"),
        ("fold", STORE + "_sql", "write at primary", "wal_checkpoint"),
        ("compact", STORE + "_sql", "write at backup", "AND last <="),
        ("cut-tail", STORE + "_truncate", "cut a tail"),
        ("delete-sessions", STORE + "_delete_sessions", "write at backup"),
        ("swept", STORE + "_sql", "write at primary", "DELETE FROM segments"),
    ),
    # --- Start and stop ---
    *_sides(
        "daemon",
        ("hello", "food.link:Link.hello", "start"),
        ("check-wal", "food.wal:damage", "start"),
        ("open", STORE + "_open", "start"),
        ("starts", STORE + "_put", "start", "'starts'"),
        ("life", STORE + "_put", "start", "'seen "),
        ("bind", TRANSPORT + "_bind_tcp", "start"),
        ("control-socket", TRANSPORT + "_bind_ipc", "start", "control.sock"),
        ("loop", TRANSPORT + "wait", "start"),
        ("role", "food.link:Link.tell", "start", "'role'"),
        ("close-store", STORE + "close", "stop"),
        ("close-sockets", TRANSPORT + "close", "stop"),
    ),
    # --- Changes of role ---
    *_sides(
        "daemon",
        ("promise", STORE + "_put", "promote", "'promise'"),
        ("seal", DAEMON + "send", "promote", r"Seal\("),
        ("sealed", DAEMON + "send", "promote another", r"Sealed\("),
        ("score-order", "food.link:Link.order", "promote", "'score': 1000"),
        ("promoted", "food.control:Control._reply", "promote"),
        ("demote", "food.core.replica:Replica.demote", "demote"),
        ("demoted", "food.control:Control._reply", "demote"),
    ),
    # --- Snapshots ---
    *_sides(
        "daemon",
        ("stage", STORE + "_stage", "fall behind", "number=2,"),
        ("install", STORE + "_install", "fall behind"),
        ("rename-table", STORE + "_sql", "fall behind", "staged_sessions RENAME TO sessions"),
        ("tidy", STORE + "_sql", "fall behind", "DROP TABLE discarded"),
        ("discard-half", STORE + "_discard", "start with half a snapshot", "staged_segments"),
        ("donate", "food.core.snapshot:Source.chunk", "let another fall behind"),
    ),
    # --- A store that is set aside; members; parameters; keys ---
    *_sides(
        "daemon",
        ("set-aside", "food.daemon:set_aside", "damage the store"),
        ("set-aside-database", "os:rename", "damage the store", r"food\.db'"),
        ("create", STORE + "_create", "damage the store"),
        ("propose-members", "food.core.replica:Replica.change_members", "change members"),
        ("members-row", STORE + "_append", "change members at backup", "kind=(2|<Kind.MEMBERS)"),
        ("new-members", DAEMON + "_forget_others", "change members"),
        ("settings", DAEMON + "_apply_settings", "reload"),
        ("rekey", TRANSPORT + "change_keys", "change keys"),
    ),
    # --- The guardian ---
    *_sides(
        "guardian",
        ("run-directory", "food.guardian:own_directory", "start"),
        ("key", "food.keys:read_secret", "start"),
        ("reload-key", "food.keys:read_secret", "reload"),
        ("lock", "food.locks:take", "start", "guardian.lock"),
        ("sign", "food.locks:sign", "start"),
        ("daemon-lock", "food.locks:take", "start", "daemon.lock"),
        ("fork", "food.guardian:start_daemon", "start"),
        ("attribute-names", RUN_DIR + "write_attributes", "start"),
        ("detach", GUARDIAN + "detach", "start"),
        ("node-list", TOOL, "start", "corosync-cmapctl"),
        ("greet", GUARDIAN + "send", "start", "'hello'"),
        ("first-score", TOOL, "start", "crm_master.*'-v'"),
        ("attribute", TOOL, "start", "attrd_updater.*'-U'"),
        ("score", TOOL, "promote", "crm_master.*'1000'"),
        ("score-written", GUARDIAN + "tool_ended", "promote", "set_score 1000"),
        ("lower-score", GUARDIAN + "tool_ended", "demote", "set_score"),
        ("reload", GUARDIAN + "reload", "reload"),
        ("death", GUARDIAN + "daemon_died", "kill the primary's daemon"),
        ("moving", RUN_DIR + "write_moving", "kill the primary's daemon"),
        ("reason", "os:rename", "kill the primary's daemon", "reason.new"),
        ("delete-score", TOOL, "kill the primary's daemon", "crm_master.*'-D'"),
        ("score-deleted", GUARDIAN + "tool_ended", "kill the primary's daemon", "delete_score"),
        ("report", TOOL, "kill a backup's daemon", "crm_resource.*'--fail'"),
        ("terminate", GUARDIAN + "signal_daemon", "stop"),
        ("stop-score", TOOL, "stop", "crm_master.*'-D'"),
        ("last-file", RUN_DIR + "remove", "stop", "'attributes'"),
        ("clear", TOOL, "stop without guardian", "crm_master.*'-D'"),
        ("cleared", RUN_DIR + "remove", "stop without guardian", "'attributes'"),
    ),
    Point("guardian", "exec", "os:execve", "start", words="killed by signal 9"),  # the daemon to be
    Point("guardian", "forked", "signal:set_wakeup_fd", "start", where=r"^\(-1,", mode="parent"),
    # --- The agent, and an operator's command ---
    *_sides(
        "agent",
        ("is-up", "agent:is_up", "start"),
        ("spawn", "agent:spawn", "start"),
        ("complaint", "agent:read_all", "start"),
        ("end", "agent:end_processes", "stop"),
        ("terminate", "agent:kill", "stop", ", 15"),
        ("clear", "agent:run_to_end", "stop without guardian", "--clear"),
        ("promote", "agent:ask", "promote"),
        ("demote", "agent:ask", "demote"),
        ("mark-demoted", "agent:mark_demoted", "demote the dead"),
        ("reload", "agent:ask", "reload"),
    ),
    Point("agent", "promoting", "zmq:Socket.poll", "promote", mode="late"),  # the request is on its way
    Point("agent", "demoting", "zmq:Socket.poll", "demote", mode="late"),
    *_sides("foodctl", ("members", "food.client:Client.change_members", "change members")),
    # --- Guardian and daemon at one instant; everybody ---
    *_some(
        Point("daemon", "publish", DAEMON + "publish", "write at primary", "Append", "after", "both"),
        Point("daemon", "commit", STORE + "_sql", "write at primary", "'COMMIT'", "before", "both"),
        Point("daemon", "commit", STORE + "_sql", "write at primary", "'COMMIT'", "after", "both"),
        Point("daemon", "acknowledge", DAEMON + "send", "write at backup", "Ack", "after", "both"),
        Point("daemon", "promise", STORE + "_put", "promote", "'promise'", "after", "both"),
        Point("daemon", "score-order", "food.link:Link.order", "promote", "'score': 1000", "after", "both"),
        Point("daemon", "demoted", "food.control:Control._reply", "demote", "", "after", "both"),
        Point("daemon", "install", STORE + "_install", "fall behind", "", "after", "both"),
        Point("daemon", "close-store", STORE + "close", "stop", "", "after", "both"),
        Point("daemon", "publish", DAEMON + "publish", "write at primary", "Append", "after", "all"),
        Point("daemon", "commit", STORE + "_sql", "write at primary", "'COMMIT'", "before", "all"),
        Point("daemon", "acknowledge", DAEMON + "send", "write at backup", "Ack", "after", "all"),
        Point("daemon", "backup-commit", STORE + "_sql", "write at backup", "'COMMIT'", "before", "all"),
        Point("daemon", "answer", DAEMON + "answer", "write at primary", "Result", "after", "all"),
        Point("daemon", "compact", STORE + "_sql", "write at primary", "AND last <=", "after", "all"),
        Point("daemon", "promise", STORE + "_put", "promote", "'promise'", "before", "all"),
        Point("daemon", "promoted", "food.control:Control._reply", "promote", "", "after", "all"),
    ),
    # --- Calls that fail ---
    Point("daemon", "begin", STORE + "_sql", "write at primary", "BEGIN", "before", BUSY, "saving failed"),
    Point("daemon", "log-row", STORE + "_append", "write at primary", "", "before", FULL, "saving failed"),
    Point("daemon", "segments", STORE + "_sql", "write at backup", "INTO segments", "after", IO, "saving failed"),
    Point("daemon", "commit", STORE + "_sql", "write at primary", "'COMMIT'", "before", IO, "saving failed"),
    Point("daemon", "commit", STORE + "_sql", "write at primary", "'COMMIT'", "after", IO, "saving failed"),
    Point("daemon", "fold", STORE + "_sql", "write at primary", "wal_checkpoint", "before", IO, "folding"),
    Point("daemon", "install", STORE + "_install", "fall behind", "", "after", IO, "saving failed"),
    Point("daemon", "room", "os:statvfs", "write at primary", "", "before", "os EIO", "looking for free space failed"),
    Point("daemon", "aside", "os:rename", "damage the store", r"food\.db'", "after", "os EIO", "cannot be set aside"),
    Point("daemon", "bind", TRANSPORT + "_bind_tcp", "start", "", "before", "zmq EMFILE", "unforeseen"),
    Point("daemon", "lose-publish", TRANSPORT + "publish", "write at primary", "", "before", "skip"),
    Point("daemon", "lose-send", TRANSPORT + "send", "write at backup", "", "before", "skip"),
    Point("daemon", "first-part", "zmq:Socket.send", "write at primary", ", 3, {", "before", "zmq EAGAIN"),
    Point("daemon", "last-part", "zmq:Socket.send", "lose half a reply", "", "before", "zmq EAGAIN", "unforeseen"),
    Point("daemon", "send", "zmq:Socket.send", "write at primary", "", "before", "zmq ENOBUFS", "unforeseen"),
    Point("daemon", "link", "socket:socket.send", "write at primary", "", "before", "os EAGAIN"),
    Point("daemon", "log-line", "food.journal:Journal._write", "start", "", "before", "os ENOSPC"),
    Point("guardian", "log-line", "food.journal:Journal._write", "start", "", "before", "os ENOSPC"),
    Point("guardian", "link", "socket:socket.send", "reload", "", "before", "os EAGAIN"),
    Point("guardian", "lock", "fcntl:flock", "start", "", "before", "os ENOLCK", "guardian.lock cannot"),
    Point("guardian", "fork", "os:fork", "start", "", "before", "os EAGAIN", "Resource temporarily unavailable"),
    Point("guardian", "names", RUN_DIR + "write_attributes", "start", "", "before", "os ENOSPC", "No space left"),
    Point(
        "guardian",
        "reason",
        "os:rename",
        "kill the primary's daemon",
        "reason.new",
        "before",
        "os EIO",
        "daemon is gone",
    ),
    Point("guardian", "spawn", "os:posix_spawnp", "promote", "crm_master", "before", "os EAGAIN"),
    Point("guardian", "pipe", TOOL, "promote", "crm_master", "before", "os EMFILE", "tried again"),
    Point("guardian", "note", RUN_DIR + "write_attributes", "start", "", "before", "os ENOSPC", "No space", 2),
    Point("guardian", "hear", GUARDIAN + "hear_daemon", "reload", "", "before", "os EIO", "the guardian failed"),
    Point("guardian", "daemon-lock", "fcntl:flock", "start", "", "before", "os ENOLCK", "daemon.lock cannot", 3),
    Point("guardian", "tools-lock", "fcntl:flock", "start", "", "before", "os ENOLCK", "tools.lock cannot", 2),
    Point("agent", "spawn", "os:posix_spawn", "start", "", "before", "os EAGAIN", "cannot be run"),
    Point("agent", "clear", "os:posix_spawn", "stop without guardian", "", "before", "os EAGAIN"),  # tried again
    Point("guardian", "key", "os:fstat", "reload", "", "before", "os EIO", "Input/output error"),
]
# Started outside Pacemaker: adopted and released.
EXTERNAL = [
    *_sides(
        "guardian",
        ("adopt", "os:rename", "adopt", "adopting"),
        ("adopted-names", RUN_DIR + "write_attributes", "adopt"),
        ("release-score", TOOL, "release", "crm_master.*'-D'"),
        ("released", GUARDIAN + "released", "release"),
        ("forget", RUN_DIR + "remove", "release", "'adopted'"),
        ("succeed", GUARDIAN + "succeed", "succeed"),
        ("succeed-score", TOOL, "succeed", "crm_master.*'-D'"),
    ),
    *_sides("agent", ("adopt", "agent:ask", "adopt", "'adopt'"), ("release", "agent:ask", "release", "'release'")),
]
# Not points of their own: what a provocation needs.
STEPS = [
    Point("daemon", "lose-append", DAEMON + "publish", "", "Append", "before", "skip"),
    Point("daemon", "first-part", "zmq:Socket.send", "", ", 3, {", "after", "pass"),
    Point("daemon", "half-snapshot", STORE + "save", "", r"staged=\[Piece.*snapshot=None", "after"),
]
BY_NAME = {point.name: point for point in POINTS + EXTERNAL + STEPS}
assert len(BY_NAME) == len(POINTS + EXTERNAL + STEPS), "two points of one name"

_passes: Counter[str] = Counter()


def arm(directory: Path, *lines: tuple[Point, int]) -> None:
    """To happen one after the other, each at that pass of its point."""
    (directory / "hit").unlink(missing_ok=True)
    text = "".join(f"{point.name} {at}\n" for point, at in lines)
    (directory / "arming").write_text(text)
    (directory / "arming").rename(directory / "armed")


def _passing(process: str, target: str, side: str, arguments: tuple[object, ...]) -> bool:
    """Whatever is armed for here happens; True leaves the call out."""
    try:
        descriptor = _open(ARMED, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    lines = os.read(descriptor, 4096).decode().splitlines()
    os.close(descriptor)
    name, at = lines[0].split()
    point = BY_NAME[name]
    if (point.process, point.target, point.side) != (process, target, side):
        return False
    if not re.search(point.where, repr(arguments)):
        return False
    _passes[lines[0]] += 1
    if _passes[lines[0]] < int(at):
        return False
    _passes.clear()
    if rest := lines[1:]:
        Path(f"{ARMED}.new").write_text("\n".join(rest))
        _rename(f"{ARMED}.new", ARMED)
    else:
        _rename(ARMED, HIT)
    return _happen(point.mode)


def _happen(mode: str) -> bool:
    if mode == "all":
        for lock in Path(DIRECTORY).parent.glob("*/run/food/guardian.lock"):
            if (pid := int(lock.read_text())) != os.getppid():  # last: it takes this process along
                _kill(pid, signal.SIGKILL)
    if mode in ("all", "both", "parent"):
        _kill(os.getppid(), signal.SIGKILL)
    if mode == "late":
        time.sleep(LATE_S)
    if mode in ("all", "both", "die", "late"):
        _kill(os.getpid(), signal.SIGKILL)
    if " " in mode:
        raise _error(*mode.split())
    return mode == "skip"


def _error(kind: str, name: str) -> Exception:
    if kind == "os":
        return OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    if kind == "zmq":
        import zmq

        return zmq.ZMQError(getattr(errno, name))
    import sqlite3

    error = sqlite3.OperationalError(f"{name}, says the test")
    error.sqlite_errorname = name
    return error


def _wrap(process: str, target: str) -> None:
    module, path = target.split(":")
    owner: Any = sys.modules["agent"] if module == "agent" else importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        if _passing(process, target, "before", (*arguments, more)):
            return None
        result = original(*arguments, **more)
        _passing(process, target, "after", (*arguments, more))
        return result

    static = isinstance(vars(owner).get(name), staticmethod)
    setattr(owner, name, staticmethod(wrapped) if static else wrapped)


def _agent() -> Callable[[], int]:
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    spec = spec_from_loader("agent", SourceFileLoader("agent", str(ROOT / "agent" / "food")))
    assert spec and spec.loader
    sys.dont_write_bytecode = True
    module = sys.modules["agent"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[], int] = module.main
    return found


def _small_limits() -> None:
    """So that a second of writes meets flushes, folds, compaction, and snapshots of many pieces."""
    from food import storage
    from food.core import donor, local, snapshot

    local.FLUSH_ENTRIES, local.FLUSH_MS = 20, 50
    local.KEEP_BYTES = 300_000
    snapshot.CHUNK_MOST_BYTES = 20_000
    donor.SOURCE_IDLE_MS = 300  # else the log is kept for a reader that was killed
    storage.FOLD_BYTES = 256 * 1024
    storage.HELD_MOST, storage.HELD_SLACK_BYTES, storage.SWEEP_MOST_BYTES = 0.9, 0, 10_000  # always a little to sweep


def main(process: str, arguments: list[str]) -> int:
    sys.argv[1:] = arguments
    sys.path.insert(0, str(ROOT))
    if process == "agent":
        run = _agent()
    elif process == "daemon":
        _small_limits()
        from food.daemon import main as run
    elif process == "guardian":
        from food.guardian import main as run

        process = "check" if "--check" in arguments else process
    else:
        from food.cli import main as run
    for target in dict.fromkeys(point.target for point in BY_NAME.values() if point.process == process):
        _wrap(process, target)
    return run()


if __name__ == "__main__":
    named = sys.argv[1] in ("agent", "guardian", "foodctl")
    status = main(*((sys.argv[1], sys.argv[2:]) if named else ("daemon", sys.argv[1:])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as the agent does
