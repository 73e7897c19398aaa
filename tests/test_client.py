"""The client finds the primary, follows it, and has each write executed once, whatever the network loses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow_link import SlowLink
from standin import StandIn

from food.calls import (
    BadRequest,
    CompareFailed,
    FoodError,
    NoSpace,
    Outcome,
    OutcomeUnknown,
    ProtocolError,
    Request,
    TooLarge,
    Unavailable,
    printable,
)
from food.client import Client, Item, Row, default_endpoints
from food.directory import CLAIM_FRESH_S, LEARNED_MOST, Directory, address
from food.fleet import Fleet

SLOW_S = 3.0


@pytest.fixture
def cluster() -> Iterator[StandIn]:
    with StandIn() as cluster:
        yield cluster


@pytest.fixture
def client(cluster: StandIn) -> Iterator[Client]:
    with Client(cluster.endpoints, timeout_s=5) as client:
        yield client


def later(delay_s: float, action: object, *args: object) -> threading.Timer:
    timer = threading.Timer(delay_s, action, args)  # type: ignore[arg-type]
    timer.start()
    return timer


# --- Requests ---


def test_put_get_delete(client: Client) -> None:
    assert client.get(b"k") is None
    assert client.put(b"k", b"v1") == 1
    assert client.put(b"k", b"v2") == 2
    assert client.get(b"k") == Row(b"v2", 2)
    assert client.get(b"k", stale=True) == Row(b"v2", 2)
    assert client.delete(b"k") == 3
    assert client.delete(b"k") == 0
    assert client.get(b"k") is None


def test_cas_names_the_revision_it_found(client: Client) -> None:
    assert client.cas(b"k", 0, b"a") == 1
    with pytest.raises(CompareFailed, match="at revision 1, not 0") as caught:
        client.cas(b"k", 0, b"b")
    assert caught.value.revision == 1
    assert client.cas(b"k", 1, b"b") == 2, "the session goes on after a failed compare"


def test_range_is_by_prefix_and_limited(client: Client) -> None:
    for name in (b"a/1", b"a/2", b"b/1"):
        client.put(name, b"x")
    assert client.range(b"a/") == [Item(b"a/1", b"x", 1), Item(b"a/2", b"x", 2)]
    assert [row.key for row in client.range(b"", 2)] == [b"a/1", b"a/2"]
    assert [row.key for row in client.range(b"b/", stale=True)] == [b"b/1"]


def test_limits_are_named_before_anything_is_sent(client: Client, cluster: StandIn) -> None:
    with pytest.raises(TooLarge, match=r"key '' has 0 bytes: 1 to 1024"):
        client.put(b"", b"")
    with pytest.raises(TooLarge, match="has 1025 bytes: 1 to 1024 are possible"):
        client.get(b"\x1b" * 1025)
    with pytest.raises(TooLarge, match="1048577 bytes, the limit is 1048576: split it"):
        client.put(b"k", b"x" * 1048577)
    assert cluster.requests == []
    assert client.put(b"k", b"x" * 1048576) == 1


def test_the_session_is_opened_by_the_first_write_and_closed_at_the_end(cluster: StandIn) -> None:
    with Client(cluster.endpoints) as client:
        client.get(b"k")
        assert not cluster.state.sessions
        client.put(b"k", b"v")
        assert len(cluster.state.sessions) == 1
    assert not cluster.state.sessions
    with pytest.raises(FoodError, match="closed"):
        client.get(b"k")


# --- Where the primary is ---


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("known", [0, 1, 2])
def test_one_endpoint_is_enough_when_nodes_hint(cluster: StandIn, known: int, hints: bool) -> None:
    cluster.primary, cluster.hints = 1, hints
    with Client([cluster.endpoints[known]], timeout_s=0.7) as client:
        if hints or known == 1:
            assert client.put(b"k", b"v") == 1
        else:
            with pytest.raises(Unavailable, match=r"n\d is backup"):
                client.put(b"k", b"v")


def test_the_primary_of_the_highest_epoch_wins(cluster: StandIn) -> None:
    cluster.promote(2)
    cluster.claims[0] = 1
    with Client(cluster.endpoints, timeout_s=5) as client:
        assert client.put(b"k", b"v") == 1


def test_a_primary_that_appears_late_is_found_soon(cluster: StandIn, client: Client) -> None:
    cluster.primary = None
    timer = later(0.5, cluster.promote, 2)
    started = time.monotonic()
    assert client.put(b"k", b"v") == 1
    assert 0.5 <= time.monotonic() - started < 0.75
    timer.join()


@pytest.mark.parametrize("hints", [True, False])
def test_the_role_moves_between_requests(cluster: StandIn, client: Client, hints: bool) -> None:
    cluster.hints = hints
    for node in (0, 1, 2, 1, 0):
        cluster.promote(node)
        started = time.monotonic()
        client.put(b"k", b"v")
        assert client.get(b"k") == Row(b"v", cluster.state.revision)
        assert time.monotonic() - started < 0.2
    assert cluster.state.revision == 5


def test_the_role_moves_while_a_write_waits(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.faults.append("mute")  # executed, and the reply is lost with the node
    timer = later(0.3, cluster.promote, 1)
    started = time.monotonic()
    assert client.put(b"k", b"w") == 2
    assert time.monotonic() - started < 0.6
    assert cluster.state.revision == 2, "executed once"
    timer.join()


def test_a_stopped_primary_is_left_for_its_successor(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.stopped.add(0)
    timer = later(0.3, cluster.promote, 1)
    started = time.monotonic()
    assert client.put(b"k", b"w") == 2
    assert time.monotonic() - started < 0.6
    cluster.stopped.clear()  # it now reads what was sent to it, and answers not_primary
    assert client.put(b"k", b"x") == 3
    timer.join()


def test_an_old_primary_that_still_claims_the_role_is_not_believed(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.claims[0] = cluster.epoch
    cluster.promote(1)
    started = time.monotonic()
    assert client.put(b"k", b"w") == 2
    assert time.monotonic() - started < 0.5
    assert all(client.put(b"k", b"x") for _ in range(20))


def test_stale_reads_need_no_primary(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.primary = None
    cluster.stopped.update({0, 1})
    assert client.get(b"k", stale=True) == Row(b"v", 1)
    client.timeout_s = 0.2
    with pytest.raises(Unavailable):
        client.get(b"k")


def test_a_dead_endpoint_does_not_matter(cluster: StandIn) -> None:
    with Client(["127.0.0.1:1", cluster.endpoints[0]], timeout_s=2) as client:
        assert client.put(b"k", b"v") == 1
        assert client.get(b"k", stale=True) == Row(b"v", 1)


# --- Exactly once ---


def test_what_is_lost_is_sent_again(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    for fault in ("ignore", "mute"):
        cluster.faults.append(fault)
        started = time.monotonic()
        client.put(b"k", fault.encode())
        assert 0.4 < time.monotonic() - started < 1.0
    assert cluster.state.revision == 3


def test_late_double_and_garbage_replies_do_no_harm(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.faults.extend(["twice", "ok", "late", "ok", "garbage", "ok"])
    assert [client.put(b"k", str(n).encode()) for n in range(4)] == [2, 3, 4, 5]
    assert client.get(b"k") == Row(b"3", 5)


@pytest.mark.parametrize("code", ["busy", "not_primary", "unknown"])
def test_refusals_are_retried_under_the_same_seq(cluster: StandIn, client: Client, code: str) -> None:
    client.put(b"k", b"v")
    cluster.faults.extend([code] * 3)
    assert client.put(b"k", b"w") == 2
    assert len(cluster.state.sessions) == 1
    assert cluster.state.revision == 2


def test_without_space_a_write_is_refused_and_its_seq_stays_free(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.faults.append("no_space")
    with pytest.raises(NoSpace) as caught:
        client.put(b"k", b"w")
    assert not caught.value.executed
    assert client.put(b"k", b"x") == 2
    assert len(cluster.state.sessions) == 1


def test_without_space_a_write_that_may_have_been_executed_is_not_called_refused(
    cluster: StandIn, client: Client
) -> None:
    client.put(b"k", b"v")
    cluster.faults.extend(["unknown", "no_space", "no_space"])
    assert client.put(b"k", b"w") == 2


def test_a_read_waits_for_a_quorum(cluster: StandIn, client: Client) -> None:
    cluster.faults.extend(["no_quorum"] * 3)
    assert client.get(b"k") is None


def test_a_write_never_sent_is_unavailable_not_unknown(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.primary = None
    client.timeout_s = 0.3
    with pytest.raises(Unavailable, match=r"put k: no primary answered within 0\.3 s.*n1 is backup") as caught:
        client.put(b"k", b"w")
    assert not caught.value.executed
    cluster.primary = 0
    assert client.put(b"k", b"x") == 2
    assert len(cluster.state.sessions) == 1, "its seq was free to use"


@pytest.mark.parametrize("fault", ["ignore", "mute", "unknown"])
def test_a_write_sent_and_not_answered_is_unknown(cluster: StandIn, client: Client, fault: str) -> None:
    client.put(b"k", b"v")
    first = set(cluster.state.sessions)
    cluster.faults.extend([fault] * 100)
    client.timeout_s = 0.3
    with pytest.raises(OutcomeUnknown, match="once, or not at all") as caught:
        client.put(b"k", b"w")
    assert caught.value.executed
    cluster.faults.clear()
    client.put(b"k", b"x")
    assert client.get(b"k") == Row(b"x", 3 if fault == "mute" else 2)
    assert first.isdisjoint(cluster.state.sessions), "closed first: the unknown write cannot come after this one"


def test_an_evicted_session_is_replaced_when_nothing_can_have_happened(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.state.sessions.clear()
    assert client.put(b"k", b"w") == 2


def test_an_evicted_session_makes_a_retry_unknown(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    cluster.faults.append("mute")
    timer = later(0.3, cluster.state.sessions.clear)
    with pytest.raises(OutcomeUnknown, match="evicted"):
        client.put(b"k", b"w")
    assert client.put(b"k", b"x") == 3
    timer.join()


def test_an_interrupted_write_does_not_spoil_the_next(
    cluster: StandIn, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put(b"k", b"v")
    cluster.faults.append("mute")

    def interrupt(wait_ms: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.put(b"k", b"w")
    assert client.put(b"k", b"x") == 3
    assert client.get(b"k") == Row(b"x", 3)


@pytest.mark.parametrize(
    ("code", "error"), [("bad_request", BadRequest), ("too_large", TooLarge), ("nonsense", ProtocolError)]
)
def test_errors_have_types_and_the_servers_words(
    cluster: StandIn, client: Client, code: str, error: type[FoodError]
) -> None:
    client.put(b"k", b"v")
    cluster.faults.append(code)
    with pytest.raises(error, match=f"the test wants {code}"):
        client.put(b"k", b"w")
    assert client.put(b"k", b"x") == 2


# --- Waiting is cheap ---


def test_nobody_is_asked_while_all_is_well(cluster: StandIn, client: Client) -> None:
    client.put(b"k", b"v")
    before = cluster.probes
    for _ in range(200):
        client.put(b"k", b"v")
    assert cluster.probes - before <= 3  # those of the beginning, still under way


def test_a_waiting_client_asks_ten_times_a_second(cluster: StandIn) -> None:
    cluster.primary = None
    with Client(cluster.endpoints, timeout_s=1) as client, pytest.raises(Unavailable):
        client.put(b"k", b"v")
    assert cluster.probes <= 12 * len(cluster.endpoints)
    assert not cluster.requests


# --- Status ---


def test_status_has_an_answer_of_each_node_that_gives_one(cluster: StandIn) -> None:
    cluster.stopped.add(2)
    with Client([*cluster.endpoints, "127.0.0.1:1"]) as client:
        status = client.status()
    assert status.leader == cluster.endpoints[0]
    assert [bool(answer) for answer in status.answers.values()] == [True, True, False, False]


def test_status_follows_the_hint_to_the_primary(cluster: StandIn) -> None:
    with Client(cluster.endpoints[1:2]) as client:
        assert client.status().leader == cluster.endpoints[0]


# --- Endpoints ---


@pytest.mark.parametrize("kind", ["client", "fleet"])
def test_who_is_slow_to_greet_is_waited_for(kind: str) -> None:
    """When the role has moved all clients come at once: where they gave up on each other's handshakes, and began them
    again, nobody would ever get in."""
    with StandIn(1) as cluster:
        cluster.hints = False
        host, port = cluster.endpoints[0].split(":")
        with SlowLink(host, int(port), SLOW_S) as link:
            if kind == "client":
                with Client([link.endpoint], timeout_s=3 * SLOW_S) as client:
                    assert client.put(b"k", b"v") == 1
            else:
                outcomes: list[Outcome] = []
                fleet = Fleet([link.endpoint], 1)
                member = fleet.add(lambda member, outcome, now: outcomes.append(outcome))
                member.submit(Request("w", "put", (b"k", b"v")), time.monotonic(), 3 * SLOW_S)
                while not outcomes:
                    fleet.round(0.1)
                fleet.close()
                assert outcomes == [Outcome(1)]
            assert link.accepted <= 2, "it was begun anew"


def test_unix_sockets(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.sock", "b.sock")]
    with StandIn(2, paths) as cluster, Client([f"ipc://{paths[1]}"]) as client:
        assert client.put(b"k", b"v") == 1
        assert cluster.requests[-1][0] == 0


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("n1:10001", "tcp://n1:10001"),
        ("tcp://10.0.0.1:1", "tcp://10.0.0.1:1"),
        ("[::1]:65535", "tcp://[::1]:65535"),
        ("[fe80::1%eth0]:1", "tcp://[fe80::1%eth0]:1"),
        ("a-b_c.d:1", "tcp://a-b_c.d:1"),
        ("/run/food/food/client.sock", "ipc:///run/food/food/client.sock"),
        ("ipc:///x", "ipc:///x"),
    ],
)
def test_forms_of_endpoints(endpoint: str, expected: str) -> None:
    assert address(endpoint) == expected


NO_HOSTS = ("a b", "*", "-a", "ä", "_", "a\0b", "[x]", "[::1", "[]", "::1", "[::1% x]", "a:b", "\udcff")


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "n1", "n1:", ":1", "n1:0", "n1:65536", "n1:x", "n1:²", "run/food", "n1:" + "9" * 5_000),
        *("/" + "x" * 107, "/a\0b", "/\udcff", *(f"{host}:1" for host in NO_HOSTS)),
    ],
    ids=lambda endpoint: ascii(endpoint)[:20],
)
def test_bad_endpoints_are_refused_in_words(endpoint: str) -> None:
    with pytest.raises(ValueError, match="host:port is expected"):
        Client([endpoint])


def test_default_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = str(tmp_path)
    monkeypatch.delenv("FOOD_ENDPOINTS", raising=False)
    with pytest.raises(Unavailable, match=r"does not run on this machine.*--endpoints"):
        default_endpoints(None, run_dir)
    for name in ("a", "b"):
        os.mkdir(tmp_path / name)
        (tmp_path / name / "client.sock").touch()
    with pytest.raises(Unavailable, match=r"several clones run on this machine \(a, b\): choose one with --id"):
        default_endpoints(None, run_dir)
    monkeypatch.setenv("FOOD_ENDPOINTS", "n1:1, n2:2")
    assert default_endpoints(None, run_dir) == ["n1:1", "n2:2"]
    assert default_endpoints("b", run_dir) == [f"{run_dir}/b/client.sock"]


# --- The directory alone, with times made up ---


def info(role: str, number: int, **more: object) -> dict[str, object]:
    return {"node": "x", "role": role, "epoch": [number, "s"], **more}


def test_a_lower_epoch_counts_only_after_the_higher_has_been_silent() -> None:
    directory = Directory(["a:1", "b:1"])
    directory.on_info("a:1", info("primary", 5), 10.0)
    directory.on_info("b:1", info("primary", 1), 20.0)
    assert directory.target == "a:1"
    directory.on_info("b:1", info("primary", 1), 20.0 + CLAIM_FRESH_S / 2)
    assert directory.target == "a:1"
    directory.on_info("b:1", info("primary", 1), 20.0 + CLAIM_FRESH_S)
    assert directory.target == "b:1", "a cluster founded anew starts again at 1"


def test_one_node_known_by_two_endpoints_does_not_make_it_waver() -> None:
    directory = Directory(["a:1", "/a"])
    directory.on_info("/a", info("primary", 5), 1.0)
    version = directory.version
    for step in range(10):
        directory.on_info("a:1", info("primary", 5), 1.0 + step / 10)
        directory.on_info("/a", info("primary", 5), 1.0 + step / 10)
    assert (directory.target, directory.version) == ("/a", version)


def test_a_hint_names_the_node_by_the_endpoint_that_works_from_here() -> None:
    directory = Directory(["a:1", "b:1"])
    directory.on_info("b:1", info("backup", 1, node="n2"), 1.0)
    directory.on_info("a:1", info("backup", 1, primary={"node": "n2", "endpoint": "10.0.0.2:1"}), 9.0)
    assert (directory.target, directory.learned) == ("b:1", {})


def test_two_nodes_that_name_each_other_are_not_asked_without_end() -> None:
    directory = Directory(["a:1", "b:1"])
    turns = 0
    for step in range(1000):
        now = 1.0 + step / 1000
        asked = directory.target or "a:1"
        version = directory.version
        directory.on_refused(asked, "b:1" if asked == "a:1" else "a:1", "not I", now)
        turns += directory.version - version
    assert turns < 60


def test_what_a_server_says_is_short_and_plain() -> None:
    directory = Directory(["a:1", "b:1"])
    deep: list[object] = []
    for _ in range(2_000):
        deep = [deep]
    directory.on_info("a:1", {"role": deep, "node": "n" * 10_000, "primary": {"endpoint": "*:1", "node": deep}}, 0.0)
    directory.on_info("b:1", {"role": "r" * 10_000, "node": "n" * 10_000}, 0.0)
    assert not directory.learned
    assert len(directory.describe(0.0)) < 200
    assert printable({"text": deep}) == "{'text': [[...]]}"
    assert printable("red \x1b[31m\nline") == "red \\x1b[31m\\nline"
    assert len(printable("x" * 10_000)) == 498


def test_hints_are_bounded_and_checked() -> None:
    directory = Directory(["a:1"])
    for hint in (None, 7, "", "nonsense", "x" * 1000 + ":1", *[f"h{n}:1" for n in range(100)]):
        directory.on_refused("a:1", hint, "not I", 1.0)
    assert len(directory.learned) == LEARNED_MOST
    strange: object
    for strange in (None, [], {}, {"role": "primary"}, {"role": "primary", "epoch": "x"}, {"role": 7, "primary": 8}):
        directory.on_info("a:1", strange, 1.0)
    assert "h99:1" in directory.learned
