"""Whatever comes in is taken, or refused as promised: never another exception, nor memory without bound.

The decoders and what they promise are in decoders.py; here Hypothesis changes their valid inputs, a little each time.
`tests/fuzz TARGET --minutes M` looks for longer, and where it has not been yet.
"""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import msgpack
import pytest
from decoders import DECODERS, Decoder, pack, parts
from fuzzing import INSERTS, Fuzzer, limited, mutated, outcome, within
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from food import codec
from food.codec import ITEMS_MOST, BadFrame

SLOW = {"control": 40, "guardian": 60, "store": 40, "foodctl": 25, "peers": 60, "arguments": 60}
EXAMPLES = 120
EACH = pytest.mark.parametrize("decoder", DECODERS.values(), ids=lambda decoder: decoder.name)


@EACH
def test_what_is_valid_is_taken(decoder: Decoder) -> None:
    assert decoder.seeds()
    for seed in decoder.seeds():
        assert decoder.run(seed), seed


@EACH
def test_whatever_else_comes_is_taken_or_refused_as_promised(decoder: Decoder) -> None:
    @settings(
        max_examples=SLOW.get(decoder.name, EXAMPLES),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.integers(0, 2**64))
    def look(seed: int) -> None:
        rng = random.Random(seed)
        seeds = decoder.seeds()
        decoder.run(mutated(rng, rng.choice(seeds), rng.choice(seeds)))

    look()


@EACH
@settings(max_examples=20, deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_is_taken_or_refused_as_promised(decoder: Decoder, noise: bytes) -> None:
    decoder.run(noise)
    decoder.run(pack([noise]))
    decoder.run(pack([pack([noise])]))


# --- Memory ---

TEXTS = {"arguments", "config", "client_key", "foodctl", "journal", "pacemaker", "endpoints", "wal"}
# Where an array's head stands in a frame: in front, where a field belongs, where a request's body belongs.
PREFIXES = (b"", b"\x98" + pack([1, "c", "n", "s", 8])[1:], b"\x93\x07\xa1w", b"\x83\xa1v\x01\xa6action")
MIB = 1024 * 1024
ALLOWED = {"wire": 320 * MIB, "peers": 320 * MIB, "codec": 160 * MIB, "replies": 160 * MIB}  # laid out, never touched


@pytest.mark.parametrize(
    "decoder", [one for one in DECODERS.values() if one.name not in TEXTS], ids=lambda decoder: decoder.name
)
def test_what_announces_more_than_comes_or_nests_without_end_takes_little(decoder: Decoder) -> None:
    for insert in INSERTS:
        for data in [prefix + insert for prefix in PREFIXES]:
            for form in (data, pack([data]), pack([pack([7, "w", data])])):
                tracemalloc.start()
                try:
                    decoder.run(form)
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                assert peak < ALLOWED.get(decoder.name, 16 * MIB) + 100 * len(form), (insert[:8], form[:20], peak)


def test_an_array_and_a_map_have_a_bound() -> None:
    nils = b"\xdd" + ITEMS_MOST.to_bytes(4, "big") + b"\xc0" * ITEMS_MOST
    assert len(codec.unpack(nils, 1 << 20)) == ITEMS_MOST
    more = b"\xdd" + (ITEMS_MOST + 1).to_bytes(4, "big") + b"\xc0" * (ITEMS_MOST + 1)
    with pytest.raises(BadFrame, match=f"{ITEMS_MOST + 1} exceeds max_array_len"):
        codec.unpack(more, 1 << 20)
    pairs = b"\xdf" + (11).to_bytes(4, "big") + b"".join(pack(f"key {n}") + b"\xc0" for n in range(11))
    with pytest.raises(BadFrame, match="11 exceeds max_map_len"):
        codec.unpack(pairs, 1 << 20, 10)
    assert len(codec.unpack(pairs, 1 << 20, 11)) == 11


# --- The fuzzer itself ---


class Brittle:
    """Raises when the second value of a list of three is large, far inside."""

    @staticmethod
    def run(data: bytes) -> bool:
        for part in parts(data):
            try:
                value = msgpack.unpackb(part)
            except Exception:  # what it cannot read is not what it is brittle about
                continue
            if isinstance(value, list) and len(value) == 3 and type(value[1]) is int and value[1] > 2**30:
                raise KeyError("brittle")
        return False


def test_the_fuzzer_finds_makes_smaller_and_keeps_what_it_finds(tmp_path: Path) -> None:
    decoder = Decoder("brittle", Brittle.run, lambda: [pack([pack([1, 2, 3]), pack(["and", "more"])])])
    fuzzer = Fuzzer(decoder, random.Random(1), tmp_path)
    fuzzer.corpus = decoder.seeds()
    with limited():
        for _ in range(100_000):
            fuzzer.look(mutated(fuzzer._rng, fuzzer._choice(), fuzzer._choice()))
            if fuzzer.findings:
                break
    ((place, path),) = fuzzer.findings.items()
    assert place.startswith("KeyError at test_decoders.py:")
    assert outcome(decoder, path.read_bytes()) == place
    assert len(path.read_bytes()) < len(decoder.seeds()[0]) + 9


def test_the_fuzzer_takes_what_does_not_end_for_a_finding() -> None:
    def endless(data: bytes) -> bool:
        while True:
            pass

    with limited(), pytest.raises(Exception, match="more than"), within(0.05):
        endless(b"")


def test_the_fuzzer_keeps_what_goes_a_new_way(tmp_path: Path) -> None:
    fuzzer = Fuzzer(DECODERS["members"], random.Random(1), tmp_path)
    fuzzer.look(b"")
    fuzzer.look(b"")
    assert fuzzer.corpus == [b""]
    fuzzer.look(DECODERS["members"].seeds()[0])
    assert len(fuzzer.corpus) == 2
