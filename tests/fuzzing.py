"""A coverage-guided fuzzer of food's decoders (tests/decoders.py): standard library only.

Inputs are valid ones, changed; those that reach a line of food by a way not seen before are kept and changed again.
What is no refusal is a finding: an exception, an input that takes too long, or too much memory. Findings are told
apart by where they were raised, made smaller, and written to files which `--replay` runs again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack
from decoders import DECODERS, Decoder

from food.core.packed import unpackb  # msgpack's own leaks what it refuses

ROOT = Path(__file__).resolve().parent.parent
FOOD = f"{ROOT}/food/"
INPUT_MOST_BYTES = 64 * 1024
SLOW_S = 3.0  # processor time of one input, under the tracer
MEMORY_BYTES = 1024**3  # more than at the start
SHRINK_S = 10.0
SHOW_EVERY_S = 10.0
FINDINGS_MOST = 20  # of one decoder, then it ends

Arc = tuple[int, int, int]


# --- Changing an input ---

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63))
LEAVES: tuple[Any, ...] = (None, True, False, "", "a", "ä\0\x1b[m", b"", b"\0\xff", 1.5, float("nan"), float("inf"))
# As deep as msgpack reads, and where Python's own recursion ends; arrays and maps that announce what never comes.
INSERTS = (
    *(opening * levels for opening in (b"\x91", b"[") for levels in (3, 500, 1_000, 1_015, 20_000)),
    *(head * 1_000 for head in (b"\xdd\x00\x00\xff\xff", b"\xdf\x00\x00\xff\xff", b"\xdd\x7f\xff\xff\xff")),
    b"\x80" * 1_000,
    b"9" * 5_000,
    b" " * 300,
)
DIGITS = "digits"  # stands for a number that JSON can carry and nothing else


def mutated(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """`data` with a few changes, of its bytes or of what they mean; `other` lends its parts."""
    for _ in range(rng.randrange(1, 4)):
        change = rng.choice((_bytes_changed, _bytes_changed, _values_changed, _values_changed, _json_changed))
        data = change(rng, data, other)
    return data[:INPUT_MOST_BYTES]


def _bytes_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    found = bytearray(data)
    at, to = sorted((rng.randrange(len(found) + 1), rng.randrange(len(found) + 1)))
    match rng.randrange(9):
        case 0 if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        case 1 if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
        case 2:
            found[at:at] = rng.choice(INSERTS)
        case 3:
            found[at:at] = rng.randbytes(rng.randrange(1, 9))
        case 4:
            del found[at : min(to, at + rng.randrange(1, 17))]
        case 5:
            found[at:at] = found[at:to] * rng.choice((1, 1, 2, 50))
        case 6:
            size = rng.choice((1, 2, 4, 8))
            found[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "big")
        case 7:
            start = rng.randrange(len(other) + 1)
            found[at:to] = other[start : start + rng.randrange(1, 200)]
        case _:
            del found[at:]
    return bytes(found)


def _values_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As msgpack, also where msgpack's bytes lie inside of others."""
    try:
        value = unpackb(data, strict_map_key=False)
        packed: bytes = msgpack.packb(_changed(rng, value, other))
    except Exception:  # no msgpack before, or none that can be written
        return _bytes_changed(rng, data, other)
    return packed


def _json_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    try:
        changed = json.dumps(_changed(rng, json.loads(data), other))
    except (ValueError, TypeError, RecursionError):
        return _values_changed(rng, data, other)
    return changed.replace(f'"{DIGITS}"', "9" * 5_000).encode()


def _changed(rng: random.Random, value: Any, other: bytes) -> Any:
    """One place of it, mostly far inside."""
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(rng, value[at], other), *value[at + 1 :]]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return {**value, key: _changed(rng, value[key], other)}
    if isinstance(value, bytes) and value and rng.random() < 0.8:
        return rng.choice((_values_changed, _json_changed))(rng, value, other)
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(NUMBERS)
        case 2:
            return rng.choice(LEAVES)
        case 3 if isinstance(value, list) and value:
            at = rng.randrange(len(value))
            return rng.choice((value[:at], value + value[at:], value[:at] + value[at + 1 :]))
        case 4:
            return [value] * rng.choice((1, 2, 300))
        case 5:
            return {"a": value, "node": 7, b"k": value}
        case 6 if isinstance(value, str):
            return value + rng.choice(("\n", "\0", "ä", "\ud800", "x" * 3_000))
        case 7:
            with contextlib.suppress(Exception):
                return unpackb(other, strict_map_key=False)
    return DIGITS


# --- Looking where it went ---


class Tracer:
    """Which lines of food follow each other: an arc is (code, line, next line)."""

    def __init__(self) -> None:
        self.seen: set[Arc] = set()
        self._new = False
        self._codes: dict[Any, bool] = {}

    def new_ways(self, decoder: Decoder, data: bytes) -> tuple[bool, Exception | None]:
        """Runs the decoder: whether it went a way not seen before, and what it raised."""
        self._new = False
        raised: Exception | None = None
        sys.settrace(self._call)
        try:
            decoder.run(data)
        except Exception as error:
            raised = error
        finally:
            sys.settrace(None)
        return self._new, raised

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        mine = self._codes.get(code)
        if mine is None:
            mine = self._codes[code] = code.co_filename.startswith(FOOD)
        if not mine:
            return None
        key, last, seen = id(code), 0, self.seen

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            now = frame.f_lineno if event == "line" else -1
            if (key, last, now) not in seen:
                seen.add((key, last, now))
                self._new = True
            last = now
            return line

        return line


