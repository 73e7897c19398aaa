"""Seeded defects: one rule of PROTOCOL.md left out each, to see that the simulator would notice.

Each patches the shipped code from outside, and only while its context is open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from food.core import members, quorum, replica
from food.core.agreement import Agreement
from food.core.entries import Log, pack_members
from food.core.following import Following
from food.core.leading import Leading, Read
from food.core.local import Local, Recovered
from food.core.members import Change
from food.core.message import (
    START,
    Ack,
    Answer,
    Chunk,
    Entry,
    Epoch,
    Fetch,
    FetchChunk,
    Heartbeat,
    Kind,
    Member,
    MemberList,
    Message,
    Position,
    Range,
    Sealed,
)
from food.core.peers import SCORE_IN_SYNC
from food.core.promotion import Promotion
from food.core.ready import Ready, Save
from food.core.replica import Replica, StoreUnusable
from food.core.snapshot import Piece
from food.core.state import Result, Row, Session, State, decode
from food.driver import Shell

from . import node as sim_node
from .disk import Disk

Defect = Callable[[], Any]
DEFECTS: dict[str, Defect] = {}


def replaced(target: Any, name: str, replacement: Callable[..., Any]) -> Any:
    """A context in which `replacement` stands for `target.name`; it is handed the original first."""
    original = getattr(target, name)
    function = original.fget if isinstance(original, property) else original

    def changed(*args: Any, **kwargs: Any) -> Any:
        return replacement(function, *args, **kwargs)

    return patch.object(target, name, property(changed) if isinstance(original, property) else changed)


def defect(target: Any, name: str) -> Callable[[Callable[..., Any]], Defect]:
    """Registers a replacement for `target.name`."""

    def register(replacement: Callable[..., Any]) -> Defect:
        def applied() -> Any:
            return replaced(target, name, replacement)

        DEFECTS[replacement.__name__] = applied
        return applied

    return register


def defect_of_several(build: Callable[[], Sequence[Any]]) -> Defect:
    """Registers one that takes several replacements: of rules that two places keep, both must go."""

    @contextmanager
    def applied() -> Iterator[None]:
        with ExitStack() as stack:
            for context in build():
                stack.enter_context(context)
            yield

    DEFECTS[build.__name__] = applied
    return applied


# --- Epochs and seals ---


@defect(quorum, "majority")
def half_is_enough_for_even_lists(original: Any, stores: Collection[str]) -> int:
    return (len(stores) + 1) // 2


@defect(Replica, "_on_seal")
def same_number_promised_twice(original: Any, self: Replica, sender: Member, epoch: Epoch) -> None:
    promise = self.local.promise
    if epoch.number == promise.number and epoch > promise:
        self.local.promise = Epoch(promise.number - 1, "")
    original(self, sender, epoch)


@defect(Local, "promise_epoch")
def promise_not_saved(original: Any, self: Local, epoch: Epoch) -> None:
    original(self, epoch)
    self._save.promise = None


@defect(Replica, "__init__")
def restart_keeps_leading(original: Any, self: Replica, own: Local, isolation_ms: int, now_ms: int) -> None:
    original(self, own, isolation_ms, now_ms)
    if own.promise.candidate == own.store and own.log.members:
        self.leading = Leading(own, own.promise, None, now_ms)


@defect(Replica, "_on_seal")
def seal_answered_without_stepping_down(original: Any, self: Replica, sender: Member, epoch: Epoch) -> None:
    kept = self.leading
    self.leading = None
    original(self, sender, epoch)
    self.leading = kept


@defect(Replica, "step")
def rolled_back_store_votes(original: Any, self: Replica, sender: Member, message: Message, now_ms: int) -> None:
    with suppress(StoreUnusable):
        original(self, sender, message, now_ms)


@defect(Replica, "_answer")
def life_told_before_it_was_checked(original: Any, self: Replica, sender: Member, ask: Any, now_ms: int) -> None:
    """A copy then erases what the others remember of the store, and is not known for one."""
    heard = self.peers.heard
    nothing: Any = None
    self.peers.heard = {sender.store: nothing, **heard}
    original(self, sender, ask, now_ms)
    self.peers.heard = heard


@defect(Replica, "_introduced")
def unlisted_store_votes_at_once(original: Any, self: Replica, sender: Member) -> bool:
    return not self.local.listed or bool(original(self, sender))


@defect(quorum, "holds")
def pairs_that_merely_add_up(original: Any, stores: Collection[str], present: Collection[str]) -> bool:
    """Seals of two in four, since three hold what is committed."""
    return sum(store in present for store in stores) >= len(stores) - quorum.majority(stores) + 1


@defect(Replica, "_follow")
def older_epochs_followed(original: Any, self: Replica, sender: Member, epoch: Epoch, now_ms: int) -> Any:
    if epoch.number >= self.local.promise.number or self.leading or self.promotion:
        return original(self, sender, epoch, now_ms)
    self.following = self.following or Following(self.local, sender, epoch, now_ms)
    return self.following


@defect(Replica, "step")
def acks_of_other_epochs_counted(original: Any, self: Replica, sender: Member, message: Message, now_ms: int) -> None:
    if isinstance(message, Ack) and self.leading:
        message = message._replace(epoch=self.leading.epoch)
    original(self, sender, message, now_ms)


@defect(Replica, "_on_fetched")
def answers_of_other_epochs_taken(
    original: Any, self: Replica, sender: Member, message: Range | Chunk, now_ms: int
) -> None:
    original(self, sender, message._replace(epoch=self.local.promise), now_ms)


@defect(Promotion, "_seal_if_answered")
def own_seal_counted_before_its_save(original: Any, self: Promotion, now_ms: int) -> None:
    before = self.epoch
    original(self, now_ms)
    if self.epoch != before:
        self.on_saved(now_ms)


@defect(Promotion, "_enough")
def sealed_without_asking(original: Any, self: Promotion, stores: set[str]) -> bool:
    return True


@defect(Replica, "_refuse")
def refused_in_silence(original: Any, self: Replica, sender: Member) -> None:
    return None


@defect(Replica, "deposed")
def deposed_and_silent_about_it(original: Any, self: Replica) -> bool:
    return False


@defect(Local, "remember")
def starts_of_others_forgotten(original: Any, self: Local, *args: Any) -> None:
    return None


@defect(Local, "lived")
def lives_not_told_apart(original: Any, self: Local, starts: int, life: str) -> bool:
    """Of a store's starts only the number counts: an older copy that is restarted often enough outruns it."""
    return starts <= self.starts


