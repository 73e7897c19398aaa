"""One member of the cluster: the roles, and which message goes where.

The parent that branches; what a role does is in the file named after it (following, promotion, leading). Only the
cluster manager changes roles, through `promote` and `demote`; a backup never promotes itself.

    backup ──promote──> candidate (Promotion: asking, sealing) ──won──> leading ──barrier committed──> primary
       ^                    │ failed, outbid, demoted                        │ demoted, superseded, timed out
       └────────────────────┴────────────────────────────────────────────────┘
"""

from __future__ import annotations

from typing import Any

from . import quorum
from .agreement import Agreement
from .donor import Donor
from .following import Following
from .leading import Leading
from .local import Local
from .members import ANSWERING_MS, Change, next_list
from .message import (
    START,
    Ack,
    Answer,
    Append,
    Ask,
    Chunk,
    Digest,
    Epoch,
    Fetch,
    FetchChunk,
    Heartbeat,
    Member,
    Message,
    Range,
    Refused,
    Seal,
    Sealed,
)
from .peers import SCORE_PRIMARY, Peers, Scores, Wish, backup_wish
from .promotion import Promotion
from .ready import Ready
from .state import Result

ISOLATED = "isolated: no majority answers over food's links"
IN_SYNC_MS = 1_000  # a backup is in sync while it was level with the primary this recently
RENEW_MS = 2_000
# A healthy demoted node lowers its score only so much later: a score written between demote and promote makes
# Pacemaker plan the switchover anew, and then an old failure in the node's history restarts it in the middle [tried].
HAND_OVER_MS = 1_000


class StoreUnusable(Exception):
    """This store must not vote any more (a copy, rolled back, or unlike the others'); the text says why."""


