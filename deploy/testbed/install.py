"""Runs food's own installer where it can change nothing of the machine; the result is a layer for the nodes.

The scratch namespace has overlays over /usr and /etc, whose upper directories become the nodes' lower ones, an empty
/run (no way to the machine's systemd or D-Bus), an empty /var/log and no network.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from testbed import layout
from testbed.errors import LabError
from testbed.nodes import SPAWN

INSTALL_TIMEOUT_S = 300.0


def script(lab: Path, installer: Path) -> str:
    """The shell commands inside the scratch namespace."""
    upper = lab / "install"
    lines = ["set -e"]
    for top in ("usr", "etc"):
        options = f"lowerdir={lab}/layer/{top}:/{top},upperdir={upper}/{top},workdir={upper}/work-{top}"
        lines.append(f"mount -n -t overlay -o {shlex.quote(options)} overlay /{top}")
    lines.append("mkdir -p /var/lib/food")
    lines += [
        f"mount -n --bind {shlex.quote(str(upper / 'food'))} /var/lib/food",
        f"mount -n --bind {shlex.quote(str(upper / 'log'))} /var/log",
        "mount -n -t tmpfs -o mode=0755 run /run",
        f"exec {shlex.quote(str(installer))}",
    ]
    return "\n".join(lines)


def run(lab: Path, tell: Callable[[str], object]) -> None:
    """Fill `install/` of the lab's directory. LabError with the installer's own words if it fails."""
    installer = layout.REPOSITORY / "deploy" / "install"
    if not installer.is_file():
        raise LabError(f"{installer} is missing: use Lab(install=False) for a cluster without food")
    for name in ("usr", "etc", "work-usr", "work-etc", "food", "log"):
        (lab / "install" / name).mkdir(parents=True)
    tell("running deploy/install in a scratch namespace")
    done = subprocess.run(
        [*SPAWN, "sh", "-c", script(lab, installer)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=INSTALL_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise LabError(f"deploy/install failed with {done.returncode}: {done.stdout.strip()}")
