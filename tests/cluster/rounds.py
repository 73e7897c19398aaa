"""Kills guardian, daemon or both at random instants of the agent's actions. Runs inside a node, without Pacemaker.

    rounds.py ID PORT SEED ROUNDS

Each round is one action, one kill, and then what Pacemaker would do: demote, stop, start. One JSON object a line:
action, victim, at_ms (of the kill, after the action began), status and reason of the action, problems.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

AGENT = "/usr/lib/ocf/resource.d/food/food"
OK, NOT_RUNNING, PROMOTED = 0, 7, 8
BUDGET_S = 30.0
ALONE_S = 3.0  # a daemon whose guardian is gone ends within
MISSED_MOST = 20  # kills that came too early or too late to hit anything
ACTIONS = ("start", "promote", "demote", "stop")
VICTIMS = (("guardian",), ("daemon",), ("guardian", "daemon"))


class Rounds:
    def __init__(self, name: str, port: int, seed: int):
        self.name = name
        self.random = random.Random(seed)
        self.problems: list[str] = []
        self.env = {
            **os.environ,
            "OCF_ROOT": "/usr/lib/ocf",
            "OCF_RESOURCE_INSTANCE": name,
            "OCF_RESKEY_port": str(port),
            "OCF_RESKEY_CRM_meta_timeout": str(int(BUDGET_S * 1000)),
            "OCF_RESKEY_CRM_meta_on_node": os.uname().nodename,
        }
        self.took_s: dict[str, float] = {}

    # --- The agent ---

    def begin(self, action: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        interval = {"OCF_RESKEY_CRM_meta_interval": "10000"} if action == "monitor" else {}
        return subprocess.Popen([AGENT, action], env={**self.env, **interval}, stderr=pipe, stdout=pipe, text=True)

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            _, errors = process.communicate(timeout=BUDGET_S)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{process.args!r} took longer than its timeout")
            process.kill()
            _, errors = process.communicate()
        return process.returncode, errors.strip()

    def call(self, action: str, *expected: int) -> int:
        status, errors = self.end(self.begin(action))
        if expected and status not in expected:
            self.problems.append(f"{action}: status {status}, and not {expected}: {errors}")
        return status

    # --- The processes ---

    def guardians(self) -> list[int]:
        return [pid for pid, words in processes() if self.name in words and "--id" in words and "--clear" not in words]

    def daemons(self) -> list[int]:
        lock = f"/run/food/{self.name}/daemon.lock"
        found = [pid for pid, words in processes() if any("food.daemon" in word for word in words)]
        return [pid for pid in found if lock in open_files(pid)]

    def kill(self, victim: tuple[str, ...]) -> int:
        pids = (self.guardians() if "guardian" in victim else []) + (self.daemons() if "daemon" in victim else [])
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pids.remove(pid)
        return len(pids)

    def held(self, lock: str) -> bool:
        try:
            with open(f"/run/food/{self.name}/{lock}") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    # --- A round ---

    def prepare(self, action: str) -> None:
        if action == "start":
            self.call("stop", OK)
            return
        self.call("start", OK)
        if action == "demote" or (action == "stop" and self.random.random() < 0.5):
            self.call("promote", OK)

    def round(self, action: str, victim: tuple[str, ...]) -> dict[str, object]:
        self.problems = []
        for _ in range(MISSED_MOST):
            self.prepare(action)
            at = self.random.uniform(0, self.took_s[action])
            began = time.monotonic()
            process = self.begin(action)
            time.sleep(at)
            killed = self.kill(victim)
            status, reason = self.end(process)
            if status != OK and "ocf-exit-reason:" not in reason:
                self.problems.append(f"{action} ended with {status} and gave no reason: {reason!r}")
            if "Traceback" in reason or "Error:" in reason:
                self.problems.append(f"{action}: {reason}")
            self.recover(action)
            if killed or self.problems:
                break
        told = {"action": action, "victim": " and ".join(victim), "at_ms": round(at * 1000), "status": status}
        return {
            **told,
            "took_ms": round((time.monotonic() - began) * 1000),
            "reason": reason,
            "problems": self.problems,
        }

    def recover(self, action: str) -> None:
        if not wait(lambda: bool(self.guardians()) or not self.daemons(), ALONE_S):
            self.problems.append(f"an orphan: daemon {self.daemons()} lives {ALONE_S:.0f} s after its guardian")
        if action in ("promote", "demote"):
            self.call("demote", OK)
        self.call("stop", OK)
        self.call("monitor", NOT_RUNNING)
        left = {"guardian": self.guardians(), "daemon": self.daemons()}
        left |= {lock: [1] for lock in ("guardian.lock", "daemon.lock") if self.held(lock)}
        if any(left.values()):
            self.problems.append(f"left after stop: {left}")
        self.call("start", OK)
        self.call("monitor", OK)

    def rehearse(self) -> None:
        """How long the actions take undisturbed: the instants are chosen in there."""
        self.call("stop", OK)
        for action in ACTIONS:
            began = time.monotonic()
            self.call(action, OK)
            self.took_s[action] = time.monotonic() - began
        if self.problems:
            sys.exit("; ".join(self.problems))


def processes() -> list[tuple[int, list[str]]]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", errors="replace") as file:
                    found.append((int(entry), file.read().split("\0")))
            except OSError:
                continue
    return found


def open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def wait(predicate: Callable[[], bool], limit_s: float) -> bool:
    give_up = time.monotonic() + limit_s
    while not predicate():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def main() -> None:
    name, port, seed, count = sys.argv[1], *map(int, sys.argv[2:])
    rounds = Rounds(name, port, seed)
    rounds.rehearse()
    print(json.dumps({"rehearsed_ms": {action: round(s * 1000) for action, s in rounds.took_s.items()}}), flush=True)
    for number in range(count):
        for action in ACTIONS:
            print(json.dumps(rounds.round(action, VICTIMS[number % len(VICTIMS)])), flush=True)


if __name__ == "__main__":
    main()
