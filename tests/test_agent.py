"""The agent as a process, with the real guardian under it, a stand-in for the daemon and for the cluster's tools.

Golden frames (golden/control.json) pin the requests here and, in the daemon's own tests, the other side.
FOOD_REWRITE_GOLDEN=1 rewrites the requests.
"""

from __future__ import annotations

import ast
import json
import os
import pwd
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgpack
import pytest
from fake_tools import FakeTools, eventually, write_secret

from food import locks

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "agent" / "food"
GOLDEN = Path(__file__).resolve().parent / "golden" / "control.json"
PYTHON_ANYWHERE = [sys.executable, "-Es"]  # the first line names the system's Python; tests run with their own


class Node:
    """What Pacemaker is to the agent: environment and arguments in, exit status and standard error out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tools = FakeTools(directory / "tools")
        self.run_dir = directory / "run" / "food"
        command = directory / "food"
        lines = [f"#!{sys.executable} -Es", "import sys", f"sys.path.insert(0, {str(ROOT)!r})"]
        lines += ["from food.guardian import main", "sys.exit(main())"]
        command.write_text("\n".join(lines))
        command.chmod(0o755)
        self.environment = {
            **self.tools.environment(),
            "FOOD_COMMAND": str(command),
            "FOOD_RUN_DIR": str(directory / "run"),
            "FAKE_DAEMON": "agent",
            "OCF_RESOURCE_INSTANCE": "food",
            "OCF_RESKEY_data_dir": str(directory / "data"),
            "OCF_RESKEY_user": pwd.getpwuid(os.geteuid()).pw_name,
            "OCF_RESKEY_key_file": str(write_secret(directory / "secret")),
            "OCF_RESKEY_daemon": str(ROOT / "tests" / "fake_daemon.py"),
            "OCF_RESKEY_CRM_meta_timeout": "20000",
            "OCF_RESKEY_CRM_meta_on_node": "n1",
        }
        self.program = [*PYTHON_ANYWHERE, str(AGENT)]
        self.errors = ""
        self.took_s = 0.0

    def __call__(self, *action: str, **environment: str) -> int:
        argv = [*self.program, *action]
        begin = time.monotonic()
        done = subprocess.run(
            argv, env={**self.environment, **environment}, capture_output=True, text=True, check=False, timeout=60
        )
        self.took_s, self.errors = time.monotonic() - begin, done.stderr
        self.output = done.stdout
        return done.returncode

    @property
    def reason(self) -> str:
        found = re.findall(r"^ocf-exit-reason:(.*)$", self.errors, re.MULTILINE)
        return str(found[-1]) if found else ""

    def replies(self, **by_action: dict[str, Any] | str | None) -> None:
        (self.run_dir / "replies").write_text(json.dumps(by_action))

    def say(self, *packets: dict[str, Any]) -> None:
        with (self.run_dir / "say").open("a") as file:
            file.write("".join(json.dumps(packet) + "\n" for packet in packets))

    def asked(self, action: str) -> list[bytes]:
        frames = [bytes.fromhex(line) for line in (self.run_dir / "asked").read_text().splitlines()]
        return [frame for frame in frames if msgpack.unpackb(frame)["action"] == action]

    def pid(self, lock: str) -> int | None:
        return locks.holder(str(self.run_dir / lock))

    def kill(self, lock: str, number: int = signal.SIGKILL) -> None:
        pid = self.pid(lock)
        assert pid
        os.kill(pid, number)
        if number == signal.SIGKILL:
            eventually("it is dead", lambda: self.pid(lock) is None)

    def close(self) -> None:
        for lock in (locks.GUARDIAN_LOCK, locks.DAEMON_LOCK):
            if pid := self.pid(lock):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    found.close()


def role(rc: int, reason: str = "") -> dict[str, Any]:
    return {"v": 1, "rc": rc, "reason": reason, "role": "backup"}


# Start, stop, monitor


def test_start_ends_when_a_monitor_would_succeed_and_stop_when_it_would_not(node: Node) -> None:
    assert node("monitor") == 7
    assert node("start") == 0, node.errors
    assert node("monitor") == 0
    assert node("start") == 0, "idempotent"
    assert node("stop") == 0
    assert node.pid(locks.GUARDIAN_LOCK) is None and node.pid(locks.DAEMON_LOCK) is None
    assert node("monitor") == 7
    assert node("stop") == 0, "idempotent"


def test_the_instance_number_of_a_unique_clone_is_not_part_of_the_name(node: Node) -> None:
    assert node("start", OCF_RESOURCE_INSTANCE="food:1") == 0
    assert node.pid(locks.DAEMON_LOCK)


def test_a_unique_clone_is_refused_with_the_remedy(node: Node) -> None:
    """Its scores would have the instances' numbers in their names: it would never be promoted, and nobody told why."""
    unique = {"OCF_RESOURCE_INSTANCE": "food:1", "OCF_RESKEY_CRM_meta_globally_unique": "true"}
    assert node("start", **unique) == 6
    assert "set it to false on the clone" in node.reason
    assert node("stop", **unique) == 0
    assert node("monitor", **unique) == 7


