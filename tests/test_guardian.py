"""The guardian as a process: a real fork, pipe, locks and signals; the daemon and the cluster's tools are stand-ins."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_tools import FakeTools, eventually, write_secret

from food import locks, settings
from food.keys import derive
from food.nodebook import NodeBook
from food.pacemaker import read_node_list

ROOT = Path(__file__).resolve().parent.parent
DAEMON = ROOT / "tests" / "fake_daemon.py"


class Guarded:
    """A guardian's directory, and the guardian."""

    def __init__(self, directory: Path) -> None:
        self.tools = FakeTools(directory / "tools")
        self.run_dir = directory / "run"
        self.arguments = ["--id", "food", "--run-dir", str(self.run_dir), "--data-dir", str(directory / "data")]
        self.secret = write_secret(directory / "secret")
        self.arguments += ["--key-file", str(self.secret)]
        self.arguments += ["--user", pwd.getpwuid(os.geteuid()).pw_name, "--daemon", str(DAEMON)]
        self.directory = directory
        self.environment = {**os.environ, **self.tools.environment(), "PYTHONPATH": str(ROOT)}
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str, **environment: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "food.guardian", *self.arguments, *more]
        self.process = subprocess.Popen(
            argv, env={**self.environment, **environment}, stderr=subprocess.PIPE, text=True, cwd=self.directory
        )
        return self.process

    def up(self, role: str = "backup", score: int | None = 100, *more: str) -> Guarded:
        self.start(*more)
        eventually("hello", self.heard)
        self.say({"role": role}, {"order": 1, "score": score, "why": "test", "unless_alone": False})
        eventually("score", lambda: self.tools.score == (None if score is None else str(score)))
        eventually("order answered", lambda: {"done": 1, "error": None} in self.heard())
        return self

    def say(self, *packets: dict[str, Any]) -> None:
        with (self.run_dir / "say").open("a") as file:
            file.write("".join(json.dumps(packet) + "\n" for packet in packets))

    def heard(self) -> list[dict[str, Any]]:
        path = self.run_dir / "heard"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pid(self, lock: str) -> int | None:
        return locks.holder(str(self.run_dir / lock))

    @property
    def daemon_pid(self) -> int:
        pid = self.pid(locks.DAEMON_LOCK)
        assert pid
        return pid

    @property
    def reason(self) -> str:
        path = self.run_dir / "reason"
        return path.read_text() if path.exists() else ""

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()
            eventually("no orphan", lambda: self.pid(locks.DAEMON_LOCK) is None)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    found = Guarded(tmp_path)
    yield found
    found.close()


