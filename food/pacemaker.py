"""The command lines of Pacemaker's and Corosync's tools, and what their output means.

The only place that knows them. Pure: builds argument lists and reads text; the guardian runs them. Measured on
Pacemaker 2.1.5: crm_master 27 ms, crm_attribute 19, attrd_updater 10, crm_resource --fail 20, cibadmin 15,
corosync-cmapctl 2.
"""

Argv = list[str]

INFINITY = 1_000_000  # the greatest score
EXIT_OK = 0
EXIT_NO_SUCH = 105  # CRM_EX_NOSUCH: the attribute is not there, which is an answer and not a failure
EXIT_NOT_FOUND = 127  # how a tool that is not installed shows itself


def score_attribute(resource: str) -> str:
    return f"master-{resource}"


# Scores. Lifetime reboot always: crm_master's default is "forever", and a score that outlives a reboot promotes a node
# that knows nothing. crm_master is deprecated but shipped; where it is missing, crm_attribute --promotion is the same.


def set_score(resource: str, node: str, score: int, *, master: bool = True) -> Argv:
    return [*_score_tool(resource, node, master), "-v", str(score)]


def delete_score(resource: str, node: str, *, master: bool = True) -> Argv:
    return [*_score_tool(resource, node, master), "-D"]


def get_score(resource: str, node: str) -> Argv:
    """Reads the CIB. attrd_updater -Q would ask attrd, which may believe what the CIB has lost."""
    return ["crm_attribute", f"--promotion={resource}", "-N", node, "-l", "reboot", "-G", "-q"]


def _score_tool(resource: str, node: str, master: bool) -> Argv:
    if master:
        return ["crm_master", "-r", resource, "-N", node, "-l", "reboot"]
    return ["crm_attribute", f"--promotion={resource}", "-N", node, "-l", "reboot"]


def read_score(status: int, output: str) -> tuple[bool, int | None]:
    """(whether the question was answered, the score or None where there is none)."""
    if status == EXIT_NO_SUCH:
        return True, None
    text = output.strip()
    if status != EXIT_OK:
        return False, None
    if text in ("INFINITY", "+INFINITY"):
        return True, INFINITY
    if text == "-INFINITY":
        return True, -INFINITY
    try:
        return True, int(text)
    except ValueError:
        return (True, None) if text in ("", "(null)") else (False, None)


def allows_promotion(score: int | None) -> bool:
    return score is not None and score >= 0  # seen: 0 promotes, -1 does not


# Attributes of the node that last until it leaves the cluster.


def set_attribute(node: str, name: str, value: str) -> Argv:
    return ["attrd_updater", "-N", node, "-n", name, "-U", value]


def delete_attribute(node: str, name: str) -> Argv:
    return ["attrd_updater", "-N", node, "-n", name, "-D"]


def get_attribute(node: str, name: str) -> Argv:
    return ["crm_attribute", "-N", node, "-n", name, "-l", "reboot", "-G", "-q"]


def read_attribute(status: int, output: str) -> tuple[bool, str | None]:
    if status == EXIT_NO_SUCH:
        return True, None
    return (True, output.strip("\n")) if status == EXIT_OK else (False, None)


def fail(resource: str, node: str) -> Argv:
    """Injects a failure, as root or hacluster: as anybody else it prints success and does nothing."""
    return ["crm_resource", "--fail", "--resource", resource, "--node", node]


def get_history(resource: str, node: str) -> Argv:
    """What Pacemaker remembers of the resource's actions on the node."""
    return ["cibadmin", "--query", "--xpath", f"//node_state[@uname='{node}']//lrm_resource[@id='{resource}']"]


def read_history(status: int) -> tuple[bool, bool]:
    """(whether the question was answered, whether it remembers any)."""
    return status in (EXIT_OK, EXIT_NO_SUCH), status == EXIT_OK


# Nodes.


def local_node() -> Argv:
    return ["crm_node", "-n"]


def node_list() -> Argv:
    return ["corosync-cmapctl", "nodelist"]


def resolve(name: str) -> Argv:
    """A name's addresses, in a process of its own: a name server's silence must not hold up the guardian."""
    return ["getent", "ahosts", name]


def read_resolved(output: str) -> str | None:
    words = output.split()
    return words[0] if words else None


class Node:
    """A node of corosync.conf: its name in the cluster and the first link's address, which may be a host name."""

    __slots__ = ("address", "local", "name")

    def __init__(self, name: str, address: str, local: bool) -> None:
        self.name = name
        self.address = address
        self.local = local


def read_node_list(output: str) -> list[Node]:
    """corosync-cmapctl's `nodelist.node.0.ring0_addr (str) = 10.0.0.1` lines. Bad or foreign lines are skipped."""
    found: dict[str, dict[str, str]] = {}
    local_position = ""
    for line in output.splitlines():
        key, separator, value = line.partition(" = ")
        parts = key.split(" ", 1)[0].split(".")
        if not separator or parts[0] != "nodelist":
            continue
        if parts[1:] == ["local_node_pos"]:
            local_position = value.strip()
        elif len(parts) == 4 and parts[1] == "node":
            found.setdefault(parts[2], {})[parts[3]] = value.strip()
    return [
        # Without a name Pacemaker too falls back on what Corosync knows.
        Node(entry.get("name") or entry["ring0_addr"], entry["ring0_addr"], position == local_position)
        for position, entry in found.items()
        if entry.get("ring0_addr")
    ]
