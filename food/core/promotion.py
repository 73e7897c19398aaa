"""A candidate's way to an epoch: ask, seal, adopt the best log.

Ends with `won` (a majority of the adopted log's list sealed this epoch, and no log among theirs is better than
ours) or with `failed`. It never writes an entry of its own: the barrier is food/core/leading.py's first act.
"""

from __future__ import annotations

from . import quorum
from .following import Fetcher
from .local import Local
from .message import START, Answer, Ask, Chunk, Epoch, Member, MemberList, Position, Range, Refused, Seal, Sealed

RESEND_MS = 100
DONOR_PATIENCE_MS = 700  # without progress: another donor may complete a majority without this one


class Promotion:
    """One promote order, until its deadline; may need several epochs when others outbid it."""

    def __init__(self, local: Local, round_: int, now_ms: int, deadline_ms: int, isolation_ms: int):
        self._local = local
        self._round = round_  # answers to this round and later ones count
        self.deadline_ms = deadline_ms
        self._isolation_ms = isolation_ms
        self._alone_ms = now_ms  # since when too few have answered, be it the question or the seals
        self._sent_ms = now_ms
        self._answers: dict[str, Answer] = {}
        self._sealed: dict[str, Sealed] = {}
        self._members: dict[str, Member] = {local.store: local.member}
        self._highest = local.promise.number
        self._fetcher: Fetcher | None = None
        self._silent: set[str] = set()  # donors that did not answer
        self._matched = 0  # up to where our log equals the donor's
        self.epoch: Epoch | None = None  # the epoch we ask seals for, once a majority answered
        self.won = False
        self.founding: MemberList | None = None
        self.failed: str | None = None
        if local.log.members and not local.listed:
            self.failed = self._unlisted(local.log.members)  # before it asks: its seals would only raise the epoch
            return
        self._ask_again(now_ms)
        self._seal_if_answered(now_ms)  # a cluster of one has nobody to wait for

    # --- Step 0: ask, promising nothing, so that an isolated candidate does not outbid a healthy primary ---

    def on_answer(self, sender: Member, answer: Answer, now_ms: int) -> None:
        if self.epoch is None and answer.life == self._local.life and answer.round >= self._round:
            self._members[sender.store] = sender
            self._answers[sender.store] = answer
            self._highest = max(self._highest, answer.promise.number, answer.last.epoch.number)
            if self._local.log.members is None and answer.last != START:
                self.failed = f"this store is empty, and {sender.node} has a log: it must catch up first"
            else:
                self._seal_if_answered(now_ms)

    def _seal_if_answered(self, now_ms: int) -> None:
        local = self._local
        if not self._enough({local.store, *self._answers}):
            return
        number = max(self._highest, local.promise.number, local.log.last.epoch.number) + 1
        self.epoch = Epoch(number, local.store)
        self._alone_ms = now_ms
        local.promise_epoch(self.epoch)  # durable before the Seals leave: they go out after the save
        self._sealed = {}
        self._send_seals(now_ms)

    def _enough(self, stores: set[str]) -> bool:
        """A majority of our list; before the founding every founding node."""
        if self._local.log.members is None:
            return {self._members[store].node for store in stores} >= set(self._local.founding_nodes)
        return quorum.holds(self._local.voters, stores)

    # --- Step 1: seal ---

    def on_sealed(self, sender: Member, sealed: Sealed, now_ms: int) -> None:
        if sealed.epoch == self.epoch:
            self._members[sender.store] = sender
            self._sealed[sender.store] = sealed
            self._advance(now_ms)

    def on_refused(self, refused: Refused, now_ms: int) -> None:
        """Somebody promised a newer epoch: retry higher, from the question on."""
        if self.epoch and refused.promise.number >= self.epoch.number:
            self._highest = max(self._highest, refused.promise.number)
            self.epoch = None
            self._answers, self._fetcher, self._alone_ms = {}, None, now_ms
            if refused.promise.candidate < self._local.store:
                self._ask_again(now_ms)
            else:
                self._sent_ms = now_ms  # two candidates in step would refuse each other for ever: one waits

    def on_saved(self, now_ms: int) -> None:
        """The own promise is durable: the own answer counts."""
        if self.epoch:
            self._sealed[self._local.store] = Sealed(self.epoch, self._local.log.last, 0, self._local.founding_nodes)
            self._advance(now_ms)

    # --- Steps 2 and 3: adopt the best log, and count again in its list ---

    def _advance(self, now_ms: int) -> None:
        local = self._local
        if local.store not in self._sealed:
            return  # our own promise is not durable yet: nothing counts towards it
        # An answer counts once our log is at least as good as the one behind it: so a donor counts only once its
        # log is here, and if it dies, a majority without it is needed. Never our own shorter log with its vote.
        counted = {
            store for store, sealed in self._sealed.items() if store == local.store or sealed.last <= local.log.last
        }
        members = local.log.members
        if members is None:
            self._found()
        elif local.store not in members.stores and quorum.holds(members.stores, counted):
            self.failed = self._unlisted(members)
        elif quorum.holds(members.stores, counted):
            self.won = True
        if not self.won and not self.failed:
            self._fetch_better(counted, now_ms)

    @staticmethod
    def _unlisted(members: MemberList) -> str:
        return f"this store is not in member list {members.number}: it cannot be primary"

    def _found(self) -> None:
        """Founds the cluster: every founding node, each blank, each with the same node list, answered this epoch.

        One disk's loss in between harms nothing: only the stores that answered are in the list.
        """
        local = self._local
        sealed = {self._members[store]: answer for store, answer in self._sealed.items()}
        if any(answer.last != START for answer in sealed.values()):
            return
        nodes = local.founding_nodes
        different = next((m.node for m, answer in sorted(sealed.items()) if answer.nodes != nodes), None)
        if different:
            self.failed = f"{different} has another node list than {', '.join(nodes)}: not founding"
            return
        if sorted(member.node for member in sealed) != list(nodes):
            return
        self.founding = MemberList(1, f"{local.store}-{local.life}", tuple(sorted(sealed)))
        self.won = True

    def _fetch_better(self, counted: set[str], now_ms: int) -> None:
        better = {store: sealed.last for store, sealed in self._sealed.items() if store not in counted}
        if not better:
            return
        fetcher = self._fetcher
        if fetcher and now_ms - fetcher.progress_ms >= DONOR_PATIENCE_MS:
            self._silent.add(fetcher.source.store)
            self._fetcher = None
        if not better.keys() - self._silent:
            self._silent.clear()
        if self._fetcher and self._fetcher.source.store in better:
            donor = self._fetcher.source
        else:
            donor = self._members[max(better.keys() - self._silent, key=lambda store: (better[store], store))]
        assert self.epoch is not None
        if self._fetcher is None or self._fetcher.source != donor:
            self._fetcher = Fetcher(self._local, self.epoch, donor, now_ms)
            self._matched = self._local.commit  # committed entries are in the best log: nothing else is known
            self._local.event(f"promotion: fetching the better log of {donor.node} behind {self._matched}")
        self._fetcher.want(self._matched, now_ms)

    def on_range(self, sender: Member, message: Range, now_ms: int) -> None:
        """A piece of the donor's log; saved as a matching append: a half-filled log is a valid shorter one."""
        if self._fetcher is None or self._fetcher.source != sender or message.prev.index != self._matched:
            return
        self._fetcher.got_range(now_ms)
        matched = self._local.merge(message.prev, message.entries, self._matched)
        if matched is not None:
            self._matched = max(self._matched, matched)
        self._advance(now_ms)

    def on_chunk(self, sender: Member, chunk: Chunk, now_ms: int) -> None:
        if self._fetcher and self._fetcher.source == sender:
            installed: Position | None = self._fetcher.got_chunk(chunk, now_ms)
            if installed:
                self._matched = installed.index
                self._advance(now_ms)

    # --- Time ---

    def tick(self, now_ms: int) -> None:
        if self.epoch and self._enough({*self._sealed}):
            self._alone_ms = now_ms
        if now_ms >= self.deadline_ms:
            self.failed = f"no promotion in the time given: {self.missing()}"
        elif now_ms - self._alone_ms >= self._isolation_ms:
            # What is missing may be what died, here or there: the cluster manager starts it again, but not before this
            # promote has ended.
            self.failed = f"isolated: {self._unanswered()}"
        elif now_ms - self._sent_ms >= RESEND_MS:
            if self.epoch is None:
                self._ask_again(now_ms)
            else:
                self._send_seals(now_ms)
                self._advance(now_ms)

    def missing(self) -> str:
        """What the promotion waited for: a log, or members by name."""
        if self._fetcher:
            return f"the log of {self._fetcher.source.node} is better and did not arrive"
        return self._unanswered()

    def _unanswered(self) -> str:
        local = self._local
        answered = {local.store, *(self._sealed if self.epoch else self._answers)}
        names = {self._members[store].node for store in answered if store in self._members}
        wanted = {m.node for m in local.log.members.members} if local.log.members else set(local.founding_nodes)
        silent = ", ".join(sorted(wanted - names))
        step = "sealing" if self.epoch else "asking"
        return f"no answer from {silent} ({step})" if silent else f"waiting for a majority ({step})"

    def _ask_again(self, now_ms: int) -> None:
        self._sent_ms = now_ms
        for node in self._local.peers():
            self._local.send(node, Ask(self._local.life, self._round))

    def _send_seals(self, now_ms: int) -> None:
        self._sent_ms = now_ms
        assert self.epoch is not None
        sealed_nodes = {self._members[store].node for store in self._sealed}
        for node in self._local.peers():
            if node not in sealed_nodes:
                self._local.send(node, Seal(self.epoch))