def ended(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


def test_hello_carries_settings_and_nodes(guarded: Guarded) -> None:
    guarded.start("--port", "7000", "--watchdog-ms", "2000")
    hello = eventually("hello", guarded.heard)[0]["hello"]
    assert (hello["node"], hello["nodes"]) == ("n1", {"n1": "10.0.0.1", "n2": "10.0.0.2"})
    assert (hello["settings"]["port"], hello["settings"]["watchdog_ms"]) == (7000, 2000)
    assert guarded.pid(locks.GUARDIAN_LOCK) == guarded.process.pid  # type: ignore[union-attr]
    assert ended(guarded.daemon_pid)() is False


def test_own_address_replaces_only_this_nodes(guarded: Guarded) -> None:
    guarded.start("--address", "192.168.7.1")
    assert eventually("hello", guarded.heard)[0]["hello"]["nodes"] == {"n1": "192.168.7.1", "n2": "10.0.0.2"}


def test_a_changed_node_list_is_told(guarded: Guarded) -> None:
    guarded.up()
    nodes = guarded.tools.directory / "nodelist"
    more = "nodelist.node.2.name (str) = n3\nnodelist.node.2.ring0_addr (str) = 10.0.0.3\n"
    nodes.write_text(nodes.read_text() + more)
    eventually("new list", lambda: any("n3" in packet.get("nodes", {}) for packet in guarded.heard()), 8)


def test_stop_ends_all_and_takes_the_score_away(guarded: Guarded) -> None:
    guarded.up()
    guarded.say({"order": 2, "attributes": {"food-state": "in sync"}})
    eventually("attribute", lambda: guarded.tools.calls("attrd_updater", "food-state", "-U"))
    assert guarded.stop() == 0
    assert guarded.tools.score is None
    assert guarded.tools.calls("attrd_updater", "food-state", "-D")
    assert guarded.pid(locks.GUARDIAN_LOCK) is None and guarded.pid(locks.DAEMON_LOCK) is None
    assert not guarded.tools.calls("--fail")


def test_what_the_daemon_orders_as_a_stop_begins_leaves_nothing(guarded: Guarded) -> None:
    guarded.up()
    orders = [{"order": 2, "score": 1000}, {"order": 3, "attributes": {"food-state": "in sync"}}]
    (guarded.run_dir / "last").write_text("".join(f"{json.dumps(order)}\n" for order in orders))
    assert guarded.stop() == 0
    assert guarded.tools.score is None and not guarded.tools.calls("-v 1000")
    assert not list(guarded.tools.directory.glob("attribute.*"))


def test_who_is_being_stopped_is_not_adopted(guarded: Guarded) -> None:
    guarded.start("--external", "true")
    eventually("hello", guarded.heard)
    ticket = guarded.run_dir / "adopting"
    ticket.write_text("food\nn1\n")
    (guarded.run_dir / "last").write_text('{"order": 1, "adopt": {}}\n')
    assert guarded.stop() == 0
    assert ticket.exists() and not (guarded.run_dir / "adopted").exists()


def test_a_killed_primary_loses_its_score_and_nothing_is_injected_once_the_role_moved(guarded: Guarded) -> None:
    guarded.up("primary", 1000)
    start = time.monotonic()
    os.kill(guarded.daemon_pid, signal.SIGKILL)
    eventually("score gone", lambda: guarded.tools.score is None)
    assert time.monotonic() - start < 0.5
    assert guarded.reason == "killed by signal 9 (SIGKILL)"
    assert guarded.pid(locks.DAEMON_LOCK) is None, "the guardian keeps no copy of the daemon's lock"
    (guarded.run_dir / "demoted").touch()
    time.sleep(3.5)
    assert guarded.pid(locks.GUARDIAN_LOCK) == guarded.process.pid  # type: ignore[union-attr]
    assert not guarded.tools.calls("--fail")
    assert guarded.stop() == 0


def test_a_killed_primary_whose_role_stays_is_reported(guarded: Guarded) -> None:
    guarded.up("primary", 1000)
    os.kill(guarded.daemon_pid, signal.SIGKILL)
    time.sleep(2)
    assert not guarded.tools.calls("--fail")
    eventually("failure", lambda: guarded.tools.calls("crm_resource --fail --resource food --node n1"))


def test_a_killed_backup_is_reported_at_once(guarded: Guarded) -> None:
    guarded.up()
    os.kill(guarded.daemon_pid, signal.SIGKILL)
    eventually("failure", lambda: guarded.tools.calls("crm_resource --fail"), 0.5)
    assert guarded.tools.score is None


def test_a_stopped_daemon_is_killed_and_said_why(guarded: Guarded) -> None:
    guarded.up("backup", 100, "--watchdog-ms", "500")
    os.kill(guarded.daemon_pid, signal.SIGSTOP)
    eventually("failure", lambda: guarded.tools.calls("crm_resource --fail"), 1.5)
    assert "loop stood still" in guarded.reason


def test_a_hanging_tool_holds_nothing_up(guarded: Guarded) -> None:
    guarded.up("primary", 1000, "--watchdog-ms", "500")
    (guarded.tools.directory / "hang.attrd_updater").touch()
    guarded.say({"order": 2, "attributes": {"food-state": "primary"}})
    eventually("hanging", lambda: guarded.tools.calls("attrd_updater"))
    os.kill(guarded.daemon_pid, signal.SIGSTOP)
    eventually("score gone", lambda: guarded.tools.score is None, 1.0)


def test_a_tool_that_hangs_is_ended_and_tried_again(guarded: Guarded) -> None:
    hang = guarded.tools.directory / "hang.crm_master"
    guarded.up()
    hang.touch()
    guarded.say({"order": 2, "score": 10, "why": "test"})
    eventually("hanging", lambda: guarded.tools.calls("crm_master", "10"))
    hang.unlink()
    eventually("second try", lambda: guarded.tools.score == "10", 6)


def test_without_crm_master_its_successor_is_used(guarded: Guarded) -> None:
    (guarded.tools.bin / "crm_master").write_text("#!/bin/sh\nexit 127\n")
    guarded.up()
    assert guarded.tools.calls("crm_attribute --promotion=food -N n1 -l reboot -v 100")


def test_a_lost_score_is_restored(guarded: Guarded) -> None:
    guarded.up("primary", 1000)
    (guarded.tools.directory / "score").unlink()
    eventually("restored", lambda: guarded.tools.score == "1000")
    assert guarded.tools.calls("crm_master", "-D")


def test_no_orphan_when_the_guardian_is_killed(guarded: Guarded) -> None:
    guarded.up()
    pid = guarded.daemon_pid
    os.kill(guarded.process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    eventually("the daemon follows", ended(pid))


def test_what_a_killed_guardian_left_is_cleared(guarded: Guarded) -> None:
    guarded.up()
    guarded.say({"order": 2, "attributes": {"food-state": "in sync"}})
    eventually("attribute", lambda: guarded.tools.calls("attrd_updater", "food-state", "-U"))
    guarded.close()
    assert guarded.tools.score == "100"
    assert guarded.start("--clear", "--node", "n1", "--port", "nonsense").wait(10) == 0
    assert guarded.tools.score is None
    assert guarded.tools.calls("attrd_updater", "food-state", "-D")
    assert not (guarded.run_dir / "attributes").exists()


def test_a_tool_that_outlives_its_guardian_does_not_undo_the_clearing(guarded: Guarded) -> None:
    slow = guarded.tools.directory / "slow.crm_master"
    guarded.up()
    slow.touch()
    guarded.say({"order": 2, "score": 20, "why": "test"})
    eventually("the tool at work", lambda: guarded.tools.calls("crm_master", "-v 20"))
    guarded.close()
    slow.unlink()
    assert guarded.start("--clear", "--node", "n1").wait(10) == 0
    time.sleep(1.4)
    assert guarded.tools.score is None


def test_what_could_not_be_cleared_is_left_to_the_next(guarded: Guarded) -> None:
    """Of guardian and of --clear: whoever comes next finds that there is something to clear."""
    guarded.up()
    guarded.say({"order": 2, "attributes": {"food-state": "in sync"}})
    eventually("attribute", lambda: guarded.tools.calls("attrd_updater", "food-state", "-U"))
    broken = guarded.tools.directory / "fail.attrd_updater"
    broken.write_text("attrd does not answer")
    assert guarded.process
    guarded.process.terminate()
    assert guarded.process.wait(10) == 0
    guarded.close()
    assert (guarded.run_dir / "attributes").read_text() == "food-state"
    assert guarded.start("--clear", "--node", "n1").wait(10) == 1
    guarded.close()
    assert (guarded.run_dir / "attributes").exists()
    broken.unlink()
    assert guarded.start("--clear", "--node", "n1").wait(10) == 0
    assert guarded.tools.calls("attrd_updater", "food-state", "-D")
    assert not (guarded.run_dir / "attributes").exists()


def test_a_daemon_that_does_not_come_up_ends_the_guardian_with_its_reason(guarded: Guarded) -> None:
    assert guarded.start(FAKE_DAEMON="dies").wait(5) == 1
    assert "made of cheese" in guarded.reason
    assert not guarded.tools.calls("--fail")


def test_without_a_node_list_the_guardian_keeps_asking(guarded: Guarded) -> None:
    broken = guarded.tools.directory / "fail.corosync-cmapctl"
    broken.write_text("Failed to initialize the cmap API")
    guarded.start()
    eventually("asking again", lambda: len(guarded.tools.calls("corosync-cmapctl")) > 1)
    broken.unlink()
    eventually("hello", guarded.heard)


def test_reloaded_parameters_are_settled_and_told(guarded: Guarded) -> None:
    config = guarded.directory / "food.toml"
    config.write_text("isolation_ms = 2500\n")
    guarded.up("backup", 100, "--config", str(config), "--isolation-ms", "3000")
    more = {"watchdog_ms": "700", "isolation_ms": None, "degraded": "true", "log_level": None}
    guarded.say({"settings": more | {"key_file": str(guarded.secret)}})
    told = eventually("settings", lambda: [p["settings"] for p in guarded.heard() if "settings" in p])[0]
    assert (told["watchdog_ms"], told["isolation_ms"], told["degraded"]) == (700, 2500, True)
    os.kill(guarded.daemon_pid, signal.SIGSTOP)
    eventually("new limit", lambda: "stood still" in guarded.reason, 1.2)


# Keys


def test_hello_carries_the_keys_and_nothing_else_does(guarded: Guarded) -> None:
    guarded.start()
    hello = eventually("hello", guarded.heard)[0]["hello"]
    assert hello["keys"] == derive(bytes(range(64)), "food", str(guarded.secret)).packet()
    for secret in (hello["keys"]["node"], hello["keys"]["client"]):
        assert secret not in json.dumps(hello["settings"])
        for pid in (guarded.process.pid, guarded.daemon_pid):  # type: ignore[union-attr]
            for file in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()


def test_a_reload_reads_the_key_file_again(guarded: Guarded) -> None:
    guarded.up()
    other = write_secret(guarded.directory / "other", bytes(range(100, 164)))

    def told(number: int) -> dict[str, Any]:
        packets = eventually("settings", lambda: [p for p in guarded.heard() if "settings" in p][number - 1 :])
        return dict(packets[0])

    guarded.say({"settings": {"key_file": str(guarded.secret)}})
    assert "keys" not in told(1), "the same: no connection need be cut for it"
    guarded.say({"settings": {"key_file": str(other)}})
    assert told(2)["keys"] == derive(bytes(range(100, 164)), "food", str(other)).packet()
    write_secret(other, bytes(range(64)))
    guarded.say({"settings": {"key_file": str(other)}})
    assert told(3)["keys"]["name"] == derive(bytes(range(64)), "food", "").name
    guarded.say({"settings": {"key_file": f"{other}.gone"}})  # stays with what it has
    guarded.say({"settings": {"plaintext": settings.INSECURE}})
    assert told(4)["keys"] is None


AS_ROOT = (("of a group", "has mode 0440"), ("another's", "belongs to another user: chown root"))


def wrong_secret(guarded: Guarded, fault: str) -> None:
    path = guarded.secret
    match fault:
        case "gone":
            path.unlink()
        case "short":
            write_secret(path, bytes(31))
        case "long":
            write_secret(path, bytes(65537))
        case "readable":
            write_secret(path, mode=0o444)
        case "of a group":
            write_secret(path, mode=0o440)
            os.chown(path, -1, 12345)
        case "writable":
            write_secret(path, mode=0o620)
        case "another's":
            os.chown(path, 12345, -1)
        case "directory":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path, 0o400)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", "is not there: put the same file on every node, or unset key_file"),
        ("short", "has 31 bytes: must have 32 to 65536, random ones"),
        ("long", "has more bytes: must have 32 to 65536"),
        ("readable", "has mode 0444, open to others: chmod 0400"),
        ("writable", "has mode 0620, open to others: chmod 0400"),
        ("directory", "is not a regular file"),
        ("pipe", "is not a regular file"),
        *(
            [("of a group", "has mode 0440"), ("another's", "belongs to another user: chown root")]
            * (os.geteuid() == 0)
        ),
    ],
)
@pytest.mark.parametrize("switch", [(), ("--check",)])
def test_a_key_file_that_is_not_safe_is_refused(
    guarded: Guarded, fault: str, words: str, switch: tuple[str, ...]
) -> None:
    wrong_secret(guarded, fault)
    refused = guarded.start(*switch)
    assert refused.wait(5) == 2
    assert refused.stderr
    text = refused.stderr.read()
    assert words in text and str(guarded.secret) in text
    assert not guarded.heard()


