"""food under Pacemaker's own scheduler, without processes: core, control and guardian's decisions, and crm_simulate.

Each node is a simulated member with the real Control and the real Watch; the guardian's own command lines change a
saved CIB, and what crm_simulate then plans is done to the members, until neither side wants anything more.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from scheduler import RESOURCE, Scheduler
from sim.node import Node
from sim.stage import Stage

from food.codec import pack, unpack
from food.control import OCF_RUNNING_PROMOTED, OCF_SUCCESS, Control
from food.core.message import Append, Chunk, Message, Range
from food.guardian import Guardian, read_answer
from food.rundir import RunDirectory
from food.watch import Watch

TURN_MS = 50
QUIET_MS = 5_000  # longer than any wait of food's before it tells Pacemaker something
ROUNDS_MOST = 200
TRANSITIONS_MOST = 8  # after one event: a cluster that does not come to rest flaps
DETECTED_MS = 2_000
LOOK_MS = 200  # about what Pacemaker needs for a transition
ACTION_MS = 5_000
INTERVALS_MS = {True: 10_000, False: 11_000}  # of the two monitors, by whether promoted
NOT_RUNNING = 7


class Links(Stage):
    """A stage whose links may be down: for all that some nodes send and get, or for the log on its way to some."""

    cut: frozenset[str] = frozenset()
    lagging: frozenset[str] = frozenset()

    def carry(self, source: Node, target: str, message: Message, published: bool = False) -> None:
        late = target in self.lagging and isinstance(message, Append | Range | Chunk)
        if not late and not self.cut & {source.name, target}:
            super().carry(source, target, message, published)


class Nowhere(RunDirectory):
    def write_reason(self, text: str) -> None:
        pass

    def keep_attributes(self, names: Iterable[str]) -> None:
        pass


class Deciding(Guardian):
    """A guardian that writes no files and runs no tools; its time is the world's."""

    def __init__(self, name: str, nodes: list[str], now_s: float):
        super().__init__({"id": RESOURCE, "user": "root", "node": name}, {}, foreground=True)
        self.watch = Watch(now_s, 1_500)
        self.watch.node, self.watch.nodes = name, nodes
        self.files = Nowhere("")


class Instance:
    """One node's guardian and its daemon; the pipe between them is a call."""

    def __init__(self, world: World, name: str):
        self.world, self.name = world, name
        self.guardian = Deciding(name, world.stage.names, world.now_s)
        self.guard = self.guardian.watch
        self._orders = 0
        self._open: set[int] = set()
        replica = world.stage.node(name).running
        self.control = Control(replica, cast(Any, self), RESOURCE, lambda level, text: None, world.stage.now)

    # What Control sees of its Link

    def order(self, **fields: Any) -> int:
        self._orders += 1
        self._open.add(self._orders)
        self.guardian.take_order({"order": self._orders, **fields}, self.world.now_s)
        return self._orders

    def tell(self, **fields: Any) -> None:
        if "role" in fields:
            self.guard.role_is(fields["role"], self.world.now_s)

    def waits_for(self, order: int) -> bool:
        return order in self._open

    # What the guardian does

    def jobs(self) -> None:
        guard, now = self.guard, self.world.now_s
        while (job := guard.next_job(now, busy=False)) is not None:
            if job.kind == "nodes" or job.kind.endswith("attribute"):
                guard.done(job, True, job.value, "", now)  # read from Corosync, or for people only
                continue
            status, output = self.world.scheduler.run(self.guardian.command(job))
            guard.done(job, *read_answer(job, status, output), "", now)
        for order, _ in guard.answers:
            self._open.discard(order)
        guard.answers.clear()


