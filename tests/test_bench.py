"""The benches beside the peers: the load they make, what they make of its figures, and that food can be measured."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import failover, generator, redis_writer, throughput
from bench.generator import Ask, Refused
from bench.throughput import Row
from daemons import wait
from load import read_history, write_gap_ms

STORED = b"+OK\r\n:1\r\n"


@contextlib.contextmanager
def answering(answer: Callable[[bytes], list[bytes]]) -> Iterator[str]:
    """A server that sends, in pieces, `answer(what was received)` for each recv. Yields its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(link: socket.socket) -> None:
            with link, contextlib.suppress(OSError):  # the load may leave without a word
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := link.recv(65536):
                    for piece in answer(data):
                        link.sendall(piece)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_redis_load_sends_set_and_wait_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = set()

    def answer(data: bytes) -> list[bytes]:
        asked.add(data)
        return [STORED[:7], STORED[7:]]  # in two pieces: the load must put them together

    with answering(answer) as endpoint:
        assert generator.main(["redis", endpoint, "--clients", "3", "--seconds", "0.2", "--value-bytes", "5"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)
    assert figures["requests"] > 0
    assert figures["errors"] == 0
    assert figures["own_cpu_us"] > 0
    assert len(asked) == 3  # a key each
    assert all(data.startswith(b"*3\r\n$3\r\nSET\r\n") for data in asked)
    assert all(data.endswith(b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n") for data in asked)


def test_etcd_load_reads_what_it_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    stored = {}

    def answer(data: bytes) -> list[bytes]:
        head, _, body = data.partition(b"\r\n\r\n")
        fields = json.loads(body)
        if head.startswith(b"POST /v3/kv/put "):
            stored[fields["key"]] = fields["value"]
            return [http(b"{}")]
        assert head.startswith(b"POST /v3/kv/range ")
        assert set(fields) == {"key"}  # neither serializable nor an older revision
        whole = http(json.dumps({"kvs": [{"value": stored[fields["key"]]}]}, separators=(",", ":")).encode())
        return [whole[:20], whole[20:90], whole[90:]]

    with answering(answer) as endpoint:
        assert generator.main(["etcd", endpoint, "--clients", "1,4", "--seconds", "0.2", "--reads"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(figures["clients"], figures["kind"]) for figures in found] == [(1, "reads"), (4, "reads")]
    assert all(figures["requests"] > 0 for figures in found)
    assert len(stored) == 5


@pytest.mark.parametrize(
    ("peer", "answer"),
    [
        ("redis", b"-READONLY You can't write against a read only replica.\r\n"),
        ("redis", b"+OK\r\n:0\r\n"),  # no replica has it
        ("etcd", http(b'{"error":"no leader"}', b"503 Service Unavailable")),
    ],
)
def test_a_refusal_ends_the_load_with_its_words(peer: str, answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: [answer]) as endpoint:
        assert generator.main([peer, endpoint, "--clients", "2", "--seconds", "0.2"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert repr(answer)[2:20] in said.err


def test_a_read_of_another_value_is_refused() -> None:
    redis: Ask = generator.redis_read(b"key", b"value")
    assert redis.whole(b"$5\r\nvalue\r\n")
    assert not redis.whole(b"$5\r\nva")
    for wrong in (b"$-1\r\n", b"$5\r\nother\r\n"):
        with pytest.raises(Refused):
            redis.whole(wrong)
    etcd = generator.etcd_read(b"key", b"value")
    assert etcd.whole(http(b'{"kvs":[{"value":"dmFsdWU="}]}'))
    with pytest.raises(Refused):
        etcd.whole(http(b'{"header":{}}'))  # no such key


def row(number: int, system: str, per_second: float) -> Row:
    return Row(number, system, "writes", 64, per_second, 1.0, 2.0, 0, 20.0)


def test_ratios_are_taken_in_pairs() -> None:
    """The ratio of the medians would be 1.5 here."""
    rows = [row(0, "food", 100), row(0, "etcd", 50), row(1, "etcd", 100), row(1, "food", 300)]
    rows += [row(2, "etcd", 400), row(2, "food", 150)]
    (entry,) = throughput.summary(rows)
    assert list(entry["systems"]) == ["food", "etcd"]
    assert entry["systems"]["food"]["per_second"] == {"median": 150, "least": 100, "most": 300}
    assert entry["ratios"] == {"etcd": {"median": 2.0, "least": 0.375, "most": 3.0}}
    text = throughput.table({"versions": {"food": "", "etcd": ""}, "summary": [entry]})
    assert text.splitlines()[-1] == "| writes/s, 64 clients | 150 (1 / 2 ms) | 100 (1 / 2 ms) | 2.00 |"


def test_every_system_is_first_in_turn() -> None:
    firsts = [throughput.turned(("food", "etcd", "redis"), number)[0] for number in range(4)]
    assert firsts == ["food", "etcd", "redis", "food"]


def test_food_is_measured(tmp_path: Path) -> None:
    plan = throughput.Plan(1, 0.3, (1, 8), ("food",), ("writes", "reads"), tmp_path)
    rows = throughput.measure(plan, print)
    assert [(row.kind, row.clients) for row in rows] == [("writes", 1), ("writes", 8), ("reads", 1), ("reads", 8)]
    assert all(row.per_second > 0 and row.errors == 0 for row in rows)
    assert list(tmp_path.iterdir()) == []  # nothing stays behind


def test_the_picture_shows_what_the_table_says() -> None:
    rows = [row(0, "food", 9000), row(0, "etcd", 6000), row(0, "redis", 45000)]
    report = {
        "date": "2026-11-25T13:00:00+00:00",
        "machine": {"processors": 2, "memory_gib": 23.5, "fsync_ms": 0.16},
        "plan": {"rounds": 1, "kinds": ["writes"]},
        "versions": {"food": "", "etcd": "", "redis": ""},
        "unlike": {"redis": "not linearizable"},
        "summary": throughput.summary(rows),
    }
    svg = throughput.picture(report)
    for text in ("9k", "6k", "45k", "1.50 × etcd", "0.20 × Redis", "Redis: not linearizable.", "2 processors"):
        assert text in svg, text


# --- Failovers ---


class RedisNode:
    """A node that answers what the writer asks; `master` and `keys` may be shared with others."""

    def __init__(self, name: str, roles: dict[str, str], keys: set[str]):
        self.name, self.roles, self.keys = name, roles, keys

    def __call__(self, data: bytes) -> list[bytes]:
        words = [word for word in data.decode().split("\r\n") if word and word[0] not in "*$"]
        master = self.roles["master"] == self.name
        match words:
            case ["INFO", "replication"]:
                info = f"# Replication\r\nrole:{'master' if master else 'slave'}\r\n"
                return [f"${len(info)}\r\n{info}\r\n".encode()]
            case ["SET", key, _, "WAIT", "1", _]:
                if not master:
                    return [b"-READONLY\r\n", b":0\r\n"]
                self.keys.add(key)
                return [b"+OK\r\n:1\r\n"]
            case ["EXISTS", *keys]:
                return [f":{len(self.keys.intersection(keys))}\r\n".encode()]
        raise AssertionError(words)


@pytest.mark.parametrize("loses", [0, 2])
def test_the_redis_writer_follows_the_primary_and_counts_what_is_lost(tmp_path: Path, loses: int) -> None:
    roles, keys, path = {"master": "a"}, set[str](), tmp_path / "history.jsonl"
    with (
        answering(RedisNode("a", roles, keys)) as a,
        answering(RedisNode("b", roles, keys)) as b,
        path.open("w") as out,
    ):
        load = redis_writer.Load([a, b], 1000.0, out)
        thread = threading.Thread(target=load.run, args=(2,))
        thread.start()
        wait(lambda: len(load.acked) > 20, 10, "no writes at the first")
        roles["master"] = ""
        time.sleep(0.1)  # what was under way is answered
        before = len(load.acked)
        time.sleep(0.3)
        assert len(load.acked) == before
        moved = time.monotonic()
        roles["master"] = "b"
        wait(lambda: len(load.acked) > before + 20, 10, "no writes at the second")
        load.stop = True
        thread.join(10)
        keys -= set(load.acked[:loses])
        assert load.lost() == loses
    history, _ = read_history(path)
    assert [write.key for write in history.writes] == load.acked
    assert write_gap_ms(history, moved) >= 300


def test_failovers_are_compared_pair_by_pair() -> None:
    found = {
        "food": {"move": [100.0, 300.0, 200.0], "kill": [500.0, 500.0, 500.0]},
        "ocf:heartbeat:redis": {"move": [1000.0, 1500.0, 4000.0], "kill": [10_000.0, 5000.0, 20_000.0]},
        "Pacemaker alone": {"move": [150.0, 150.0, 150.0], "kill": [200.0, 200.0, 200.0]},
    }
    rows = failover.summary(found)
    assert [(row["event"], row["ratio"]["median"]) for row in rows] == [("move", 0.1), ("kill", 0.05)]
    report = {"summary": rows, "rounds": 3, "date": "2026-11-25", "machine": {"processors": 2, "memory_gib": 23.5}}
    last = failover.table(report).splitlines()[-1]
    assert last == "| kill | 500 (500 to 500) | 10,000 (5,000 to 20,000) | 200 (200 to 200) | 1/20.0 |"
    assert "food: 1/20 of ocf:heartbeat:redis" in failover.picture(report)
