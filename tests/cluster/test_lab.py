"""The lab itself on a real cluster: power, fencing, partitions, and that nothing remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from testbed import Lab, LabError, layout

pytestmark = pytest.mark.cluster  # without root: conftest.py says loudly that nothing ran

SERVER = """
import socket
listener = socket.create_server(("0.0.0.0", 9999))
while True:
    connection = listener.accept()[0]
    connection.sendall(b"hello")
    connection.close()
"""
CONNECT = 'import socket; print(socket.create_connection(("{}", 9999), 1).recv(5).decode())'
OWNER = """
import signal
from testbed import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
with Lab("test-owner", nodes=2) as lab:
    client, inside = lab.popen_client(["sleep", "600"]), lab.popen("n1", ["sleep", "600"])
    print("up", flush=True)
    inside.wait()
"""
GONE_S = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("test-lab") as running:
        yield running


@pytest.fixture(autouse=True)
def whole(lab: Lab) -> None:
    """Every test starts with all nodes online and nothing cut."""
    lab.heal()
    for node in lab.nodes:
        if not lab.on(node):
            lab.wait_fenced(node)
    lab.start(*lab.nodes)
    lab.wait_online()


def test_a_node_sees_only_itself(lab: Lab) -> None:
    assert lab.run("n2", ["hostname"]).stdout == "n2\n"
    assert not lab.run("n2", ["ls", "/dev/log"], check=False).stdout
    assert len(lab.pids_of("n2", "^pacemakerd")) == 1
    lab.run("n2", ["touch", "/usr/local/lab-was-here", "/etc/lab-was-here", "/var/lib/food/lab-was-here"])
    for path in ("/usr/local/lab-was-here", "/etc/lab-was-here", "/var/lib/food/lab-was-here"):
        assert not os.path.exists(path)
        assert lab.path("n2", path).exists()
        assert lab.run("n1", ["ls", path], check=False).returncode != 0


def test_the_disk_outlives_the_power_and_run_does_not(lab: Lab) -> None:
    lab.run("n3", ["touch", "/var/lib/food/kept", "/run/lost"])
    lab.kill("n3")
    with pytest.raises(LabError, match="n3 is off"):
        lab.run("n3", ["true"])
    lab.wait_fenced("n3")
    lab.start("n3")
    lab.run("n3", ["ls", "/var/lib/food/kept"])
    assert lab.run("n3", ["ls", "/run/lost"], check=False).returncode != 0


def test_pacemaker_fences_by_taking_the_power(lab: Lab) -> None:
    lab.run("n1", ["pcs", "stonith", "fence", "n2"])
    assert not lab.on("n2")


def test_a_cut_of_food_leaves_corosync_and_the_client_alone(lab: Lab) -> None:
    connect = ["python3", "-c", CONNECT.format(lab.address("n2"))]
    server = lab.popen("n2", ["python3", "-c", SERVER])
    lab.wait(lambda: lab.run_client(connect, check=False).returncode == 0, 5, "the server")
    lab.run("n1", connect)
    lab.cut("n2", links="food", direction="in")
    assert lab.run("n1", connect, check=False).returncode != 0
    assert lab.run_client(connect).stdout == "hello\n"
    time.sleep(3 * lab.settings.token_ms / 1000)
    lab.wait_online()
    lab.heal("n2")
    lab.run("n1", connect)
    server.kill()
    assert server.wait() == -signal.SIGKILL


def test_a_cut_of_corosync_gets_the_node_fenced_and_outlives_its_boot(lab: Lab) -> None:
    lab.cut("n3", links="corosync")
    lab.wait(lambda: not lab.on("n3"), 15, "the fencing of n3")
    lab.start("n3")
    assert lab.status()["nodes"]["n3"]["cuts"]
    assert "udp" in lab.run("n3", ["nft", "list", "ruleset"]).stdout


def test_a_power_off_is_silent(lab: Lab) -> None:
    """Peers of a node that loses power see no end of their connections, only silence."""
    server = lab.popen("n1", ["python3", "-c", "import socket; socket.create_server(('', 9999)).accept()[0].recv(1)"])
    lab.wait(lambda: "9999" in lab.run("n1", ["ss", "-tln"]).stdout, 5, "the server")
    watch = (
        f"import socket; c = socket.create_connection(('{lab.address('n1')}', 9999)); print(1, flush=True); c.recv(1)"
    )
    with lab.popen_client(["python3", "-c", watch], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"1\n"
        lab.kill("n1")
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(1)
        client.kill()
    assert server.wait() == -signal.SIGKILL


def test_an_orderly_shutdown_needs_no_fencing(lab: Lab) -> None:
    lab.shut_down("n2")
    assert lab.wait_fenced("n2") < 2


def test_a_command_that_takes_too_long_is_ended(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"not done after 0\.3 s"):
        lab.run("n1", ["sleep", "77"], timeout_s=0.3)
    assert not lab.pids_of("n1", "^sleep 77")


def test_a_name_in_use_is_refused_and_the_owner_unharmed(lab: Lab) -> None:
    with pytest.raises(LabError, match="is up"):
        Lab("test-lab").up()
    lab.wait_online(1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_remains_of_a_lab_whose_owner_ends(sent: signal.Signals) -> None:
    path = str(layout.PACKAGE.parent)
    argv = [sys.executable, "-c", OWNER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONPATH": path}) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == b"up\n"
        directory = layout.find("test-owner")
        assert directory is not None
        pids = [layout.read_pid(file) for file in directory.glob("hosts/*/pid")]
        assert len(pids) == 3 and all(pids)
        owner.send_signal(sent)
        owner.wait(GONE_S)
    deadline = time.monotonic() + GONE_S
    while layout.find("test-owner") is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert layout.find("test-owner") is None
    assert not [pid for pid in pids if pid is not None and layout.start_time(pid)]
