"""The lab's parts that need neither root nor namespaces: names, files, rules, requests, records."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from testbed import LabError, faults, floors, install, layout, ownership, packages, seed, warden
from testbed.faults import Cut
from testbed.layout import Settings


def fence_agent() -> ModuleType:
    """guest/fence_lab as a module; it has no suffix, as Pacemaker wants it."""
    path = str(layout.PACKAGE / "guest" / "fence_lab")
    loader = importlib.machinery.SourceFileLoader("fence_lab", path)
    spec = importlib.util.spec_from_loader("fence_lab", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    was, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = was
    return module


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "-a", "a" * 25, "a b"])
def test_a_lab_name_that_is_no_safe_file_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        Settings(name)


@pytest.mark.parametrize("nodes", [0, 1, 8])
def test_a_lab_has_two_to_seven_nodes(nodes: int) -> None:
    with pytest.raises(LabError, match="2 to 7"):
        Settings("a", nodes)


def test_settings_survive_their_file() -> None:
    settings = Settings("a", 2, False, 700, properties={"no-quorum-policy": "stop"})
    assert Settings.from_json(settings.to_json()) == settings


def test_a_pid_file_names_one_process_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    layout.write_pid(path, os.getpid())
    assert layout.read_pid(path) == os.getpid()
    path.write_text(f"{os.getpid()} 1\n")  # the pid was given to a later process
    assert layout.read_pid(path) is None
    path.unlink()
    assert layout.read_pid(path) is None


def test_corosync_conf_has_one_directive_a_line() -> None:
    text = seed.corosync_conf(Settings("a", 2, token_ms=700), ["n1", "n2"])
    for line in map(str.strip, text.splitlines()):
        assert line.endswith("{") or line == "}" or line.count(": ") == 1
    assert "  token: 700\n" in text
    assert "  token_coefficient: 0\n" in text
    assert "  two_node: 1\n" in text
    assert "two_node" not in seed.corosync_conf(Settings("a", 3), ["n1", "n2", "n3"])


@pytest.mark.parametrize("fencing", [True, False])
def test_the_seeded_cib_is_xml_with_its_properties(fencing: bool) -> None:
    cib = ElementTree.fromstring(seed.cib_xml(Settings("a", 3, fencing, properties={"x": '"<&'})))
    properties = {pair.get("name"): pair.get("value") for pair in cib.iter("nvpair")}
    assert properties["dc-deadtime"] == "1s"
    assert properties["stonith-enabled"] == str(fencing).lower()
    assert properties["x"] == '"<&'
    assert (cib.find(".//primitive[@class='stonith']") is not None) == fencing


def test_every_host_finds_every_other_by_name() -> None:
    lines = [line.split() for line in seed.hosts(Settings("a", 3)).splitlines()]
    names = {name: address for address, name in lines}
    assert {"n1", "n2", "n3", layout.CLIENT} <= names.keys()
    assert names["n2"] == layout.address_of("n2")


def test_a_cut_names_the_other_nodes_and_never_the_client() -> None:
    rules = faults.ruleset("n1", ["n1", "n2", "n3"], [Cut("food", "in"), Cut("corosync", "both", 30, ("n3",))])
    assert "ip saddr { 10.77.0.2, 10.77.0.3 } meta l4proto tcp drop" in rules
    assert "ip saddr { 10.77.0.3 } meta l4proto udp numgen random mod 100 < 30 drop" in rules
    assert "ip daddr { 10.77.0.3 } meta l4proto udp numgen random mod 100 < 30 drop" in rules
    assert rules.count("daddr") == 1
    assert layout.CLIENT_ADDRESS not in rules


def test_no_cuts_drop_nothing_and_replace_what_was_there() -> None:
    rules = faults.ruleset("n1", ["n1", "n2"], [])
    assert "drop" not in rules
    assert "delete table" in rules


@pytest.mark.parametrize("bad", [{"links": "x"}, {"direction": "up"}, {"percent": 0}, {"percent": 101}])
def test_a_cut_that_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(LabError, match=next(iter(bad))):
        Cut(**bad)


def ask(request: bytes) -> dict[str, Any]:
    """One request to a warden that knows `add` only."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(request)
        warden.answer(theirs, {"add": lambda a, b: {"sum": a + b}})
        with ours.makefile() as stream:
            reply: dict[str, Any] = json.loads(stream.readline())
    return reply


def test_a_request_is_carried_out() -> None:
    assert ask(b'{"do": "add", "a": 1, "b": 2}\n') == {"sum": 3}


