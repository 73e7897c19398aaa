"""PROTOCOL.md's invariants, checked at every save, publish, send, answer and turn of every node.

Knows all nodes at once, which no node does. A broken rule raises Violation with the rule's words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from food.core.entries import Log, unpack_members
from food.core.leading import Leading
from food.core.members import Change
from food.core.message import (
    START,
    Ack,
    Append,
    Entry,
    Epoch,
    Heartbeat,
    Kind,
    Member,
    MemberList,
    Message,
    Position,
    Seal,
    Sealed,
)
from food.core.ready import Save
from food.core.state import Result, State

from .disk import drafted
from .model import ABSENT, Model, Version, fingerprint

if TYPE_CHECKING:
    from .node import Node
    from .simulator import Simulation


class Violation(AssertionError):
    """A rule of PROTOCOL.md is broken."""


def must(holds: bool, rule: str) -> None:
    if not holds:
        raise Violation(rule)


def print_of(state: State) -> bytes:
    return fingerprint(
        state.revision,
        [[key, *state.rows[key]] for key in state.keys],
        [
            [
                number,
                s.seq,
                s.used,
                [[q, r.status, r.value if r.status == 0 else None] for q, r in s.results.items()],
            ]
            for number, s in sorted(state.sessions.items())
        ],
    )


class Invariants:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.ledger: list[Entry] = []  # every entry that was ever committed, by index - 1
        self._committed_in: list[Epoch] = []  # beside it, the epoch whose primary counted it
        self.model = Model()
        self.members: MemberList | None = None  # the newest committed list
        self.lists: dict[int, list[MemberList]] = {}  # every list ever appended, by number
        self.asked: set[tuple[int, str, Member]] | None = None  # what operators asked for; None: scripts change lists
        self._written: dict[Position, tuple[Position, Entry]] = {}  # every entry ever, and what it stands behind
        self._leaders: dict[Epoch, tuple[str, int, dict[int, Epoch], int]] = {}
        self._sealed_by: dict[str, Epoch] = {}  # store: the greatest epoch it told anybody it promised
        self._checked: dict[str, int] = {}  # node: up to where its commit was compared
        self._role: dict[str, Leading | None] = {}
        self._promise: dict[str, Epoch] = {}
        self.flipped: set[str] = set()  # stores whose state was made wrong on purpose
        self.promotions = 0
        self.acknowledged = 0

    # --- Hooks ---

    def on_start(self, node: Node) -> None:
        local = node.running.local
        must(node.running.leading is None, "a primary that restarts is a backup")
        must(local.commit == node.disk.commit, "after a restart the state is replayed up to the saved commit index")
        self._role[node.name] = None
        self._checked[node.name] = 0
        self._progress(node)
        self._promise[node.name] = local.promise

    def on_crash(self, node: Node) -> None:
        self._role[node.name] = None

    def on_unusable(self, node: Node, why: str) -> None:
        """A store is not to be used any more, says the node itself."""
        wrong = node.disk.member.store in self.flipped
        must(wrong or not why.startswith("the state differs"), "only a state that is wrong is outvoted")

    def on_stepped(self, node: Node) -> None:
        """Messages are taken; nothing is saved or sent yet."""
        local = node.running.local
        must(local.promise >= self._promise[node.name], "the promise only rises")
        self._promise[node.name] = local.promise

    def on_turned(self, node: Node) -> None:
        """The turn is over: memory and disk agree, and every role keeps its invariant."""
        replica, local, disk = node.running, node.running.local, node.disk
        must(disk.promise == local.promise, "the promise is durable")
        must(disk.last == local.log.last, "memory is never behind the disk, nor ahead after a turn")
        self._progress(node)
        must(local.state.applied <= local.commit <= local.log.last.index, "applied <= commit <= last")
        if following := replica.following:
            must(local.commit <= following.matched, "commit <= matched")
        if replica.leading is not self._role[node.name]:
            self._role[node.name] = replica.leading
        must(bool(self.flipped) or not replica.agreement.differing, "all states are the same at one index")
        if leading := replica.leading:
            must(leading.epoch == local.promise, "a primary leads only what it promised itself")
            must(replica.promotion is None and replica.following is None, "one role at a time")

    def on_publish(self, node: Node, message: Message) -> None:
        leading = node.running.leading
        assert isinstance(message, Append | Heartbeat)
        must(leading is not None and leading.epoch == message.epoch, "only a primary publishes, in its own epoch")
        assert leading is not None
        self._led(node, leading)
        if isinstance(message, Append):
            previous = message.prev
            for entry in message.entries:
                self._write(previous, entry)
                previous = Position(entry.epoch, entry.index)
                if entry.kind == Kind.MEMBERS:
                    held = node.disk.position(entry.index)
                    saved = held == previous or entry.index < node.disk.base.index
                    must(saved, "a member list is saved before it is published")

    def on_save(self, node: Node, save: Save) -> None:
        disk = node.disk
        if leading := node.running.leading:
            self._led(node, leading)
        if save.promise:
            must(save.promise.number > disk.promise.number, "first come for a number: the promised number rises")
        self._truncation(node, save)
        before: Position | None = disk.last
        if save.snapshot:
            before = save.snapshot.at
            must(before.index > disk.commit, "a snapshot is installed only above the commit index")
            self._snapshot(node, save)
        elif save.truncate_from is not None:
            before = disk.position(min(save.truncate_from - 1, disk.last.index))
        for entry in save.entries:
            assert before is not None
            must(entry.index == before.index + 1, "no holes")
            self._write(before, entry)
            before = Position(entry.epoch, entry.index)
        assert before is not None
        must(save.commit <= before.index, "the saved commit index is in the saved log")
        must(save.commit >= disk.commit, "the commit index only rises")
        self._progress(node)

    def on_send(self, node: Node, message: Message) -> None:
        disk = node.disk
        if isinstance(message, Seal | Sealed | Ack):
            must(disk.promise >= message.epoch, "the promise is durable before the answer")
        if isinstance(message, Sealed):
            must(self._same_or_later(node, message.last), "what a member says it holds is durable")
            self._sealed_by[disk.member.store] = max(self._sealed_by.get(disk.member.store, START.epoch), message.epoch)
        elif isinstance(message, Ack):
            must(disk.promise == message.epoch, "an Ack is of the epoch that is promised")
            held = disk.position(message.matched)
            must(message.matched <= disk.last.index, "what an Ack speaks of is durable")
            if held:
                must(self._in_log_of(message.epoch, held), "an Ack speaks only of what the primary's log holds")

    # --- Rules ---

    def _same_or_later(self, node: Node, position: Position) -> bool:
        return node.disk.last == position or node.disk.last.epoch >= position.epoch

    def _write(self, before: Position, entry: Entry) -> None:
        """Log matching: an equal position means an equal entry behind an equal prefix, committed or not."""
        position = Position(entry.epoch, entry.index)
        known = self._written.get(position)
        if known is None:
            self._written[position] = (before, entry)
            if entry.kind == Kind.MEMBERS:
                self._new_list(before, entry)
        else:
            must(known[1] == entry, "log matching: one position, one entry")
            must(known[0] == before, "log matching: an equal position means an equal prefix")

    def _new_list(self, before: Position, entry: Entry) -> None:
        new = unpack_members(entry.data)
        self.lists.setdefault(new.number, []).append(new)
        old = self._list_at(before)
        if old is None:
            must(new.number == 1, "the founding list is list 1")
            if len(new.members) < len(self._world.corosync):
                self._world.count("founded with fewer")
            return
        must(new.number == old.number + 1 and new.cluster == old.cluster, "a list's number rises by one")
        a, b = set(old.stores), set(new.stores)
        must(len(a ^ b) == 1, "neighbouring lists differ by one store")
        if self.asked is not None:
            (member,) = set(old.members) ^ set(new.members)
            asked = (old.number, "add" if member in new.members else "remove", member)
            must(asked in self.asked, "a list differs from the one that an operator saw by what was asked for")
        must(len(a) // 2 + 1 + len(b) // 2 + 1 > len(a | b), "neighbouring member lists' majorities overlap")

    def _list_at(self, position: Position) -> MemberList | None:
        while position.index:
            before, entry = self._written[position]
            if entry.kind == Kind.MEMBERS:
                return unpack_members(entry.data)
            position = before
        return None

    def _truncation(self, node: Node, save: Save) -> None:
        cut = save.truncate_from
        if cut is None and save.snapshot:
            # Entries above the snapshot that it does not keep are cut as well.
            cut = save.snapshot.at.index + len(save.entries) + 1
        if cut is None:
            return
        must(cut > node.disk.commit, "no truncation at or below the commit index")
        for index in range(cut, min(len(self.ledger), node.disk.last.index) + 1):
            must(node.disk.entry(index) != self.ledger[index - 1], "an entry that was committed is never cut")

    def _snapshot(self, node: Node, save: Save) -> None:
        snapshot = save.snapshot
        assert snapshot is not None
        at = snapshot.at
        must(at.index <= len(self.ledger), "a snapshot holds only what is committed")
        must(self.ledger[at.index - 1].epoch == at.epoch, "a snapshot's position is a committed entry's")
        staged = node.disk.staged_after(save)
        named = [(piece.at, piece.number) for piece in staged]
        must(named == [(at, number) for number in range(len(staged))], "pieces of two snapshots never mix")
        state = State()
        state.restore(at.index, snapshot.revision, snapshot.hash, drafted(staged))
        must(print_of(state) == self.model.prints[at.index], "a snapshot is the fold of the log up to its position")
        must(snapshot.members == self._list_at(at), "a snapshot carries its member list")

    def _led(self, node: Node, leading: Leading) -> None:
        """One leader an epoch, sealed in this life; its log holds all that was ever committed."""
        epoch, life = leading.epoch, node.running.local.starts
        must(epoch.candidate == node.disk.member.store, "only the candidate leads its epoch")
        known = self._leaders.get(epoch)
        if known:
            must(known[:2] == (node.name, life), "one leader an epoch, in one life")
            return
        must(all(other.number != epoch.number for other in self._leaders), "first come for a number")
        log = node.running.local.log
        held = {entry.index: entry.epoch for entry in log.after(log.base.index, 1 << 40)}
        for index in range(max(1, log.base.index), len(self.ledger) + 1):
            if self._committed_in[index - 1] < epoch:  # a late candidate may lead an older epoch, and commit nothing
                found = log.base.epoch if index == log.base.index else held.get(index)
                must(found == self.ledger[index - 1].epoch, "leader completeness: the committed entry is in the log")
        self._leaders[epoch] = (node.name, life, held, leading.barrier)
        self.promotions += 1

    def _in_log_of(self, epoch: Epoch, position: Position) -> bool:
        """Whether the primary of `epoch` holds `position` (log matching makes the prefix equal)."""
        _, _, held, barrier = self._leaders[epoch]
        if position.index >= barrier:
            return position.epoch == epoch
        if position.index in held:
            return held[position.index] == position.epoch
        return position.index == 0 or self.ledger[position.index - 1].epoch == position.epoch

    def _progress(self, node: Node) -> None:
        """What a node counts as committed is what every other counted, and its state is the fold of it."""
        local = node.running.local
        checked = self._checked[node.name]
        if local.commit == checked:
            return
        must(local.commit > checked, "the commit index only rises")
        for entry in self._entries(local.log, max(checked, min(len(self.ledger), local.log.base.index)), local.commit):
            index = entry.index
            if index <= len(self.ledger):
                must(entry == self.ledger[index - 1], "one committed entry an index, on every node")
            else:
                must(index == len(self.ledger) + 1, "what is committed stands behind what was committed")
                self._commit(node, entry)
        self._checked[node.name] = local.commit
        must(local.state.applied <= local.commit, "applied <= commit")
        if node.disk.member.store not in self.flipped:
            must(print_of(local.state) == self.model.prints[local.state.applied], "the state is the fold of the log")

    def _entries(self, log: Log, after: int, to: int) -> list[Entry]:
        """The entries behind `after` up to `to`, those that the log has just compacted away included."""
        compacted: list[Entry] = []
        position = log.base
        while position.index > after:
            position, entry = self._written[position]
            compacted.insert(0, entry)
        return compacted + [log.entry(index) for index in range(max(after, log.base.index) + 1, to + 1)]

    def _commit(self, node: Node, entry: Entry) -> None:
        leading = node.running.leading
        epoch = leading.epoch if leading else node.running.local.promise
        for other in self._world.nodes:
            if other.replica and other.replica.leading and other.replica.leading.epoch > epoch:
                log = other.replica.local.log
                must(
                    entry.index <= log.last.index
                    and (entry.index <= log.base.index or log.entry(entry.index) == entry),
                    "leader completeness: what an older epoch commits late is in the newer primary's log",
                )
        self.ledger.append(entry)
        self._committed_in.append(epoch)
        if entry.kind == Kind.COMMAND:
            self.model.apply(entry.data)
        else:
            self.model.skip()
            if entry.kind == Kind.MEMBERS:
                self.members = unpack_members(entry.data)

    # --- Clients ---

    def on_write_answer(self, node: Node, session: int, seq: int, result: Result) -> None:
        """Whatever is answered of an executed write is its first result, on every node and for ever."""
        self._progress(node)
        if result.status in (0, "compare"):
            executed = self.model.executed.get((session, seq))
            must(executed is not None, "an acknowledged write is committed")
            assert executed is not None
            value = result.value if result.status == 0 else None
            must(executed == (result.status, value), "a client session's result never changes")
            self.acknowledged += 1

    def floor(self, key: bytes) -> Version:
        """The newest committed version: a read that starts now may not return an older one."""
        history = self.model.history.get(key)
        return history[-1] if history else ABSENT

    def on_read_answer(self, node: Node, key: bytes, floor: Version, value: Any) -> None:
        self._progress(node)
        history = [ABSENT, *self.model.history.get(key, ())]
        wanted = (value[0], value[1]) if value else (None, None)
        must(
            any(
                version.index >= floor.index
                and (version.value, version.revision if version.value is not None else None) == wanted
                for version in reversed(history)
            ),
            "a linearizable read returns at least the latest acknowledged write",
        )

    def on_list_answer(self, node: Node, change: Change, answered: MemberList) -> None:
        """An operator is told that a change is done: the list that says so is committed."""
        self._progress(node)
        newest = next(entry for entry in reversed(self.ledger) if entry.kind == Kind.MEMBERS)
        committed = [unpack_members(entry.data) for entry in self.ledger if entry.kind == Kind.MEMBERS]
        must(answered in committed, "a list that an operator is told of is committed")
        must((change.member in answered.members) == (change.op == "add"), "what an operator is told is done, is done")
        if answered == unpack_members(newest.data):
            must(answered == node.running.local.log.members_at(len(self.ledger)), "the list that rules is everywhere")

    # --- Which disks may be lost ---

    def may_lose(self, store: str, lost: dict[str, None]) -> bool:
        """Whether every list that may still rule keeps a majority of its disks without `store`."""
        newest = self.members.number if self.members else 0
        for number, lists in self.lists.items():
            if number >= newest:
                for members in lists:
                    gone = sum(s in lost or s == store for s in members.stores)
                    if len(members.stores) - gone < len(members.stores) // 2 + 1:
                        return False
        return True