# --- Promotion ---


@defect(Promotion, "tick")
def promotion_without_an_end(original: Any, self: Promotion, now_ms: int) -> None:
    self.deadline_ms, self._alone_ms = now_ms + 1, now_ms
    original(self, now_ms)


@defect(replica, "backup_wish")
def learner_shows_a_score(original: Any, *args: Any) -> Any:
    wish = original(*args)
    return wish._replace(score=SCORE_IN_SYNC) if wish.why.startswith("learner") else wish


class ByLength(Position):
    """Compares by index first, as no log may."""

    def __le__(self, other: Any) -> bool:
        return (self.index, self.epoch) <= (other.index, other.epoch)

    def __lt__(self, other: Any) -> bool:
        return (self.index, self.epoch) < (other.index, other.epoch)

    def __gt__(self, other: Any) -> bool:
        return (self.index, self.epoch) > (other.index, other.epoch)


@defect(Promotion, "on_sealed")
def longest_log_adopted(original: Any, self: Promotion, sender: Member, sealed: Sealed, now_ms: int) -> None:
    original(self, sender, sealed._replace(last=ByLength(*sealed.last)), now_ms)


@defect(Promotion, "_advance")
def unlisted_candidate_leads(original: Any, self: Promotion, now_ms: int) -> None:
    own, members = self._local, self._local.log.members
    if members and own.store not in members.stores and own.store in self._sealed:
        counted = {s for s, sealed in self._sealed.items() if s == own.store or sealed.last <= own.log.last}
        self.won = quorum.holds(members.stores, counted)
    if not self.won:
        original(self, now_ms)


