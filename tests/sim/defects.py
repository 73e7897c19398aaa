"""Seeded defects: one rule of PROTOCOL.md left out each, to see that the simulator would notice.

Each patches the shipped code from outside, and only while its context is open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

from food.core import members, quorum, replica
from food.core.agreement import Agreement
from food.core.following import Following
from food.core.leading import Leading, Read
from food.core.local import Local, Recovered
from food.core.members import Change
from food.core.message import Entry, Epoch, Kind, Member, MemberList, Message, Position
from food.core.promotion import Promotion
from food.core.ready import Ready
from food.core.replica import Replica, StoreUnusable
from food.core.snapshot import Piece
from food.core.state import Result, Session, State, decode
from food.core.state import _row_hash as row_hash
from food.driver import Shell

from . import node as sim_node

Defect = Callable[[], Any]
DEFECTS: dict[str, Defect] = {}


def defect(target: Any, name: str) -> Callable[[Callable[..., Any]], Defect]:
    """Registers a replacement for `target.name`; it is handed the original first."""

    def register(replacement: Callable[..., Any]) -> Defect:
        original = getattr(target, name)

        @contextmanager
        def applied() -> Iterator[None]:
            def changed(*args: Any, **kwargs: Any) -> Any:
                return replacement(original, *args, **kwargs)

            with patch.object(target, name, changed):
                yield

        DEFECTS[replacement.__name__] = applied
        return applied

    return register


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


@defect(Replica, "_introduced")
def unlisted_store_votes_at_once(original: Any, self: Replica, sender: Member) -> bool:
    return not self.local.listed or bool(original(self, sender))


# --- Promotion ---


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


@defect(Leading, "propose")
def served_before_the_barrier(original: Any, self: Leading, whose: object, command: bytes) -> None:
    self.pending[self._append(Kind.COMMAND, command)] = whose


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


# --- Member list ---


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
                    self.state.hash ^= row_hash(args[0], row)
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