@pytest.mark.parametrize("request_", [b'{"do": "x"}\n', b"[]\n", b"{}\n", b"\xff\n", b'{"do": "add"}\n', b"1\n"])
def test_a_bad_request_is_answered_in_words(request_: bytes) -> None:
    assert ask(request_)["error"]


def test_the_fence_agents_metadata_names_its_actions(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    agent = fence_agent()
    monkeypatch.setattr(sys, "argv", ["fence_lab", "-o", "metadata"])
    assert agent.main() == 0
    actions = {action.get("name") for action in ElementTree.fromstring(capsys.readouterr().out).iter("action")}
    assert {"on", "off", "reboot", "monitor", "list", "status", "metadata"} == actions


@pytest.mark.parametrize(
    ("options", "reply", "asked", "code"),
    [
        ("action=off\nport=n2\n", {}, {"do": "off", "node": "n2"}, 0),
        ("action=reboot\nplug=n2\n", {}, {"do": "reboot", "node": "n2"}, 0),
        ("action=status\nplug=n2\n", {"on": False}, {"do": "status", "node": "n2"}, 2),
        ("action=off\nplug=n9\n", {"error": "no node n9"}, {"do": "off", "node": "n9"}, 1),
        ("action=monitor\n", {"nodes": ["n1"]}, {"do": "list", "node": ""}, 0),
    ],
)
def test_the_fence_agent_asks_and_reports(
    tmp_path: Path, monkeypatch: Any, options: str, reply: dict[str, Any], asked: dict[str, str], code: int
) -> None:
    agent = fence_agent()
    monkeypatch.setattr(agent, "SOCKET", str(tmp_path / "fence.sock"))
    monkeypatch.setattr(sys, "argv", ["fence_lab"])
    monkeypatch.setattr(sys, "stdin", options.splitlines())
    heard: list[Any] = []

    def serve(listener: socket.socket) -> None:
        connection = listener.accept()[0]
        with connection, connection.makefile() as stream:
            heard.append(json.loads(stream.readline()))
            connection.sendall(json.dumps(reply).encode() + b"\n")

    with warden.listen(tmp_path / "fence.sock") as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        assert agent.main() == code
        server.join()
    if asked["do"] == "list":
        heard[0].pop("node")
        asked = {"do": "list"}
    assert heard == [asked]


def test_a_lab_directory_belongs_to_one_and_is_gone_afterwards(tmp_path: Path) -> None:
    directory = tmp_path / "labs" / "a"
    with ownership.owned(directory):
        assert ownership.is_live(directory)
        with pytest.raises(LabError, match="is up"), ownership.owned(directory):
            pass
    assert not directory.parent.exists()


def test_what_a_killed_lab_left_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "labs" / "a"
    with subprocess.Popen(["sleep", "60"]) as left:
        (directory / "hosts" / "n1").mkdir(parents=True)
        layout.write_pid(directory / "hosts" / "n1" / "pid", left.pid)
        ownership.remove_stale(directory)
        assert left.wait() == -9
    assert not directory.exists()


def test_the_installer_runs_on_layers_and_without_the_machines_run(tmp_path: Path) -> None:
    text = install.script(tmp_path, Path("/x y/install"))
    assert f"upperdir={tmp_path}/install/usr" in text
    assert "tmpfs" in text and "/run" in text
    assert text.endswith("exec '/x y/install'")


def test_missing_tools_are_named_with_their_packages(monkeypatch: Any) -> None:
    monkeypatch.setattr(packages, "SEARCH_PATH", "/nonexistent")
    with pytest.raises(LabError, match=r"nft.*apt-get install .*nftables"):
        packages.require_tools()


def test_the_record_of_actions_is_read_in_order(tmp_path: Path) -> None:
    class Recorded:
        nodes = ("n1", "n2")

        def path(self, node: str, inside: str) -> Path:
            assert inside == floors.ACTIONS_LOG
            return tmp_path / node

    (tmp_path / "n1").write_text("floor promote begin 20\nfloor promote end 30 0\nother start begin 1\n")
    (tmp_path / "n2").write_text("floor pre-promote begin 10\ntorn\n")
    lab: Any = Recorded()
    found = [(event.node, event.action, event.edge, event.code) for event in floors.events(lab, "floor", 10)]
    assert found == [
        ("n2", "pre-promote", "begin", None),
        ("n1", "promote", "begin", None),
        ("n1", "promote", "end", 0),
    ]
