"""Started outside Pacemaker: agent, guardian and daemon as they are, one node; the cluster's tools are stand-ins.

The unit runs under a real systemd (units.py), which takes root; without root a shell's loop stands for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_tools import eventually
from test_agent import AGENT, PYTHON_ANYWHERE, ROOT, Node
from units import Manager

from food import locks
from food.client import Client

UNIT = ROOT / "deploy" / "food@.service"
ADDRESS, PORT = "127.0.1.9", 19_960
RECURRING = {"OCF_RESKEY_CRM_meta_interval": "10000"}
PATIENT_S = 10.0
SUCCEEDS_S = 2.0  # the unit's half a second, and the start of a Python


class Loop:
    """What stands for the manager: starts again what has ended."""

    def __init__(self, unit: str, environment: dict[str, str]) -> None:
        [line] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        script = f"while :; do {line.replace('%i', 'food')}; sleep 0.5; done"
        self.process = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        pass


class External(Node):
    """A node whose food is started by a unit."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        secret = self.environment.pop("OCF_RESKEY_key_file")
        for name in ("OCF_RESKEY_daemon", "OCF_RESKEY_data_dir", "OCF_RESKEY_user", "FAKE_DAEMON"):
            del self.environment[name]
        self.environment["OCF_RESKEY_external"] = "true"
        values = {"local_node_pos (u32)": 0, "node.0.name (str)": "n1", "node.0.ring0_addr (str)": ADDRESS}
        nodes = "".join(f"nodelist.{name} = {value}\n" for name, value in values.items())
        (self.tools.directory / "nodelist").write_text(nodes)
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.options = f"--run-dir {self.run_dir} --data-dir {directory}/data --user {user} --port {PORT}"
        self.options += f" --key-file {secret}"
        self.unit: Manager | Loop | None = None

    def enable(self) -> None:
        """systemctl start; returns when the daemon can be asked."""
        text = UNIT.read_text().replace("/usr/local/bin/food", self.environment["FOOD_COMMAND"])
        assert text.count("/etc/default") == 1
        text = text.replace("/etc/default", str(self.directory))
        (self.directory / "food@food").write_text(f'FOOD_OPTIONS="{self.options}"\n')
        if os.geteuid() == 0:
            self.unit = Manager(text, self.environment)
            self.unit("start", "food@food")
        else:
            self.unit = Loop(text, {**self.environment, "FOOD_OPTIONS": self.options})
        self.up()

    def up(self, *before: int | None) -> None:
        """Waits for a daemon that is none of `before`."""
        socket = self.run_dir / "control.sock"
        eventually(
            "daemon", lambda: self.pid(locks.DAEMON_LOCK) not in (None, 0, *before) and socket.exists(), PATIENT_S
        )

    def disable(self, number: int = signal.SIGTERM) -> None:
        """systemctl stop, or with SIGKILL a power failure."""
        assert self.unit is not None
        if number == signal.SIGTERM and isinstance(self.unit, Manager):
            self.unit("stop", "food@food")
        self.unit.kill()
        if guardian := self.pid(locks.GUARDIAN_LOCK):
            os.kill(guardian, number)
        eventually("the end", lambda: not self.pid(locks.GUARDIAN_LOCK) and not self.pid(locks.DAEMON_LOCK), PATIENT_S)
        self.unit.close()
        self.unit = None

    def close(self) -> None:
        if self.unit is not None:
            self.disable(signal.SIGKILL)
        super().close()

    def pids(self) -> tuple[int | None, int | None]:
        return self.pid(locks.GUARDIAN_LOCK), self.pid(locks.DAEMON_LOCK)

    def promoted(self) -> None:
        assert self("start") == 0, self.errors
        eventually("a score", lambda: self.tools.score is not None)
        assert self("promote") == 0, self.errors
        eventually("the primary's score", lambda: self.tools.score == "1000")

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client([str(self.run_dir / "client.sock")], timeout_s=PATIENT_S) as client:
            yield client


@pytest.fixture
def node(tmp_path: Path) -> Iterator[External]:
    found = External(tmp_path)
    yield found
    found.close()


@pytest.fixture
def unit(node: External) -> External:
    node.enable()
    return node


# Adopting and releasing


def test_without_a_daemon_start_names_the_unit_and_the_command(node: External) -> None:
    assert node("monitor") == 7
    assert node("start", OCF_RESKEY_CRM_meta_timeout="2000") == 1
    assert "systemctl enable --now food@food.service" in node.reason
    assert node("stop") == 0


def test_start_waits_for_a_unit_that_is_being_started(node: External) -> None:
    process = subprocess.Popen([*PYTHON_ANYWHERE, str(AGENT), "start"], env=node.environment)
    time.sleep(0.5)
    node.enable()
    assert process.wait(PATIENT_S) == 0
    assert node("monitor") == 0


