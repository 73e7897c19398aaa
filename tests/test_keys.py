"""What is made of the cluster's secret, and the file that clients have (food/keys.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from food.gate import client_keys, public_of
from food.keys import ClientKeys, Keys, KeyUnusable, client_file, derive, hkdf, read_client_file

# RFC 5869, appendix A.1 to A.3: secret, salt, info, output.
VECTORS = (
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8"
        "367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
)
SECRET = bytes(range(64))


@pytest.mark.parametrize(("secret", "salt", "info", "output"), VECTORS)
def test_hkdf_is_that_of_rfc_5869(secret: str, salt: str, info: str, output: str) -> None:
    found = hkdf(bytes.fromhex(secret), bytes.fromhex(salt), bytes.fromhex(info), len(output) // 2)
    assert found.hex() == output


def test_every_node_derives_the_same_and_every_purpose_another() -> None:
    one, same = derive(SECRET, "food", "/a"), derive(SECRET, "food", "/b")
    assert (one.node, one.client, one.name) == (same.node, same.client, same.name)
    others = [derive(SECRET, "other", "/a"), derive(SECRET[1:], "food", "/a")]
    found = [key for keys in (one, *others) for key in (keys.node, keys.client)]
    assert len(set(found)) == 6 and all(len(key) == 32 for key in found)
    assert len({keys.name for keys in (one, *others)}) == 3
    assert not any(one.name in key.hex() for key in found), "the name tells nothing of the keys"


def test_the_derivation_is_pinned() -> None:
    """A change would make strangers of nodes of two versions."""
    keys = derive(SECRET, "food", "/a")
    assert (keys.node.hex(), keys.client.hex(), keys.name) == (
        "65ad7c66c96729a9651408473b9c35e68eef3874fbc0d75ce3b2cbe3bac6f318",
        "e48d05079bbc0c442724f95a2934ff28649cfec170a84c81f90e09b1a394b507",
        "4bbe7491",
    )


def test_keys_do_not_show_where_they_are_printed() -> None:
    keys = derive(SECRET, "food", "/a")
    for shown in (repr(keys), str(keys), f"{keys}", repr(client_keys(keys))):
        assert keys.node.hex() not in shown and repr(keys.node) not in shown and keys.client.hex() not in shown


def test_the_pipe_carries_all() -> None:
    keys = derive(SECRET, "food", "/a")
    back = Keys.of_packet(keys.packet())
    assert all(getattr(keys, name) == getattr(back, name) for name in Keys.__slots__)


def test_a_client_file_is_read_back(tmp_path: Path) -> None:
    keys = client_keys(derive(SECRET, "food", "/a"))
    path = tmp_path / "key"
    path.write_text(client_file(keys, "of the test"))
    path.chmod(0o640)
    assert read_client_file(str(path)) == keys
    assert keys.server == public_of(derive(SECRET, "food", "/a").node), (
        "the servers' public key, and no other of theirs"
    )


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "cannot be read: No such file or directory; foodctl client-key, run on a node, makes one"),
        (b"", 0o600, "is no client's key file"),
        (bytes(range(256)), 0o600, "it is no text"),
        (b"server-public 00\nclient-secret 00\n", 0o600, "is no client's key file"),
        (b"server-public " + b"0" * 64 + b"\n", 0o600, "is no client's key file"),
        (b"server-public " + b"x" * 64 + b"\nclient-secret " + b"0" * 64, 0o600, "is no client's key file"),
        (b"\0" * 4096, 0o600, "the cluster's own secret stays there"),
        (client_file(ClientKeys(SECRET[:32], SECRET[32:]), "x").encode(), 0o644, "open to everybody: chmod 0600"),
    ],
)
def test_a_client_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, mode: int, words: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(KeyUnusable) as refused:
        read_client_file(str(path))
    assert words in str(refused.value) and str(path) in str(refused.value)


def test_the_guardian_pays_for_hashes_only_once_its_daemon_starts() -> None:
    code = "import sys, food.guardian; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    assert not ({"hmac", "hashlib", "_hashlib"} & set(done.stdout.split())) - set(bare.stdout.split())