class World:
    def __init__(self, size: int, scratch: Path):
        """A cluster at rest whose n1 is promoted."""
        self.stage = Links(size)
        self.scheduler = Scheduler(size, scratch)
        assert self.scheduler.nodes == self.stage.names
        self.held = {"n1"}  # what Pacemaker believes promoted
        self.instances = {name: Instance(self, name) for name in self.stage.names}
        self.transitions: list[str] = []
        self.run(1_000)
        self.stage.node("n1").running.promote(self.stage.now, self.stage.now + ACTION_MS)
        self.run(3_000)
        assert self.stage.role("n1") == "primary"

    @property
    def now_s(self) -> float:
        return self.stage.now / 1000

    def score(self, node: str) -> int | None:
        return self.scheduler.score(node)

    def run(self, ms: int) -> None:
        """Time passes for members and guardians; Pacemaker looks away."""
        stage = self.stage
        for _ in range(0, ms, TURN_MS):
            stage.tick(ms=TURN_MS)
            stage.flow()
            for instance in self.instances.values():
                self._look_at(instance)

    def _look_at(self, instance: Instance) -> None:
        node, guard = self.stage.node(instance.name), instance.guard
        if guard.daemon_lives and node.up and instance.control._replica is not node.running:
            node.crash()  # the simulated member went on at once with an empty store; a daemon ends
            guard.died("this store must not be used any more", self.now_s)
        elif guard.daemon_lives and node.up:
            guard.beat(self.now_s)
            instance.control.finish_turn(self.stage.now)
        instance.jobs()

    # --- What happens ---

    def cut(self, *nodes: str) -> None:
        """food's links to and from these nodes are down, and only these."""
        self.stage.cut = frozenset(nodes)

    def lag(self, *nodes: str) -> None:
        """Nothing of the log reaches these nodes any more; and something is written."""
        self.stage.lagging = frozenset(nodes)
        self.write()

    def write(self) -> None:
        primary = next(name for name in self.stage.names if self.stage.role(name) == "primary")
        self.stage.propose(primary, b"value")
        self.run(2_000)

    def kill(self, node: str) -> None:
        """The daemon dies; its guardian sees it."""
        self.stage.node(node).crash()
        self.instances[node].guard.died("killed by signal 9 (SIGKILL)", self.now_s)
        self.instances[node].jobs()

    def power_off(self, node: str) -> None:
        """Corosync needs a moment to see it, and fencing another one."""
        self._gone(node)
        self.run(DETECTED_MS)
        self.scheduler.fails(node)
        self.scheduler.set_score(node, None)  # a node's transient attributes go with it
        self.held.discard(node)

    def power_on(self, node: str) -> None:
        self.scheduler.returns(node)

    def _gone(self, node: str) -> None:
        self.stage.node(node).crash()
        self.instances.pop(node, None)

    # --- What Pacemaker does ---

    def settle(self) -> list[str]:
        """Until nobody wants anything more: Pacemaker's transitions, in words. Monitors run once all is quiet."""
        quiet_ms, looked, monitored = 0, b"", False
        first = len(self.transitions)
        for _ in range(ROUNDS_MOST):
            state = self.scheduler.fingerprint()
            plan = self.scheduler.plan() if state != looked else None
            looked = self.scheduler.fingerprint()
            if len(self.transitions) - first >= TRANSITIONS_MOST:
                break
            if plan and plan.steps:
                self.transitions.append(str(plan))
                for step in plan.steps:
                    self._carry_out(*step.split(" "))
                self.monitor({step.split(" ")[1] for step in plan.steps})  # begins at once, in the new role
                quiet_ms, monitored = 0, False
            elif quiet_ms >= QUIET_MS and not monitored:
                self.monitor(self.instances)
                quiet_ms, monitored = 0, True
            elif quiet_ms >= QUIET_MS:
                return self.transitions[first:]
            self.run(LOOK_MS)
            quiet_ms += LOOK_MS
        raise AssertionError(f"it does not come to rest: {self.transitions[first:]}")

    def monitor(self, names: Iterable[str]) -> None:
        """A recurring monitor of each."""
        for name in sorted(self.instances.keys() & names):
            instance = self.instances[name]
            promoted = name in self.held
            code = self._code(instance)
            if code != (OCF_RUNNING_PROMOTED if promoted else OCF_SUCCESS):
                self.scheduler.result(name, "monitor", INTERVALS_MS[promoted], code)

    def _code(self, instance: Instance) -> int:
        """As the agent answers: while a dead primary's role is to move, a monitor says what it was."""
        if not self.stage.node(instance.name).up:
            return OCF_RUNNING_PROMOTED if instance.guard.awaits_role_move() else NOT_RUNNING
        return instance.control.monitor(self.stage.now)[0]

    def _carry_out(self, action: str, node: str) -> None:
        if action == "fence":
            self._gone(node)
        elif action == "start":
            self.stage.start(node)
            self.instances[node] = Instance(self, node)
            self.run(1_000)
        elif action == "stop":
            self._stop(node)
        else:
            self._change_role(action, node)

    def _stop(self, node: str) -> None:
        if node in self.instances:  # else it was fenced
            self.instances[node].guard.terminate(self.now_s)
            self.stage.node(node).crash()
            self.instances[node].guard.died("", self.now_s)
            self.run(TURN_MS)
            del self.instances[node]
        self.held.discard(node)

    def _change_role(self, action: str, node: str) -> None:
        instance = self.instances.get(node)
        if instance is None:
            return  # stopped; Pacemaker believes that it runs
        (self.held.add if action == "promote" else self.held.discard)(node)
        if not self.stage.node(node).up:
            if action == "promote":
                self.scheduler.result(node, "promote", 0, NOT_RUNNING)
            else:
                instance.guard.role_moved(self.now_s)
            return
        answers: list[bytes] = []
        instance.control.request(
            pack({"v": 1, "action": action, "timeout_ms": ACTION_MS}), answers.append, self.stage.now
        )
        for _ in range(0, ACTION_MS, TURN_MS):
            if answers:
                break
            self.run(TURN_MS)
        code = self._answered(answers)
        if code:
            self.scheduler.result(node, action, 0, code)

    @staticmethod
    def _answered(answers: list[bytes]) -> int:
        assert answers, "an action must be answered in its time"
        code = unpack(answers[0], 1 << 16)["rc"]
        assert isinstance(code, int)
        return code