def test_the_guardian_holds_none_of_the_agents_pipes(node: Node) -> None:
    """execd reads the agent's output to its end."""
    begin = time.monotonic()
    assert node("start") == 0
    assert time.monotonic() - begin < 10


def test_a_guardian_whose_start_was_killed_does_not_come_up(node: Node) -> None:
    """The stop that follows may have come before it held its lock, and found nothing to end."""
    words = [node.environment["FOOD_COMMAND"], "--id", "food", "--run-dir", str(node.run_dir), "--node", "n1"]
    for name in ("data_dir", "user", "key_file", "daemon"):
        words += [f"--{name.replace('_', '-')}", node.environment[f"OCF_RESKEY_{name}"]]
    reading, writing = os.pipe()
    os.close(reading)  # the agent's end
    with subprocess.Popen(words, env=node.environment, stderr=writing) as guardian:
        os.close(writing)
        assert guardian.wait(10)
    assert node.pid(locks.GUARDIAN_LOCK) is None and node.pid(locks.DAEMON_LOCK) is None
    assert not (node.run_dir / "attributes").exists()


@pytest.mark.parametrize(
    ("answer", "plain", "degraded"),
    [(0, 0, 0), (8, 8, 8), (9, 9, 9), (190, 0, 190), (191, 8, 191), (1, 1, 1), (5, 1, 1)],
)
def test_monitor_translates_the_answer(node: Node, answer: int, plain: int, degraded: int) -> None:
    assert node("start") == 0
    node.replies(monitor=role(answer, "some reason"))
    assert node("monitor") == plain
    assert node("monitor", OCF_RESKEY_degraded="true") == degraded
    assert (node.reason != "") == (degraded not in (0, 8))


def test_monitor_of_a_killed_daemon_says_why(node: Node) -> None:
    assert node("start") == 0
    node.say({"role": "backup"})
    time.sleep(0.2)
    node.kill(locks.DAEMON_LOCK)
    assert node("monitor") == 7
    assert "killed by signal 9" in node.reason


def test_a_monitor_does_not_fail_a_dead_primary_whose_role_is_being_moved(node: Node) -> None:
    """It would be restarted before another node is promoted: the failover would wait for that."""
    assert node("start", OCF_RESKEY_watchdog_ms="1000") == 0
    node.say({"role": "primary"})
    time.sleep(0.2)
    node.kill(locks.DAEMON_LOCK, signal.SIGSTOP)
    recurring = {"OCF_RESKEY_CRM_meta_interval": "10000"}
    assert node("monitor", **recurring) == 8, "it hung with the daemon, and sees it killed"
    assert node("monitor", **recurring) == 8
    assert node("monitor") == 7, "a probe"
    assert node("demote") == 0
    assert node("monitor", **recurring) == 7
    assert "stood still" in node.reason


