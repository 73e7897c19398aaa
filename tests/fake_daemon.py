"""A daemon that only speaks, by the guardian's pipe and the control socket. The guardian runs it as parameter `daemon`.

Driven through files in its run directory: `say` (JSON packets for the guardian, a line each, read as they are
appended), `last` (the same, sent when it is asked to end), `replies` (JSON: action → reply). Tells through `heard`
(the guardian's packets) and `asked` (requests, hex).
"""

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

BEAT_S = 0.05


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    pipe = socket.socket(fileno=int(arguments["--guardian-fd"]))
    last = Path("/dev/null")

    def end(*_: object) -> None:
        for line in last.read_text().splitlines() if last.exists() else []:
            pipe.send(line.encode())
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    if os.environ.get("FAKE_DAEMON") == "dies":
        sys.exit("the disk is made of cheese")
    hello = pipe.recv(65536)
    if not hello:
        return
    run_dir = Path(json.loads(hello)["hello"]["settings"]["run_dir"])
    last = run_dir / "last"
    heard, asked = (run_dir / "heard").open("ab", 0), (run_dir / "asked").open("a", 1)
    heard.write(hello + b"\n")
    control = None
    inputs: list[Any] = [pipe]
    if os.environ.get("FAKE_DAEMON") == "agent":
        import zmq

        control = zmq.Context().socket(zmq.ROUTER)
        control.setsockopt(zmq.LINGER, 0)
        control.bind(f"ipc://{run_dir}/control.sock")
        inputs.append(control.getsockopt(zmq.FD))
    said, beats = 0, 0
    while True:
        beats += 1
        pipe.send(json.dumps({"beat": beats}).encode())
        lines = (run_dir / "say").read_text().split("\n")[:-1] if (run_dir / "say").exists() else []
        for line in lines[said:]:
            pipe.send(line.encode())
        said = len(lines)
        ready, _, _ = select.select(inputs, [], [], BEAT_S)
        if pipe in ready:
            packet = pipe.recv(65536)
            if not packet:
                return
            heard.write(packet + b"\n")
        if control is not None:
            answer(control, asked, run_dir)


def answer(control, asked, run_dir) -> None:  # type: ignore[no-untyped-def]
    import msgpack
    import zmq

    while control.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        route, empty, frame = control.recv_multipart()
        asked.write(frame.hex() + "\n")
        replies = json.loads((run_dir / "replies").read_text()) if (run_dir / "replies").exists() else {}
        action = msgpack.unpackb(frame)["action"]
        reply = replies.get(action, {"v": 1, "rc": 0, "reason": "", "role": "backup"})
        if isinstance(reply, str):
            control.send_multipart([route, empty, bytes.fromhex(reply)])
        elif reply is not None:
            control.send_multipart([route, empty, msgpack.packb(reply)])


main()