def test_before_it_is_adopted_pacemaker_hears_nothing_of_it(unit: External) -> None:
    assert unit("monitor") == 7
    assert unit("monitor", **RECURRING) == 7 and "not adopted" in unit.reason
    assert unit("promote") == 7 and "not adopted" in unit.reason
    assert unit("demote") == 0 and unit("notify") == 0 and unit("stop") == 0
    before = unit.pid(locks.DAEMON_LOCK)
    unit.kill(locks.DAEMON_LOCK)
    unit.up(before)
    assert not unit.tools.calls("crm_master") and not unit.tools.calls("attrd_updater")
    assert not unit.tools.calls("crm_resource")


def test_it_is_adopted_released_and_adopted_again(unit: External) -> None:
    pids = unit.pids()
    unit.promoted()
    assert unit("monitor", **RECURRING) == 8
    with unit.client() as client:
        client.put(b"k", b"v")
    eventually("attributes", lambda: unit.tools.calls("attrd_updater", "food-state", "-U"), PATIENT_S)
    assert unit("stop") == 0, "without a demote before it"
    assert unit.tools.score is None and unit.tools.calls("attrd_updater", "food-state", "-D")
    assert unit("monitor") == 7 and unit("stop") == 0
    assert unit.pids() == pids, "it lives on"
    with unit.client() as client:
        row = client.get(b"k", stale=True)
        assert row and row.value == b"v"
    calls = len(unit.tools.calls())
    time.sleep(3)
    assert all("cmapctl" in call for call in unit.tools.calls()[calls:]), "Pacemaker hears nothing more"
    unit.promoted()
    assert unit("start") == 0 and unit("monitor") == 0, "a start ends unpromoted, and is idempotent"
    assert unit.pids() == pids


def test_the_resources_reloadable_parameters_hold_while_it_has_the_daemon(node: External) -> None:
    node.options += " --watchdog-ms 60000 --log-level warning"
    node.enable()
    live = {"OCF_RESKEY_watchdog_ms": "500"}
    assert node("start", OCF_RESKEY_watchdog_ms="50000") == 0, node.errors
    assert node("reload-agent", **live) == 0 and not node.reason, node.reason
    before = node.pid(locks.DAEMON_LOCK)
    node.kill(locks.DAEMON_LOCK, signal.SIGSTOP)
    eventually("killed", lambda: node.pid(locks.DAEMON_LOCK) != before)
    assert node("stop", **live) == 0
    node.up(before)
    assert node("start", **live) == 0 and node("stop", **live) == 0
    before = node.pid(locks.DAEMON_LOCK)
    node.kill(locks.DAEMON_LOCK, signal.SIGSTOP)
    time.sleep(1.5)
    assert node.pid(locks.DAEMON_LOCK) == before, "released: the command line's limit again"
    node.kill(locks.DAEMON_LOCK, signal.SIGCONT)


# Deaths


def test_a_dead_primarys_role_moves_and_the_next_start_adopts_its_successor(unit: External) -> None:
    unit.promoted()
    guardian, daemon = unit.pids()
    unit.kill(locks.DAEMON_LOCK)
    eventually("the score is gone", lambda: unit.tools.score is None)
    assert unit("monitor", **RECURRING) == 8, "the role is being moved"
    assert unit("demote") == 0
    assert unit("monitor", **RECURRING) == 7 and "killed by signal 9" in unit.reason
    assert unit("stop") == 0
    assert unit.pid(locks.GUARDIAN_LOCK) != guardian, "ended, for the unit to start another"
    assert unit("start") == 0, unit.errors
    assert unit.pid(locks.DAEMON_LOCK) != daemon and unit("monitor") == 0
    assert not unit.tools.calls("--fail")


def test_a_dead_backup_is_reported_and_a_start_without_a_stop_adopts_its_successor(unit: External) -> None:
    assert unit("start") == 0
    before = unit.pids()
    unit.kill(locks.DAEMON_LOCK)
    eventually("reported", lambda: unit.tools.calls("crm_resource --fail --resource food --node n1"))
    assert unit("start") == 0, unit.errors
    assert not set(before) & set(unit.pids())


def test_a_stopped_daemon_does_not_hold_up_a_stop(node: External) -> None:
    node.options += " --watchdog-ms 60000"
    node.enable()
    assert node("start", OCF_RESKEY_watchdog_ms="60000") == 0
    before = node.pid(locks.DAEMON_LOCK)
    node.kill(locks.DAEMON_LOCK, signal.SIGSTOP)
    assert node("stop", OCF_RESKEY_CRM_meta_timeout="6000") == 0
    assert node.took_s < 6
    node.up(before)
    assert node("monitor") == 7 and node.tools.score is None


def test_the_successor_of_a_killed_guardian_clears_what_it_left(unit: External) -> None:
    unit.promoted()
    before = unit.pids()
    guardian = before[0]
    assert guardian
    os.kill(guardian, signal.SIGKILL)
    eventually("the score is gone", lambda: unit.tools.score is None, SUCCEEDS_S)
    unit.up(*before)
    assert unit("monitor") == 7
    assert unit("demote") == 0 and unit("stop") == 0 and unit("start") == 0, unit.errors
    assert unit("monitor", **RECURRING) == 0


