"""PROTOCOL.md's invariants, checked at every save, publish, send, answer and turn of every node.

Knows all nodes at once, which no node does. A broken rule raises Violation with the rule's words and its source
(tests/sim/rules.py).
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

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
from food.core.quorum import majority
from food.core.ready import Save
from food.core.state import Result, State

from . import rules
from .disk import drafted
from .model import ABSENT, Model, Version, fingerprint
from .rules import Rule

if TYPE_CHECKING:
    from .node import Node
    from .simulator import Simulation


class Violation(AssertionError):
    """A rule is broken; at entry `index`, if it speaks of one."""

    def __init__(self, rule: object, index: int | None = None) -> None:
        super().__init__(f"{rule}" if index is None else f"{rule}, at entry {index}")
        self.index = index


def must(holds: bool, rule: Rule, index: int | None = None) -> None:
    if not holds:
        raise Violation(rule, index)


def print_of(state: State) -> bytes:
    return fingerprint(
        state.revision,
        [[key, row.value, row.revision] for key, row in sorted(state.rows.items())],
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


class Written(NamedTuple):
    """An entry that was ever in a log."""

    before: Position  # what it stands behind
    entry: Entry
    ruling: tuple[int, MemberList | None]  # the list that rules once it is the last one, and that one's index


class Led(NamedTuple):
    """An epoch that was led."""

    node: str
    life: int
    held: dict[int, Epoch]  # what the log held behind its base when it began
    barrier: int


class Invariants:
    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.ledger: list[Entry] = []  # every entry that was ever committed, by index - 1
        self._committed_in: list[Epoch] = []  # beside it, the epoch whose primary counted it
        self.model = Model(*world.sessions)
        self.members: MemberList | None = None  # the newest committed list
        self.lists: dict[int, list[MemberList]] = {}  # every list ever appended, by number
        self.asked: set[tuple[int, str, Member]] | None = None  # what operators asked for; None: scripts change lists
        self._written: dict[Position, Written] = {}  # every entry ever
        self._leaders: dict[Epoch, Led] = {}
        self._sealed_by: dict[str, Epoch] = {}  # store: the greatest epoch it told anybody it promised
        self._checked: dict[str, int] = {}  # node: up to where its commit was compared
        self._promise: dict[str, Epoch] = {}
        self.flipped: set[str] = set()  # stores whose state was made wrong on purpose
        self.gone: dict[str, None] = {}  # stores whose disk is lost, damaged or rolled back
        self.at = ""  # node whose turn it is
        self.promotions = 0
        self.acknowledged = 0

    # --- Hooks ---

    def on_start(self, node: Node) -> None:
        local = node.running.local
        must(node.running.leading is None, rules.BACKUP_AT_START)
        must(local.commit == node.disk.commit, rules.NOT_PAST_COMMIT, local.commit)
        said = self._sealed_by.get(local.store)
        must(said is None or local.promise >= said or local.store in self.gone, rules.PROMISE_KEPT)
        self._checked[node.name] = 0
        self._progress(node)
        self._promise[node.name] = local.promise

    def on_gone(self, node: Node) -> None:
        """Its disk is lost, damaged, or older than it was."""
        self.gone[node.disk.member.store] = None

    def on_unusable(self, node: Node, why: str) -> None:
        """A store is not to be used any more, says the node itself."""
        wrong = node.disk.member.store in self.flipped
        must(wrong or not why.startswith("the state differs"), rules.RIGHTLY_OUTVOTED)

    def on_stepped(self, node: Node) -> None:
        """Messages are taken; nothing is saved or sent yet."""
        local = node.running.local
        must(local.promise >= self._promise[node.name], rules.PROMISE_RISES)
        self._promise[node.name] = local.promise

    def on_turned(self, node: Node) -> None:
        """The turn is over: memory and disk agree, and every role keeps its invariant."""
        replica, local, disk = node.running, node.running.local, node.disk
        must(disk.promise == local.promise, rules.PROMISE_DURABLE)
        must(disk.last == local.log.last, rules.DISK_IS_MEMORY)
        self._progress(node)
        must(local.state.applied <= local.commit <= local.log.last.index, rules.APPLIED_COMMIT)
        if following := replica.following:
            must(local.commit <= following.matched, rules.COMMIT_MATCHED, local.commit)
        must(bool(self.flipped) or not replica.agreement.differing, rules.STATES_AGREE)
        if leading := replica.leading:
            must(leading.epoch == local.promise, rules.LEADS_PROMISED)
            must(replica.promotion is None and replica.following is None, rules.ONE_ROLE)

    def on_publish(self, node: Node, message: Message) -> None:
        leading = node.running.leading
        assert isinstance(message, Append | Heartbeat)
        must(leading is not None and leading.epoch == message.epoch, rules.ONLY_PRIMARY_PUBLISHES)
        assert leading is not None
        self._led(node, leading)
        if isinstance(message, Append):
            previous = message.prev
            for entry in message.entries:
                self._write(node, previous, entry)
                previous = Position(entry.epoch, entry.index)
                if entry.kind == Kind.MEMBERS:
                    held = node.disk.position(entry.index)
                    saved = held == previous or entry.index < node.disk.base.index
                    must(saved, rules.LIST_SAVED, entry.index)

    def on_save(self, node: Node, save: Save) -> None:
        disk = node.disk
        if leading := node.running.leading:
            self._led(node, leading)
        if save.promise:
            must(save.promise.number > disk.promise.number, rules.FIRST_COME)
        self._truncation(node, save)
        before: Position | None = disk.last
        if save.snapshot:
            before = save.snapshot.at
            must(before.index > disk.commit, rules.SNAPSHOT_ABOVE, before.index)
            self._snapshot(node, save)
        elif save.truncate_from is not None:
            before = disk.position(min(save.truncate_from - 1, disk.last.index))
        for entry in save.entries:
            assert before is not None
            must(entry.index == before.index + 1, rules.NO_HOLES, entry.index)
            self._write(node, before, entry)
            before = Position(entry.epoch, entry.index)
        assert before is not None
        must(save.commit <= before.index, rules.SAVED_COMMIT, save.commit)
        must(save.commit >= disk.commit, rules.COMMIT_RISES, save.commit)
        self._progress(node)

    def on_send(self, node: Node, message: Message) -> None:
        disk = node.disk
        if isinstance(message, Seal | Sealed | Ack):
            must(disk.promise >= message.epoch, rules.PROMISE_FIRST)
        if isinstance(message, Sealed):
            must(self._same_or_later(node, message.last), rules.SEALED_IS_DURABLE, message.last.index)
            leading = node.running.leading
            must(leading is None or leading.epoch > message.epoch, rules.STEPS_DOWN)
            self._sealed_by[disk.member.store] = max(self._sealed_by.get(disk.member.store, START.epoch), message.epoch)
        elif isinstance(message, Ack):
            must(disk.promise == message.epoch, rules.ACK_PROMISED)
            held = disk.position(message.matched)
            must(message.matched <= disk.last.index, rules.ACK_DURABLE, message.matched)
            if held:
                must(self._in_log_of(message.epoch, held), rules.ACK_MATCHED, message.matched)

    # --- Rules ---

    def _same_or_later(self, node: Node, position: Position) -> bool:
        return node.disk.last == position or node.disk.last.epoch >= position.epoch

    def _write(self, node: Node, before: Position, entry: Entry) -> None:
        """Log matching: an equal position means an equal entry behind an equal prefix, committed or not."""
        position = Position(entry.epoch, entry.index)
        known = self._written.get(position)
        if known is None:
            must(entry.epoch >= before.epoch, rules.EPOCHS_RISE, entry.index)
            first = entry.epoch != before.epoch
            must(not first or entry.kind == (Kind.BARRIER if before.index else Kind.MEMBERS), rules.BARRIER_FIRST)
            self._written[position] = Written(before, entry, self._ruling(before))
            if entry.kind == Kind.MEMBERS:
                self._new_list(node, before, entry)
                self._written[position] = Written(before, entry, (entry.index, unpack_members(entry.data)))
        else:
            must(known.entry == entry, rules.SAME_ENTRY, entry.index)
            must(known.before == before, rules.SAME_PREFIX, entry.index)

    def _new_list(self, node: Node, before: Position, entry: Entry) -> None:
        new = unpack_members(entry.data)
        self.lists.setdefault(new.number, []).append(new)
        at, old = self._ruling(before)
        if old is None:
            must(new.number == 1, rules.FOUNDING_IS_ONE)
            if len(new.members) < len(self._world.corosync):
                self._world.count("founded with fewer")
            return
        must(new.number == old.number + 1 and new.cluster == old.cluster, rules.LIST_NUMBER, entry.index)
        barrier = self._leaders[entry.epoch].barrier
        must(node.running.local.commit >= max(at, barrier), rules.LIST_ALONE, entry.index)
        a, b = set(old.stores), set(new.stores)
        must(len(a ^ b) == 1, rules.ONE_STORE, entry.index)
        if self.asked is not None:
            (member,) = set(old.members) ^ set(new.members)
            asked = (old.number, "add" if member in new.members else "remove", member)
            must(asked in self.asked, rules.AS_ASKED, entry.index)
        must(len(a) // 2 + 1 + len(b) // 2 + 1 > len(a | b), rules.OVERLAP, entry.index)

    def _ruling(self, position: Position) -> tuple[int, MemberList | None]:
        """The list that rules where `position` is the last entry, and its index."""
        return self._written[position].ruling if position.index else (0, None)

    def _truncation(self, node: Node, save: Save) -> None:
        cut = save.truncate_from
        if cut is None and save.snapshot:
            # Entries above the snapshot that it does not keep are cut as well.
            cut = save.snapshot.at.index + len(save.entries) + 1
        if cut is None:
            return
        must(cut > node.disk.commit, rules.NO_CUT, cut)
        for index in range(cut, min(len(self.ledger), node.disk.last.index) + 1):
            must(node.disk.entry(index) != self.ledger[index - 1], rules.COMMITTED_STAYS, index)

    def _snapshot(self, node: Node, save: Save) -> None:
        snapshot = save.snapshot
        assert snapshot is not None
        at = snapshot.at
        must(at.index <= len(self.ledger), rules.SNAPSHOT_COMMITTED, at.index)
        must(self.ledger[at.index - 1].epoch == at.epoch, rules.SNAPSHOT_COMMITTED, at.index)
        staged = node.disk.staged_after(save)
        named = [(piece.at, piece.number) for piece in staged]
        must(named == [(at, number) for number in range(len(staged))], rules.PIECES_APART, at.index)
        state = State()
        state.restore(at.index, snapshot.revision, snapshot.hash, drafted(staged))
        must(print_of(state) == self.model.prints[at.index], rules.SNAPSHOT_IS_FOLD, at.index)
        must(snapshot.members == self._ruling(at)[1], rules.SNAPSHOT_LIST, at.index)

    def _led(self, node: Node, leading: Leading) -> None:
        """One leader an epoch, sealed in this life; its log holds all that was ever committed."""
        epoch, life = leading.epoch, node.running.local.starts
        known = self._leaders.get(epoch)
        if known:
            must((known.node, known.life) == (node.name, life), rules.ONE_LEADER)
            return
        must(epoch.candidate == node.disk.member.store, rules.LEADS_OWN_EPOCH)
        must(all(other.number != epoch.number for other in self._leaders), rules.ONE_NUMBER)
        self._sealed(node, leading)
        log = node.running.local.log
        held = {entry.index: entry.epoch for entry in log.after(log.base.index, 1 << 40)}
        for index in range(max(1, log.base.index), len(self.ledger) + 1):
            if self._committed_in[index - 1] < epoch:  # a late candidate may lead an older epoch, and commit nothing
                found = log.base.epoch if index == log.base.index else held.get(index)
                must(found == self.ledger[index - 1].epoch, rules.LEADER_COMPLETE, index)
        self._leaders[epoch] = Led(node.name, life, held, leading.barrier)
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
        must(local.commit > checked, rules.COMMIT_RISES, local.commit)
        for entry in self._entries(local.log, max(checked, min(len(self.ledger), local.log.base.index)), local.commit):
            index = entry.index
            if index <= len(self.ledger):
                must(entry == self.ledger[index - 1], rules.ONE_COMMITTED, index)
            else:
                must(index == len(self.ledger) + 1, rules.COMMIT_DENSE, index)
                self._commit(node, entry)
        self._checked[node.name] = local.commit
        must(local.state.applied <= local.commit, rules.APPLIED_COMMIT, local.commit)
        if node.disk.member.store not in self.flipped:
            same = print_of(local.state) == self.model.prints[local.state.applied]
            must(same, rules.STATE_IS_FOLD, local.state.applied)

    def _entries(self, log: Log, after: int, to: int) -> list[Entry]:
        """The entries behind `after` up to `to`, those that the log has just compacted away included."""
        compacted: list[Entry] = []
        position = log.base
        while position.index > after:
            position, entry, _ = self._written[position]
            compacted.insert(0, entry)
        return compacted + [log.entry(index) for index in range(max(after, log.base.index) + 1, to + 1)]

    def _commit(self, node: Node, entry: Entry) -> None:
        leading = node.running.leading
        epoch = leading.epoch if leading else node.running.local.promise
        if leading:
            self._counted(node, leading, entry)
        for other in self._world.nodes:
            if other.replica and other.replica.leading and other.replica.leading.epoch > epoch:
                log = other.replica.local.log
                must(
                    entry.index <= log.last.index
                    and (entry.index <= log.base.index or log.entry(entry.index) == entry),
                    rules.LATE_COMMIT,
                    entry.index,
                )
        self.ledger.append(entry)
        self._committed_in.append(epoch)
        if entry.kind == Kind.COMMAND:
            self.model.apply(entry.data)
        else:
            self.model.skip()
            if entry.kind == Kind.MEMBERS:
                self.members = unpack_members(entry.data)

    def _sealed(self, node: Node, leading: Leading) -> None:
        """A majority of the adopted log's list promised the epoch; every founding node, where it founds."""
        epoch, members = leading.epoch, node.running.local.log.members
        assert members is not None, "an epoch is led from its barrier on, which may be the founding list"
        promised = [s for s in members.stores if s in self.gone or self._sealed_by.get(s, START.epoch) >= epoch]
        needed = len(members.stores) if leading.barrier == 1 else majority(members.stores)
        must(len({*promised, epoch.candidate}) >= needed, rules.SEALED_BY_MAJORITY)

    def _counted(self, node: Node, leading: Leading, entry: Entry) -> None:
        """A primary counts an entry as committed: of its own epoch, or in front of one; on the disks of a majority."""
        local, position = node.running.local, Position(entry.epoch, entry.index)
        must(local.log.position(local.commit).epoch == leading.epoch, rules.OWN_EPOCH_COUNTED, entry.index)
        held = {
            other.disk.member.store
            for other in self._world.nodes
            if other.disk.position(entry.index) == position or other.disk.base.index > entry.index
        }
        # A list that is not saved yet was appended in this turn, perhaps after the counting.
        lists = [self._ruling(last)[1] for last in {local.log.last, node.disk.last}]
        must(
            any(members and self._majority_holds(members, held) for members in lists),
            rules.HELD_BY_MAJORITY,
            entry.index,
        )

    def _majority_holds(self, members: MemberList, held: set[str]) -> bool:
        there = [store for store in members.stores if store in held or store in self.gone]
        return len(there) >= majority(members.stores)

    # --- Clients ---

    def _serving(self, node: Node) -> None:
        if leading := node.running.leading:
            barrier = self._leaders[leading.epoch].barrier
            must(len(self.ledger) >= barrier, rules.SERVED_AFTER_BARRIER, barrier)

    def on_write_answer(self, node: Node, session: int, seq: int, result: Result) -> None:
        """Whatever is answered of an executed write is its first result, on every node and for ever."""
        self._progress(node)
        if result.status in (0, "compare"):
            self._serving(node)
            executed = self.model.executed.get((session, seq))
            must(executed is not None, rules.ACKED_IS_COMMITTED)
            assert executed is not None
            value = result.value if result.status == 0 else None
            must(executed == (result.status, value), rules.RESULT_STAYS)
            self.acknowledged += 1
        elif result.status == "session":
            must(session not in self.model.sessions, rules.SESSION_KNOWN)

    def floor(self, key: bytes) -> Version:
        """The newest committed version: a read that starts now may not return an older one."""
        history = self.model.history.get(key)
        return history[-1] if history else ABSENT

    def on_read_answer(self, node: Node, key: bytes, floor: Version, value: Any) -> None:
        self._progress(node)
        self._serving(node)
        for version in chain(reversed(self.model.history.get(key, ())), (ABSENT,)):
            must(version.index >= floor.index, rules.READ_LATEST)
            if version.value is None if value is None else [version.value, version.revision] == value:
                break
        else:
            must(False, rules.READ_LATEST)

    def on_range_answer(self, node: Node, prefix: bytes, since: int, rows: Any) -> None:
        """A range is one moment's: all of it as it was after some entry, and none before the read began."""
        self._progress(node)
        self._serving(node)
        later = {v.index for key, history in self.model.history.items() if key.startswith(prefix) for v in history}
        moments = [since, *(index for index in later if index > since)]
        must(
            any(self.model.range_at(prefix, index) == rows for index in moments),
            rules.READ_LATEST,
        )

    def on_stale_answer(self, node: Node, key: bytes, value: Any) -> None:
        self._progress(node)
        history = self.model.history.get(key, ())
        must(
            value is None or any([version.value, version.revision] == value for version in history),
            rules.STALE_WAS,
        )

    def on_list_answer(self, node: Node, change: Change, answered: MemberList) -> None:
        """An operator is told that a change is done: the list that says so is committed."""
        self._progress(node)
        newest = next(entry for entry in reversed(self.ledger) if entry.kind == Kind.MEMBERS)
        committed = [unpack_members(entry.data) for entry in self.ledger if entry.kind == Kind.MEMBERS]
        must(answered in committed, rules.LIST_TOLD)
        must((change.member in answered.members) == (change.op == "add"), rules.TOLD_IS_DONE)
        if answered == unpack_members(newest.data):
            must(answered == node.running.local.log.members_at(len(self.ledger)), rules.LIST_RULES)