def test_plaintext_is_asked_for_in_so_many_words(guarded: Guarded) -> None:
    guarded.arguments.remove("--key-file")
    guarded.arguments.remove(str(guarded.secret))
    guarded.start("--plaintext", "insecure-no-keys")
    assert eventually("hello", guarded.heard)[0]["hello"]["keys"] is None


def test_wrong_packets_are_survived(guarded: Guarded) -> None:
    guarded.up()
    guarded.say({"order": "x", "score": 1}, {"order": 3}, {"order": 4, "attributes": 5}, {"order": 5, "score": "a"})
    with (guarded.run_dir / "say").open("a") as file:
        file.write("not json\n[]\n7\n" + "[" * 60_000 + "\n")
    guarded.say({"order": 7, "score": 10**4_000}, {"order": 8, "attributes": {"maintenance": "true", "food-x": "1"}})
    guarded.say({"order": 9, "attributes": {f"food-{n}": "x" for n in range(65)}})
    guarded.say({"order": 10, "attributes": {"food-state": "in \0 sync \ud800"}})
    guarded.say({"order": 6, "score": 10, "why": "test"})
    eventually("next order", lambda: guarded.tools.score == "10")
    eventually("attribute", lambda: guarded.tools.calls("attrd_updater", r"in \x00 sync \ud800"))
    assert guarded.tools.calls("attrd_updater") == guarded.tools.calls("food-state"), "not food's to set, or too many"
    assert (guarded.run_dir / "attributes").read_text() == "food-state"