@defect_of_several
def founded_with_a_node_missing() -> list[Any]:
    """A majority of the nodes is enough at the first start, too."""

    def enough(original: Any, self: Promotion, stores: set[str]) -> bool:
        here = {self._members[store].node for store in stores}
        if self._local.log.members is None and quorum.holds(self._local.nodes, here):
            self._local.founders = tuple(sorted(here))
        return bool(original(self, stores))

    def found(original: Any, self: Promotion, *args: Any) -> None:
        here = {self._members[store].node for store in self._sealed}
        if quorum.holds(self._local.nodes, here):
            nodes = self._local.founders = tuple(sorted(here))
            self._sealed = {store: sealed._replace(nodes=nodes) for store, sealed in self._sealed.items()}
        original(self, *args)

    return [replaced(Promotion, "_enough", enough), replaced(Promotion, "_found", found)]


@defect_of_several
def founded_although_a_log_is_there() -> list[Any]:
    def blank(original: Any, self: Promotion, sender: Member, message: Any, now_ms: int) -> None:
        if self._local.log.members is None:
            message = message._replace(last=START)
        original(self, sender, message, now_ms)

    return [replaced(Promotion, "on_answer", blank), replaced(Promotion, "on_sealed", blank)]


@defect(Promotion, "_found")
def a_promise_ends_blankness(original: Any, self: Promotion, *args: Any) -> None:
    if self._local.promise.number == 1:
        original(self, *args)


@defect(Promotion, "_advance")
def donor_not_awaited(original: Any, self: Promotion, now_ms: int) -> None:
    for store, sealed in self._sealed.items():
        self._sealed[store] = sealed._replace(last=min(sealed.last, self._local.log.last))
    original(self, now_ms)


@defect(Leading, "_count")
def old_epochs_entries_counted(original: Any, self: Leading) -> None:
    own = self._local
    agreed = quorum.reached(own.voters, {**self._matched, own.store: self._saved})
    if agreed > own.commit:
        for index, result in own.advance(agreed):
            if (whose := self.pending.pop(index, None)) is not None:
                own.ready.answers.append((whose, result))


@defect(Promotion, "_advance")
def adopted_list_not_counted(original: Any, self: Promotion, now_ms: int) -> None:
    """Counts in the list that ruled when the promotion began."""
    if not hasattr(self, "first_list"):
        self.first_list = self._local.log.members  # type: ignore[attr-defined]
    members = self._local.log.members
    first: MemberList | None = self.first_list  # type: ignore[attr-defined]
    if members and first and self._local.store in self._sealed and self._local.store in members.stores:
        counted = {s for s, sealed in self._sealed.items() if sealed.last <= self._local.log.last}
        if quorum.holds(first.stores, counted):
            self.won = True
            return
    original(self, now_ms)


@defect(Leading, "serving")
def served_before_the_barrier(original: Any, self: Leading) -> bool:
    return True


@defect(Leading, "read")
def read_before_the_barrier(original: Any, self: Leading, *args: Any) -> None:
    with patch.object(Leading, "serving", True):
        original(self, *args)


# --- Log ---


@defect(Following, "__init__")
def matched_not_reset(original: Any, self: Following, own: Local, *args: Any) -> None:
    original(self, own, *args)
    self.matched = own.log.last.index


@defect(Following, "_match")
def commit_up_to_what_is_held(original: Any, self: Following, index: int, commit: int) -> None:
    self.matched = max(self.matched, index)
    self._ack_due = True
    if (commit := min(commit, self._local.log.last.index)) > self._local.commit:
        self._local.advance(commit)


@defect(Local, "merge")
def every_append_cuts_the_tail(
    original: Any, self: Local, prev: Position, entries: Sequence[Entry], matched: int
) -> int | None:
    reached: int | None = original(self, prev, entries, matched)
    if reached is not None and self.log.last.index > reached >= self.commit:
        self.log.truncate(reached + 1)
        self._save.truncate(reached + 1)
    return reached


@defect(Local, "merge")
def what_stands_before_is_not_compared(original: Any, self: Local, prev: Position, *args: Any) -> Any:
    if self.log.base.index <= prev.index <= self.log.last.index:
        prev = self.log.position(prev.index)
    return original(self, prev, *args)


@defect(Following, "finish_turn")
def what_is_held_is_acknowledged(original: Any, self: Following) -> None:
    if self._ack_due:
        self._ack_due = False
        self._local.send(self.primary.node, Ack(self.epoch, self._local.log.last.index, self._round))


