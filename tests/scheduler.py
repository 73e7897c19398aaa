"""Pacemaker's scheduler, asked by crm_simulate what it would do with a saved cluster.

The saved clusters (tests/scores/*.xml) are CIBs of the lab at rest: food's clone runs on all nodes, n1 is promoted, and
no node has a score. A test puts scores there with the very command lines that the guardian would run.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

SAVED = Path(__file__).resolve().parent / "scores"
RESOURCE, CLONE = "food", "food-clone"
SCORE = f"master-{RESOURCE}"
NO_SUCH = 105  # how the tools say that an attribute is not there
LIMIT_S = 120.0  # crm_simulate takes a tenth of a second, but on a machine that does much else
DEGRADED = (190, 191)
SHOWN = ("promote", "demote", "start", "stop")  # of what is done to food's instances


class Plan(NamedTuple):
    """`steps` in the order of their execution: "demote n1", "fence n2"; who is promoted afterwards, if all works."""

    steps: tuple[str, ...]
    promoted: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.steps)


class Scheduler:
    def __init__(self, size: int, scratch: Path):
        self._scratch = scratch
        self.root = ET.parse(SAVED / f"{size}.xml").getroot()
        self.nodes = [node.get("uname") or "" for node in self.root.iter("node")]
        self.injected: list[str] = []  # crm_simulate's options, until the next plan

    # --- What food's guardian runs ---

    def run(self, argv: list[str]) -> tuple[int, str]:
        """What that tool would do to the CIB, and answer: (exit status, output)."""
        match argv:
            case ["crm_master", "-r", "food", "-N", node, "-l", "reboot", "-v", value]:
                self.set_score(node, int(value))
            case ["crm_master", "-r", "food", "-N", node, "-l", "reboot", "-D"]:
                self.set_score(node, None)
            case ["crm_attribute", "--promotion=food", "-N", node, "-l", "reboot", "-G", "-q"]:
                score = self.score(node)
                return (NO_SUCH, "") if score is None else (0, f"{score}\n")
            case ["crm_resource", "--fail", "--resource", "food", "--node", node]:
                self.result(node, "asyncmon", 0, 1)
            case _:
                raise AssertionError(f"a tool that the scheduler is not told of: {argv}")
        return 0, ""

    # --- The cluster's state ---

    def score(self, node: str) -> int | None:
        value = next((pair.get("value") for pair in self._attributes(node) if pair.get("name") == SCORE), None)
        return None if value is None else int(value)

    def set_score(self, node: str, score: int | None) -> None:
        attributes = self._attributes(node)
        for pair in [pair for pair in attributes if pair.get("name") == SCORE]:
            attributes.remove(pair)
        if score is not None:
            ET.SubElement(attributes, "nvpair", id=f"{SCORE}-{node}", name=SCORE, value=str(score))

    def result(self, node: str, action: str, interval_ms: int, code: int) -> None:
        """An action of food's on that node has ended with `code`."""
        if code in DEGRADED:  # injected, it would be said to be another role than the one expected
            return self._recorded(node, f"{RESOURCE}_{action}_{interval_ms}", code)
        self.injected += ["--op-inject", f"{RESOURCE}_{action}_{interval_ms}@{node}={code}"]
        return None

    def _recorded(self, node: str, operation: str, code: int) -> None:
        """A recurring action's newest result, as the controller records it."""
        state = next(found for found in self.root.iter("node_state") if found.get("uname") == node)
        found = next(found for found in state.iter("lrm_rsc_op") if found.get("id") == operation)
        status, _, key = (found.get("transition-magic") or "").partition(";")
        found.set("rc-code", str(code))
        found.set("transition-magic", f"{status.partition(':')[0]}:{code};{key}")

    def fails(self, node: str) -> None:
        """The node has lost its power."""
        self.injected += ["--node-fail", node]

    def returns(self, node: str) -> None:
        self.injected += ["--node-up", node]

    def standby(self, node: str, on: bool = True) -> None:
        element = next(found for found in self.root.iter("node") if found.get("uname") == node)
        for found in element.findall("instance_attributes"):
            element.remove(found)
        if on:
            attributes = ET.SubElement(element, "instance_attributes", id=f"nodes-{node}")
            ET.SubElement(attributes, "nvpair", id=f"nodes-{node}-standby", name="standby", value="on")

    def property(self, name: str, value: str) -> None:
        properties = next(self.root.iter("cluster_property_set"))
        for pair in [pair for pair in properties if pair.get("name") == name]:
            properties.remove(pair)
        ET.SubElement(properties, "nvpair", id=f"test-{name}", name=name, value=value)

    def disable(self, on: bool = True) -> None:
        """`pcs resource disable food-clone`."""
        meta = next(one for one in self.root.iter("clone") if one.get("id") == CLONE).find("meta_attributes")
        assert meta is not None
        for pair in [pair for pair in meta if pair.get("name") == "target-role"]:
            meta.remove(pair)
        if on:
            ET.SubElement(meta, "nvpair", id="test-target-role", name="target-role", value="Stopped")

    def prefer(self, node: str, score: int | str, *, others: bool = False) -> None:
        """A location rule for the promoted role, as pcs writes it; `others`: for all nodes but that one."""
        constraints = next(self.root.iter("constraints"))
        name = f"test-{len(constraints)}"
        location = ET.SubElement(constraints, "rsc_location", id=name, rsc=CLONE)
        rule = ET.SubElement(location, "rule", id=f"{name}-rule", role="Promoted", score=str(score))
        operation = "ne" if others else "eq"
        ET.SubElement(rule, "expression", id=f"{name}-x", attribute="#uname", operation=operation, value=node)

    def forget_preferences(self) -> None:
        constraints = next(self.root.iter("constraints"))
        for element in list(constraints):
            constraints.remove(element)

    def _attributes(self, node: str) -> ET.Element:
        state = next(found for found in self.root.iter("node_state") if found.get("uname") == node)
        transient = state.find("transient_attributes")
        if transient is None:
            transient = ET.SubElement(state, "transient_attributes", id=state.get("id") or "")
        attributes = transient.find("instance_attributes")
        if attributes is None:
            attributes = ET.SubElement(transient, "instance_attributes", id=f"status-{state.get('id')}")
        return attributes

    # --- What Pacemaker makes of it ---

    def fingerprint(self) -> bytes:
        """Equal: it would plan the same again."""
        return ET.tostring(self.root) + "\n".join(self.injected).encode()

    def plan(self) -> Plan:
        """The next transition, carried out: the cluster is what it is after it."""
        before, after = self._scratch / "before.xml", self._scratch / "after.xml"
        ET.ElementTree(self.root).write(before)
        argv = ["crm_simulate", "-x", str(before), "-S", "-O", str(after), "--output-as", "xml", *self.injected]
        environment = {**os.environ, "CIB_shadow_dir": str(self._scratch)}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        self.injected = []
        self.root = ET.parse(after).getroot()
        found = ET.fromstring(done.stdout)
        steps: list[str] = []
        for action in found.find("transition") or ():
            if action.tag == "fencing_action":
                steps.append(f"fence {action.get('target')}")
            elif action.tag == "rsc_action" and action.get("resource") == RESOURCE and action.get("op") in SHOWN:
                steps.append(f"{action.get('op')} {action.get('node')}")
        status = found.find("revised_cluster_status")
        if status is None:
            status = found.find("cluster_status")
        assert status is not None
        return Plan(tuple(steps), tuple(sorted(self._promoted(status))))

    @staticmethod
    def _promoted(status: ET.Element) -> list[str]:
        instances = [one for one in status.iter("resource") if one.get("id", "").partition(":")[0] == RESOURCE]
        promoted = [one for one in instances if one.get("role") == "Promoted"]
        return [node.get("name") or "" for one in promoted for node in one.iter("node")]