def test_a_second_guardian_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    guarded.up()
    second = Guarded(tmp_path)
    assert second.start().wait(5) == 1
    assert second.process is not None and second.process.stderr is not None
    assert "already running" in second.process.stderr.read()
    second.process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--port", "70000"], 2, "port is 70000: must be a whole number from 1 to 65533"),
        (["--nonsense"], 2, "--nonsense is not an option"),
        (["--user", "nobody-at-all"], 5, "does not exist"),
        (["--config", "/nowhere/food.toml"], 2, "cannot be read"),
    ],
)
def test_refusals(guarded: Guarded, arguments: list[str], status: int, words: str) -> None:
    process = guarded.start(*arguments, "--check")
    assert process.wait(5) == status
    assert process.stderr is not None
    assert words in process.stderr.read()


def test_refuses_python_without_assertions(guarded: Guarded) -> None:
    argv = [sys.executable, "-O", "-m", "food.guardian", "--id", "food"]
    done = subprocess.run(argv, env=guarded.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "-O" in done.stderr


def test_a_name_that_nobody_could_be_asked_for_is_asked_for_again(guarded: Guarded) -> None:
    nodes, tool = guarded.tools.directory / "nodelist", guarded.tools.bin / "getent"
    nodes.write_text(nodes.read_text().replace("10.0.0.2", "host2"))
    tool.write_text("no program")
    process = guarded.start()
    eventually("the list", lambda: guarded.tools.calls("corosync-cmapctl"))
    time.sleep(0.5)

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]))

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before < 20, "it spins"
    tool.unlink()
    tool.write_text("#!/bin/sh\necho 10.0.0.9 STREAM host2\n")
    tool.chmod(0o755)
    assert eventually("hello", guarded.heard, 10)[0]["hello"]["nodes"]["n2"] == "10.0.0.9"


