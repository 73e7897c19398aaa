"""Bad input, as a table: fault, action, expected code, words that must appear. Real agent, guardian, daemon and disk.

What holds in every row, beside its own code and words: the words are in the exit reason, which crm_mon shows; stop and
probe survive; no process and no lock is left behind; and what was acknowledged before is there afterwards. What comes
in through sockets is in test_bad_frames.py, what needs a cluster in cluster/test_bad_input.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from real_node import PORT, RealNode

OK, GENERIC, ARGUMENTS, UNIMPLEMENTED, PERMISSION, INSTALLED, NOT_RUNNING, PROMOTED = 0, 1, 2, 3, 4, 5, 7, 8
START_MS = "OCF_RESKEY_CRM_meta_timeout"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RealNode]:
    found = RealNode(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    """A primary that outlives the whole table of parameters."""
    found = RealNode(tmp_path_factory.mktemp("living"))
    found.up()
    with found.client() as client:
        client.put(b"before", b"the table")
    yield found
    found.close()


def refused(node: RealNode, action: str, code: int, words: str, **environment: str) -> None:
    assert node(action, **environment) == code, f"{action}: {node.errors}"
    assert words in node.reason, f"{action}: {node.reason}"


def left_nothing(node: RealNode) -> None:
    assert node.processes() == []
    assert node("monitor") == NOT_RUNNING
    assert not (node.run_dir / "control.sock").exists()


# --- Each parameter wrong in turn ---


class Wrong(NamedTuple):
    parameter: str
    value: str
    words: str
    code: int = ARGUMENTS
    file: str | bytes | None = None  # content of the configuration file, whose path {config} stands for


PARAMETERS = (
    Wrong("port", "many", "port is 'many': must be a whole number from 1 to 65533"),
    Wrong("port", "0", "port is 0: must be a whole number from 1 to 65533"),
    Wrong("port", "65534", "port is 65534: must be a whole number from 1 to 65533"),
    Wrong("port", "-1", "port is '-1': must be a whole number"),
    Wrong("port", "9999.5", "port is '9999.5': must be a whole number"),
    Wrong("port", "９９９９", "must be a whole number"),
    Wrong("address", "n1.example.org", "address is 'n1.example.org': must be a numeric IPv4 or IPv6 address"),
    Wrong("address", "10.0.0.256", "address is '10.0.0.256': must be a numeric"),
    Wrong("address", "10.0.0.1/24", "address is '10.0.0.1/24': must be a numeric"),
    Wrong("address", ":::1", "address is ':::1': must be a numeric"),
    Wrong("address", "0.0.0.0", "address is '0.0.0.0': must be a numeric IPv4 or IPv6 address of this node"),
    Wrong("address", "::", "address is '::': must be a numeric IPv4 or IPv6 address of this node"),
    Wrong("data_dir", "var/lib/food", "data_dir is 'var/lib/food': must be an absolute path"),
    Wrong("data_dir", "/var/lib/fo\nod", "must be an absolute path"),
    Wrong("user", "no such", "user is 'no such': must be text without spaces"),
    Wrong("user", "nobody-at-all", "user 'nobody-at-all' does not exist: run deploy/install, or set `user`", INSTALLED),
    Wrong("watchdog_ms", "299", "watchdog_ms is 299: must be a whole number from 300 to 600000 ms"),
    Wrong("watchdog_ms", "600001", "watchdog_ms is 600001: must be a whole number from 300 to 600000 ms"),
    Wrong("watchdog_ms", "1.5s", "watchdog_ms is '1.5s': must be a whole number"),
    Wrong("isolation_ms", "299", "isolation_ms is 299: must be a whole number from 300 to 600000 ms"),
    Wrong("isolation_ms", "9" * 400, "must be a whole number from 300 to 600000 ms"),
    Wrong("isolation_ms", "soon", "isolation_ms is 'soon': must be a whole number"),
    Wrong("degraded", "perhaps", "degraded is 'perhaps': must be true or false"),
    Wrong("log_level", "loud", "log_level is 'loud': must be one of debug, info, notice, warning, error"),
    Wrong("config", "food.toml", "config is 'food.toml': must be an absolute path"),
    Wrong("config", "/nowhere/food.toml", "/nowhere/food.toml cannot be read: [Errno 2] No such file or directory"),
    Wrong("config", "/tmp", "configuration file /tmp cannot be read: [Errno 21] Is a directory"),
    Wrong("config", "{config}", "the configuration file is not TOML", file="port = = 1\n"),
    Wrong("config", "{config}", "cannot be read: 'utf-8' codec can't decode", file=b"port = \xff\n"),
    Wrong("config", "{config}", "the configuration file sets 'prot': may set only", file="prot = 9999\n"),
    Wrong("config", "{config}", "the configuration file sets 'id': may set only", file='id = "food"\n'),
    Wrong("config", "{config}", "watchdog_ms is 1.5: must be a whole number", file="watchdog_ms = 1.5\n"),
    Wrong("config", "{config}", "data_dir is ['/a']: must be an absolute path", file='data_dir = ["/a"]\n'),
    Wrong("args", "--log-level 'debug", "args is \"--log-level 'debug\": No closing quotation"),
    Wrong("args", "--nonsense", "--nonsense is not an option; --help lists them"),
    Wrong("args", "nonsense", "'nonsense' is not an option; --help lists them"),
    Wrong("args", "--log-level", "--log-level needs a value"),
    Wrong("args", "--watchdog-ms=1", "watchdog_ms is 1: must be a whole number from 300"),
    Wrong("daemon", "food-daemon", "daemon is 'food-daemon': must be an absolute path"),
    Wrong("daemon", "/nowhere/daemon", "daemon is '/nowhere/daemon': no such file", INSTALLED),
    Wrong("daemon", "/etc/passwd", "daemon is '/etc/passwd': not a program", INSTALLED),
    Wrong("daemon", "/tmp", "daemon is '/tmp': not a program", INSTALLED),
)


@pytest.mark.parametrize("wrong", PARAMETERS, ids=lambda w: f"{w.parameter}={w.file or w.value!r:.40}")
def test_a_wrong_parameter_is_refused_by_name_and_ends_nothing_that_runs(
    node: RealNode, living: RealNode, wrong: Wrong
) -> None:
    config = node.directory / "food.toml"
    if wrong.file is not None:
        config.write_bytes(wrong.file.encode() if isinstance(wrong.file, str) else wrong.file)
    broken = {f"OCF_RESKEY_{wrong.parameter}": wrong.value.format(config=config)}
    refused(node, "validate-all", wrong.code, wrong.words, **broken)
    refused(node, "start", wrong.code, wrong.words, **broken)
    assert node("monitor", **broken) == NOT_RUNNING
    assert node("stop", **broken) == OK
    left_nothing(node)
    assert living("monitor", **broken) == PROMOTED, "a probe looks at no parameter"
    refused(living, "reload-agent", OK, "the new parameters were not taken over: ", **broken)
    assert wrong.words[:60] in living.reason


def test_what_outlived_the_table_of_parameters_stops_under_the_worst_of_them(living: RealNode) -> None:
    with living.client() as client:
        row = client.get(b"before")
        assert row and row.value == b"the table"
    broken = {f"OCF_RESKEY_{wrong.parameter}": wrong.value for wrong in PARAMETERS}
    assert living("stop", **broken) == OK
    left_nothing(living)