class TooSlow(Exception):
    """One input took too long."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Of memory; and `within` says by how much too much time is told."""

    def late(signum: int, frame: Any) -> None:
        raise TooSlow(f"more than {SLOW_S} s")

    signal.signal(signal.SIGPROF, late)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Of this process's own time."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


# --- Findings ---


def place_of(error: BaseException) -> str:
    """What tells one finding from another: the kind of error and the last line of food that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    ours = [f for f in frames if f.filename.startswith(FOOD)]
    last = (frames if isinstance(error, AssertionError) else ours or frames)[-1:]
    return f"{type(error).__name__} at {Path(last[0].filename).name}:{last[0].lineno}" if last else type(error).__name__


def outcome(decoder: Decoder, data: bytes) -> str:
    """ "taken", "refused", or the place of a finding."""
    try:
        with within(SLOW_S):
            return "taken" if decoder.run(data) else "refused"
    except Exception as error:
        return place_of(error)


def shrunk(decoder: Decoder, data: bytes, place: str) -> bytes:
    """As small as it becomes by leaving parts out while it is still found at that place."""
    ends = time.monotonic() + SHRINK_S
    size = len(data) // 2
    while size and time.monotonic() < ends:
        at = 0
        while at < len(data) and time.monotonic() < ends:
            fewer = data[:at] + data[at + size :]
            if outcome(decoder, fewer) == place:
                data = fewer
            else:
                at += size
        size //= 2
    return data


class Fuzzer:
    def __init__(self, decoder: Decoder, rng: random.Random, directory: Path):
        self.decoder, self.directory = decoder, directory
        self.corpus: list[bytes] = []
        self.findings: dict[str, Path] = {}
        self._rng = rng
        self._tracer = Tracer()
        self._inputs = 0

    def run(self, seconds: float) -> None:
        began, shown = time.monotonic(), 0.0
        with limited():
            for data in [*self.decoder.seeds(), *self._kept()]:
                self.look(data)
            while (elapsed := time.monotonic() - began) < seconds and len(self.findings) < FINDINGS_MOST:
                self.look(mutated(self._rng, self._choice(), self._choice()))
                if elapsed - shown >= SHOW_EVERY_S:
                    shown = elapsed
                    print(f"  {self.decoder.name}, {elapsed:.0f} s: {self.summary(elapsed)}", flush=True)
        print(f"{self.decoder.name}: {self.summary(time.monotonic() - began)}", flush=True)

    def _choice(self) -> bytes:
        """One of those that went new ways, the later ones more often; sometimes nothing."""
        if not self.corpus or self._rng.random() < 0.01:
            return b""
        return self.corpus[max(self._rng.randrange(len(self.corpus)), self._rng.randrange(len(self.corpus)))]

    def _kept(self) -> list[bytes]:
        """What was found before: it is mended, or is found again."""
        return [path.read_bytes() for path in sorted(self.directory.glob(f"{self.decoder.name}-*"))]

    def look(self, data: bytes) -> None:
        self._inputs += 1
        raised: Exception | None
        try:
            with within(SLOW_S):
                new, raised = self._tracer.new_ways(self.decoder, data)
        except TooSlow as error:
            new, raised = False, error
        if raised is not None:
            self._found(data, raised)
        elif new:
            self.corpus.append(data)

    def _found(self, data: bytes, error: Exception) -> None:
        place = place_of(error)
        if place in self.findings:
            return
        small = shrunk(self.decoder, data, place)
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{self.decoder.name}-{hashlib.sha256(small).hexdigest()[:12]}"
        path.write_bytes(small)
        self.findings[place] = path
        print(f"  FOUND {place}: {str(error)[:200]!r}\n    tests/fuzz {self.decoder.name} --replay {path}", flush=True)

    def summary(self, elapsed: float) -> str:
        return (
            f"{self._inputs} inputs, {self._inputs / max(elapsed, 0.001):.0f} a second, {len(self._tracer.seen)} arcs,"
            f" {len(self.corpus)} kept, {len(self.findings)} findings"
        )


# --- The program ---


def replay(decoder: Decoder, path: Path) -> int:
    data = path.read_bytes()
    print(f"{decoder.name}, {len(data)} bytes: {data[:200]!r}")
    with limited(), within(SLOW_S):
        print("taken" if decoder.run(data) else "refused")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*DECODERS, "all"], help="which decoder")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="for each (default: 1)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, metavar="N", help="of the random changes")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="where they are kept"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input once")
    options = parser.parse_args(argv)
    decoders = list(DECODERS.values()) if options.target == "all" else [DECODERS[options.target]]
    if options.replay:
        return replay(decoders[0], options.replay)
    print(f"seed {options.seed}, msgpack {'.'.join(map(str, msgpack.version))}")
    found = 0
    for one in decoders:
        fuzzer = Fuzzer(one, random.Random(options.seed), options.findings)
        fuzzer.run(options.minutes * 60)
        found += len(fuzzer.findings)
    return 1 if found else 0
