"""A primary's side of an epoch: append, publish, count, answer.

Exists from the barrier's append to the end of the leadership; a Leading is never revived. Invariants: the commit
index advances only by counting entries of the own epoch (Raft figure 8), and this node counts itself only after
its save; nothing is served before the barrier commits.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from . import quorum
from .entries import pack_members
from .local import Local
from .members import LEVEL_ENTRIES
from .message import Ack, Append, Entry, Epoch, Heartbeat, Kind, MemberList, Position
from .state import BadCommand, Result, needs_room

HEARTBEAT_MS = 100
APPEND_MOST_BYTES = 512 * 1024
PENDING_MOST = 20_000
READ_MOST_MS = 2_000


class Read(NamedTuple):
    whose: object
    op: object
    args: list[Any]
    since_ms: int


class Leading:
    """One epoch led by this process, sealed by a majority in this process's life."""

    def __init__(self, local: Local, epoch: Epoch, founding: MemberList | None, now_ms: int):
        assert local.promise == epoch and epoch.candidate == local.store
        self._local = local
        self.epoch = epoch
        self._published = local.log.last
        self._saved = 0  # up to where the own disk holds the log: 0 until a save of this epoch
        self._matched: dict[str, int] = {}
        self._heard_ms: dict[str, int] = {}
        self._began_ms = now_ms
        self._echoed: dict[str, int] = {}
        self._round = 0
        self._reads_next: list[Read] = []  # joined to the next round only, never to one in flight
        self._reads_sent: deque[tuple[int, list[Read]]] = deque()
        self._reads_waiting = 0  # in all of them
        self._beat_ms = now_ms - HEARTBEAT_MS
        self.pending: dict[int, object] = {}  # index: whose write
        self.draining = False
        self.barrier = local.log.last.index + 1
        if founding:
            self._append(Kind.MEMBERS, pack_members(founding))
        else:
            self._append(Kind.BARRIER, b"")

    @property
    def serving(self) -> bool:
        """Whether the barrier is committed: only then is the log known to hold every acknowledged write."""
        return self._local.commit >= self.barrier

    # --- Clients ---

    def propose(self, whose: object, command: bytes) -> None:
        """Appends a client's command; the answer follows once it is committed and applied."""
        if not self.serving or self.draining:
            return self._answer(whose, "not_primary", "the primary is changing: ask again")
        if len(self.pending) >= PENDING_MOST:
            return self._answer(whose, "busy", f"{PENDING_MOST} writes wait already: try again")
        try:
            self._local.state.check(command)
        except BadCommand as error:
            return self._answer(whose, error.code, str(error))
        if self._local.no_space and needs_room(command):
            return self._answer(whose, "no_space", self._local.no_space)
        self.pending[self._append(Kind.COMMAND, command)] = whose
        return None

    def read(self, whose: object, op: object, args: list[Any], now_ms: int) -> None:
        """A linearizable read: answered after a round that begins after it came."""
        if not self.serving:
            return self._answer(whose, "not_primary", "the primary is changing: ask again")
        if self._reads_waiting >= PENDING_MOST:
            return self._answer(whose, "busy", f"{PENDING_MOST} reads wait already: try again")
        self._reads_waiting += 1
        self._reads_next.append(Read(whose, op, args, now_ms))
        return None

    def change_members(self, members: MemberList, whose: object = None) -> str | None:
        """Appends the next member list, or returns why not. It rules from here on; answered once it is committed."""
        current, local = self._local.log.members, self._local
        assert current is not None
        if not self.serving or local.log.members_index > local.commit:
            return "the former member list or this epoch's barrier is not committed yet: try again"
        changed = set(current.members) ^ set(members.members)
        twice = len(set(members.stores)) < len(members.stores)
        if len(changed) != 1 or twice or members.number != current.number + 1 or members.cluster != current.cluster:
            return "a member list differs from the former by one store, and its number is one more"
        if local.store not in members.stores:
            return "the primary cannot remove itself: move the role first"
        index = self._append(Kind.MEMBERS, pack_members(members))
        if whose is not None:
            self.pending[index] = whose
        return None

    def end(self) -> None:
        """Leadership is over for good: whatever was not answered may or may not happen."""
        for whose in self.pending.values():
            self._answer(whose, "unknown", "the primary changed before the write was committed: outcome unknown")
        reads = [read for _, reads in self._reads_sent for read in reads] + self._reads_next
        for read in reads:
            self._answer(read.whose, "not_primary", "the primary changed: ask the new one")
        self.pending, self._reads_next = {}, []
        self._reads_sent.clear()

    # --- Counting ---

    def on_ack(self, store: str, ack: Ack, now_ms: int) -> None:
        if ack.matched > self._local.log.last.index:
            return self._local.event(f"{store} acknowledges {ack.matched}, which was never appended: ignored")
        self._matched[store] = max(self._matched.get(store, 0), ack.matched)
        self._echoed[store] = max(self._echoed.get(store, 0), ack.round)
        self._heard_ms[store] = now_ms
        self._count()
        return self._serve_reads()

    def on_saved(self, now_ms: int) -> None:
        """Everything appended so far is on the own disk."""
        self._saved = self._local.log.last.index
        self._count()
        self._serve_reads()

    def contact_ms(self, now_ms: int) -> int:
        """When a majority was last heard, this node included."""
        heard = {store: self._heard_ms.get(store, self._began_ms) for store in self._local.voters}
        return quorum.reached(self._local.voters, {**heard, self._local.store: now_ms})

    def in_sync(self, since_ms: int) -> list[str]:
        """Voters that hold all but the newest entries and were heard after `since_ms`, this node included."""
        enough = self._local.log.last.index - LEVEL_ENTRIES
        own = self._local.store
        heard, matched = self._heard_ms, self._matched
        return [
            store
            for store in self._local.voters
            if store == own or (heard.get(store, since_ms) > since_ms and matched.get(store, -1) >= enough)
        ]

    def behind(self, store: str) -> int:
        """Entries that `store`, voter or learner, is not known to hold in this epoch."""
        last = self._local.log.last.index
        return last - self._matched.get(store, 0) if store != self._local.store else 0

    def _count(self) -> None:
        local = self._local
        agreed = quorum.reached(local.voters, {**self._matched, local.store: self._saved})
        if agreed <= local.commit or local.log.entry(agreed).epoch != self.epoch:
            return
        for index, result in local.advance(agreed):
            whose = self.pending.pop(index, None)
            if whose is not None:
                local.ready.answers.append((whose, result))

    def _serve_reads(self) -> None:
        """Reads of a round that a majority, still promised to this epoch, has echoed. What was committed when
        the round began is applied by now, since commit and apply are one step."""
        if not self._reads_sent:
            return
        local = self._local
        confirmed = quorum.reached(local.voters, {**self._echoed, local.store: self._round})
        while self._reads_sent and self._reads_sent[0][0] <= confirmed and local.promise == self.epoch:
            for read in self._pop_reads():
                local.ready.answers.append((read.whose, local.state.query(read.op, read.args)))

    def _pop_reads(self) -> list[Read]:
        reads = self._reads_sent.popleft()[1]
        self._reads_waiting -= len(reads)
        return reads

    # --- Publishing ---

    def finish_turn(self, now_ms: int) -> None:
        """Publishes what was appended in this turn, and a heartbeat when one is due or reads wait."""
        self._publish_entries()
        if self._reads_next:
            self._round += 1
            self._reads_sent.append((self._round, self._reads_next))
            self._reads_next, self._beat_ms = [], now_ms - HEARTBEAT_MS
        if now_ms - self._beat_ms >= HEARTBEAT_MS:
            self._beat_ms = now_ms
            beat = Heartbeat(self.epoch, self._published, self._local.commit, self._round)
            self._local.ready.publish.append(beat)
        while self._reads_sent and now_ms - self._reads_sent[0][1][0].since_ms > READ_MOST_MS:
            for read in self._pop_reads():
                self._answer(read.whose, "no_quorum", "no majority of the members answers: cannot say what is latest")
        self._serve_reads()  # alone, nobody's echo is awaited

    def _publish_entries(self) -> None:
        log, ready = self._local.log, self._local.ready
        while entries := log.after(self._published.index, APPEND_MOST_BYTES):
            append = Append(self.epoch, self._published, entries, self._local.commit)
            # A member list is saved before it is published: it rules here from its append on.
            late = ready.publish_saved or any(entry.kind == Kind.MEMBERS for entry in entries)
            (ready.publish_saved if late else ready.publish).append(append)
            self._published = Position(entries[-1].epoch, entries[-1].index)

    def _append(self, kind: Kind, data: bytes) -> int:
        index = self._local.log.last.index + 1
        self._local.append([Entry(index, self.epoch, kind, data)])
        return index

    def _answer(self, whose: object, code: str, text: str) -> None:
        self._local.ready.answers.append((whose, Result(code, {"text": text})))