def test_a_monitor_fails_a_dead_primary_whose_role_did_not_move(node: Node) -> None:
    assert node("start") == 0
    node.say({"role": "primary"})
    time.sleep(0.2)
    node.kill(locks.DAEMON_LOCK)
    eventually("it is reported", lambda: node.tools.calls("crm_resource --fail"), 6)
    assert node("monitor", OCF_RESKEY_CRM_meta_interval="10000") == 7
    assert "killed by signal 9" in node.reason


def test_an_instance_that_was_not_restarted_for_new_parameters_is_found_by_its_monitor(node: Node) -> None:
    assert node("start", OCF_RESKEY_port="9300") == 0
    changed = {"OCF_RESKEY_CRM_meta_interval": "10000", "OCF_RESKEY_port": "9400", "OCF_RESKEY_watchdog_ms": "2000"}
    assert node("monitor", **changed) == 1
    assert "it still runs with --port 9300" in node.reason
    assert node("monitor", **{**changed, "OCF_RESKEY_port": "9300"}) == 0, "watchdog_ms needs no restart"
    assert node("monitor", OCF_RESKEY_port="abc") == 0, "a probe survives any configuration"


def test_monitor_of_a_daemon_that_does_not_answer_ends_in_time(node: Node) -> None:
    assert node("start") == 0
    node.replies(monitor=None)
    assert node("monitor", OCF_RESKEY_CRM_meta_timeout="2000") == 1
    assert node.took_s < 2.0
    assert "did not answer monitor" in node.reason


@pytest.mark.parametrize("frame", ["", "c1", "80", "a178", "81a27263a178", "82a2726300a6726561736f6ec0"])
def test_an_answer_that_is_not_understood_is_an_error(node: Node, frame: str) -> None:
    assert node("start") == 0
    node.replies(monitor=frame)
    assert node("monitor") == 1
    assert "not understood" in node.reason


def test_start_of_a_daemon_that_dies_gives_its_reason_and_the_next_start_works(node: Node) -> None:
    assert node("start", FAKE_DAEMON="dies") == 1
    assert "made of cheese" in node.reason
    assert node("stop") == 0
    assert node("start") == 0, node.errors


def test_start_waits_until_the_daemon_is_ready(node: Node) -> None:
    node.run_dir.mkdir(parents=True)
    node.replies(monitor=role(1, "still reading"))
    assert node("start", OCF_RESKEY_CRM_meta_timeout="3000") == 1
    assert "still reading" in node.reason and node.took_s < 3.0
    node.replies()
    assert node("start") == 0


def test_start_clears_away_half_of_an_earlier_life(node: Node) -> None:
    assert node("start") == 0
    node.say({"role": "primary"})
    time.sleep(0.2)
    node.kill(locks.DAEMON_LOCK)
    assert node.pid(locks.GUARDIAN_LOCK), "waits for the role to move"
    assert node("start") == 0
    assert node("monitor") == 0


def test_start_ends_unpromoted(node: Node) -> None:
    assert node("start") == 0
    node.replies(monitor=role(8))
    assert node("start") == 0
    assert node.asked("demote")


def test_stop_kills_what_does_not_end(node: Node) -> None:
    assert node("start") == 0
    for lock in (locks.DAEMON_LOCK, locks.GUARDIAN_LOCK):
        node.kill(lock, signal.SIGSTOP)
    assert node("stop", OCF_RESKEY_CRM_meta_timeout="4000") == 0
    assert node.took_s < 4.0
    assert node("monitor") == 7


def test_stop_removes_the_score_that_a_killed_guardian_left(node: Node) -> None:
    assert node("start") == 0
    node.say({"order": 1, "score": 100, "why": "test"})
    eventually("score", lambda: node.tools.score == "100")
    node.kill(locks.GUARDIAN_LOCK)
    eventually("daemon gone", lambda: node.pid(locks.DAEMON_LOCK) is None)
    assert node("monitor") == 7 and "killed?" in node.reason
    assert node("stop") == 0
    assert node.tools.score is None


