"""Where log lines go: journald, else syslog, else /var/log/food/ID.log; standard error in the foreground.

Shared by guardian and daemon. Knows nothing of what is logged. A log must never stop the one who writes it: sockets
do not block (a line that cannot be taken at once is dropped and counted), and a full disk is no error here.
"""

import contextlib
import os
import socket
import sys
import time

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"
# Tests read what was logged; Pacemaker does not pass the variable.
LOG_DIRECTORY = os.environ.get("FOOD_LOG_DIRECTORY", "/var/log/food")
LINE_LIMIT_BYTES = 4096
# The default level, and the numbers, are syslog's: smaller is graver.
PRIORITIES = {"error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}
FACILITY_DAEMON = 3


def log_file(identity: str) -> str:
    return f"{LOG_DIRECTORY}/{identity}.log"


def sockets() -> list[str]:
    """Where a log line goes before any file."""
    found = [path for path in (JOURNAL_SOCKET, SYSLOG_SOCKET) if os.path.exists(path)]
    return [] if "FOOD_LOG_DIRECTORY" in os.environ else found


class Journal:
    """One process's log. `part` says who speaks: guardian or daemon."""

    def __init__(self, identity: str, part: str, level: str = "info", *, foreground: bool = False) -> None:
        self.prefix = f"{identity} {part}: "
        self.level = PRIORITIES[level]
        self.lost_lines = 0
        self._file = -1
        self._socket: socket.socket | None = None
        self._native = False
        self._foreground = foreground
        if not foreground:
            self._open(identity)

    def _open(self, identity: str) -> None:
        for path in sockets():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            sock.setblocking(False)
            try:
                sock.connect(path)
            except OSError:
                sock.close()
                continue
            self._socket, self._native = sock, path == JOURNAL_SOCKET
            return
        try:
            self._file = os.open(log_file(identity), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError:
            self._foreground = True  # nowhere else to speak

    def set_level(self, level: str) -> None:
        self.level = PRIORITIES[level]

    def debug(self, text: str) -> None:
        self.log("debug", text)

    def info(self, text: str) -> None:
        self.log("info", text)

    def notice(self, text: str) -> None:
        self.log("notice", text)

    def warning(self, text: str) -> None:
        self.log("warning", text)

    def error(self, text: str) -> None:
        self.log("error", text)

    def log(self, level: str, text: str) -> None:
        priority = PRIORITIES[level]
        if priority > self.level:
            return
        line = plain((self.prefix + text).replace("\n", " ")).encode()[:LINE_LIMIT_BYTES]
        try:
            if self._socket is not None:
                self._socket.send(self._datagram(priority, line))
            else:
                self._write(level, line)
        except OSError:
            self.lost_lines += 1
            if self._socket is not None:
                self._reconnect()

    def _datagram(self, priority: int, line: bytes) -> bytes:
        if self._native:
            return b"PRIORITY=%d\nSYSLOG_IDENTIFIER=food\nSYSLOG_PID=%d\nMESSAGE=%s\n" % (priority, os.getpid(), line)
        return b"<%d>food[%d]: %s" % (FACILITY_DAEMON * 8 + priority, os.getpid(), line)

    def _write(self, level: str, line: bytes) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S") + f".{int(time.time() * 1000) % 1000:03d}"
        whole = f"{stamp} food[{os.getpid()}] {level}: ".encode() + line + b"\n"
        os.write(sys.stderr.fileno() if self._foreground else self._file, whole)

    def _reconnect(self) -> None:
        """journald was restarted: its socket is a new one. One try; the next line tries again."""
        assert self._socket is not None
        path = JOURNAL_SOCKET if self._native else SYSLOG_SOCKET
        with contextlib.suppress(OSError):
            self._socket.connect(path)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def plain(text: str) -> str:
    """Nothing in it that a terminal would obey, or that cannot be written: others' words are logged, too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
