"""Bad input, as a table: fault, action, expected code, words that must appear. Real agent, guardian, daemon and disk.

What holds in every row, beside its own code and words: the words are in the exit reason, which crm_mon shows; stop and
probe survive; no process and no lock is left behind; and what was acknowledged before is there afterwards. What comes
in through sockets is in test_bad_frames.py, what needs a cluster in cluster/test_bad_input.py.
"""

from __future__ import annotations

import ast
import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from daemons import Cluster, wait
from fake_tools import eventually
from real_node import ADDRESS, NODES, PORT, RealNode
from test_agent import AGENT, ROOT

from food import guardian, locks
from food.calls import FoodError, NoSpace, OutcomeUnknown
from food.client import Client
from food.core.local import FLUSH_MS
from food.storage import Store

OK, GENERIC, ARGUMENTS, UNIMPLEMENTED, PERMISSION, INSTALLED, NOT_RUNNING, PROMOTED = 0, 1, 2, 3, 4, 5, 7, 8
START_MS = "OCF_RESKEY_CRM_meta_timeout"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    found = RealNode(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A primary that outlives the whole table of parameters."""
    found = RealNode(tmp_path_factory.mktemp("living"))
    found.up()
    with found.client() as client:
        client.put(b"before", b"the table")
    yield found
    found.close()


def refused(node: RealNode, action: str, code: int, words: str, **environment: str) -> None:
    assert node(action, **environment) == code, f"{action}: {node.errors}"
    assert words in node.reason, f"{action}: {node.reason}"


def left_nothing(node: RealNode) -> None:
    assert node.processes() == []
    assert node("monitor") == NOT_RUNNING
    assert not (node.run_dir / "client.sock").exists()


# --- Each parameter wrong in turn ---


class Wrong(NamedTuple):
    parameter: str
    value: str
    words: str
    code: int = ARGUMENTS
    file: str | bytes | None = None  # content of the configuration file, whose path {config} stands for


PARAMETERS = (
    Wrong("port", "many", "port is 'many': must be a whole number from 1 to 65533"),
    Wrong("port", "0", "port is 0: must be a whole number from 1 to 65533"),
    Wrong("port", "65534", "port is 65534: must be a whole number from 1 to 65533"),
    Wrong("port", "-1", "port is '-1': must be a whole number"),
    Wrong("port", "9999.5", "port is '9999.5': must be a whole number"),
    Wrong("port", "９９９９", "must be a whole number"),
    Wrong("address", "n1.example.org", "address is 'n1.example.org': must be a numeric IPv4 or IPv6 address"),
    Wrong("address", "10.0.0.256", "address is '10.0.0.256': must be a numeric"),
    Wrong("address", "10.0.0.1/24", "address is '10.0.0.1/24': must be a numeric"),
    Wrong("address", ":::1", "address is ':::1': must be a numeric"),
    Wrong("address", "0.0.0.0", "address is '0.0.0.0': must be a numeric IPv4 or IPv6 address of this node"),
    Wrong("address", "::", "address is '::': must be a numeric IPv4 or IPv6 address of this node"),
    Wrong("client_addresses", "n1,n2", "client_addresses is 'n1,n2': must be 1 to 16 numeric IPv4 or IPv6 addresses"),
    Wrong("client_addresses", ",".join(["10.0.0.1"] * 17), "must be 1 to 16 numeric IPv4 or IPv6 addresses"),
    Wrong("client_addresses", "0.0.0.0", "client_addresses is '0.0.0.0': must be addresses that clients connect to"),
    Wrong("key_file", "food.key", "key_file is 'food.key': must be an absolute path"),
    Wrong("key_file", "/nowhere/key", "key_file /nowhere/key is not there: put the same file on every node, or unset"),
    Wrong("key_file", "/tmp", "key file /tmp is not a regular file"),
    Wrong("key_file", "/etc/passwd", "key file /etc/passwd has mode 0644, open to others: chmod 0400 /etc/passwd"),
    Wrong("key_file", "{config}", "has 10 bytes: must have 32 to 65536, random ones", file="0123456789"),
    Wrong("plaintext", "yes", "plaintext is 'yes': must be one of no, insecure-no-keys"),
    Wrong("plaintext", "insecure-no-keys", "key_file and plaintext=insecure-no-keys exclude each other"),
    Wrong("external", "perhaps", "external is 'perhaps': must be true or false"),
    Wrong("data_dir", "var/lib/food", "data_dir is 'var/lib/food': must be an absolute path"),
    Wrong("data_dir", "/var/lib/fo\nod", "must be an absolute path"),
    Wrong("user", "no such", "user is 'no such': must be text without spaces"),
    Wrong("user", "nobody-at-all", "user 'nobody-at-all' does not exist: run deploy/install, or set `user`", INSTALLED),
    Wrong("watchdog_ms", "299", "watchdog_ms is 299: must be a whole number from 300 to 600000 ms"),
    Wrong("watchdog_ms", "600001", "watchdog_ms is 600001: must be a whole number from 300 to 600000 ms"),
    Wrong("watchdog_ms", "1.5s", "watchdog_ms is '1.5s': must be a whole number"),
    Wrong("isolation_ms", "299", "isolation_ms is 299: must be a whole number from 300 to 600000 ms"),
    Wrong("isolation_ms", "9" * 400, "must be a whole number from 300 to 600000 ms"),
    Wrong("isolation_ms", "soon", "isolation_ms is 'soon': must be a whole number"),
    Wrong("degraded", "perhaps", "degraded is 'perhaps': must be true or false"),
    Wrong("log_level", "loud", "log_level is 'loud': must be one of debug, info, notice, warning, error"),
    Wrong("config", "food.toml", "config is 'food.toml': must be an absolute path"),
    Wrong("config", "/nowhere/food.toml", "/nowhere/food.toml cannot be read: [Errno 2] No such file or directory"),
    Wrong("config", "/tmp", "configuration file /tmp cannot be read: [Errno 21] Is a directory"),
    Wrong("config", "{config}", "the configuration file is not TOML", file="port = = 1\n"),
    Wrong("config", "{config}", "cannot be read: 'utf-8' codec can't decode", file=b"port = \xff\n"),
    Wrong("config", "{config}", "the configuration file sets 'prot': may set only", file="prot = 9999\n"),
    Wrong("config", "{config}", "the configuration file sets 'id': may set only", file='id = "food"\n'),
    Wrong("config", "{config}", "watchdog_ms is 1.5: must be a whole number", file="watchdog_ms = 1.5\n"),
    Wrong("config", "{config}", "data_dir is ['/a']: must be an absolute path", file='data_dir = ["/a"]\n'),
    Wrong("args", "--log-level 'debug", 'args is "--log-level \'debug": No closing quotation'),
    Wrong("args", "--nonsense", "--nonsense is not an option; --help lists them"),
    Wrong("args", "nonsense", "'nonsense' is not an option; --help lists them"),
    Wrong("args", "--log-level", "--log-level needs a value"),
    Wrong("args", "--watchdog-ms=1", "watchdog_ms is 1: must be a whole number from 300"),
    Wrong("daemon", "food-daemon", "daemon is 'food-daemon': must be an absolute path"),
    Wrong("daemon", "/nowhere/daemon", "daemon is '/nowhere/daemon': no such file", INSTALLED),
    Wrong("daemon", "/etc/passwd", "daemon is '/etc/passwd': not a program", INSTALLED),
    Wrong("daemon", "/tmp", "daemon is '/tmp': not a program", INSTALLED),
)


@pytest.mark.parametrize("wrong", PARAMETERS, ids=lambda w: f"{w.parameter}={w.file or w.value!r:.40}")
def test_a_wrong_parameter_is_refused_by_name_and_ends_nothing_that_runs(
    node: RealNode, living: RealNode, wrong: Wrong
) -> None:
    config = node.directory / "food.toml"
    if wrong.file is not None:
        config.write_bytes(wrong.file.encode() if isinstance(wrong.file, str) else wrong.file)
        config.chmod(0o600)
    broken = {f"OCF_RESKEY_{wrong.parameter}": wrong.value.format(config=config)}
    refused(node, "validate-all", wrong.code, wrong.words, **broken)
    refused(node, "start", wrong.code, wrong.words, **broken)
    assert node("monitor", **broken) == NOT_RUNNING
    assert node("stop", **broken) == OK
    left_nothing(node)
    assert living("monitor", **broken) == PROMOTED, "a probe looks at no parameter"
    refused(living, "reload-agent", OK, "the new parameters were not taken over: ", **broken)
    assert wrong.words[:60] in living.reason


def test_what_outlived_the_table_of_parameters_stops_under_the_worst_of_them(living: RealNode) -> None:
    with living.client() as client:
        row = client.get(b"before")
        assert row and row.value == b"the table"
    broken = {f"OCF_RESKEY_{wrong.parameter}": wrong.value for wrong in PARAMETERS}
    assert living("stop", **broken) == OK
    left_nothing(living)


# --- What Pacemaker says, said wrongly ---


class Call(NamedTuple):
    fault: str
    argv: tuple[str, ...]
    code: int
    words: str
    environment: Mapping[str, str | None] = MappingProxyType({})  # None: not set at all


NAME = "OCF_RESOURCE_INSTANCE"
NO_NAME = "must be the resource's name"
CALLS = (
    Call("no name, start", ("start",), ARGUMENTS, f"{NAME} is '': {NO_NAME}", {NAME: None}),
    Call("no name, stop", ("stop",), ARGUMENTS, f"{NAME} is '': {NO_NAME}", {NAME: None}),
    Call("no name, meta-data", ("meta-data",), OK, "", {NAME: None}),
    Call("a slash in the name", ("monitor",), ARGUMENTS, f"{NAME} is '../food': {NO_NAME}", {NAME: "../food"}),
    Call("a name that begins with a dot", ("start",), ARGUMENTS, f"{NAME} is '..': {NO_NAME}", {NAME: ".."}),
    Call("nothing but an instance number", ("start",), ARGUMENTS, f"{NAME} is ':0': {NO_NAME}", {NAME: ":0"}),
    Call(
        "a name that begins with a hyphen",
        ("start",),
        ARGUMENTS,
        "id is '-rf': must be a resource's",
        {NAME: "-rf"},
    ),
    Call("a newline in the name", ("start",), ARGUMENTS, "id is 'fo\\nod': must be a", {NAME: "fo\nod"}),
    Call("a name of 65 bytes, start", ("start",), ARGUMENTS, "must be at most 64 bytes; use a", {NAME: "x" * 65}),
    Call("a name of 65 bytes, stop", ("stop",), OK, "", {NAME: "x" * 65}),
    Call(
        "a name of 300 bytes, start",
        ("start",),
        ARGUMENTS,
        "must be at most 64 bytes; use a",
        {NAME: "x" * 300},
    ),
    Call("a name of 300 bytes, probe", ("monitor",), NOT_RUNNING, "", {NAME: "x" * 300}),
    Call("a name of 300 bytes, stop", ("stop",), OK, "", {NAME: "x" * 300}),
    Call("a name of 300 bytes, reload", ("reload-agent",), OK, "must be at most 64 bytes", {NAME: "x" * 300}),
    Call("unknown action", ("frobnicate",), UNIMPLEMENTED, "unknown action 'frobnicate': one of start, stop, monitor"),
    Call("no action", (), UNIMPLEMENTED, "unknown action ''"),
    Call("two actions", ("start", "stop"), UNIMPLEMENTED, "unknown action 'start stop'"),
    Call("promote of what does not run", ("promote",), NOT_RUNNING, "the daemon is not running"),
    Call("a timeout that is no number", ("validate-all",), OK, "", {"OCF_RESKEY_CRM_meta_timeout": "soon"}),
    Call("a timeout of nothing", ("validate-all",), OK, "", {"OCF_RESKEY_CRM_meta_timeout": "0"}),
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.fault)
def test_a_wrong_call_is_answered_in_words(node: RealNode, call: Call) -> None:
    for name, value in call.environment.items():
        node.environment.pop(name, None)
        if value is not None:
            node.environment[name] = value
    node.run_dir.parent.mkdir()
    assert node(*call.argv) == call.code, node.errors
    assert call.words in node.reason and bool(call.words) == bool(node.reason)
    assert node.processes() == []


# --- A node that is not as it should be ---


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with something to lose."""
    found = RealNode(tmp_path_factory.mktemp("seed"))
    found.up()
    with found.client() as client:
        for number in range(20):
            client.put(b"key %d" % number, b"%d" % number * 500)
        time.sleep(FLUSH_MS / 1000 + 0.5)  # then the state tables hold it, too, and the session
        assert found("stop") == OK
    return found.data_dir


def is_whole(node: RealNode) -> None:
    with node.client() as client:
        assert len(client.range(b"key ", limit=100)) == 20
        assert client.put(b"after", b"the fault")


Fault = Callable[[RealNode], contextlib.AbstractContextManager[dict[str, str] | None]]


class Place(NamedTuple):
    fault: str
    make: Fault
    code: int
    words: str
    limit_ms: int = 6_000


@contextlib.contextmanager
def taken(node: RealNode, offset: int) -> Iterator[None]:
    with socket.create_server((ADDRESS, PORT + offset)):
        yield


def with_parameters(**parameters: str) -> Fault:
    @contextlib.contextmanager
    def make(node: RealNode) -> Iterator[dict[str, str]]:
        yield {f"OCF_RESKEY_{name}": value for name, value in parameters.items()}

    return make


@contextlib.contextmanager
def nodes_listed(node: RealNode, text: str, **parameters: str) -> Iterator[dict[str, str]]:
    with replaced(node.tools.directory / "nodelist", lambda path: path.write_text(text)):
        yield {f"OCF_RESKEY_{name}": value for name, value in parameters.items()}


@contextlib.contextmanager
def replaced(path: Path, how: Callable[[Path], object]) -> Iterator[None]:
    """Something else in the place of a file or directory; put back afterwards."""
    aside = path.with_name(path.name + ".aside")
    if there := path.exists():
        path.rename(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    how(path)
    yield
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    if there:
        aside.rename(path)


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A tmpfs of that kind over a directory, with the content of that."""
    if os.geteuid():
        pytest.skip("needs root, to mount")
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(path, kept, dirs_exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "food-test", path], check=True)
        try:
            shutil.copytree(kept, path, dirs_exist_ok=True)
            subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def full(node: RealNode) -> Iterator[None]:
    with mounted(node.data_dir, "size=4m"):
        fill(node.data_dir)
        yield


def fill(directory: Path) -> None:
    with contextlib.suppress(OSError), (directory / "filler").open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


@contextlib.contextmanager
def owned_by_another(node: RealNode) -> Iterator[None]:
    if os.geteuid():
        pytest.skip("needs root, to give a directory away")
    os.chown(node.data_dir, 12345, 12345)
    yield
    os.chown(node.data_dir, os.geteuid(), os.getegid())


def data(how: Callable[[Path], object], name: str = ".") -> Fault:
    return lambda node: replaced(node.data_dir / name, how)


def tool(name: str, how: Callable[[Path], object]) -> Fault:
    return lambda node: replaced(node.tools.directory / name, how)


def run(name: str, how: Callable[[Path], object]) -> Fault:
    return lambda node: replaced(node.run_dir / name, how)


ELSEWHERE = "nodelist.node.0.name (str) = n7\nnodelist.node.0.ring0_addr (str) = 10.0.0.7\n"
TWO = NODES.format("10.0.0.1") + "nodelist.node.1.name (str) = n2\nnodelist.node.1.ring0_addr (str) = 10.0.0.2\n"
OTHER_PROGRAM = "another program, or another resource's food, has that port: choose another `port`"
PLACES = (
    Place(
        "the log's port is taken", lambda n: taken(n, 0), GENERIC, f"cannot listen on {ADDRESS}:{PORT}: Address already"
    ),
    Place("the peers' port is taken", lambda n: taken(n, 1), GENERIC, OTHER_PROGRAM),
    Place("the clients' port is taken", lambda n: taken(n, 2), GENERIC, OTHER_PROGRAM),
    Place(
        "an address of another machine",
        with_parameters(address="192.0.2.1"),
        GENERIC,
        "cannot listen on 192.0.2.1:18600: Cannot assign requested address; that address is not one of this node's",
    ),
    Place(
        "a loopback address beside peers elsewhere",
        lambda n: nodes_listed(n, TWO, address=ADDRESS),
        GENERIC,
        "address is 127.0.3.1, which n2 (10.0.0.2) cannot reach",
    ),
    Place(
        "Corosync's list without this node",
        lambda n: nodes_listed(n, ELSEWHERE),
        GENERIC,
        "this node, n1, is not in Corosync's node list (n7)",
    ),
    Place("Corosync's list is empty", lambda n: nodes_listed(n, ""), GENERIC, "no usable node list from Cor", 2_500),
    Place(
        "Corosync does not run",
        lambda n: replaced(
            n.tools.directory / "fail.corosync-cmapctl", lambda p: p.write_text("Cannot connect to CMAP")
        ),
        GENERIC,
        "corosync-cmapctl: Cannot connect to CMAP",
        2_500,
    ),
    Place(
        "Corosync hangs",
        tool("hang.corosync-cmapctl", Path.touch),
        GENERIC,
        "corosync-cmapctl: no answer within 3 s",
        5_000,
    ),
    Place("a file in place of the data directory", data(Path.touch), PERMISSION, "it is no directory: move it away"),
    Place(
        "a dangling link in place of the data directory",
        data(lambda path: path.symlink_to("/nowhere")),
        PERMISSION,
        "it is no directory: move it away",
    ),
    Place(
        "a data directory under a file",
        with_parameters(data_dir="/etc/passwd/food"),
        PERMISSION,
        "directory /etc/passwd/food cannot be made ready: Not a directory",
    ),
    Place(
        "a data directory of another user",
        owned_by_another,
        PERMISSION,
        "belongs to another user: chown -R",
    ),
    Place(
        "a read-only file system",
        lambda n: mounted(n.data_dir, "ro"),
        PERMISSION,
        "Read-only file system",
    ),
    Place("a full file system", full, GENERIC, "food.db: database or disk is full: make room"),
    Place(
        "a file in place of the run directory",
        lambda n: replaced(n.run_dir, Path.touch),
        PERMISSION,
        "it is no directory",
    ),
    Place(
        "a file in place of all run directories",
        lambda n: replaced(n.run_dir.parent, Path.touch),
        PERMISSION,
        "it is no directory",
    ),
    Place(
        "a read-only run directory",
        lambda n: mounted(n.run_dir.parent, "ro"),
        PERMISSION,
        "Read-only file system",
    ),
    Place(
        "a link in place of the guardian's lock",
        run("guardian.lock", lambda path: path.symlink_to("/etc/passwd")),
        GENERIC,
        "guardian.lock",
    ),
    Place("a directory in place of a socket", run("control.sock", Path.mkdir), GENERIC, "control.sock"),
    Place("a directory in place of the store", data(Path.mkdir, "food.db"), GENERIC, "food.db"),
    Place(
        "a directory in place of its write-ahead log",
        data(Path.mkdir, "food.db-wal"),
        GENERIC,
        "food.db-wal: Is a directory",
    ),
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.fault)
def test_a_start_in_a_wrong_place_says_what_to_mend_and_works_once_it_is(
    node: RealNode, seed: Path, place: Place
) -> None:
    shutil.copytree(seed, node.data_dir)
    usual = node.environment
    with place.make(node) as parameters:
        node.environment = usual | (parameters or {}) | {START_MS: str(place.limit_ms)}
        refused(node, "start", place.code, place.words)
        assert node("stop") == OK
        left_nothing(node)
    node.environment = usual
    node.up()
    is_whole(node)
    assert node("stop") == OK
    left_nothing(node)


# --- A disk that fills ---


@contextlib.contextmanager
def small_disk(node: RealNode, mebibytes: int) -> Iterator[None]:
    with mounted(node.data_dir, f"size={mebibytes}m"):
        yield


def test_a_disk_that_fills_stops_writes_before_it_is_full_and_deletes_go_on(node: RealNode) -> None:
    """An eighth of 64 MiB is reserved. What was taken is there; nothing dies; room brings the writes back."""
    with small_disk(node, 64):
        node.up()
        with node.client() as client:
            written, why = 0, NoSpace()
            for _ in range(3):  # what the state tables are about to take counts as taken; then there is a little more
                with pytest.raises(NoSpace) as refusal:
                    while written < 1000:
                        client.put(b"%d" % written, bytes(100_000))
                        written += 1
                why = refusal.value
                time.sleep(1.2)
            assert re.search(r"^no space: \d MiB are left for \S+ on n1, 8 are reserved: make room there", str(why))
            assert not why.executed and 100 < written < 1000
            assert client.get(b"0") and client.get(b"%d" % (written - 1)) and not client.get(b"%d" % written)
            assert client.range(b"", limit=5)
            with pytest.raises(NoSpace):
                client.cas(b"0", 1, b"smaller, but who knows")
            assert node("monitor") == PROMOTED
            attribute = node.tools.directory / "attribute.food-state"
            eventually("crm_mon shows it", lambda: attribute.exists() and ", no space" in attribute.read_text(), 15)
            assert "MiB are left for" in node.report()["self"]["no_space"]
            for number in range(written):
                assert client.delete(b"%d" % number)
            eventually("writes again", lambda: not node.report()["self"]["no_space"])
            assert client.put(b"again", bytes(100_000))
        assert "there is space again" in node.log
        assert node("stop") == OK


def test_a_disk_filled_by_others_ends_the_daemon_with_a_reason_and_nothing_acknowledged_is_lost(node: RealNode) -> None:
    with small_disk(node, 64):
        node.up()
        with node.client(timeout_s=2) as client:
            client.put(b"before", b"v")
            fill(node.data_dir)
            acknowledged = []
            with pytest.raises(FoodError) as ended:
                for number in range(1000):
                    client.put(b"%d" % number, bytes(1_000_000))
                    acknowledged.append(number)
            assert isinstance(ended.value, OutcomeUnknown | NoSpace)
        eventually("its death", lambda: not node.pid(locks.DAEMON_LOCK))
        refused(node, "monitor", NOT_RUNNING, "database or disk is full: make room")
        assert node("demote") == OK and node("stop") == OK
        refused(node, "start", GENERIC, "database or disk is full: make room")
        assert node("stop") == OK
        left_nothing(node)
        (node.data_dir / "filler").unlink()
        node.up()
        with node.client() as client:
            assert client.get(b"before")
            assert all(client.get(b"%d" % number) for number in acknowledged)
        assert node("stop") == OK


# --- A store that cannot be trusted ---


class Damage(NamedTuple):
    fault: str
    to: Callable[[Path], object]
    code: int  # of the start
    words: str  # in the reason of a start that fails, else in the file `why` beside the store that was set aside
    killed: bool = False  # the daemon's end before it: everything is in the write-ahead log then


def sql(statement: str) -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        with contextlib.closing(sqlite3.connect(directory / "food.db")) as db:
            db.execute(statement)
            db.commit()

    return run


def overwritten(name: str, part: float, data: bytes) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        with (directory / name).open("r+b") as file:
            file.seek(int((directory / name).stat().st_size * part))
            file.write(data)

    return write


def cut(name: str, part: float) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / name, int((directory / name).stat().st_size * part))


def replaced_by(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(data)


def other_format(directory: Path) -> None:
    with contextlib.closing(Store(directory, "n1")) as store:
        store._put("format", 99)


NOISE = random.Random(4711).randbytes(65_536)
NOT_OURS = "food.db holds what food did not write: "
DAMAGES = (
    Damage(
        "a log row exchanged", sql("UPDATE log SET data = x'90'"), OK, NOT_OURS + "the checksum of log entries 1 to 1"
    ),
    Damage("a log row missing", sql("DELETE FROM log WHERE first = 5"), OK, NOT_OURS),
    Damage("keys changed", sql("UPDATE segments SET data = x'90'"), OK, "the checksum of segment 1 of the state"),
    Damage("keys missing", sql("DELETE FROM segments"), OK, "state hash"),
    Damage("a session exchanged", sql("UPDATE sessions SET data = x'93000090'"), OK, "the checksum of client session"),
    Damage(
        "a promise exchanged",
        sql("UPDATE meta SET value = x'9200a0' WHERE name = 'promise'"),
        OK,
        "checksum of promise",
    ),
    Damage("a number missing", sql("DELETE FROM meta WHERE name = 'commit'"), OK, NOT_OURS + "commit is missing"),
    Damage("a table missing", sql("DROP TABLE sessions"), OK, NOT_OURS + "no such table: sessions"),
    Damage("another program's database", sql("DROP TABLE meta"), OK, NOT_OURS + "no such table: meta"),
    Damage(
        "another format",
        other_format,
        GENERIC,
        "has format 99, this food reads 1 to 3: install the food that wrote it",
    ),
    Damage("the header overwritten", overwritten("food.db", 0, bytes(100)), OK, NOT_OURS + "file is not a database"),
    Damage("noise instead", replaced_by("food.db", NOISE), OK, NOT_OURS + "file is not a database"),
    Damage("cut in half", cut("food.db", 0.5), OK, NOT_OURS),
    Damage("noise inside", overwritten("food.db", 0.5, NOISE[:8192]), OK, NOT_OURS),
    Damage(
        "noise in the write-ahead log",
        overwritten("food.db-wal", 0.5, NOISE[:100]),
        OK,
        "food.db-wal: damaged at",
        True,
    ),
    Damage(
        "its header overwritten", overwritten("food.db-wal", 0, NOISE[:32]), OK, "food.db-wal: damaged at byte 0", True
    ),
)


@pytest.fixture(scope="module")
def killed_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = RealNode(tmp_path_factory.mktemp("killed"))
    found.up()
    with found.client() as client:
        for number in range(20):
            client.put(b"key %d" % number, b"%d" % number * 500)
    found.close()
    eventually("its end", lambda: not found.processes())
    return found.data_dir


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.fault)
def test_a_damaged_store_is_set_aside_whole_and_says_why(
    node: RealNode, seed: Path, killed_seed: Path, damage: Damage
) -> None:
    """The node goes on with a new store: empty, with an id that no member list knows."""
    shutil.copytree(killed_seed if damage.killed else seed, node.data_dir)
    damage.to(node.data_dir)
    before = {path.name: path.read_bytes() for path in node.data_dir.iterdir()}
    if damage.code != OK:
        refused(node, "start", damage.code, damage.words)
        assert not list(node.data_dir.glob("set-aside-*"))
    else:
        assert node("start") == OK, node.errors
        (aside,) = node.data_dir.glob("set-aside-*")
        assert damage.words in (aside / "why").read_text()
        assert f"the store was moved to {aside}; this node comes back as an empty learner" in node.log
        kept = {path.name: path.read_bytes() for path in aside.iterdir() if path.name != "why"}
        assert kept.get("food.db-wal", b"") == before.get("food.db-wal", b"") and kept["food.db"] == before["food.db"]
        assert node.report()["keys"] == 0 and node.report()["last"] == 0
    assert node("stop") == OK
    left_nothing(node)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


UNHARMED: dict[str, Callable[[Path], object]] = {
    "noise behind the write-ahead log": lambda path: append(path, NOISE),
    "a torn frame behind it": lambda path: append(path, path.read_bytes()[-2000:]),
    "killed": lambda path: None,
}


@pytest.mark.parametrize("fault", UNHARMED)
def test_what_only_a_crash_can_leave_costs_nothing(node: RealNode, killed_seed: Path, fault: str) -> None:
    shutil.copytree(killed_seed, node.data_dir)
    UNHARMED[fault](node.data_dir / "food.db-wal")
    node.up()
    is_whole(node)
    assert not list(node.data_dir.glob("set-aside-*"))


# --- A store in the wrong place ---


@contextlib.contextmanager
def three(directory: Path) -> Iterator[Cluster]:
    with Cluster(3, PORT + 10, environment={"FOOD_LOG_DIRECTORY": str(directory)}) as cluster:
        cluster.promote("n1")
        with Client(cluster.endpoints) as client:
            client.put(b"ours", b"v")
        yield cluster


def test_a_store_of_another_cluster_never_leads_this_one(tmp_path: Path, seed: Path) -> None:
    """It was founded by one node alone, so that it needs nobody else's word."""
    with three(tmp_path) as cluster:
        n1, _, n3 = cluster
        n3.kill(signal.SIGTERM)
        shutil.rmtree(n3.data_dir)
        shutil.copytree(seed, n3.data_dir)
        n3.start()
        words = "this store is of another cluster than that of n1, n2"
        wait(lambda: words in n3.request("status")["status"], 10, "n3 does not say so")
        assert n3.score is None
        answer = n3.request("promote")
        assert answer["rc"] == GENERIC and words in answer["reason"]
        assert "'n3', which belongs to another cluster" in (tmp_path / "food.log").read_text()
        assert n1.request("demote")["rc"] == OK
        cluster.promote("n2")
        with Client(cluster.endpoints) as client:
            assert client.get(b"ours") and not client.get(b"key 1")
            assert client.put(b"ours", b"w")


def test_of_a_copied_store_only_one_goes_on(tmp_path: Path) -> None:
    with three(tmp_path) as cluster:
        _, n2, n3 = cluster
        for node in (n2, n3):
            node.kill(signal.SIGTERM)
        shutil.rmtree(n3.data_dir)
        shutil.copytree(n2.data_dir, n3.data_dir)
        n2.start()
        n3.start()
        wait(lambda: n2.exiting or n3.exiting, 10, "both go on")
        loser, winner = (n2, n3) if n2.exiting else (n3, n2)
        assert "this store was rolled back or copied: n1 saw a start 2 that this disk does not know" in str(
            loser.exiting
        )
        assert winner.alive and len(list(loser.data_dir.glob("set-aside-*/food.db"))) == 1
        loser.kill()  # dead, but not yet buried
        loser.start()
        words = "learner: this store is not in member list 1"
        wait(lambda: words in loser.request("status")["status"], 10, "it is no learner")
        assert loser.score is None
        with Client(cluster.endpoints) as client:
            assert client.get(b"ours") and client.put(b"ours", b"w")


# --- Pacemaker's tools, and clocks ---


TOOLS = (
    (
        "crm_master fails",
        "fail.crm_master",
        "Error performing operation: Transport endpoint",
        "writing the promotion score failed",
    ),
    ("crm_master hangs", "hang.crm_master", "", "crm_master: no answer within 3 s"),
    (
        "attrd_updater fails",
        "fail.attrd_updater",
        "Could not connect to attrd",
        "writing node attributes failed: attrd_updater: Co",
    ),
)


@pytest.mark.parametrize(("fault", "file", "text", "words"), TOOLS, ids=[row[0] for row in TOOLS])
def test_a_tool_of_pacemakers_that_does_not_work_holds_nothing_up_for_good(
    node: RealNode, fault: str, file: str, text: str, words: str
) -> None:
    node.environment[START_MS] = "5000"
    with replaced(node.tools.directory / file, lambda path: path.write_text(text)):
        node.up()
        assert node("monitor") == PROMOTED
        with node.client() as client:
            assert client.put(b"k", b"v")
        eventually("the log's word on it", lambda: words in node.log, 15)
    eventually("it works again", lambda: "works again after" in node.log, 20)
    assert node.tools.score == "1000"
    assert node("stop") == OK
    left_nothing(node)


NO_KEYS = ("--plaintext", "insecure-no-keys")


def as_another_user(arguments: list[str]) -> tuple[int, str]:
    """The command `food` in a process without root's rights: (exit status, standard error)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stderr = os.fdopen(writing, "w")
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        code = guardian.main(arguments)
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_without_root_no_other_users_daemon_is_started() -> None:
    code, text = as_another_user(["--id", "food", "--user", "root", "--check", *NO_KEYS])
    assert (code, text) == (PERMISSION, "must be root to run the daemon as user 'root'\n")


def test_a_run_directory_that_is_not_ours_to_write_is_named() -> None:
    user = pwd.getpwuid(os.geteuid() or 65534).pw_name
    code, text = as_another_user(["--id", "food", "--user", user, "--run-dir", "/proc/food", *NO_KEYS])
    assert code == PERMISSION and "directory /proc/food cannot be made ready: " in text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a time namespace")
def test_a_monotonic_clock_that_begins_anew_costs_nothing(node: RealNode, seed: Path) -> None:
    """As after a restart of the machine: three years, then none, then three years again."""
    shutil.copytree(seed, node.data_dir)
    command = node.environment["FOOD_COMMAND"]
    later = node.directory / "later"
    later.write_text(f'#!/bin/sh\nexec unshare --time --monotonic 100000000 {command} "$@"\n')
    later.chmod(0o755)
    for number, name in enumerate((str(later), command, str(later)), 1):
        node.environment["FOOD_COMMAND"] = name
        node.up()
        is_whole(node)
        assert node.report()["epoch"][0] == number + 1
        assert node("stop") == OK
    left_nothing(node)


def test_no_clock_of_the_day_decides_anything() -> None:
    """It may be set back or forward: only log lines and the name of a store that was set aside tell it."""
    found = set()
    for path in [*(ROOT / "food").rglob("*.py"), AGENT]:
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.Attribute) and part.attr in ("time", "time_ns", "strftime", "localtime", "gmtime"):
                found.add((path.name, ast.unparse(part)))
            names = [alias.name for alias in part.names] if isinstance(part, ast.Import | ast.ImportFrom) else []
            assert "datetime" not in names
    assert found == {
        ("journal.py", "time.time"),
        ("journal.py", "time.strftime"),
        ("daemon.py", "time.strftime"),
        ("food", "time.strftime"),
    }


# --- What is installed ---

SHADOW = """import sys
here = sys.path.pop(0)
del sys.modules[__name__]
real = __import__(__name__)
sys.path.insert(0, here)
real.{}
"""
PACKAGES = "install python3-zmq, python3-msgpack and python3-sortedcontainers on Debian"


class Lacking(NamedTuple):
    fault: str
    module: str
    text: str | None  # of what stands in the module's place; None: it is not there
    words: str


LACKINGS = (
    Lacking("pyzmq is missing", "zmq", None, f"lacks zmq: {PACKAGES}"),
    Lacking("msgpack is missing", "msgpack", None, f"lacks msgpack: {PACKAGES}"),
    Lacking("sortedcontainers is missing", "sortedcontainers", None, f"lacks sortedcontainers: {PACKAGES}"),
    Lacking("pyzmq is broken", "zmq", "raise ImportError('libzmq.so.5 is gone')", "ImportError: libzmq.so.5 is gone"),
    Lacking("pyzmq is too old", "zmq", SHADOW.format("pyzmq_version_info = lambda: (22, 3, 0)"), "pyzmq 22.3.0 of "),
    Lacking(
        "msgpack is too old", "msgpack", SHADOW.format("version = (0, 6, 2)"), "is too old: install 1.0.3 or newer"
    ),
)


@pytest.mark.parametrize("lacking", LACKINGS, ids=lambda lacking: lacking.fault)
def test_what_is_not_installed_is_named_with_the_package(node: RealNode, lacking: Lacking) -> None:
    command, tree = Path(node.environment["FOOD_COMMAND"]), node.directory / "tree"
    whole = command.read_text()
    tree.mkdir()
    (tree / "food").symlink_to(ROOT / "food")
    if lacking.text is None:
        command.write_text(whole.replace("import sys\n", f"import sys\nsys.modules[{lacking.module!r}] = None\n"))
    else:
        (tree / f"{lacking.module}.py").write_text(lacking.text)
        command.write_text(whole.replace(repr(str(ROOT)), repr(str(tree))))
    refused(node, "start", INSTALLED, lacking.words)
    assert node("stop") == OK
    left_nothing(node)
    command.write_text(whole)
    assert node("start") == OK, node.errors
    assert node("stop") == OK


def test_the_agent_names_the_module_that_it_lacks_and_still_stops(node: RealNode) -> None:
    assert node("start") == OK
    argv = [sys.executable, "-ESs", str(AGENT)]  # -S: without site-packages
    for action, code in (("monitor", INSTALLED), ("promote", INSTALLED), ("demote", INSTALLED), ("stop", OK)):
        done = subprocess.run([*argv, action], env=node.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("lacks msgpack: install python3-msgpack, or its like" in done.stderr) == (code == INSTALLED)
    left_nothing(node)


def test_an_old_python_is_refused_by_the_installer(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(sys.version_info < (3, 11))` ends with there
    python.chmod(0o755)
    argv = [str(ROOT / "deploy" / "install"), "--python", str(python)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    words = "must be run as root" if os.geteuid() else f"{python} is older than 3.11: use --python"
    assert words in done.stderr
