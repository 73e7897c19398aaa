"""How each kind of fault is done to a cluster, and taken back. A fault that finds nothing to break says so: LabError.

One method of `Faults` for each of plan.KINDS: a generator that does it, yields while it lasts, and ends it. What an
operator must take back (standby, a ban) is owed from before it is done until the command succeeded; `recover` pays.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.operations import CLONE, RESOURCE, Cluster
from testbed import LabError, packages

from nemesis import plan, strike

MOVE_MOST_S = 40.0  # what pcs waits for may not come while other things break
COMMAND_S = 60.0
AGENT_WITHIN_S = 8.0  # of the beginning of a move: until its last action
AGENT_RUNS_MS = 60.0
PACEMAKER_ENDS_S = 60.0
RECOVER_S = 150.0
TROUBLE_S = 6.0  # most is over by then by itself
CLEANUP_EVERY_S = 15.0  # a failed start bans a node until somebody cleans up
STUCK_S = 40.0  # a node that is on and not online for so long is switched off and on, as an operator would do
CLEANED_UP, OFF_AND_ON = "cleaned up", "stayed offline: switched off and on"
PACEMAKER = "pacemaker(d|-based|-fenced|-execd|-attrd|-schedulerd|-controld)( |$)"
PACEMAKER_START = "PCMK_logfacility=none setsid pacemakerd </dev/null >/dev/null 2>&1 &"
LIE = "5000"  # a score beyond a primary's own
DISK, FILLER, RESERVED_PART = "/var/lib/food", "/var/lib/food/filler", 8
AS_DAEMON = ("setpriv", "--reuid=food", "--regid=food", "--clear-groups")  # root need not have CAP_SYS_RESOURCE
FILE_BYTES = "1"  # no file of the daemon's may be longer: every write to its store fails

Fault = Iterator[None]
Begin = Callable[[str, random.Random], Fault]


class Order(NamedTuple):
    """A command; `node`: the only one that it can be run on."""

    argv: tuple[str, ...]
    node: str | None = None


class Faults:
    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.lab = cluster.lab
        self.notes: list[str] = []  # what happened in this round, in words
        self._owed: list[Order] = []
        self._cleaned = 0.0
        self._offline_since: dict[str, float] = {}

    def begin(self, fault: plan.Fault) -> Fault:
        """Does it; `next` on what is returned ends it. LabError: it could not be done."""
        dice = fault.dice()
        node = self._victim(fault.victim, dice)
        self.notes.append(f"{fault.words} on {node}")
        begun: Fault = getattr(self, fault.kind)(node, dice)
        next(begun)
        return begun

    # --- Orders ---

    def move(self, node: str, dice: random.Random) -> Fault:
        with self._moving(node, dice.choice(self._others(node))):
            yield

    def standby(self, node: str, dice: random.Random) -> Fault:
        end = Order(("pcs", "node", "unstandby", node))
        yield from self._for_a_while(Order(("pcs", "node", "standby", node)), end)

    def disable(self, node: str, dice: random.Random) -> Fault:
        begin, end = (Order(("pcs", "resource", word, CLONE)) for word in ("disable", "enable"))
        yield from self._for_a_while(begin, end)

    def fail(self, node: str, dice: random.Random) -> Fault:
        self._command("crm_resource", "--fail", "--resource", RESOURCE, "--node", node)
        yield

    def score(self, node: str, dice: random.Random) -> Fault:
        """Pacemaker is told that this node is better than all others. food must not care who is promoted."""
        self._command("crm_attribute", f"--promotion={RESOURCE}", "-N", node, "-l", "reboot", "-v", LIE)
        yield

    def maintenance(self, node: str, dice: random.Random) -> Fault:
        begin, end = (Order(("pcs", "property", "set", f"maintenance-mode={word}")) for word in ("true", ""))
        held = self._for_a_while(begin, end)
        next(held)
        self._signal(node, "KILL", self.cluster.daemon(node))
        yield
        yield from held

    # --- Processes ---

    def kill(self, node: str, dice: random.Random) -> Fault:
        self._signal(node, "KILL", self.cluster.daemon(node))
        yield

    def kill_guardian(self, node: str, dice: random.Random) -> Fault:
        self._signal(node, "KILL", self.cluster.guardian(node))
        yield

    def kill_both(self, node: str, dice: random.Random) -> Fault:
        self._signal(node, "KILL", self.cluster.guardian(node), self.cluster.daemon(node))
        yield

    def kill_agent(self, node: str, dice: random.Random) -> Fault:
        action, delay_ms = dice.choice(plan.ACTIONS), dice.uniform(0.0, AGENT_RUNS_MS)
        target = dice.choice(self._others(node))
        where = {"promote": target, "demote": node, "notify": dice.choice([node, target])}[action]
        argv = [packages.PYTHON, str(Path(strike.__file__)), action, f"{delay_ms:.1f}", str(AGENT_WITHIN_S)]
        with self.lab.popen(where, argv, stdout=subprocess.PIPE, text=True) as striker:
            assert striker.stdout
            striker.stdout.readline()
            with self._moving(node, target):
                yield
            striker.terminate()
            struck = striker.stdout.read() == "struck\n"
        self.notes.append(f"{action} on {where} {f'killed after {delay_ms:.0f} ms' if struck else 'was not caught'}")

    def stop(self, node: str, dice: random.Random) -> Fault:
        yield from self._still(node, self.cluster.daemon(node))

    def stop_guardian(self, node: str, dice: random.Random) -> Fault:
        yield from self._still(node, self.cluster.guardian(node))

    def disk_error(self, node: str, dice: random.Random) -> Fault:
        """Writes fail from one moment to the next, as on a disk that is full or broken, whatever statvfs says."""
        limit = [*AS_DAEMON, "prlimit", "--pid", str(self.cluster.daemon(node))]
        self.lab.run(node, [*limit, f"--fsize={FILE_BYTES}:"])
        yield
        if self.lab.on(node):
            self.lab.run(node, [*limit, "--fsize=unlimited:"], check=False)

    def disk_full(self, node: str, dice: random.Random) -> Fault:
        """To the last byte, or so far that food's own reserve begins."""
        found = self.lab.run(node, ["df", "--block-size=1M", "--output=avail", DISK]).stdout.split()
        left = dice.choice((0, self.lab.settings.disk_mib // RESERVED_PART // 2))
        self.notes.append(f"{left} MiB left")
        fill = f"head -c {int(found[-1]) + 1 - left}M /dev/zero > {FILLER} || true"
        yield from self._for_a_while(Order(("sh", "-c", fill), node), Order(("rm", "-f", FILLER), node))

    # --- Pacemaker ---

    def pacemaker(self, node: str, dice: random.Random) -> Fault:
        self.lab.signal(node, "^pacemakerd", "TERM")
        yield
        self._start_pacemaker(node)

    def pacemakerd(self, node: str, dice: random.Random) -> Fault:
        self.lab.signal(node, "^pacemakerd", "KILL")
        yield
        self._start_pacemaker(node)

    def pacemaker_part(self, node: str, dice: random.Random) -> Fault:
        part = dice.choice(("attrd", "controld"))
        self.notes.append(f"it was {part}")
        self.lab.signal(node, f"pacemaker-{part}", "KILL")
        yield

    def pacemaker_all(self, node: str, dice: random.Random) -> Fault:
        self.lab.signal(node, PACEMAKER, "KILL")
        yield

    # --- Links ---

    def cut_food(self, node: str, dice: random.Random) -> Fault:
        yield from self._cut(node, dice, "food", 100)

    def cut_corosync(self, node: str, dice: random.Random) -> Fault:
        yield from self._cut(node, dice, "corosync", 100)

    def cut_all(self, node: str, dice: random.Random) -> Fault:
        yield from self._cut(node, dice, "all", 100)

    def loss(self, node: str, dice: random.Random) -> Fault:
        yield from self._cut(node, dice, dice.choice(("food", "food", "corosync", "all")), dice.randint(5, 40))

    # --- Power and disks ---

    def power_off(self, node: str, dice: random.Random) -> Fault:
        self.lab.kill(node)
        yield

    def power_off_two(self, node: str, dice: random.Random) -> Fault:
        self.lab.kill(node, dice.choice(self._others(node)))
        yield

    def all_off(self, node: str, dice: random.Random) -> Fault:
        self.lab.kill(*self.lab.nodes)
        self.lab.start(*self.lab.nodes)
        yield

    def disk_lost(self, node: str, dice: random.Random) -> Fault:
        """Nothing else may be amiss: the majority that is left holds what was acknowledged."""
        self.lab.kill(node)
        self.lab.wait_fenced(node)
        shutil.rmtree(self.lab.path(node, f"/var/lib/food/{RESOURCE}"))
        self.lab.start(node)
        yield
        wanted = f"foodctl member replace {node}"
        self.cluster.wait(lambda: wanted in self.cluster.states().get(node, ""), f"{wanted!r} in its state", 90)
        self._command("foodctl", "--id", RESOURCE, "member", "replace", node)

    # --- Afterwards ---

    def recover(self, until: Callable[[], bool] | None = None, what: str = "the cluster to be whole") -> None:
        """Heals, switches on, pays what is owed, and waits: until the cluster is whole, or until `until`. LabError."""
        until = until or self.cluster.whole
        self.lab.heal()
        self._offline_since.clear()
        self._cleaned = began = time.monotonic()

        def recovered() -> bool:
            with contextlib.suppress(LabError):
                in_trouble = time.monotonic() - began > TROUBLE_S
                return self._put_right(in_trouble) and until()
            return False

        self.cluster.wait(recovered, what, RECOVER_S)

    def _put_right(self, in_trouble: bool) -> bool:
        """What an operator would do now; whether nothing of it is left."""
        on = self.cluster.on()
        off = [node for node in self.lab.nodes if node not in on]
        view = self._view(on) if off or in_trouble else None
        # Without a quorum nobody is fenced; with one, a node must not come back before.
        quorate = len(on) * 2 > len(self.lab.nodes)
        if back := [node for node in off if not quorate or node in named(view, online="false", unclean="false")]:
            self.lab.start(*back)
        if in_trouble:
            self._free_the_stuck(on, named(view, online="true", pending="false"))
        if off:
            return False
        for order in list(self._owed):
            self._pay(order)
        if in_trouble and time.monotonic() - self._cleaned > CLEANUP_EVERY_S:
            self._cleaned = time.monotonic()
            if self.cluster.failures():
                self.notes.append(CLEANED_UP)
                self._command("pcs", "resource", "cleanup", RESOURCE)
        return True

    def _view(self, on: Sequence[str]) -> ElementTree.Element | None:
        """crm_mon's of a node that has quorum: another one knows nothing of those that are gone."""
        for node in on:
            tree = self.lab.crm_mon(node)
            dc = tree.find("summary/current_dc") if tree is not None else None
            if dc is not None and dc.get("with_quorum") == "true":
                return tree
        return None

    def _free_the_stuck(self, on: Sequence[str], online: Sequence[str]) -> None:
        now = time.monotonic()
        for node in self.lab.nodes:
            if node not in on or node in online:
                self._offline_since.pop(node, None)
            elif now - self._offline_since.setdefault(node, now) > STUCK_S:
                self.notes.append(f"{node} {OFF_AND_ON}")
                self.lab.kill(node)
                del self._offline_since[node]

    # --- Inside ---

    def _victim(self, role: str, dice: random.Random) -> str:
        """Who has the role; somebody, when nobody can tell."""
        on = self.cluster.on()
        if not on:
            raise LabError("every node is off")
        try:
            primary = self.cluster.primary()
        except LabError:
            return dice.choice(on)
        backups = [node for node in on if node != primary]
        return primary if role == plan.PRIMARY or not backups else dice.choice(backups)

    def _others(self, node: str) -> list[str]:
        return [other for other in self.lab.nodes if other != node]

    def _command(self, *argv: str, node: str | None = None) -> None:
        """Where Pacemaker runs: a node without it would refuse, and in maintenance nobody fences that one."""
        on = [node] if node else sorted(self.cluster.on(), key=lambda name: not self.lab.pids_of(name, "^pacemakerd"))
        if not on:
            raise LabError(f"every node is off: nowhere to run {' '.join(argv)}")
        self.lab.run(on[0], argv, timeout_s=COMMAND_S)

    def _pay(self, order: Order) -> None:
        self._command(*order.argv, node=order.node)
        self._owed.remove(order)

    def _for_a_while(self, begin: Order, end: Order) -> Fault:
        self._owed.append(end)
        self._command(*begin.argv, node=begin.node)
        yield
        self._pay(end)

    @contextlib.contextmanager
    def _moving(self, node: str, target: str) -> Iterator[None]:
        """pcs works while the body runs, and leaves no constraint however it ends."""
        end = Order(("pcs", "resource", "clear", CLONE))
        self._owed.append(end)
        argv = ["pcs", "resource", "move", CLONE, target, "--promoted"]
        with self.lab.popen(node, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pcs:
            try:
                yield
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pcs.wait(MOVE_MOST_S)
            finally:
                pcs.kill()
            status = pcs.wait()
        if status:
            self.notes.append(f"pcs ended with {status}")
            self._pay(end)
        else:
            self._owed.remove(end)

    def _signal(self, node: str, name: str, *pids: int) -> None:
        self.lab.run(node, ["kill", f"-{name}", *map(str, pids)])

    def _still(self, node: str, pid: int) -> Fault:
        self._signal(node, "STOP", pid)
        yield
        if self.lab.on(node):
            self.lab.run(node, ["kill", "-CONT", str(pid)], check=False)

    def _cut(self, node: str, dice: random.Random, links: str, percent: int) -> Fault:
        direction = dice.choice(plan.DIRECTIONS)
        peers = dice.choice([[], [], [dice.choice(self._others(node))]])
        told = "" if percent == 100 else f", {percent} % of {links}'s"
        self.notes.append(f"{direction}{told}" + (f", from {peers[0]} only" if peers else ""))
        self.lab.cut(node, links=links, direction=direction, percent=percent, peers=peers)
        yield
        self.lab.heal(node)

    def _start_pacemaker(self, node: str) -> None:
        """Unless the node was fenced meanwhile: then it boots with it."""

        def ended() -> bool:
            return not self.lab.on(node) or not self.lab.pids_of(node, "^pacemakerd")

        self.cluster.wait(ended, f"the end of {node}'s Pacemaker", PACEMAKER_ENDS_S)
        if self.lab.on(node):
            self.lab.run(node, ["sh", "-c", PACEMAKER_START])


def named(view: ElementTree.Element | None, **attributes: str) -> list[str]:
    """The nodes that crm_mon shows with these attributes."""
    nodes = view.findall("nodes/node") if view is not None else []
    return [node.get("name") or "" for node in nodes if attributes.items() <= node.attrib.items()]
