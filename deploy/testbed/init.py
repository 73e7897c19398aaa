"""The first process of a node: mounts what is private, waits for its network, runs Corosync and Pacemaker, reaps.

Runs alone inside the namespaces (standard library only, nothing of the package): `init.py SPEC.json`, where SPEC
is what nodes.py wrote. On standard output it says `ready`, or `error` and the reason; on standard input it waits for
`go`, which the warden sends when the wires lie. SIGTERM is an orderly shutdown; a power-off is this process's SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

COROSYNC_READY_S = 30.0
SHUTDOWN_S = 60.0
POLL_S = 0.02
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PCMK_logfacility": "none",
}


class PowerOff(Exception):
    """SIGTERM arrived: shut down in order."""


def mount(*arguments: str) -> None:
    """mount(8) without its table of mounts (-n), which lies on the machine's /run."""
    done = subprocess.run(["mount", "-n", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def make_directory(path: str, mode: int, owner: str | None = None, group: str | None = None) -> None:
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)
    if owner is not None:
        shutil.chown(path, owner, group)


def private_dev() -> None:
    """A /dev without the machine's log socket, disks and watchdogs. Last of all: it may hide the lab's directory."""
    numbers = {name: os.stat(f"/dev/{name}").st_rdev for name in DEVICES}
    mount("-t", "tmpfs", "-o", "mode=0755,nosuid", "dev", "/dev")
    for name, number in numbers.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, number)
        os.chmod(f"/dev/{name}", 0o666)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target if name == "fd" else f"/proc/self/{target}", f"/dev/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"/dev/{name}")
    mount("-t", "tmpfs", "-o", "mode=1777", "shm", "/dev/shm")
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", "/dev/pts")
    os.symlink("pts/ptmx", "/dev/ptmx")


def prepare(spec: dict[str, Any]) -> None:
    """Mount everything private. /run is new at every boot: stale files there survive nothing."""
    socket.sethostname(spec["hostname"])
    for overlay in spec["overlays"]:
        options = f"lowerdir={':'.join(overlay['lower'])},upperdir={overlay['upper']},workdir={overlay['work']}"
        mount("-t", "overlay", "-o", options, "overlay", overlay["target"])
    for source, target in spec["binds"]:
        os.makedirs(target, exist_ok=True)
        mount("--bind", source, target)
    fence_socket = os.open(spec["fence_socket"], os.O_PATH) if spec["fence_socket"] else None
    mount("-t", "tmpfs", "-o", "mode=0755,nosuid,nodev", "run", "/run")
    if fence_socket is not None:
        Path("/run/food-lab.sock").touch()
        mount("--bind", f"/proc/{os.getpid()}/fd/{fence_socket}", "/run/food-lab.sock")
        os.close(fence_socket)
    make_directory("/run/lock", 0o1777)
    make_directory("/run/resource-agents", 0o1755)
    if spec["cluster"]:
        make_directory("/run/crm", 0o750, "hacluster", "haclient")
    private_dev()


def corosync_is_ready() -> bool:
    """Ask as a client: the sockets are there before anyone is let in, and a Pacemaker turned away sleeps a second."""
    quiet = subprocess.DEVNULL
    return subprocess.call(["corosync-cfgtool", "-s"], env=ENVIRONMENT, stdout=quiet, stderr=quiet) == 0


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(argv, env=ENVIRONMENT, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")
    say(f"started {argv[0]}, pid {process.pid}")
    return process


def run_cluster(services: dict[int, str]) -> None:
    services[start(["corosync", "-f"]).pid] = "corosync"
    deadline = time.monotonic() + COROSYNC_READY_S
    while not corosync_is_ready():
        if reap(os.WNOHANG, services) == "corosync":
            say("corosync ended before it was ready; see /var/log/corosync/corosync.log")
            return
        if time.monotonic() > deadline:
            say(f"corosync is not ready after {COROSYNC_READY_S:.0f} s")
            return
        time.sleep(POLL_S)
    services[start(["pacemakerd"]).pid] = "pacemakerd"


def reap(flags: int, services: dict[int, str]) -> str | None:
    """Take one ended child, if any; the name of the service that ended. A dead service stays dead, as tests expect."""
    try:
        pid, status = os.waitpid(-1, flags)
    except ChildProcessError:
        if not flags:
            signal.pause()
        return None
    name = services.pop(pid, None)
    if name is not None:
        say(f"{name} ended: {os.waitstatus_to_exitcode(status)}")
    return name


def shut_down(services: dict[int, str]) -> None:
    """Pacemaker first, which stops the resources, then Corosync, then this process and with it the node."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + SHUTDOWN_S
    for name in ("pacemakerd", "corosync"):
        for pid in [pid for pid, service in services.items() if service == name]:
            say(f"stopping {name}")
            os.kill(pid, signal.SIGTERM)
        while name in services.values() and time.monotonic() < deadline:
            reap(os.WNOHANG, services)
            time.sleep(POLL_S)


def on_terminate(_number: int, _frame: object) -> NoReturn:
    raise PowerOff


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        prepare(spec)
    except OSError as error:
        print(f"error {error}", flush=True)
        return 1
    signal.signal(signal.SIGTERM, on_terminate)
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return 1
    log = os.open("/var/log/init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    services: dict[int, str] = {}
    try:
        if spec["cluster"]:
            run_cluster(services)
        while True:
            reap(0, services)
    except PowerOff:
        shut_down(services)
    return 0


if __name__ == "__main__":
    sys.exit(main())