def test_a_start_lets_a_successor_clear_what_was_left(unit: External) -> None:
    """Pacemaker asks for a start at once, without a stop: while the successor clears, no daemon runs yet."""
    unit.promoted()
    slow = unit.tools.directory / "slow.crm_master"
    slow.touch()
    guardian = unit.pid(locks.GUARDIAN_LOCK)
    assert guardian
    os.kill(guardian, signal.SIGKILL)
    assert unit("start") == 0, unit.errors
    assert unit("monitor") == 0


def test_a_stop_between_a_killed_guardian_and_its_successor_clears_what_it_left(unit: External) -> None:
    unit.promoted()
    unit.disable(signal.SIGKILL)
    assert unit.tools.score == "1000"
    assert unit("monitor") == 7 and "killed?" in unit.reason
    assert unit("stop") == 0
    assert unit.tools.score is None
    unit.enable()
    assert unit("monitor") == 7


def test_a_reboot_forgets_the_adoption(unit: External) -> None:
    unit.promoted()
    unit.disable(signal.SIGKILL)
    shutil.rmtree(unit.run_dir)
    (unit.tools.directory / "score").unlink()
    unit.enable()
    assert unit("monitor") == 7 and unit.tools.score is None
    unit.promoted()


def test_a_start_that_was_killed_leaves_nothing_behind_its_stop(unit: External) -> None:
    """Its knock waits at the guardian; when it is heard at last, nobody is there for it any more."""
    unit.kill(locks.GUARDIAN_LOCK, signal.SIGSTOP)
    process = subprocess.Popen([*PYTHON_ANYWHERE, str(AGENT), "start"], env=unit.environment)
    eventually("the ticket", (unit.run_dir / "adopting").exists)
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert unit("stop") == 0
    unit.kill(locks.GUARDIAN_LOCK, signal.SIGCONT)
    time.sleep(1)
    assert unit("monitor") == 7 and unit.tools.score is None
    assert not (unit.run_dir / "adopted").exists()
    assert unit("start") == 0, unit.errors


def test_a_unit_that_is_stopped_under_a_resource_takes_its_score_away(unit: External) -> None:
    unit.promoted()
    unit.disable()
    assert unit.tools.score is None
    assert unit("monitor", **RECURRING) == 7 and "stopped from outside Pacemaker" in unit.reason
    assert unit("stop") == 0


# Wrong ways


def test_a_resource_that_is_not_external_leaves_a_units_daemon_alone(unit: External) -> None:
    before = unit.pids()
    plain = {"OCF_RESKEY_external": ""}
    assert unit("monitor", **plain) == 7
    assert unit("start", **plain) == 2
    assert "set external=true, or systemctl disable --now food@food.service" in unit.reason
    assert unit("stop", **plain) == 0
    assert unit("start") == 0
    assert unit("monitor", **plain, **RECURRING) == 1 and "started by food@food.service" in unit.reason
    assert unit("stop", **plain) == 0 and unit("monitor") == 7
    assert unit.pids() == before


def test_an_external_resource_does_not_take_what_pacemaker_started(tmp_path: Path) -> None:
    plain = Node(tmp_path)
    try:
        assert plain("start") == 0
        more = {
            "OCF_RESKEY_external": "true",
            "OCF_RESKEY_data_dir": "",
            "OCF_RESKEY_user": "",
            "OCF_RESKEY_daemon": "",
            "OCF_RESKEY_key_file": "",
        }
        assert plain("start", **more) == 2
        assert "systemctl enable --now food@food.service" in plain.reason
        assert plain("monitor", **more, **RECURRING) == 1 and "external=false" in plain.reason
        assert plain("stop", **more) == 0 and plain.pid(locks.GUARDIAN_LOCK) is None
    finally:
        plain.close()


def test_what_the_unit_has_to_say_is_refused_at_the_resource(node: External) -> None:
    for action in ("validate-all", "start"):
        for name, value in (("port", "10002"), ("key_file", "/secret"), ("plaintext", "insecure-no-keys")):
            assert node(action, **{f"OCF_RESKEY_{name}": value}) == 2
            assert f"{name} is set and external is true" in node.reason and "/etc/default/food@food" in node.reason
    assert node("validate-all", OCF_RESKEY_external="perhaps") == 2
    assert "external is 'perhaps': must be true or false" in node.reason


# The unit


def test_the_unit_starts_again_whatever_ended_and_stands_below_pacemaker() -> None:
    text = UNIT.read_text()
    for line in ("Restart=always", "StartLimitIntervalSec=0", "Before=pacemaker.service", "KillMode=mixed"):
        assert line in text.splitlines()
    assert "ExecStart=/usr/local/bin/food --id %i --external true $FOOD_OPTIONS" in text.splitlines()