@defect(Save, "truncate")
def cut_in_memory_only(original: Any, self: Save, index: int) -> None:
    self.entries = [entry for entry in self.entries if entry.index < index]


@defect_of_several
def late_answer_cuts_what_is_matched() -> list[Any]:
    """Two guards keep it: a primary that restarted gives nothing, and what is matched is not cut."""

    def serve(original: Any, self: Replica, sender: Member, message: Fetch | FetchChunk, now_ms: int) -> None:
        if isinstance(message, Fetch) and message.epoch == self.local.promise:
            self.donor.on_fetch(sender, message, now_ms)
        else:
            original(self, sender, message, now_ms)

    def merge(original: Any, self: Local, prev: Position, entries: Sequence[Entry], matched: int) -> Any:
        return original(self, prev, entries, 0)

    return [replaced(Replica, "_serve_fetch", serve), replaced(Local, "merge", merge)]


@defect(Following, "on_heartbeat")
def gap_at_the_tail_not_noticed(original: Any, self: Following, message: Heartbeat, now_ms: int) -> None:
    if self._local.log.has(message.last):
        original(self, message, now_ms)
    else:
        self.heard_ms, self._round, self._ack_due = now_ms, max(self._round, message.round), True


@defect(Leading, "_append")
def counted_before_its_own_save(original: Any, self: Leading, kind: Any, data: bytes) -> int:
    index: int = original(self, kind, data)
    self._saved = index
    self._count()
    return index


@defect(sim_node, "finish_turn")
def acknowledged_before_the_save(original: Any, own: Replica, shell: Shell, now_ms: int) -> None:
    ready: Ready = own.ready(now_ms)
    for message in ready.publish:
        shell.publish(message)
    for node, sent in ready.send:
        shell.send(node, sent)
    if ready.save:
        shell.save(ready.save)
        own.saved(now_ms)
    for message in ready.publish_saved:
        shell.publish(message)
    for whose, result in ready.answers:
        shell.answer(whose, result)
    original(own, shell, now_ms)


@defect(Local, "__init__")
def replayed_past_the_commit(original: Any, self: Local, recovered: Recovered, life: str, nodes: Sequence[str]) -> None:
    original(self, recovered._replace(commit=recovered.log.last.index), life, nodes)


@defect(Local, "stage")
def sessions_outside_the_snapshot(original: Any, self: Local, piece: Piece) -> None:
    original(self, piece._replace(sessions=[]))


@defect(Local, "stage")
def pieces_of_snapshots_mixed(original: Any, self: Local, piece: Piece) -> None:
    if piece.number == 0 and self._staged:
        self._staged = (piece.at, 0)  # what was put aside of another snapshot stays
    else:
        original(self, piece)


@defect(State, "restore")
def results_outside_the_snapshot(original: Any, self: State, *args: Any) -> None:
    original(self, *args)
    self.sessions = {number: Session(s.seq, s.used) for number, s in self.sessions.items()}


@defect(Local, "install")
def revision_outside_the_snapshot(original: Any, self: Local, snapshot: Any, state: State) -> None:
    state.revision = self.state.revision
    original(self, snapshot, state)


@defect(Local, "install")
def list_outside_the_snapshot(original: Any, self: Local, snapshot: Any, state: State) -> None:
    original(self, snapshot._replace(members=self.log.members or snapshot.members), state)


@defect(Log, "reset")
def suffix_lost_with_the_snapshot(original: Any, self: Log, base: Position, *args: Any) -> Any:
    self.truncate(min(base.index, self.last.index) + 1)
    return original(self, base, *args)


@defect(Log, "has")
def suffix_of_another_epoch_kept(original: Any, self: Log, position: Position) -> bool:
    """Also wherever else the log asks if a position is its own: whoever holds that index holds the same."""
    return self.base.index <= position.index <= self.last.index


@defect(Disk, "save")
def half_installed_snapshot(original: Any, self: Disk, save: Save) -> None:
    """Rows of a snapshot go into the tables as they come, not in one transaction at the end."""
    original(self, save)
    for piece in self.staged:
        self.rows.update({key: Row.of(key, value, revision) for key, value, revision in piece.rows})


