"""Tests of the core's tests: one operator is exchanged at a time where a mistake loses writes, and a test must fail.

Exchanged are each comparison, `and` and `or` (and each of their parts left out), a bare condition, plus and minus, a
whole number in arithmetic, min and max, any and all. Every mutant lives in a process of its own, forked before
anything of food was imported. One that survives is either listed below, with the reason why it is no mistake, or
fails the run; so does a line of that list that fits nothing any more.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import io
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import msgpack  # noqa: F401  # imported once, before the forks, for all of them
import pytest
import sortedcontainers  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("quorum", "entries", "promotion")
LIMIT_S = 60.0  # of processor time: a mutant that still runs then has been noticed, it does not end
MEMORY_MOST_BYTES = 2 * 1024**3
SURVIVED, BY_OWN, BY_OTHERS, BY_SIMULATOR, BROKEN = range(10, 15)
BY = {BY_OWN: "own tests", BY_OTHERS: "other tests", BY_SIMULATOR: "simulator", -signal.SIGPROF: "not ending"}
SHOW_EVERY_S = 5.0

# By name, as the table prints it: why nobody could notice.
EQUIVALENT = {
    "promotion.Promotion.on_refused: refused.promise.candidate < self._local.store"
    " -> refused.promise.candidate <= self._local.store": "no member holds a promise to this store that is newer than"
    " this store's own: its numbers are durable here before anybody hears of them",
    "entries.Log.compact: at > index -> at >= index": "the list of `index` itself then stands there twice, the same",
}

Swap = dict[type[ast.AST], tuple[type[ast.AST], ...]]
COMPARISONS: Swap = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add}


class Mutant(NamedTuple):
    name: str
    code: CodeType


# --- Making them ---


def mutants(module: str) -> Iterator[Mutant]:
    path = ROOT / f"food/core/{module}.py"
    tree = ast.parse(path.read_text(), str(path))
    seen: Counter[str] = Counter()
    for where, parent, field, index, node in list(_places(tree, module)):
        for other in _variants(node, parent, field):
            name = f"{where}: {_shown(node)} -> {_shown(other)}"
            seen[name] += 1
            _put(parent, field, index, ast.copy_location(other, node))
            code = compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)
            yield Mutant(name if seen[name] == 1 else f"{name} ({seen[name]})", code)
            _put(parent, field, index, node)


def _places(node: ast.AST, where: str) -> Iterator[tuple[str, ast.AST, str, int | None, ast.AST]]:
    """Every part of the tree: the function it is in, and where it hangs."""
    for field, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and field not in ("annotation", "returns", "decorator_list"):
                yield where, node, field, index, child
                named = isinstance(child, ast.FunctionDef | ast.ClassDef)
                yield from _places(child, f"{where}.{child.name}" if named else where)  # type: ignore[attr-defined]


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _variants(node: ast.AST, parent: ast.AST, field: str) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(left, ops, comparators):
            for at, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], comparators)  # type: ignore[list-item]
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for at in range(len(values)):
                rest = values[:at] + values[at + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, op, right):
            if type(op) in SIGNS:
                yield ast.BinOp(left, SIGNS[type(op)](), right)
            if isinstance(right, ast.Constant) and type(right.value) is int:
                for near in (right.value - 1, right.value + 1):
                    yield ast.BinOp(left, op, ast.Constant(near))
        case ast.AugAssign(target, op, value) if type(op) in SIGNS:
            yield ast.AugAssign(target, SIGNS[type(op)](), value)
        case ast.Call(ast.Name(called), arguments, keywords) if called in CALLS:
            yield ast.Call(ast.Name(CALLS[called], ast.Load()), arguments, keywords)
    bare = not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp) and isinstance(node, ast.expr)
    if bare and (field == "test" or (field == "ifs" and isinstance(parent, ast.comprehension))):
        assert isinstance(node, ast.expr)
        yield ast.UnaryOp(ast.Not(), node)


def _shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


# --- Living, one process each ---


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutant out in its module's place."""

    def __init__(self, name: str, code: CodeType):
        self._name, self._code = name, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)


