"""One cluster for all tests of this directory, whole before and after each; the figures that they measure.

FOOD_FIGURES=FILE writes the figures as JSON. FOOD_LAB=NAME uses a running lab (deploy/lab --name NAME up --install),
for people who work on a test. FOOD_LONG=yes runs the rounds that take long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster.operations import RESOURCE, Cluster
from testbed import Lab

HERE = Path(__file__).resolve().parent


class Figure(NamedTuple):
    what: str
    value: float
    unit: str
    bar: str


class Figures:
    def __init__(self) -> None:
        self.all: list[Figure] = []

    def __call__(self, what: str, value: float, unit: str = "ms", bar: str = "") -> None:
        """One figure; `bar` is the value to meet on a machine of its own, and for people only."""
        self.all.append(Figure(what, value, unit, bar))
        print(f"figure: {what}: {value:g} {unit}" + (f" (bar: {bar})" if bar else ""))


FIGURES = Figures()


@pytest.fixture(scope="session")
def figures() -> Figures:
    return FIGURES


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes with fencing, food installed, the clone created as the README says."""
    directory = tmp_path_factory.mktemp("loads")
    running = os.environ.get("FOOD_LAB")
    if running:
        attached = Cluster(Lab.attach(running))
        attached.directory = directory
        if attached.lab.run("n1", ["pcs", "resource", "status", RESOURCE], check=False).returncode:
            attached.create()
        yield attached
        return
    with Lab("cluster-tests", 3, install=True) as lab:
        found = Cluster(lab)
        found.directory = directory
        found.create()
        yield found


@pytest.fixture
def settled(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster: one primary, all others in sync, nothing under way. It must be so again after the test."""
    cluster.settle()
    yield cluster
    cluster.repair()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report, cluster = outcome.get_result(), getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("the cluster then", "\n".join(cluster.picture())))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "tests/cluster/" in r.nodeid]
    if skipped and os.geteuid() != 0:
        text = f"!! {len(skipped)} real-cluster tests DID NOT RUN: they need root"
        terminalreporter.write_line(text, red=True, bold=True)
    if not FIGURES.all:
        return
    terminalreporter.section("figures")
    width = max(len(figure.what) for figure in FIGURES.all)
    for figure in FIGURES.all:
        bar = f"   bar: {figure.bar}" if figure.bar else ""
        terminalreporter.write_line(f"{figure.what:<{width}}  {figure.value:>8g} {figure.unit}{bar}")
    if path := os.environ.get("FOOD_FIGURES"):
        Path(path).write_text(json.dumps([figure._asdict() for figure in FIGURES.all], indent=2) + "\n")