@pytest.mark.parametrize("healed", [True, False])
def test_a_stop_tries_again_what_could_not_be_cleared_and_says_what_may_be_left(node: Node, healed: bool) -> None:
    assert node("start") == 0
    node.say({"order": 1, "score": 100, "why": "test"})
    eventually("score", lambda: node.tools.score == "100")
    node.kill(locks.GUARDIAN_LOCK)
    broken = node.tools.directory / "fail.crm_master"
    broken.write_text("attrd does not answer")
    if healed:
        threading.Timer(3.0, broken.unlink).start()
    assert node("stop", OCF_RESKEY_CRM_meta_timeout="8000") == 0
    assert node.took_s < 8
    assert (node.tools.score is None) == healed
    assert ("score and attributes may be left" in node.errors) != healed


BROKEN = {"OCF_RESKEY_port": "many", "OCF_RESKEY_config": "/nowhere", "OCF_RESKEY_args": "'", "OCF_RESKEY_user": "x y"}


def test_stop_and_probe_survive_a_broken_configuration(node: Node) -> None:
    assert node("monitor", **BROKEN) == 7
    assert node("start") == 0
    assert node("monitor", **BROKEN) == 0
    assert node("stop", **BROKEN) == 0


@pytest.mark.parametrize(
    ("name", "value", "status", "words"),
    [
        ("port", "many", 2, "port is 'many': must be a whole number"),
        ("args", "'", 2, "args"),
        ("args", "--nonsense", 2, "not an option"),
        ("config", "/nowhere", 2, "cannot be read"),
        ("user", "nobody-at-all", 5, "does not exist"),
    ],
)
def test_a_bad_parameter_is_named(node: Node, name: str, value: str, status: int, words: str) -> None:
    for action in ("validate-all", "start"):
        assert node(action, **{f"OCF_RESKEY_{name}": value}) == status, action
        assert words in node.reason


def test_validate_all_starts_nothing(node: Node) -> None:
    assert node("validate-all") == 0
    assert not node.run_dir.exists()


# Promote, demote, notify, reload


def test_promote_and_demote_ask_the_daemon_and_hand_its_reason_on(node: Node) -> None:
    assert node("start") == 0
    assert node("promote") == 0 and node("demote") == 0
    node.replies(promote=role(1, "no answer from n2, n3"), demote=role(1, "disk"))
    assert node("promote") == 1 and node.reason == "no answer from n2, n3"
    assert node("demote") == 1 and node.reason == "disk"


def test_promote_of_a_dead_daemon_fails_at_once(node: Node) -> None:
    assert node("promote") == 7
    assert node.took_s < 2


def test_promote_notices_a_death_before_its_budget_ends(node: Node) -> None:
    assert node("start") == 0
    node.replies(promote=None)
    node.say({"role": "candidate"})
    time.sleep(0.2)
    argv = [*PYTHON_ANYWHERE, str(AGENT), "promote"]
    process = subprocess.Popen(argv, env=node.environment, stderr=subprocess.PIPE, text=True)
    eventually("asked", lambda: node.asked("promote"))
    node.kill(locks.DAEMON_LOCK)
    assert process.wait(3) == 7
    assert process.stderr is not None
    assert "killed by signal 9" in process.stderr.read()
    process.stderr.close()


def test_demote_of_a_dead_daemon_is_done_at_once_and_leaves_its_mark(node: Node) -> None:
    assert node("start") == 0
    node.say({"role": "primary"})
    time.sleep(0.2)
    node.kill(locks.DAEMON_LOCK)
    assert node("demote") == 0
    assert node.took_s < 1
    assert (node.run_dir / "demoted").exists()
    assert node("stop") == 0
    assert node("demote") == 0, "also when everything is gone"


