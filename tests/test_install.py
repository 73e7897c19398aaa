"""deploy/install, in a mount namespace with overlays over /usr and /etc: nothing of this machine is changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ROOT / "deploy" / "install"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")


def in_scratch(directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where /usr, /etc, /var/lib, /var/log and /run are copies; they last as long as the script."""
    lines = ["set -e"]
    for top in ("usr", "etc"):
        for part in ("upper", "work"):
            (directory / f"{part}-{top}").mkdir(parents=True, exist_ok=True)
        options = f"lowerdir=/{top},upperdir={directory}/upper-{top},workdir={directory}/work-{top}"
        lines.append(f"mount -n -t overlay -o {options} overlay /{top}")
    lines += [f"mount -n -t tmpfs tmpfs {place}" for place in ("/run", "/var/lib", "/var/log")]
    # A machine that has food already must not make this test pass.
    lines.append("rm -rf /usr/local/lib/food /usr/lib/ocf/resource.d/food /usr/local/bin/food /usr/local/bin/foodctl")
    lines.append("sed -i /^food:/d /etc/passwd /etc/group /etc/shadow /etc/gshadow")
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", "\n".join([*lines, script])],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
    )


def test_install_twice_and_remove(tmp_path: Path) -> None:
    done = in_scratch(
        tmp_path,
        f"""
        {INSTALL} && {INSTALL}
        getent passwd food | grep -q ':/var/lib/food:/usr/sbin/nologin$'
        [ "$(stat -c '%a %U' /var/lib/food)" = '755 root' ]
        [ "$(head -1 /usr/lib/ocf/resource.d/food/food)" = '#!/usr/bin/python3 -Es' ]
        [ "$(head -1 /usr/local/bin/food)" = '#!/usr/bin/python3 -Es' ]
        cd / && /usr/local/bin/food --version && /usr/local/bin/food --id a --plaintext insecure-no-keys --check
        OCF_RESOURCE_INSTANCE=a OCF_RESKEY_plaintext=insecure-no-keys /usr/lib/ocf/resource.d/food/food validate-all
        OCF_RESOURCE_INSTANCE=a /usr/lib/ocf/resource.d/food/food meta-data | grep -q '<version>1.1'
        ls /usr/local/lib/food/food/__pycache__ | grep -q guardian
        systemd-analyze verify /usr/local/lib/systemd/system/food@a.service
        [ -e /usr/local/lib/systemd/system/food@.service ]
        {INSTALL} --remove && {INSTALL} --remove
        [ ! -e /usr/local/lib/food ] && [ ! -e /usr/local/bin/food ] && [ ! -e /usr/lib/ocf/resource.d/food ]
        [ ! -e /usr/local/lib/systemd/system/food@.service ]
        [ ! -e /var/lib/food ] && ! getent passwd food && ! getent group food
        echo complete
        """,
    )
    assert done.stdout.strip().endswith("complete"), done.stdout + done.stderr


def test_remove_keeps_data_and_its_user(tmp_path: Path) -> None:
    done = in_scratch(
        tmp_path,
        f"""
        {INSTALL}
        install -d -o food -m 700 /var/lib/food/a
        {INSTALL} --remove | grep -q '^kept: /var/lib/food'
        getent passwd food && [ -d /var/lib/food/a ] && echo complete
        """,
    )
    assert done.stdout.strip().endswith("complete"), done.stdout + done.stderr


def test_remove_is_refused_while_a_guardian_runs(tmp_path: Path) -> None:
    done = in_scratch(
        tmp_path,
        f"""
        {INSTALL}
        mkdir -p /run/food/a
        flock /run/food/a/guardian.lock sh -c '! {INSTALL} --remove' && [ -e /usr/local/bin/food ] && echo complete
        """,
    )
    assert done.stdout.strip().endswith("complete"), done.stdout + done.stderr
    assert "a still runs here" in done.stderr


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = in_scratch(
        tmp_path,
        f"""
        rm -rf /usr/lib/python3/dist-packages/sortedcontainers /usr/lib/python3/dist-packages/zmq
        ! {INSTALL} && [ ! -e /usr/local/bin/food ] && echo complete
        """,
    )
    assert done.stdout.strip().endswith("complete"), done.stdout + done.stderr
    assert "apt-get install python3-zmq python3-sortedcontainers" in done.stderr


def test_another_python(tmp_path: Path) -> None:
    done = in_scratch(
        tmp_path,
        f"""
        printf '#!/bin/sh\\nexec /usr/bin/python3 "$@"\\n' >/usr/local/bin/mypython
        chmod 755 /usr/local/bin/mypython
        {INSTALL} --python /usr/local/bin/mypython
        head -1 /usr/local/bin/food /usr/lib/ocf/resource.d/food/food | grep -c '^#!/usr/local/bin/mypython -Es$'
        ! {INSTALL} --python /nowhere/python && ! {INSTALL} --pyton x && echo complete
        """,
    )
    assert done.stdout.split() == [*done.stdout.split()[:-2], "2", "complete"], done.stdout + done.stderr