def test_odd_files_under_the_names_of_its_own_are_survived(guarded: Guarded) -> None:
    guarded.run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("attributes", "adopting", "adopted"):
        os.mkfifo(guarded.run_dir / name)
    assert guarded.start("--clear", "--node", "n1").wait(10) == 0
    guarded.close()
    attributes = guarded.run_dir / "attributes"
    attributes.write_bytes(b"\xff\nfood-state\nsomebody-elses")
    assert guarded.start("--clear", "--node", "n1").wait(10) == 0
    assert guarded.tools.calls("attrd_updater", "food-state", "-D")
    assert not guarded.tools.calls("somebody")


def test_node_names_are_resolved_by_another_process() -> None:
    book = NodeBook(None, None)
    book.listed("nodelist.local_node_pos (u32) = 1\n" + "".join(
        f"nodelist.node.{i}.name (str) = n{i}\nnodelist.node.{i}.ring0_addr (str) = host{i}\n" for i in range(2)
    ))  # fmt: skip
    assert (book.node, book.nodes(), book.unresolved()) == ("n1", None, ["host0", "host1"])
    book.resolved("host0", "10.0.0.1")
    book.resolved("host1", "fd00::2")
    assert book.nodes() == {"n0": "10.0.0.1", "n1": "fd00::2"}


def test_odd_lines_of_a_node_list_are_skipped() -> None:
    odd = "nodelist.node.0.ring0_addr (str) = 10.0.0.1\nnodelist.node.1.name (str) = n2\nrubbish\n = \nnodelist. = 1\n"
    assert [(node.name, node.address) for node in read_node_list(odd)] == [("10.0.0.1", "10.0.0.1")]