def test_a_stopped_daemon_holds_its_lock_and_demote_waits_for_it(node: Node) -> None:
    assert node("start", OCF_RESKEY_watchdog_ms="60000") == 0
    node.kill(locks.DAEMON_LOCK, signal.SIGSTOP)
    assert node("demote", OCF_RESKEY_CRM_meta_timeout="1000") == 1


def test_notify_never_fails_and_never_waits(node: Node) -> None:
    assert node("notify") == 0
    assert node("start") == 0
    node.replies(notify=None)
    assert node("notify") == 0
    assert node.took_s < 1
    eventually("heard all the same", lambda: node.asked("notify"))


def test_reload_never_fails(node: Node) -> None:
    assert node("reload-agent") == 0, "a status other than 0 bans the node"
    assert node("start") == 0
    assert node("reload-agent", OCF_RESKEY_watchdog_ms="2000") == 0
    assert node("reload-agent", OCF_RESKEY_watchdog_ms="1") == 0
    assert "watchdog_ms is 1" in node.reason
    node.replies(reload=role(1, "no"))
    assert node("reload") == 0 and "not taken over" in node.reason


# Golden frames

NOTIFY = {
    "OCF_RESKEY_CRM_meta_notify_type": "post",
    "OCF_RESKEY_CRM_meta_notify_operation": "promote",
    "OCF_RESKEY_CRM_meta_notify_promote_uname": "n2",
    "OCF_RESKEY_CRM_meta_notify_demote_uname": " ",
    "OCF_RESKEY_CRM_meta_notify_promoted_uname": "n1",
    "OCF_RESKEY_CRM_meta_notify_slave_uname": "n2 n3 ",
    "OCF_RESKEY_CRM_meta_notify_available_uname": "n1 n2 n3",
}
FRAMES: dict[str, tuple[str, dict[str, str]]] = {
    "monitor": ("monitor", {"OCF_RESKEY_CRM_meta_interval": "10000", "OCF_RESKEY_key_file": ""}),
    "probe": ("monitor", {}),
    "promote": ("promote", {}),
    "demote": ("demote", {}),
    "notify": ("notify", NOTIFY),
    "reload": (
        "reload-agent",
        {
            "OCF_RESKEY_watchdog_ms": "2000",
            "OCF_RESKEY_degraded": "true",
            "OCF_RESKEY_key_file": "",
            "OCF_RESKEY_plaintext": "insecure-no-keys",
        },
    ),
}


def test_requests_are_the_golden_frames(node: Node) -> None:
    """But for timeout_ms, which is what was left of the budget and set to 1000 here."""
    assert node("start") == 0
    found = {}
    for name, (action, environment) in FRAMES.items():
        before = len(node.asked(action.split("-")[0]))
        assert node(action, **environment) == 0
        frames = eventually("asked", lambda a=action, b=before: node.asked(a.split("-")[0])[b:])
        request = msgpack.unpackb(frames[0])
        assert 0 < request["timeout_ms"] <= 19_000
        found[name] = {"request": request | {"timeout_ms": 1000}}
        found[name]["hex"] = msgpack.packb(found[name]["request"]).hex()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("FOOD_REWRITE_GOLDEN"):
        golden["requests"] = found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert found == golden["requests"]


def test_golden_replies_are_understood(node: Node) -> None:
    assert node("start") == 0
    for name, golden in json.loads(GOLDEN.read_text())["replies"].items():
        assert msgpack.packb(golden["reply"]).hex() == golden["hex"], name
        node.replies(monitor=golden["hex"])
        assert node("monitor", OCF_RESKEY_degraded="1") == golden["reply"]["rc"], name


# The agent itself


def test_unknown_action_and_usage(node: Node) -> None:
    assert node("frobnicate") == 3 and "unknown action" in node.reason
    assert node("usage") == 0 and "validate-all" in node.output


