"""Parameters: what is taken, what is refused, and in which words (food/settings.py)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from food import settings
from food.settings import BadSetting


def settle(config: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return settings.settle({"id": "food", **arguments}, config or {})


def test_defaults() -> None:
    found = settle()
    assert (found["port"], found["watchdog_ms"], found["isolation_ms"], found["degraded"]) == (9999, 1500, 1500, False)
    assert (found["run_dir"], found["data_dir"]) == ("/run/food/food", "/var/lib/food/food")


def test_file_overrides_default_and_command_line_overrides_file() -> None:
    found = settle({"port": 7000, "watchdog_ms": 2000}, port="8000")
    assert (found["port"], found["watchdog_ms"]) == (8000, 2000)


def test_further_addresses_are_settled_without_spaces_and_repetitions() -> None:
    assert settle(client_addresses="10.0.0.9, fd00::9,10.0.0.9")["client_addresses"] == "10.0.0.9,fd00::9"


def test_an_empty_value_counts_as_unset() -> None:
    assert settle({"port": 7000}, port="")["port"] == 7000


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "0", "from 1 to 65533"),
        ("port", "65534", "from 1 to 65533"),
        ("port", "9e3", "whole number"),
        ("port", "9" * 5000, "whole number"),
        ("watchdog_ms", "299", "from 300 to 600000 ms"),
        ("watchdog_ms", "-1", "whole number"),
        ("degraded", "maybe", "true or false"),
        ("log_level", "loud", "one of debug"),
        ("address", "n1.example", "numeric"),
        ("address", "10.0.0.256", "numeric"),
        ("client_addresses", "vip.example", "numeric"),
        ("client_addresses", "10.0.0.1,,10.0.0.2", "separated by commas"),
        ("client_addresses", "0.0.0.0", "name each one"),
        ("data_dir", "data", "absolute path"),
        ("user", "a b", "without spaces"),
        ("id", "../etc", "without /"),
        ("id", "x" * 65, "at most 64 bytes"),
        ("run_dir", "/" + "x" * 100, "too long for a socket's path"),
    ],
)
def test_refusals_name_the_thing_and_the_limit(name: str, value: str, words: str) -> None:
    with pytest.raises(BadSetting) as refused:
        settle({}, **{name: value})
    assert name in str(refused.value) and words in str(refused.value)


def test_a_file_takes_the_types_of_toml() -> None:
    assert settle(settings.read_config("port = 7000\ndegraded = true\n"))["degraded"] is True
    with pytest.raises(BadSetting, match="port"):
        settle(settings.read_config("port = true\n"))


def test_zeros_in_front_change_nothing_and_cut_nothing_off() -> None:
    assert settle({}, port="000000000000009999")["port"] == 9999
    with pytest.raises(BadSetting, match="port"):
        settle({}, port="0000000099990")


@pytest.mark.parametrize(
    "text",
    ["prot = 1", 'id = "food"', "port = ", "[a]\nport = 1", "port = " + "9" * 5_000, "port = " + "[" * 20_000],
    ids=lambda text: text[:20],
)
def test_a_file_with_other_names_or_no_toml_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="configuration file"):
        settings.read_config(text)


def test_arguments() -> None:
    values, switches = settings.read_arguments(["--id", "a", "--watchdog-ms=900", "--check", "--id", "b"])
    assert (values, switches) == ({"id": "b", "watchdog_ms": "900"}, {"check"})
    with pytest.raises(BadSetting, match="needs a value"):
        settings.read_arguments(["--port"])
    with pytest.raises(BadSetting, match="not an option"):
        settings.read_arguments(["port"])


def test_addresses() -> None:
    good = ["10.0.0.1", "fd00::1", "::1", "fe80::1"]
    bad = ["n1", "10.0.0", "10.0.0.1.2", "1.2.3.x", "", "fd00::zz"]
    assert [settings.is_numeric_address(text) for text in good + bad] == [True] * 4 + [False] * 6


def test_importing_guardian_and_settings_stays_cheap() -> None:
    """Every start and every stop waits for it."""
    code = "import sys, food.guardian; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"zmq", "msgpack", "argparse", "logging", "subprocess", "tomllib", "asyncio", "typing", "dataclasses"}
    code = "import sys; print(*sys.modules)"
    already = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (heavy & set(done.stdout.split())) - set(already.stdout.split())
