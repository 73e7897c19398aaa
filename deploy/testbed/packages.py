"""What the lab needs of the machine: root, tools, Debian packages. Installs on request, and starts no service."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed.errors import LabError

LAB = (
    "corosync",
    "iproute2",
    "nftables",
    "pacemaker",
    "pacemaker-cli-utils",
    "pacemaker-resource-agents",
    "pcs",
    "procps",
    "resource-agents",
    "util-linux",
)
FOOD = ("python3-msgpack", "python3-sortedcontainers", "python3-zmq")
TESTS = ("crmsh", "gcc", "git", "libc6-dev", "libxml2-utils", "python3-venv", "strace", "systemd")
PYTHON = "/usr/bin/python3"  # the one that the packages in FOOD belong to
TOOLS = {
    "corosync": "corosync",
    "crm_mon": "pacemaker-cli-utils",
    "ip": "iproute2",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "pacemakerd": "pacemaker",
    "pcs": "pcs",
    "pgrep": "procps",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
POLICY = Path("/usr/sbin/policy-rc.d")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab makes namespaces and mounts: run it as root")


def require_tools() -> None:
    """LabError with the packages to install when a tool is missing."""
    lacking = {tool: package for tool, package in TOOLS.items() if shutil.which(tool, path=SEARCH_PATH) is None}
    if lacking:
        wanted = " ".join(sorted(set(lacking.values())))
        raise LabError(
            f"missing: {', '.join(lacking)}; on Debian: apt-get install --no-install-recommends {wanted} "
            "(or: deploy/lab packages)"
        )


def missing(packages: Sequence[str]) -> list[str]:
    """Those of the Debian packages that are not installed. LabError where there is no dpkg."""
    if shutil.which("dpkg-query") is None:
        raise LabError(f"this is not Debian (no dpkg-query): install what provides {', '.join(packages)} by hand")
    absent = []
    for package in packages:
        asked = subprocess.run(
            ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout != "installed":
            absent.append(package)
    return absent


def ensure(packages: Sequence[str] = (*LAB, *FOOD), tell: Callable[[str], object] = print) -> list[str]:
    """Install what is missing, say so first, start no service; the packages that were installed.

    LabError when not root, not Debian, or when apt-get fails (with its last words).
    """
    absent = missing(packages)
    if not absent:
        return []
    require_root()
    tell(f"installing Debian packages (services are not started): {' '.join(absent)}")
    with _no_services():
        _apt_get("update")  # a fresh machine has no package lists, or old ones
        _apt_get("install", "--yes", "--no-install-recommends", *absent)
    return absent


def _apt_get(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"apt-get {' '.join(arguments)} failed: {done.stdout[-1000:].strip()}")


@contextmanager
def _no_services() -> Iterator[None]:
    """invoke-rc.d obeys policy-rc.d, and 101 forbids. A policy that is there is the owner's, and stays as it is."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
