"""A tcp link whose other end is slow to say hello: nothing comes back before a connection is `hold_s` old."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self


class SlowLink:
    """`with SlowLink(host, port, 2.5) as link:` connect to `link.endpoint` instead."""

    def __init__(self, host: str, port: int, hold_s: float):
        self._to, self._hold_s = (host, port), hold_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.accepted = 0
        self._ends = [self._listening]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for end in self._ends:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _run(self, function: object, *args: object) -> None:
        thread = threading.Thread(target=function, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                self.accepted += 1
                far = socket.create_connection(self._to)
                self._ends += [near, far]
                self._run(_pump, near, far, 0.0)
                self._run(_pump, far, near, self._hold_s)


def _pump(source: socket.socket, sink: socket.socket, hold_s: float) -> None:
    time.sleep(hold_s)
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    _shut(source)
    _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
