"""The files a cluster starts from: corosync.conf, its key, hosts, cib.xml and the lab's agents. Writes files only.

corosync.conf has one directive a line: Corosync's parser knows no other form.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from testbed import layout
from testbed.layout import Settings

AUTHKEY_BYTES = 256
FENCE_DEVICE = "fencing"
# Programs that run inside the nodes. Pacemaker's controller asks the fence agent for its metadata as user hacluster, so
# its interpreter must be one that everybody may run: the system's.
GUESTS = {"fence_lab": "usr/sbin/fence_lab", "Stateful": "usr/lib/ocf/resource.d/lab/Stateful"}


def corosync_conf(settings: Settings, nodes: Sequence[str]) -> str:
    """token_coefficient is 0: otherwise Corosync adds 650 ms to the token for each node above two."""
    lines = [
        "totem {",
        "  version: 2",
        f"  cluster_name: {settings.name}",
        "  transport: knet",
        "  crypto_cipher: aes256",
        "  crypto_hash: sha256",
        f"  token: {settings.token_ms}",
        "  token_coefficient: 0",
        "}",
        "nodelist {",
    ]
    for node in nodes:
        lines += [
            "  node {",
            f"    ring0_addr: {layout.address_of(node)}",
            f"    name: {node}",
            f"    nodeid: {layout.number_of(node)}",
            "  }",
        ]
    lines += ["}", "quorum {", "  provider: corosync_votequorum"]
    if len(nodes) == 2:
        lines += ["  two_node: 1", "  wait_for_all: 1"]
    lines += [
        "}",
        "system {",
        "  move_to_root_cgroup: no",
        "}",
        "logging {",
        "  to_logfile: yes",
        "  logfile: /var/log/corosync/corosync.log",
        "  to_syslog: no",
        "  to_stderr: no",
        "  timestamp: hires",
        "}",
    ]
    return "\n".join(lines) + "\n"


def cib_xml(settings: Settings) -> str:
    """One seed for all nodes. dc-deadtime=1s instead of 20s is what makes the first election quick."""
    properties = {
        "cluster-name": settings.name,
        "dc-deadtime": "1s",
        "stonith-enabled": "true" if settings.fencing else "false",
        **settings.properties,
    }
    pairs = "".join(
        f'<nvpair id="cluster-{name}" name={quoteattr(name)} value={quoteattr(value)}/>'
        for name, value in properties.items()
    )
    nodes = "".join(f'<node id="{layout.number_of(node)}" uname="{node}"/>' for node in settings.first_names)
    device = ""
    if settings.fencing:
        device = (
            f'<primitive id="{FENCE_DEVICE}" class="stonith" type="fence_lab">'
            f'<instance_attributes id="{FENCE_DEVICE}-attributes">'
            f'<nvpair id="{FENCE_DEVICE}-hosts" name="pcmk_host_list" value="{" ".join(settings.node_names)}"/>'
            f'<nvpair id="{FENCE_DEVICE}-check" name="pcmk_host_check" value="static-list"/>'
            "</instance_attributes>"
            f'<operations><op id="{FENCE_DEVICE}-monitor" name="monitor" interval="60s"/></operations>'
            "</primitive>"
        )
    return (
        '<cib validate-with="pacemaker-3.7" admin_epoch="1" epoch="1" num_updates="0"><configuration>'
        f'<crm_config><cluster_property_set id="cluster">{pairs}</cluster_property_set></crm_config>'
        f"<nodes>{nodes}</nodes><resources>{device}</resources><constraints/>"
        "</configuration><status/></cib>\n"
    )


def hosts(settings: Settings) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{layout.CLIENT_ADDRESS} {layout.CLIENT}"]
    return "\n".join([*lines, *(f"{layout.address_of(node)} {node}" for node in settings.node_names)]) + "\n"


def write_shared_layer(layer: Path, settings: Settings) -> None:
    """What all nodes see over the machine's /usr and /etc."""
    layout.write(layer / "etc/hosts", hosts(settings))
    layout.write(layer / "etc/corosync/corosync.conf", corosync_conf(settings, settings.first_names))
    key = layer / "etc/corosync/authkey"
    key.write_bytes(os.urandom(AUTHKEY_BYTES))
    key.chmod(0o400)
    for guest, target in GUESTS.items():
        layout.write(layer / target, (layout.PACKAGE / "guest" / guest).read_text(), 0o755)


def write_node_disk(disk: Path, node: str, settings: Settings, installed: Path) -> None:
    """A node's own persistent directories, with the owners that Pacemaker insists on.

    `installed` is what the installer left, if it ran: its data and log directories keep their owners and modes.
    """
    if settings.disk_mib:
        (disk / layout.DISK).mkdir()
        options = f"size={settings.disk_mib}m"
        subprocess.run(["mount", "-n", "-t", "tmpfs", "-o", options, "disk", str(disk / layout.DISK)], check=True)
    for name in ("food", "log"):
        if (installed / name).is_dir():
            subprocess.run(["cp", "--archive", str(installed / name), str(disk)], check=True)
        else:
            (disk / name).mkdir(exist_ok=True)
    layout.write(disk / "etc/hostname", node + "\n")
    (disk / "usr").mkdir()
    for name, mode in (("cib", 0o750), ("pengine", 0o750), ("blackbox", 0o750), ("cores", 0o750)):
        _private(disk / "pacemaker" / name, mode)
    cib = disk / "pacemaker/cib/cib.xml"
    layout.write(cib, cib_xml(settings), 0o600)
    shutil.chown(cib, "hacluster", "haclient")
    _private(disk / "log/pacemaker", 0o770)
    for name in ("corosync", "pcsd", "log/corosync", "log/cluster", "log/pcsd", "log/crmsh"):
        (disk / name).mkdir(exist_ok=True)


def _private(directory: Path, mode: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(mode)
    shutil.chown(directory, "hacluster", "haclient")
