"""Everything that goes over the lab's wires for a while, and how often words are in it: SECONDS FIRST_PORT WORD…

Runs in the client host, which holds the bridge: every frame between two hosts passes there. Prints a line "listening",
then one of JSON, {"bytes": those to and from the three ports, "found": {word: times}}.
"""

import json
import socket
import sys
import time

ETH_P_ALL = 3
HEADER_BYTES = 14  # Ethernet's
TCP = 6
SO_RCVBUFFORCE = 33  # Linux's; past the machine's limit


def main(seconds: float, first_port: int, words: list[str]) -> None:
    seen = bytearray()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        tap.settimeout(0.05)
        print("listening", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                frame = tap.recv(1 << 17)
            except TimeoutError:
                continue
            ip = frame[HEADER_BYTES:]
            if frame[12:14] != b"\x08\x00" or ip[9] != TCP:
                continue
            tcp = ip[(ip[0] & 15) * 4 :]
            ports = int.from_bytes(tcp[:2], "big"), int.from_bytes(tcp[2:4], "big")
            if any(first_port <= port < first_port + 3 for port in ports):
                seen += tcp[(tcp[12] >> 4) * 4 :]
    print(json.dumps({"bytes": len(seen), "found": {word: seen.count(word.encode()) for word in words}}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
