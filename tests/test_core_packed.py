"""What comes from elsewhere is passed over first, and nothing built of it, where msgpack keeps what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from food.core import packed

ROOT = Path(__file__).resolve().parent.parent
TORN = [b"", b"\x91" * 1_000, b"\xdc\x03\xe8" * 1_000, b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x03\xe8\xa1a" * 100]
NOT_TORN = [b"\xc1", b"\x91" * 2_000 + b"\xc0", b"\x91\xa2\xff\xff", b"\x81\x01\x02", b"\x93\x01\x02\x03", b"\xd4\x05a"]


@pytest.fixture(autouse=True)
def _nothing_leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_leaked_bytes", 0)
    monkeypatch.setattr(packed, "keeps_refused", True)


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("reached")


@pytest.mark.parametrize("data", [*TORN, b"\xc0\xc0"], ids=lambda data: data[:6].hex())
def test_of_what_is_torn_nothing_is_built(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgpack, "unpackb", forbidden)
    with pytest.raises(ValueError, match=r"\w{4}"):
        packed.unpacked(data, 2)
    assert packed._leaked_bytes == 0


def test_one_value_or_all_of_them() -> None:
    data = msgpack.packb([1, b"a"]) + msgpack.packb("b")
    assert list(packed.unpacked_all(data, 2)) == [[1, b"a"], "b"]
    assert packed.unpacked(msgpack.packb([1, b"a"]), 2) == [1, b"a"]
    assert list(packed.unpacked_all(b"", 2)) == []
    with pytest.raises(ValueError, match="received extra data"):
        packed.unpacked(data, 2)
    with pytest.raises(ValueError, match="more data"):
        list(packed.unpacked_all(data[:-1], 2))


@pytest.mark.parametrize("leaked", [0, packed.LEAK_MOST_BYTES])
@pytest.mark.parametrize("data", NOT_TORN, ids=lambda data: data[:6].hex())
def test_the_slow_form_refuses_what_the_quick_one_does(
    data: bytes, leaked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_leaked_bytes", leaked)
    for refused in (lambda: packed.unpacked(data, 2), lambda: list(packed.unpacked_all(data, 2))):
        with pytest.raises(ValueError, match=r"\w{4}"):
            refused()


def test_after_so_much_that_was_refused_late_the_slow_form_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(packed.LEAK_MOST_BYTES // (packed.LEVELS_MOST * packed.LEVEL_BYTES) + 1):
        with pytest.raises(ValueError, match="utf-8"):
            packed.unpacked(b"\x91\xa2\xff\xff", 2)
    assert packed._leaked_bytes >= packed.LEAK_MOST_BYTES
    monkeypatch.setattr(msgpack, "unpackb", forbidden)
    assert packed.unpacked(msgpack.packb([1, b"a"]), 2) == [1, b"a"]
    assert list(packed.unpacked_all(msgpack.packb([1, b"a"]), 2)) == [[1, b"a"]]


@pytest.mark.parametrize("data", [*TORN, *NOT_TORN, b"\xc0\xc0"], ids=lambda data: data[:6].hex())
def test_where_msgpack_keeps_nothing_it_refuses_the_same(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "keeps_refused", False)
    monkeypatch.setattr(packed, "_probe", forbidden)
    with pytest.raises(ValueError, match=r"\w{4}"):
        packed.unpacked(data, 2)
    assert packed.unpacked(msgpack.packb([1, b"a"]), 2) == [1, b"a"]


LEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from food.codec import BadFrame, unpack
def bytes_now():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for frame in (b"\\x91" * 1000, b"\\xdc\\x03\\xe8" * 1000, b"\\x91" * 500 + b"\\xa2\\xff\\xff"):
    before = bytes_now()
    for _ in range(3_000):
        try:
            unpack(frame, 1 << 20)
        except BadFrame:
            pass
    assert bytes_now() - before < 100 << 20, (frame[:4], bytes_now() - before)
print("bounded")
"""


def test_whatever_is_refused_again_and_again_takes_no_memory() -> None:
    """With Debian's msgpack, too, where it is: there it took 8 MB each time."""
    debian = shutil.which("python3", path="/usr/bin") or sys.executable
    has_msgpack = subprocess.run([debian, "-c", "import msgpack"], capture_output=True, check=False).returncode == 0
    for python in {sys.executable, debian if has_msgpack else sys.executable}:
        argv = ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh", python, "-c", LEAK, str(ROOT)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.stdout == "bounded\n", done.stderr