def _live(module: str, mutant: Mutant | None, seeds: int) -> int:
    """In a process of its own: how it ends. What most likely notices comes first."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MOST_BYTES, MEMORY_MOST_BYTES))
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(quiet, descriptor)
    if mutant:
        sys.meta_path.insert(0, _Finder(f"food.core.{module}", mutant.code))
    tests = ROOT / "tests"
    own = tests / f"test_core_{module}.py"
    others = [*sorted(path for path in tests.glob("test_core_*.py") if path != own), tests / "scenarios"]
    for found, paths in ((BY_OWN, [own]), (BY_OTHERS, others)):
        ended = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *map(str, paths)])
        if ended in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):  # the latter: not even imported
            return found
        if ended != pytest.ExitCode.OK:
            return BROKEN
    sys.path.insert(0, str(tests))
    from sim.simulator import run

    return BY_SIMULATOR if any(run(seed).broken for seed in range(seeds)) else SURVIVED


def _fork(module: str, mutant: Mutant | None, seeds: int) -> int:
    if pid := os.fork():
        return pid
    code = BROKEN
    try:
        code = _live(module, mutant, seeds)
    finally:
        os._exit(code)


def _warm_up() -> None:
    """Pytest is imported once, with all of its parts; they do not come before the first run."""
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-p", "no:cacheprovider", str(ROOT / "tests/sim")])
    assert "food" not in sys.modules, "else every child would have the modules without their mutants"


# --- The program ---


def judge(modules: Sequence[str], seeds: int) -> dict[str, int]:
    """How each mutant ended, by name."""
    ended: dict[str, int] = {}
    living: dict[int, str] = {}
    began, shown = time.monotonic(), 0.0

    def one_ended() -> None:
        pid, status = os.wait()
        ended[living.pop(pid)] = os.waitstatus_to_exitcode(status)

    _warm_up()
    for module in modules:
        plain = os.waitstatus_to_exitcode(os.waitpid(_fork(module, None, 1), 0)[1])
        assert plain == SURVIVED, f"without any mutant the tests of {module} end with {plain}"
        for mutant in mutants(module):
            if len(living) >= (os.cpu_count() or 1):
                one_ended()
            living[_fork(module, mutant, seeds)] = mutant.name
            if time.monotonic() - began - shown >= SHOW_EVERY_S:
                shown = time.monotonic() - began
                survived = sum(code == SURVIVED for code in ended.values())
                print(f"{len(ended)} mutants, {survived} survived, {shown:.0f} s: {mutant.name}", flush=True)
        while living:
            one_ended()
    return ended


def report(ended: dict[str, int], modules: Sequence[str]) -> bool:
    """Prints the table; whether all is well."""
    columns = ["mutants", *BY.values(), "equivalent", "unnoticed"]
    print(f"{'':12}" + "".join(f"{column:>13}" for column in columns))
    for module in modules:
        own = {name: code for name, code in ended.items() if name.startswith(f"{module}.")}
        survivors = {name for name, code in own.items() if code not in BY}
        listed = len(survivors & EQUIVALENT.keys())
        counts = [sum(code == by for code in own.values()) for by in BY]
        print(f"{module:12}" + "".join(f"{n:13}" for n in (len(own), *counts, listed, len(survivors) - listed)))
    unnoticed = [name for name, code in ended.items() if code not in BY and name not in EQUIVALENT]
    ours = [name for name in EQUIVALENT if name.split(".")[0] in modules]
    stale = [name for name in ours if ended.get(name) in (None, *BY)]
    for name in unnoticed:
        print(f"unnoticed: {name}")
    for name in stale:
        print(f"listed as equivalent, and {'noticed' if name in ended else 'not there'}: {name}")
    return not unnoticed and not stale


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of food/core (default: {' '.join(MODULES)})")
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="simulated worlds for each (default 100)")
    parser.add_argument("--list", action="store_true", help="list the mutants and the reasons, run nothing")
    options = parser.parse_args(argv)
    modules = options.modules or MODULES
    if options.list:
        for module in modules:
            for mutant in mutants(module):
                reason = EQUIVALENT.get(mutant.name)
                print(mutant.name + (f"\n    {reason}" if reason else ""))
        return 0
    began = time.monotonic()
    ended = judge(modules, options.seeds)
    well = report(ended, modules)
    print(f"{len(ended)} mutants in {time.monotonic() - began:.0f} s: {'all accounted for' if well else 'NOT WELL'}")
    return 0 if well else 1
