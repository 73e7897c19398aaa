"""One node: the real Replica and the real finish_turn over a simulated shell, with crash points inside the turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from food.core.local import Local
from food.core.members import Change
from food.core.message import Member, Message
from food.core.ready import Save
from food.core.replica import Replica, StoreUnusable
from food.core.state import Result
from food.driver import finish_turn

from .clock import Clock
from .disk import Disk

if TYPE_CHECKING:
    from .simulator import Simulation

ISOLATION_MS = 1_000
TICK_MS = 50
RANGE_MOST = 100
NO_SPACE = "no space (simulated)"
CRASH_POINTS = ("publish", "save", "saved", "send", "answer")  # before each of them; "saved": before anything leaves


class Crash(Exception):
    """The process dies here."""


class Request(NamedTuple):
    """A frame: a write (`command`), a read (`key`), or an operator's command."""

    whose: Any
    command: bytes | None
    key: bytes | None  # of a range: the prefix
    change: Change | None = None
    names: tuple[str, ...] = ()
    kind: str = "get"  # of a read


class Node:
    """Also the Shell of its Replica."""

    def __init__(self, world: Simulation, name: str) -> None:
        self.world = world
        self.name = name
        self.disks = 1
        self.disk = Disk(Member(name, f"{name}.1"))
        self.replica: Replica | None = None
        self.inbox: list[tuple[Member, Message] | Request] = []
        self.wiped_ms = -1_000_000
        self.image: Disk | None = None  # taken earlier, for a rollback
        self.armed: str | None = None  # crash at this point of the next turn that gets there
        self.paused_until_ms = 0
        self.unreadable_until_ms = 0  # every start fails, by a read error
        self.short_until_ms = 0  # the disk is as good as full
        self.clock = Clock()
        self.ordered = False  # the manager believes it promoted
        self._due = False
        self._tick_due_ms = 0
        self._life = 0

    @property
    def up(self) -> bool:
        return self.replica is not None

    @property
    def running(self) -> Replica:
        assert self.replica is not None
        return self.replica

    @property
    def now(self) -> int:
        """By the own clock."""
        return self.clock.read(self.world.now)

    # --- Life ---

    def start(self) -> None:
        if self.replica or not self.world.may_start(self):
            return
        if self.world.now < self.unreadable_until_ms:
            self.world.count("start: read error")
            self.world.after(self.unreadable_until_ms - self.world.now, self.start)
            return
        if self.disk.damaged:
            self.world.count("start: damage found")
            self.wipe()  # food/daemon.py sets such a store aside, and starts as an empty learner
        self._life += 1
        recovered = self.disk.recover()
        local = Local(recovered, f"{self.name}/{self._life}", self.world.corosync)
        self.replica = Replica(local, ISOLATION_MS, self.now)
        self.world.watch.on_start(self)
        self._tick_due_ms = self.world.now
        self._due, self.ordered = False, False
        self._tick(self._life)

    def crash(self) -> None:
        if self.replica:
            self.world.note(self.name, "crash")
            self.replica, self.inbox, self.armed = None, [], None
            self._life += 1
            self.paused_until_ms = 0

    def forget_changes(self) -> None:
        """Changes of members that wait here never arrive."""
        self.inbox = [item for item in self.inbox if not (isinstance(item, Request) and item.change)]

    def wipe(self) -> None:
        """The node comes back with an empty disk: as somebody else."""
        self.crash()
        self.world.watch.on_gone(self)
        self.wiped_ms = self.world.now
        self.disks += 1
        self.disk = Disk(Member(self.name, f"{self.name}.{self.disks}"))
        self.image = None

    def damage(self) -> None:
        """The process ends; what is on the disk will not stand the checks of the next start."""
        self.crash()
        self.world.watch.on_gone(self)
        self.wiped_ms = self.world.now
        self.disk.damaged = True

    def roll_back(self) -> None:
        """The process ends, and the disk is what it was when the image was taken."""
        assert self.image
        self.crash()
        self.world.watch.on_gone(self)
        self.disk, self.image = self.image, None

    def hear_of_nodes(self) -> None:
        """Corosync's node list has changed."""
        if self.replica:
            self.replica.local.nodes = tuple(self.world.corosync)

    def _tick(self, life: int) -> None:
        if life == self._life:
            self._wake()
            self.world.after(TICK_MS, self._tick, life)

    def take(self, item: tuple[Member, Message] | Request) -> None:
        if self.replica:
            self.inbox.append(item)
            self._wake()

    def poke(self) -> None:
        """An order came: a turn follows."""
        self._wake()

    def _wake(self) -> None:
        if not self._due and self.replica:
            self._due = True
            delay = self.world.rng.randrange(3)
            if self.paused_until_ms > self.world.now:
                delay += self.paused_until_ms - self.world.now
            self.world.after(delay, self._turn, self._life)

    def _turn(self, life: int) -> None:
        if life != self._life:
            return
        now = self.world.now
        if self.paused_until_ms > now:
            self.world.after(self.paused_until_ms - now, self._turn, life)
            return
        self._due = False
        self.turn()

    def turn(self) -> None:
        """Take what waits, step, then the tick if it is due; then the driver's order."""
        replica, now, inbox = self.running, self.now, self.inbox
        self.inbox = []
        self.world.watch.at = self.name
        try:
            for item in inbox:
                if isinstance(item, Request):
                    self._request(replica, item, now)
                else:
                    replica.step(item[0], item[1], now)
            if self.world.now >= self._tick_due_ms:
                self._tick_due_ms = self.world.now + TICK_MS
                replica.local.no_space = NO_SPACE if self.world.now < self.short_until_ms else ""
                replica.tick(now)
            self.world.watch.on_stepped(self)
            finish_turn(replica, self, now)
        except StoreUnusable as error:
            self.world.watch.on_unusable(self, str(error))
            self.world.count("rollback recognised")
            self.wipe()
            self.start()
            return
        except Crash:
            self.world.count("crash " + str(self.armed))
            self.crash()
            self.world.after(self.world.mostly_short(2_000), self.start)
            return
        self.world.watch.on_turned(self)

    def _request(self, replica: Replica, request: Request, now: int) -> None:
        if request.change is not None:
            replica.change_members(request.whose, request.change, now)
        elif request.names:
            replica.found(request.whose, list(request.names))
        elif request.command is not None:
            replica.propose(request.whose, request.command)
        elif request.kind == "stale":
            replica.read_stale(request.whose, "get", [request.key])
        elif request.kind == "range":
            replica.read(request.whose, "range", [request.key, RANGE_MOST], now)
        else:
            replica.read(request.whose, "get", [request.key], now)

    # --- Shell ---

    def _point(self, name: str) -> None:
        if self.armed == name:
            raise Crash

    def publish(self, message: Message) -> None:
        if self.armed:
            self._point("publish")
        self.world.watch.on_publish(self, message)
        for name in self.world.names:
            if name != self.name:
                self.world.carry(self, name, message, published=True)

    def save(self, save: Save) -> None:
        self.world.watch.on_save(self, save)
        if self.armed:
            self._point("save")
        self.disk.save(save)
        if self.armed:
            self._point("saved")

    def send(self, node: str, message: Message) -> None:
        if self.armed == "send" and self.world.rng.random() < 0.5:
            raise Crash
        self.world.watch.on_send(self, message)
        self.world.carry(self, node, message)

    def answer(self, whose: object, result: Result) -> None:
        if self.armed:
            self._point("answer")
        self.world.clients.answered(self, whose, result)

    def event(self, text: str) -> None:
        self.world.note(self.name, text)
