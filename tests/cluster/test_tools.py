"""What the agent is to the tools that operators use: pcs, crm_verify, crm_mon, ocf-tester."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from cluster.operations import AGENT, RESOURCE, Cluster

pytestmark = pytest.mark.cluster

TESTED, TESTED_PORT = "ocftest", 9100
# pcs brings the schema that it holds agents to; ocf-tester knows the one of OCF 1.0 only.
VALIDATE = """
import sys
from lxml import etree
schema = etree.RelaxNG(etree.parse("/usr/share/pcs/data/ocf-1.1.rng"))
schema.assertValid(etree.fromstring(sys.stdin.buffer.read()))
"""
DTD_COMPLAINT = "does not conform to ra-api-1.dtd"


def test_pcs_describes_the_agent(settled: Cluster) -> None:
    text = settled.operator("pcs", "resource", "describe", "ocf:food:food")
    for word in ("Key-value store", "port", "watchdog_ms", "interval=10s", "role=Promoted", "role=Unpromoted"):
        assert word in text
    assert "Warning" not in text


def test_the_meta_data_is_ocf_1_1(settled: Cluster) -> None:
    text = settled.lab.run("n1", [AGENT, "meta-data"]).stdout
    settled.lab.run("n1", ["/usr/bin/python3", "-c", VALIDATE], input=text)
    agent = ElementTree.fromstring(text)
    assert agent.findtext("version") == "1.1"
    monitors = {action.get("role"): action.get("interval") for action in agent.iterfind("actions/action[@role]")}
    assert set(monitors) == {"Promoted", "Unpromoted"}
    assert len(set(monitors.values())) == 2, "equal intervals: Pacemaker could not tell the two apart"


def test_the_clone_that_pcs_made_has_both_monitors(settled: Cluster) -> None:
    text = settled.lab.run("n1", ["crm_resource", "--resource", RESOURCE, "--query-xml-raw"]).stdout
    clone = ElementTree.fromstring(text[text.index("<") :])
    monitors = {o.get("role"): o.get("interval") for o in clone.iter("op") if o.get("name") == "monitor"}
    assert monitors == {"Promoted": "10s", "Unpromoted": "11s"}


def test_the_cluster_is_clean(settled: Cluster) -> None:
    print(settled.lab.run("n1", ["crm_verify", "--live-check", "-VV"]).stdout)
    text = settled.operator("crm_mon", "-A1")
    settled.show()
    assert "Failed" not in text
    for node in settled.lab.nodes:
        assert settled.states()[node].startswith(("primary, epoch", "backup, epoch"))
        assert settled.score(node)


def test_status_shows_every_member(settled: Cluster) -> None:
    text = settled.operator("foodctl", "status")
    print(text)
    found = json.loads(settled.lab.run("n1", ["foodctl", "--output", "json", "status"]).stdout)
    members = found["answers"][found["leader"]]["members"]
    assert {member["node"] for member in members} == set(settled.lab.nodes)
    for member in members:
        assert member["role"] == ("primary" if member["node"] == settled.primary() else "backup")
        assert member["lag"] == 0 and member["score"] and member["since_s"] is not None


def test_ocf_tester_finds_nothing(settled: Cluster) -> None:
    """A second food beside the clone; its other two members run, too, or it could not be promoted."""
    with settled.by_hand(TESTED, TESTED_PORT):
        argv = ["ocf-tester", "-n", TESTED, "-o", f"port={TESTED_PORT}", AGENT]
        done = settled.lab.run("n1", argv, check=False, timeout_s=240)
        assert not settled.lab.pids_of("n1", f"--id {TESTED}"), "a process is left"
    print(done.stdout, done.stderr)
    complaints = [line for line in done.stdout.splitlines() if line.startswith("*")]
    assert [line for line in complaints if DTD_COMPLAINT not in line] == []
    assert "Aborting" not in done.stdout
    assert "passed all tests" in done.stdout or "failed 1 tests" in done.stderr
