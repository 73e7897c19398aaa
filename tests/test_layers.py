"""Imports point down only: the core knows nothing of the world, the agent nothing of food, the guardian no ZeroMQ."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "food/core").glob("*.py"))
FOOD = sorted((ROOT / "food").glob("*.py"))

# Nothing here reads a clock, opens a file or a socket, starts a thread or draws a random number.
CORE_MAY_IMPORT = {
    "__future__",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "heapq",
    "itertools",
    "msgpack",
    "sortedcontainers",
    "typing",
}

# The core from the bottom up: a file imports only those in front of it.
CORE_ORDER = (
    "message",
    "packed",
    "quorum",
    "entries",
    "state",
    "snapshot",
    "ready",
    "local",
    "agreement",
    "members",
    "donor",
    "peers",
    "following",
    "promotion",
    "leading",
    "replica",
)


def imports(path: Path) -> set[str]:
    """Every module that the file imports, in full: `from . import x` in food/core is food.core.x."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            if node.module and not is_package(base):
                found.add(base)
            else:
                found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).is_dir()


def reachable(name: str) -> set[str]:
    """Everything that importing food's module `name` brings in."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = ROOT / (module.replace(".", "/") + ".py")
        if module.split(".")[0] == "food" and path.exists():
            waiting += imports(path)
    return seen


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_is_pure(path: Path) -> None:
    foreign = {name for name in imports(path) if not name.startswith("food.core.")}
    assert {name.split(".")[0] for name in foreign} <= CORE_MAY_IMPORT


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_no_builtin_reaches_out_of_the_core(path: Path) -> None:
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_is_layered(path: Path) -> None:
    if path.stem == "__init__":
        assert imports(path) == set()
        return
    below = CORE_ORDER[: CORE_ORDER.index(path.stem)]
    own = {name.removeprefix("food.core.") for name in imports(path) if name.startswith("food.core.")}
    assert own <= set(below)


def test_the_driver_knows_the_core_only() -> None:
    assert all(name.split(".")[0] in ("__future__", "typing", "food") for name in imports(ROOT / "food/driver.py"))
    assert all(n.startswith("food.core.") for n in imports(ROOT / "food/driver.py") if n.startswith("food"))


def test_the_agent_stands_alone() -> None:
    assert not {name for name in imports(ROOT / "agent/food") if name.split(".")[0] == "food"}


def test_the_agent_imports_nothing_heavy_before_it_knows_its_action() -> None:
    tree = ast.parse((ROOT / "agent/food").read_text())
    first = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not first & {"zmq", "msgpack", "json", "subprocess", "re", "logging", "argparse", "typing"}


def test_the_guardian_needs_neither_zeromq_nor_msgpack() -> None:
    brought = {name.split(".")[0] for name in reachable("food.guardian")}
    assert not brought & {"zmq", "msgpack", "sortedcontainers", "sqlite3"}
    assert not {name for name in reachable("food.guardian") if name.startswith("food.core")}


@pytest.mark.parametrize("path", FOOD, ids=lambda path: path.stem)
def test_nobody_uses_asyncio(path: Path) -> None:
    assert "asyncio" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [*CORE, *FOOD], ids=lambda path: path.stem)
def test_what_ships_imports_no_tests(path: Path) -> None:
    assert not {n.split(".")[0] for n in imports(path)} & {"tests", "sim", "testbed", "pytest", "hypothesis"}


def test_imports_of_the_shell_make_no_circle() -> None:
    for path in FOOD:
        name = f"food.{path.stem}"
        for imported in imports(path):
            if imported.startswith("food.") and imported != name:
                assert name not in reachable(imported), f"{name} and {imported} import each other"