@defect(sim_node, "finish_turn")
def went_on_after_a_failed_save(original: Any, own: Replica, shell: Any, now_ms: int) -> None:
    """A process that survives a save that failed publishes and acknowledges what no disk holds."""

    def save(original: Any, self: Any, save: Save) -> None:
        with suppress(sim_node.Crash):
            original(self, save)

    with replaced(type(shell), "save", save):
        original(own, shell, now_ms)


# --- Member list ---


@defect_of_several
def corosync_says_who_votes() -> list[Any]:
    """Whoever left Corosync's node list does not count."""

    def voters(original: Any, self: Local) -> tuple[str, ...]:
        members = self.log.members
        return tuple(m.store for m in members.members if m.node in self.nodes) if members else ()

    def advance(original: Any, self: Promotion, now_ms: int) -> None:
        def holds(original: Any, stores: Collection[str], present: Collection[str]) -> bool:
            return bool(original(self._local.voters, present))

        with replaced(quorum, "holds", holds):
            original(self, now_ms)

    return [replaced(Local, "voters", voters), replaced(Promotion, "_advance", advance)]


@defect(Log, "truncate")
def list_outlives_its_truncation(original: Any, self: Log, index: int) -> None:
    lists = list(self._lists)
    original(self, index)
    self._lists = lists


@defect_of_several
def list_published_before_its_save() -> list[Any]:
    def publish(original: Any, self: Leading) -> None:
        ready = self._local.ready
        original(self)
        ready.publish += ready.publish_saved
        ready.publish_saved = []

    return [replaced(Leading, "_publish_entries", publish)]


@defect_of_several
def two_stores_changed_at_once() -> list[Any]:
    """A new disk takes its predecessor's place in one list."""

    def added(original: Any, change: Change, current: MemberList, *args: Any) -> Any:
        kept = tuple(member for member in current.members if member.node != change.member.node)
        return tuple(sorted((*kept, change.member)))

    def change(original: Any, self: Leading, members: MemberList, whose: object = None) -> str | None:
        if not self.serving or self._local.log.members_index > self._local.commit:
            return "not yet"
        self.pending[self._append(Kind.MEMBERS, pack_members(members))] = whose
        return None

    return [replaced(members, "_added", added), replaced(Leading, "change_members", change)]


@defect(Replica, "step")
def a_node_votes_whatever_its_disk(original: Any, self: Replica, sender: Member, message: Any, now_ms: int) -> None:
    """Members are known by their nodes: a new disk counts as the lost one."""
    members = self.local.log.members
    if members and isinstance(message, Sealed | Ack | Answer):
        sender = next((member for member in members.members if member.node == sender.node), sender)
    original(self, sender, message, now_ms)


@defect(Leading, "change_members")
def two_lists_at_once(original: Any, self: Leading, *args: Any) -> str | None:
    with patch.object(type(self._local.log), "members_index", 0):
        refused: str | None = original(self, *args)
    return refused


@defect(Leading, "change_members")
def list_before_the_barrier(original: Any, self: Leading, *args: Any) -> str | None:
    with patch.object(Leading, "serving", True):
        refused: str | None = original(self, *args)
    return refused


@defect(members, "_committable")
def list_that_cannot_commit(original: Any, *args: Any) -> None:
    return None


@defect(replica, "next_list")
def old_look_at_the_list(original: Any, change: Change, own: Local, *args: Any) -> Any:
    assert own.log.members
    return original(change._replace(number=own.log.members.number), own, *args)


@defect(Leading, "change_members")
def list_answered_at_its_append(original: Any, self: Leading, members: MemberList, whose: object = None) -> str | None:
    refused: str | None = original(self, members, whose)
    if whose is not None and refused is None:
        self._local.ready.answers.append((self.pending.pop(self._local.log.last.index), Result(0, members)))
    return refused


@defect(Promotion, "_found")
def founders_not_compared(original: Any, self: Promotion) -> None:
    nodes = self._local.founding_nodes
    self._sealed = {store: sealed._replace(nodes=nodes) for store, sealed in self._sealed.items()}
    original(self)


# --- Clients ---


