"""One host of the lab (a node, or the client host): its directory, its namespaces, its first process.

Used by the warden alone, which is every host's parent: when the warden dies, the kernel kills them all
(setpriv --pdeathsig, then unshare --kill-child, then the end of the pid namespace).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from testbed import layout, network, seed
from testbed.errors import LabError
from testbed.inside import child_of
from testbed.layout import Settings

BOOT_TIMEOUT_S = 20.0
DEATH_TIMEOUT_S = 15.0
POLL_S = 0.002
ISOLATION = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child")
SPAWN = ("setpriv", "--pdeathsig", "KILL", "unshare", *ISOLATION, "--")


class Host:
    """A machine of the lab, on or off. Its disk outlives its power."""

    def __init__(self, lab: Path, name: str, settings: Settings) -> None:
        self.name = name
        self.disk = lab / "hosts" / name
        self.pid_file = self.disk / "pid"
        self.pid = 0
        self.boots = 0
        self._lab = lab
        self._is_node = name != layout.CLIENT
        self._process: subprocess.Popen[str] | None = None
        self._write_disk(settings)

    @property
    def on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> str:
        """The bridge's end of this boot's wire."""
        return network.port_of(self.name, self.boots)

    def boot(self) -> None:
        """Start the first process and wait until its mounts are done. It then waits for `go`. LabError if it cannot."""
        self.boots += 1
        self._process = subprocess.Popen(
            [*SPAWN, sys.executable, "-IS", str(layout.PACKAGE / "init.py"), str(self.disk / "init.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd="/",
        )
        try:
            self._await_ready(self._process)
        except BaseException:
            self.kill()
            raise
        layout.write_pid(self.pid_file, self.pid)

    def go(self) -> None:
        """The network lies: let the services start."""
        assert self._process is not None and self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.close()
        self._process.stdout.close()

    def kill(self) -> None:
        """SIGKILL to the first process: everything inside is gone when this returns."""
        if self._process is None:
            return
        for pid in (self.pid, self._process.pid):
            if pid and self._process.poll() is None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self._await_end(self._process)
        self._await_end(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        self._process, self.pid = None, 0
        self.pid_file.unlink(missing_ok=True)

    def shut_down(self) -> None:
        """Ask the first process to stop the cluster in order and end; does not wait."""
        if self.on:
            os.kill(self.pid, signal.SIGTERM)

    def _await_end(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(DEATH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{self.name} (pid {self.pid}) was killed {DEATH_TIMEOUT_S:.0f} s ago and still has processes: "
                "one hangs in the kernel, or one that entered with nsenter waits for its parent to reap it"
            ) from None

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], BOOT_TIMEOUT_S)[0]:
            raise LabError(f"{self.name} did not boot within {BOOT_TIMEOUT_S:.0f} s")
        line = process.stdout.readline()
        if line != "ready\n":
            text = (line + (process.stdout.read() if process.poll() is not None else "")).strip()
            raise LabError(f"{self.name} did not boot: {text or 'no reason given'}")
        self.pid = self._first_process(process.pid)

    def _first_process(self, unshare_pid: int) -> int:
        """The node's pid 1 as the machine numbers it: the only child of unshare."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            child = child_of(unshare_pid)
            if child is not None:
                return child
            time.sleep(POLL_S)
        raise LabError(f"{self.name} has no first process")

    def _write_disk(self, settings: Settings) -> None:
        self.disk.mkdir(parents=True)
        seed.write_node_disk(self.disk, self.name, settings, self._lab / "install")
        overlays = []
        for top in ("usr", "etc"):
            work = self.disk / f"work-{top}"
            work.mkdir()
            lower = [str(self._lab / layer / top) for layer in ("install", "layer")] + [f"/{top}"]
            overlays.append(
                {
                    "target": f"/{top}",
                    "lower": [path for path in lower if os.path.isdir(path)],
                    "upper": str(self.disk / top),
                    "work": str(work),
                }
            )
        spec = {
            "hostname": self.name,
            "overlays": overlays,
            "binds": [[str(self.disk / name), target] for name, target in layout.PERSISTENT.items()],
            "fence_socket": str(self._lab / "fence.sock") if self._is_node else "",
            "cluster": self._is_node,
        }
        layout.write(self.disk / "init.json", json.dumps(spec, indent=1))
