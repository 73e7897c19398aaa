"""Processes that the guardian starts: the daemon, bound to the guardian's life, and short-lived tools.

Knows how to start, hear and end a process, and nothing of what they are for. Nothing here waits.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

PR_SET_PDEATHSIG = 1
OUTPUT_MOST_BYTES = 1024 * 1024
READ_BYTES = 65536
EXIT_FAILED = 1
EXIT_NOT_FOUND = 127
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Owner:
    """Whom the daemon runs as; uid None means to change nothing."""

    __slots__ = ("gid", "name", "uid")

    def __init__(self, name: str, uid: int | None, gid: int | None) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid


def environment(source: Mapping[str, str]) -> dict[str, str]:
    """Without the agent's variables: crm_attribute would take its resource and node from them."""
    kept = {name: value for name, value in source.items() if not name.startswith("OCF_")}
    kept["PATH"] = f"{kept['PATH']}:{SYSTEM_PATH}" if kept.get("PATH") else SYSTEM_PATH
    kept["LC_ALL"] = "C.UTF-8"
    return kept


def describe(status: int) -> str:
    """waitpid's status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"killed by signal {number}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def start_daemon(argv: Sequence[str], owner: Owner, pipe: int, lock: int, stderr: int) -> int:
    """Fork and run the daemon; its pid. It dies with the guardian."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()
    env = environment(os.environ)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
        os.set_inheritable(pipe, True)
        os.set_inheritable(lock, True)
        null = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, null), (1, null), (2, stderr)):
            os.dup2(source, target)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if owner.uid is not None and owner.gid is not None:
            os.setgroups([owner.gid])
            os.setgid(owner.gid)
            os.setuid(owner.uid)
        # After dropping privileges: that change clears it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the guardian died in between: nobody would send the signal any more
        os.execve(argv[0], list(argv), env)
    except BaseException as error:  # a forked child must never return into the guardian's loop
        with contextlib.suppress(OSError):
            os.write(2, f"the daemon cannot be run: {error}\n".encode())
    os._exit(1)


class Tool:
    """A running tool, in a process group of its own so that it can be ended whole (crm_master is a shell script)."""

    __slots__ = ("_chunks", "deadline", "errors", "output", "pid", "status")

    def __init__(self, argv: Sequence[str], deadline: float, lock: int = -1) -> None:
        """`lock`: a descriptor that the tool holds open while it runs. Raises OSError where there are no descriptors
        left to hear it by."""
        self.deadline = deadline
        self.status: int | None = None
        self._chunks: tuple[list[bytes], list[bytes]] = ([], [])
        self.output, output_end = _pipe()
        try:
            self.errors, errors_end = _pipe()
        except OSError:
            os.close(self.output)
            os.close(output_end)
            raise
        self.pid = 0
        try:
            self.pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output_end, 1),
                    (os.POSIX_SPAWN_DUP2, errors_end, 2),
                    *([(os.POSIX_SPAWN_DUP2, lock, 3)] if lock >= 0 else []),
                ],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE],  # Python ignores it, and tools would inherit that
            )
        except OSError as error:
            os.write(errors_end, f"{argv[0]} cannot be run: {error.strerror}".encode())
            self.status = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_FAILED
        finally:
            os.close(output_end)
            os.close(errors_end)

    def read(self) -> None:
        for descriptor, chunks in ((self.output, self._chunks[0]), (self.errors, self._chunks[1])):
            while sum(map(len, chunks)) < OUTPUT_MOST_BYTES:
                try:
                    chunk = os.read(descriptor, READ_BYTES)
                except BlockingIOError:
                    break
                if not chunk:
                    break
                chunks.append(chunk)

    def kill(self) -> None:
        if not self.pid:
            return  # it could not even be run; 0 would mean our own group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def texts(self) -> tuple[str, str]:
        """(what it printed, what it complained about)."""
        out, errors = (b"".join(chunks).decode(errors="replace") for chunks in self._chunks)
        return out, errors

    def close(self) -> None:
        os.close(self.output)
        os.close(self.errors)


def _pipe() -> tuple[int, int]:
    """(non-blocking end to read, end to write), neither inherited."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return reading, writing


def python_command() -> list[str]:
    """This interpreter with the flags that it was started with."""
    flags = ["-E"] if sys.flags.ignore_environment else []
    return [sys.executable, *flags, *(["-s"] if sys.flags.no_user_site else [])]