@defect(Leading, "read")
def read_joins_a_round_in_flight(original: Any, self: Leading, whose: object, op: Any, args: Any, now_ms: int) -> None:
    if self._reads_sent:
        self._reads_sent[-1][1].append(Read(whose, op, args, now_ms))
    else:
        original(self, whose, op, args, now_ms)


@defect(Leading, "read")
def read_without_a_round(original: Any, self: Leading, whose: object, op: Any, args: Any, now_ms: int) -> None:
    if self.serving:
        self._local.ready.answers.append((whose, self._local.state.query(op, args)))


@defect(Leading, "propose")
def demoted_and_still_writing(original: Any, self: Leading, *args: Any) -> None:
    with patch.object(self, "draining", False):
        original(self, *args)


@defect(Leading, "end")
def reads_answered_at_the_end(original: Any, self: Leading) -> None:
    for reads in [reads for _, reads in self._reads_sent] + [self._reads_next]:
        for read in reads:
            self._local.ready.answers.append((read.whose, self._local.state.query(read.op, read.args)))
    self._reads_sent.clear()
    self._reads_next = []
    original(self)


@defect(State, "apply")
def unknown_session_executed(original: Any, self: State, index: int, command: bytes) -> Any:
    number, seq, _, _, _ = decode(command)
    if number:
        self.sessions.setdefault(number, Session(seq - 1, index))
    return original(self, index, command)


@defect(State, "apply")
def later_sequences_do_not_wait(original: Any, self: State, index: int, command: bytes) -> Any:
    number, seq, _, _, _ = decode(command)
    if (session := self.sessions.get(number)) and seq > session.seq:
        session.seq = seq - 1
    return original(self, index, command)


@defect(State, "apply")
def duplicates_get_a_new_result(original: Any, self: State, index: int, command: bytes) -> Any:
    number, seq, _, _, _ = decode(command)
    session = self.sessions.get(number)
    duplicate = session is not None and seq in session.results
    result = original(self, index, command)
    return Result(0, self.revision) if duplicate and result.status == 0 else result


@defect(State, "skip")
def revision_rises_with_every_entry(original: Any, self: State, index: int) -> None:
    original(self, index)
    self.revision += 1


@defect(Leading, "end")
def certainly_not_done_says_who_cannot_know(original: Any, self: Leading) -> None:
    """Writes in flight when a leadership ends are answered as if they had been refused."""
    for whose in self.pending.values():
        self._answer(whose, "not_primary", "the primary changed")
    self.pending = {}
    original(self)


@defect(State, "apply")
def duplicates_applied_again(original: Any, self: State, index: int, command: bytes) -> Any:
    number, seq, _, _, _ = decode(command)
    if (session := self.sessions.get(number)) and seq <= session.seq:
        session.seq = seq - 1
    return original(self, index, command)


# --- States compared ---


@defect(Local, "advance")
def a_key_forgotten_on_one_node(original: Any, self: Local, commit: int) -> Any:
    """Now and then n1 applies a put and does not have the key; its hash is that of what it has."""
    before = self.commit
    results = original(self, commit)
    if self.member.node == "n1":
        for index in range(before + 1, commit + 1):
            entry = self.log.entry(index)
            if entry.kind == Kind.COMMAND and index % 20 == 0:
                _, _, _, op, args = decode(entry.data)
                if op == "put" and (row := self.state.rows.pop(args[0], None)):
                    self.state.keys.remove(args[0])
                    self.state.hash ^= row.hash
    return results


@defect(Agreement, "on_digest")
def states_not_compared(original: Any, self: Agreement, *args: Any) -> None:
    return None


@defect(Agreement, "_majority")
def two_outvote_anybody(original: Any, self: Agreement, said: dict[Member, int], value: int) -> bool:
    return sum(found == value for found in said.values()) >= 2


@defect(Agreement, "_differs")
def odd_one_goes_on_voting(original: Any, self: Agreement, *args: Any) -> None:
    return None


@defect(Replica, "ready")
def odd_one_goes_on_acknowledging(original: Any, self: Replica, now_ms: int) -> Any:
    if self.following:
        self.following.finish_turn()
    return original(self, now_ms)


@defect(Replica, "_on_seal")
def odd_one_goes_on_sealing(original: Any, self: Replica, *args: Any) -> None:
    with patch.object(self.agreement, "odd", ""):
        original(self, *args)
