"""A real systemd over food's unit: a user's manager, which needs no booted machine. As root.

It has its own mounts, cgroup and directory, and no units but those it is given and what every unit hangs from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fake_tools import eventually

PROGRAM = "/lib/systemd/systemd"
TARGETS = ("basic.target", "shutdown.target", "exit.target", "systemd-exit.service")
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")  # as the machine has them
# /run/systemd/system says that systemd has booted the machine: without it no manager starts.
BOOT = f"""
mkdir -p /run/systemd "$XDG_RUNTIME_DIR" && cd "$XDG_RUNTIME_DIR" || exit
for target in {" ".join(TARGETS)}; do
    ln -sf /usr/lib/systemd/user/$target . || exit
done
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system || exit
for root in {" ".join(CGROUPS)}; do
    [ ! -e $root/cgroup.procs ] || {{ mkdir -p $root/$0 && echo $$ >$root/$0/cgroup.procs; }} || exit
done
exec {PROGRAM} --user --unit=basic.target --log-target=console
"""
PATIENT_S = 10.0


def boot(cgroup: str) -> list[str]:
    """What becomes a manager; its environment says where it lives."""
    return ["unshare", "--mount", "sh", "-c", BOOT, cgroup]


def lives_in(directory: str, *units: str) -> dict[str, str]:
    """`units`: further directories to look for units in."""
    return {"XDG_RUNTIME_DIR": directory, "SYSTEMD_UNIT_PATH": ":".join([*units, directory])}


def clear(cgroup: str) -> None:
    """Removes what a manager that was killed left there; who has died may still be in it for a moment."""
    for root in CGROUPS:
        for directory, _, _ in os.walk(f"{root}/{cgroup}", topdown=False):
            eventually(f"{directory} is empty", lambda path=directory: _removed(path), PATIENT_S)


def _removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(directory)
    return not os.path.exists(directory)


class Manager:
    """`unit`: its text, for instances of food@.service; `environment` is added to theirs."""

    def __init__(self, unit: str, environment: Mapping[str, str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="food-", dir="/tmp"))
        (self.directory / "food@.service").write_text(unit)
        lines = [f'Environment="{name}={value}"\n' for name, value in environment.items()]
        (self.directory / "food@.service.d").mkdir()
        (self.directory / "food@.service.d" / "test.conf").write_text("".join(["[Service]\n", *lines]))
        self.environment = {**os.environ, **lives_in(str(self.directory))}
        with (self.directory / "log").open("w") as log:
            self.process = subprocess.Popen(boot(self.directory.name), env=self.environment, stdout=log, stderr=log)
        eventually("systemd", (self.directory / "systemd" / "private").exists, PATIENT_S)

    def __call__(self, *words: str) -> None:
        done = subprocess.run(
            ["systemctl", "--user", *words], env=self.environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{words}: {done.stderr}{(self.directory / 'log').read_text()}"

    def kill(self) -> None:
        """As a power failure: nothing is started again."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Once all that it started has ended."""
        clear(self.directory.name)
        shutil.rmtree(self.directory)