def test_the_reasons_prefix_is_pacemakers(node: Node) -> None:
    assert node("frobnicate", OCF_EXIT_REASON_PREFIX="why:") == 3
    assert node.errors.startswith("why:unknown action")


def test_a_missing_import_is_not_installed(node: Node, tmp_path: Path) -> None:
    assert node("start") == 0
    environment = dict(node.environment)
    argv = [sys.executable, "-ESs", str(AGENT), "monitor"]  # -S: without site-packages
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "lacks" in done.stderr and "install python3-" in done.stderr


def test_any_other_error_is_1_with_a_reason(node: Node) -> None:
    deep = node.directory / ("x" * 100)
    (deep / "food").mkdir(parents=True)
    lock = locks.take(str(deep / "food" / locks.DAEMON_LOCK))  # the path is too long for a socket
    assert node("monitor", FOOD_RUN_DIR=str(deep)) == 1
    os.close(lock)
    assert "agent, monitor: ZMQError" in node.reason


def test_metadata_is_complete(node: Node) -> None:
    assert node("meta-data", OCF_RESOURCE_INSTANCE="") == 0
    root = ElementTree.fromstring(node.output)
    assert root.findtext("version") == "1.1"
    parameters = {item.get("name"): item for item in root.iter("parameter")}
    assert parameters["port"].get("unique") == "1"
    live = {name for name, item in parameters.items() if item.get("reloadable") == "1"}
    assert live == {"client_addresses", "key_file", "plaintext", "watchdog_ms", "isolation_ms", "degraded", "log_level"}
    assert all(item.findtext("longdesc") and item.findtext("shortdesc") for item in parameters.values())
    intervals = [item.get("interval") for item in root.iter("action") if item.get("name") == "monitor"]
    assert len(set(intervals)) == 2
    offered = {item.get("name") for item in root.iter("action")}
    assert offered >= {"start", "stop", "promote", "demote", "notify", "reload-agent", "validate-all", "meta-data"}


def test_metadata_and_settings_agree() -> None:
    from food import settings

    namespace: dict[str, Any] = {"__name__": "agent"}
    exec(compile(AGENT.read_text(), str(AGENT), "exec"), namespace)
    for name, _, default, _, reloadable, *_ in namespace["PARAMETERS"]:
        if name == "args":
            continue
        parameter = settings.BY_NAME[name]
        assert reloadable == parameter.reloadable, name
        assert default == ("" if parameter.default is None else str(parameter.default).lower()), name
    assert set(namespace["RELOADABLE"]) == set(settings.RELOADABLE)


def test_the_agent_stands_alone() -> None:
    tree = ast.parse(AGENT.read_text())
    top = {alias.name for item in tree.body if isinstance(item, ast.Import) for alias in item.names}
    assert top == {"fcntl", "os", "sys", "time"}, "what every action pays for"
    every = {alias.name for item in ast.walk(tree) if isinstance(item, ast.Import) for alias in item.names}
    assert not [name for name in every if name.startswith("food")]
    assert not [item for item in ast.walk(tree) if isinstance(item, ast.ImportFrom)]


def test_a_monitor_costs_little_more_than_its_imports(node: Node) -> None:
    """The whole process, in turn with `python -c "import zmq, msgpack"`: at most 1.6 times as long."""
    assert node("start") == 0
    ours: list[float] = []
    imports: list[float] = []
    for _ in range(20):
        for argv, times in (
            ([*PYTHON_ANYWHERE, str(AGENT), "monitor"], ours),
            ([sys.executable, "-c", "import zmq, msgpack"], imports),
        ):
            begin = time.perf_counter()
            subprocess.run(argv, env=node.environment, check=True, capture_output=True)
            times.append(time.perf_counter() - begin)
    assert statistics.median(ours) <= 1.6 * statistics.median(imports)


def test_metadata_is_well_formed(node: Node) -> None:
    assert node("meta-data") == 0
    subprocess.run(["xmllint", "--noout", "-"], input=node.output, text=True, check=True)