class Replica:
    """`step`, `tick` and the orders take messages and time in; `ready` gives the effects out."""

    def __init__(self, local: Local, isolation_ms: int, now_ms: int):
        self.local = local
        self.isolation_ms = isolation_ms
        self.peers = Peers(local)
        self.agreement = Agreement(local, now_ms)
        self.donor = Donor(local)
        self.scores = Scores()
        self.following: Following | None = None
        self.promotion: Promotion | None = None
        self.leading: Leading | None = None
        self.failure: str | None = None  # why the last promote failed, or why the leadership was lost
        self.ordered = False  # the cluster manager promoted us and has not demoted us
        self.withheld = ""  # why the cluster manager must not promote this node, whatever its log holds
        self._judged_withheld = ""
        self._promote_deadline_ms = 0
        self._drain_until_ms: int | None = None
        self._handed_over_ms = now_ms - HAND_OVER_MS
        self._level_ms: int | None = None  # when we were last level with a primary
        self._refused: set[str] = set()  # one refusal a sender and turn
        self._role = "backup"
        self.since_ms = now_ms

    @property
    def role(self) -> str:
        if self.leading and self.leading.serving:
            return "primary"
        return "candidate" if self.leading or self.promotion else "backup"

    @property
    def deposed(self) -> bool:
        """The manager believes us promoted, and we are not."""
        return self.ordered and not self.leading and not self.promotion

    @property
    def wish(self) -> Wish:
        return self.scores.wish

    def _introduced(self, sender: Member) -> bool:
        """Whether a majority has told this process what it remembers of this store: only then may it vote.

        A store that was copied or rolled back has lost promises; the first answers expose it (food/core/peers.py).
        So may have one that does not find itself in the list that it holds: others may hold a later list. An empty
        one knows no list, but `sender`, who would count it, has asked it if it was ever there before.
        """
        local, heard = self.local, self.peers.heard
        if not local.log.members:
            return sender.store in heard
        if quorum.holds(local.voters, {local.store, *heard}):
            return True
        # The list may have moved on while this node was away, and those who were in it may be gone for good.
        nodes = {member.node for member, _, _ in heard.values()}
        return quorum.holds(local.nodes, {local.member.node, *nodes})

    # --- Orders of the cluster manager ---

    def promote(self, now_ms: int, deadline_ms: int) -> None:
        """Try to lead until `deadline_ms`; `role` or `failure` tells the outcome."""
        if self.leading and self.leading.draining:
            self._give_up(None)  # a demote ends the leadership for good: this is another epoch
        self.failure = None
        self.ordered = True
        self._promote_deadline_ms = deadline_ms
        if self.promotion:
            self.promotion.deadline_ms = deadline_ms
        elif not self.leading and (stranger := self.peers.outnumbered(now_ms, self.isolation_ms)):
            self.failure = stranger
        elif not self.leading and self.agreement.odd:
            self.failure = self.agreement.odd
        elif not self.leading:
            self.promotion = self._new_promotion(now_ms)
            self._after_promotion(now_ms)

    def demote(self, now_ms: int, drain_ms: int) -> None:
        """Stop leading; writes in flight get `drain_ms` to commit. Done once `role` is backup."""
        self.ordered = False
        self.failure = None
        if self.promotion:
            self._give_up(None)
        elif self.leading:
            self.leading.draining = True
            self._handed_over_ms = now_ms
            alone = now_ms - self.leading.contact_ms(now_ms) > self.isolation_ms
            self._drain_until_ms = now_ms if alone else now_ms + drain_ms

    # --- Clients ---

    def propose(self, whose: object, command: bytes) -> None:
        if self.leading:
            self.leading.propose(whose, command)
        else:
            self._not_primary(whose)

    def read(self, whose: object, op: object, args: list[Any], now_ms: int) -> None:
        if self.leading:
            self.leading.read(whose, op, args, now_ms)
        else:
            self._not_primary(whose)

    def read_stale(self, whose: object, op: object, args: list[Any]) -> None:
        odd = self.agreement.odd
        found = Result("no_quorum", {"text": odd}) if odd else self.local.state.query(op, args)
        self.local.ready.answers.append((whose, found))

    def change_members(self, whose: object, change: Change, now_ms: int) -> None:
        """An operator's command, at the primary: answered with the list once it is committed, or with why not."""
        leading = self.leading
        if not leading or not leading.serving or leading.draining:
            return self._not_primary(whose)
        answering = [heard.member for heard in self.peers.recent(now_ms, ANSWERING_MS).values()]
        verdict = next_list(change, self.local, answering, leading.behind)
        if isinstance(verdict, Result):
            return self.local.ready.answers.append((whose, verdict))
        refused = leading.change_members(verdict, whose)
        assert refused is None, refused
        verb = "added" if change.op == "add" else "removed"
        self.local.event(f"member list {verdict.number}: {change.member.node} {verb} by command")
        return None

    def found(self, whose: object, names: list[str]) -> None:
        """An operator names the nodes that found the cluster, to each of them; holds for this process's life only.

        Nothing becomes durable by it: the founding asks every named node whether it is empty and was told the same.
        """
        local, node = self.local, self.local.member.node
        named = tuple(sorted(set(names)))
        unknown = sorted(set(named) - set(local.nodes))
        if local.log.last != START or local.log.members:
            answer = Result("refused", {"text": f"{node} has a log: its cluster is founded already"})
        elif unknown:
            answer = Result("refused", {"text": f"Corosync's node list of {node} lacks {', '.join(unknown):.200}"})
        elif node not in named:
            answer = Result("refused", {"text": f"{node} is not among those that are to found the cluster"})
        else:
            local.founders = None if named == local.nodes else named
            local.event(f"first start: to be founded by {', '.join(named)}, by command")
            answer = Result(0, list(named))
        local.ready.answers.append((whose, answer))

    def _not_primary(self, whose: object) -> None:
        text = f"{self.local.member.node} is not the primary"
        self.local.ready.answers.append((whose, Result("not_primary", {"text": text})))

    # --- Messages ---

    def step(self, sender: Member, message: Message, now_ms: int) -> None:
        """Takes one message of another node."""
        if sender.store == self.local.store:
            return
        match message:
            case Ask():
                self._answer(sender, message, now_ms)
            case Answer():
                if unusable := self.peers.on_answer(sender, message):
                    raise StoreUnusable(unusable)
                if self.promotion and sender.store not in self.peers.voteless:
                    self.promotion.on_answer(sender, message, now_ms)
                    self._after_promotion(now_ms)
            case Digest():
                self._on_digest(sender, message, now_ms)
            case Seal():
                self._on_seal(sender, message.epoch)
            case Sealed():
                if self.promotion:
                    self.promotion.on_sealed(sender, message, now_ms)
                    self._after_promotion(now_ms)
            case Refused():
                self._on_refused(sender, message, now_ms)
            case Append() | Heartbeat():
                self._on_published(sender, message, now_ms)
            case Range() | Chunk():
                self._on_fetched(sender, message, now_ms)
            case Ack():
                if self.leading and message.epoch == self.leading.epoch:
                    self.leading.on_ack(sender.store, message, now_ms)
            case _:  # Fetch or FetchChunk
                self._serve_fetch(sender, message, now_ms)

    def _answer(self, sender: Member, ask: Ask, now_ms: int) -> None:
        local = self.local
        matched = self.leading is not None or (self.following is not None and not self.following.behind)
        # Who asks is told of this life only after it has told this process what it remembers: a copy would erase the
        # only trace of the store's true life before it had seen it.
        told = sender.store in self.peers.heard
        local.send(
            sender.node,
            Answer(
                life=ask.life,
                round=ask.round,
                promise=local.promise,
                last=local.log.last,
                commit=local.commit,
                list_number=local.log.members.number if local.log.members else 0,
                nodes=local.founding_nodes,
                role=self.role,
                score=self.wish.score,
                matched=matched,
                since_ms=now_ms - self.since_ms,
                starts=local.starts if told else 0,
                own_life=local.life if told else "",
                remembers=local.remembers.get(sender.store),
            ),
        )
        local.send(sender.node, self.agreement.digest())

    def _on_digest(self, sender: Member, digest: Digest, now_ms: int) -> None:
        self.peers.on_votes(sender.store, digest.votes)
        primary = self.following.primary if self.following else None
        if unusable := self.agreement.on_digest(sender, digest, primary, now_ms):
            raise StoreUnusable(unusable)
        if self.promotion and self.agreement.odd:
            self._give_up(self.agreement.odd)

    def _on_seal(self, sender: Member, epoch: Epoch) -> None:
        """Promise, durably, to refuse older epochs. Step down first; the answer leaves after the save."""
        local = self.local
        if epoch.candidate != sender.store or not self._introduced(sender) or self.agreement.odd:
            return None
        if epoch != local.promise:
            if epoch.number <= local.promise.number:
                return self._refuse(sender)
            self._give_up(f"superseded by {sender.node} in epoch {epoch.number}")
            self.following = None
            local.promise_epoch(epoch)
            local.event(f"epoch {epoch.number}: promised to {sender.node}")
        number = local.log.members.number if local.log.members else 0
        local.send(sender.node, Sealed(epoch, local.log.last, number, local.founding_nodes))
        return None

    def _refuse(self, sender: Member) -> None:
        if sender.store not in self._refused:
            self._refused.add(sender.store)
            led = self.following is not None or self.leading is not None
            self.local.send(sender.node, Refused(self.local.promise, led))

    def _on_refused(self, sender: Member, refused: Refused, now_ms: int) -> None:
        if self.promotion:
            self.promotion.on_refused(refused, now_ms)
        leading = self.leading
        if not leading or refused.promise.number < leading.epoch.number:
            return
        if refused.led:
            self._give_up(f"superseded: {sender.node} follows a primary of epoch {refused.promise.number}")
        elif leading.serving and not leading.draining and self._well_connected(now_ms):
            # A member that promised a failed candidate would stay out for good. A majority heard us just now, so
            # nobody else can have sealed a majority: outbid the dead promise with a new epoch of our own.
            self.local.event(f"epoch {leading.epoch.number}: renewing, {sender.node} promised a candidate that failed")
            leading.end()
            self.leading = None
            self._promote_deadline_ms = now_ms + RENEW_MS
            self.promotion = self._new_promotion(now_ms)

    def _new_promotion(self, now_ms: int) -> Promotion:
        return Promotion(self.local, self.peers.ask(now_ms), now_ms, self._promote_deadline_ms, self.isolation_ms)

    def _well_connected(self, now_ms: int) -> bool:
        return self.leading is not None and now_ms - self.leading.contact_ms(now_ms) < self.isolation_ms // 2

    def _on_published(self, sender: Member, message: Append | Heartbeat, now_ms: int) -> None:
        following = self._follow(sender, message.epoch, now_ms)
        if following is None:
            return
        if isinstance(message, Append):
            following.on_append(message, now_ms)
        else:
            following.on_heartbeat(message, now_ms)
        if not following.behind:
            self._level_ms = now_ms

    def _follow(self, sender: Member, epoch: Epoch, now_ms: int) -> Following | None:
        """The Following of this epoch, begun if it is new; None when the sender was refused or ignored."""
        local = self.local
        if epoch.candidate != sender.store or not self._introduced(sender):
            return None
        if epoch != local.promise:
            if epoch.number <= local.promise.number:
                self._refuse(sender)
                return None
            # Whoever publishes in an epoch has sealed it with a majority: promise it too.
            self._give_up(f"superseded by {sender.node} in epoch {epoch.number}")
            self.following = None
            local.promise_epoch(epoch)
        if self.following is None:
            self.following = Following(local, sender, epoch, now_ms)
            local.event(f"epoch {epoch.number}: following {sender.node} from {self.following.matched}")
        assert self.following.epoch == epoch
        return self.following

    def _on_fetched(self, sender: Member, message: Range | Chunk, now_ms: int) -> None:
        if message.epoch != self.local.promise:
            return  # late, of an older epoch
        if self.following and self.following.primary == sender:
            if isinstance(message, Range):
                self.following.on_append(message, now_ms)
            else:
                self.following.on_chunk(message, now_ms)
        elif self.promotion:
            if isinstance(message, Range):
                self.promotion.on_range(sender, message, now_ms)
            else:
                self.promotion.on_chunk(sender, message, now_ms)
            self._after_promotion(now_ms)

    def _serve_fetch(self, sender: Member, message: Fetch | FetchChunk, now_ms: int) -> None:
        """Gives a piece of the log, or of a snapshot where the log was compacted away."""
        if message.epoch != self.local.promise:
            return self._refuse(sender)
        # Only a candidate fetches from a donor; everybody else wants this epoch's primary. One that restarted has
        # not: what it published may never have reached its disk, and its old tail would cut the matched one.
        if sender.store != message.epoch.candidate and not (self.leading and self.leading.epoch == message.epoch):
            return None
        if isinstance(message, Fetch):
            return self.donor.on_fetch(sender, message, now_ms)
        return self.donor.on_fetch_chunk(sender, message, now_ms)

    # --- Promotion's outcome ---

    def _after_promotion(self, now_ms: int) -> None:
        promotion, local = self.promotion, self.local
        assert promotion is not None
        if promotion.epoch:
            self.following = None  # promised to ourselves: nobody else's appends count now
        if promotion.failed:
            self._give_up(promotion.failed)
        elif promotion.won:
            assert promotion.epoch is not None and promotion.epoch == local.promise
            self.promotion = None
            self.leading = Leading(local, promotion.epoch, promotion.founding, now_ms)
            local.event(f"epoch {promotion.epoch.number}: sealed, barrier at {self.leading.barrier}")

    def _give_up(self, why: str | None) -> None:
        """Ends promotion or leadership for good."""
        if self.leading:
            self.leading.end()
        if self.leading or self.promotion:
            self.failure = why
            if why:
                self.local.event(f"no longer {self.role}: {why}")
        self.leading, self.promotion, self._drain_until_ms = None, None, None

    # --- Time and effects ---

    def tick(self, now_ms: int) -> None:
        """Time passes. After a pause the waiting messages go first."""
        self.peers.tick(now_ms)
        self.donor.tick(now_ms)
        for sender, fetch in self.donor.due():
            self._serve_fetch(sender, fetch, now_ms)
        if self.promotion:
            self.promotion.tick(now_ms)
            self._after_promotion(now_ms)
        if self.leading:
            self._tick_leading(self.leading, now_ms)
        self._judge(now_ms)

    def _tick_leading(self, leading: Leading, now_ms: int) -> None:
        if not leading.serving and now_ms >= self._promote_deadline_ms:
            self._give_up("no majority confirmed the barrier in the time given")
        elif self._drain_until_ms is not None and (not leading.pending or now_ms >= self._drain_until_ms):
            self._give_up(None)

    def _judge(self, now_ms: int) -> None:
        """Which promotion score belongs to the situation."""
        role = self.role
        if role != self._role:
            self.local.event(f"role: {self._role} -> {role} in epoch {self.local.promise.number}")
        changed, self._role = role != self._role, role
        if changed:
            self.since_ms = now_ms
        if self.deposed:
            return self.scores.update(Wish(None, self.failure or "superseded"), now_ms, at_once=True)
        if self.leading and not self.leading.draining:
            if now_ms - self.leading.contact_ms(now_ms) > self.isolation_ms:
                # Of two, neither can lead without the other: there is nobody to give the role to. What the other one
                # shows may be all that is left of it, until Corosync has noticed. A list that is not committed may
                # rule here only: with the former one others may lead.
                local = self.local
                settled = local.log.members_index <= local.commit
                needed = settled and quorum.majority(local.voters) == len(local.voters)
                wish = Wish(SCORE_PRIMARY, ISOLATED) if needed else Wish(None, ISOLATED, unless_alone=True)
                return self.scores.update(wish, now_ms, at_once=False)
            return self.scores.update(Wish(SCORE_PRIMARY, "primary"), now_ms, at_once=changed)
        if role == "candidate":
            return None  # keep the score that made us a candidate
        wish = backup_wish(self.local, self.peers, self._in_sync(now_ms), now_ms, self.isolation_ms)
        if self.agreement.odd:
            wish = Wish(None, self.agreement.odd)
        if self.withheld:
            wish = Wish(None, f"{self.withheld}; {wish.why}")
        handing_over = self.wish.score == SCORE_PRIMARY and now_ms - self._handed_over_ms < HAND_OVER_MS
        if handing_over and wish.score is not None:
            return None  # the new primary's score comes first: a tie keeps the incumbent
        changed, self._judged_withheld = changed or self.withheld != self._judged_withheld, self.withheld
        return self.scores.update(wish, now_ms, at_once=changed)

    def _in_sync(self, now_ms: int) -> bool:
        """Level with the primary; without one, with the best log among those that answer.

        A primary that falls silent leaves everybody as level as they were: a score lowered then, and raised again
        during the failover, would make Pacemaker plan the failover anew.
        """
        if self.following and now_ms - self.following.heard_ms <= self.isolation_ms:
            level_ms = now_ms if not self.following.behind else self._level_ms
            return level_ms is not None and now_ms - level_ms <= IN_SYNC_MS
        recent = self.peers.recent(now_ms, self.isolation_ms)
        return all(heard.answer.last <= self.local.log.last for heard in recent.values())

    def ready(self, now_ms: int) -> Ready:
        """Ends the turn's steps; what is to be done now. Call `saved` once a Save is durable, then again."""
        if self.leading:
            self.leading.finish_turn(now_ms)
        if self.following and not self.agreement.odd:
            self.following.finish_turn()
        self._refused.clear()
        return self.local.take_ready(now_ms)

    def saved(self, now_ms: int) -> None:
        """The last Ready's Save is durable."""
        if self.promotion:
            self.promotion.on_saved(now_ms)
            self._after_promotion(now_ms)
        elif self.leading:
            self.leading.on_saved(now_ms)
