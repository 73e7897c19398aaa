"""What this node knows of the others from asking them all the time, and what promotion score follows from it.

A score is a hint to the cluster manager: a wrong one costs availability, never an acknowledged write.
"""

from __future__ import annotations

from typing import NamedTuple

from . import quorum
from .local import Local
from .message import START, Answer, Ask, Member, MemberList

ASK_MS = 250
ASK_EAGER_MS = 50  # until a majority has answered this process: a start should not wait for the next question
ROUNDS_KEPT = 64
SETTLE_MS = 3_000  # whoever could be a candidate shows a score so long after its start or change of role

SCORE_PRIMARY = 1000  # larger than any difference among backups: the role does not wander
SCORE_IN_SYNC = 100
SCORE_ELIGIBLE = 10

HOLD_MS = 1_000  # a better score must be deserved for this long; doubles with every loss, so nothing flaps
HOLD_MOST_MS = 60_000


class Heard(NamedTuple):
    member: Member
    answer: Answer
    at_ms: int  # when the question was asked: the round trip is that recent


class Peers:
    def __init__(self, local: Local):
        self._local = local
        self.round = 0
        self._asked_ms: dict[int, int] = {}  # round: when
        self.heard: dict[str, Heard] = {}  # by store
        self.voteless: set[str] = set()  # stores that say that they do not vote
        self._strangers_ms: dict[str, int] = {}  # by node, when they were last heard

    def ask(self, now_ms: int) -> int:
        """Asks every other node; returns the round's number."""
        self.round += 1
        self._asked_ms[self.round] = now_ms
        self._asked_ms.pop(self.round - ROUNDS_KEPT, None)
        for node in self._local.peers():
            self._local.send(node, Ask(self._local.life, self.round))
        return self.round

    def tick(self, now_ms: int) -> None:
        every_ms = ASK_MS if self._answered else ASK_EAGER_MS
        if now_ms - self._asked_ms.get(self.round, now_ms - ASK_MS) >= every_ms:
            self.ask(now_ms)

    @property
    def _answered(self) -> bool:
        """Whether enough nodes have answered this process to vote, or to found."""
        if self._local.log.members is None:
            return len(self.heard) >= len(self._local.founding_nodes) - 1
        return quorum.holds(self._local.voters, {self._local.store, *self.heard})

    def on_answer(self, sender: Member, answer: Answer) -> str | None:
        """Returns a reason why this store must not be used any more, or None."""
        asked_ms = self._asked_ms.get(answer.round)
        if asked_ms is None or answer.life != self._local.life:
            return None
        self.heard[sender.store] = Heard(sender, answer, asked_ms)
        for store in [s for s, h in self.heard.items() if h.member.node == sender.node and s != sender.store]:
            del self.heard[store]  # a node has one store at a time
            self.voteless.discard(store)
        self._local.remember(sender.store, answer.starts, answer.own_life)
        if answer.remembers is None:
            return None
        starts, life = answer.remembers
        if not self._local.lived(starts, life):
            return (
                f"this store was rolled back or copied: {sender.node} saw a start {starts} that this disk "
                f"does not know; this process is start {self._local.starts}"
            )
        return None

    def on_votes(self, store: str, votes: bool) -> None:
        """What a store says of itself."""
        if votes:
            self.voteless.discard(store)
        elif store in self.heard:
            self.voteless.add(store)

    def on_stranger(self, node: str, now_ms: int) -> None:
        """A node of the cluster manager's list has the store of another cluster than ours."""
        if node in self._local.nodes:
            self._strangers_ms[node] = now_ms

    def outnumbered(self, now_ms: int, most_ms: int) -> str | None:
        """Why this store is taken for the one that is out of place: as many nodes hold one of another cluster as of
        this. A list of one needs nobody else, and would lead a cluster of its own among the others."""
        strangers = sorted(node for node, at_ms in self._strangers_ms.items() if now_ms - at_ms <= most_ms)
        own = {heard.member.node for heard in self.recent(now_ms, most_ms).values()} | {self._local.member.node}
        if not strangers or len(strangers) < len(own - {*strangers}):
            return None
        return f"this store is of another cluster than that of {', '.join(strangers)}"

    def recent(self, now_ms: int, most_ms: int) -> dict[str, Heard]:
        """Those whose round trip is at most `most_ms` old; who does not vote is as good as not there."""
        heard = self.heard.items()
        return {s: h for s, h in heard if now_ms - h.at_ms <= most_ms and s not in self.voteless}


class Wish(NamedTuple):
    """The promotion score this node should have, and why; None: it must not be promoted.

    `unless_alone`: give the score up only while another node shows one.
    """

    score: int | None
    why: str
    unless_alone: bool = False


def backup_wish(local: Local, peers: Peers, in_sync: bool, now_ms: int, isolation_ms: int) -> Wish:
    """Eligible = listed, newest list known, a majority answers round trips. Being in sync only adds points."""
    recent = peers.recent(now_ms, isolation_ms)
    if local.log.members is None:
        return _founding_wish(local, recent)
    members = local.log.members
    if not local.listed:
        command = admission(members, local.member.node)
        return Wish(None, f"learner: this store is not in member list {members.number}; {command}")
    newer = next((h for h in recent.values() if _rules(h.answer, members.number)), None)
    if newer:
        return Wish(None, f"catching up: {newer.member.node} knows a newer member list")
    if stranger := peers.outnumbered(now_ms, isolation_ms):
        return Wish(None, stranger)
    if not quorum.holds(members.stores, {local.store, *recent}):
        silent = [m.node for m in members.members if m.store not in recent and m.store != local.store]
        return Wish(None, f"isolated: no answer from {', '.join(silent)}")
    return Wish(SCORE_IN_SYNC, "in sync") if in_sync else Wish(SCORE_ELIGIBLE, "catching up")


def admission(members: MemberList, node: str) -> str:
    """What an operator types to make the store that `node` has now a member."""
    verb = "replace" if any(member.node == node for member in members.members) else "add"
    return f"foodctl member {verb} {node}"


def _rules(answer: Answer, number: int) -> bool:
    """Whether somebody with a list newer than `number` is, or is about to be, a candidate itself.

    A list that was never committed may be known only to those whom it leaves out: waiting for it would be for ever.
    """
    return answer.list_number > number and (answer.score is not None or answer.since_ms < SETTLE_MS)


def _founding_wish(local: Local, recent: dict[str, Heard]) -> Wish:
    """Before the founding: a candidate needs every node, empty and of one mind about who the nodes are.

    An empty node that was not named needs no catching up yet, and still prevents a founding with fewer: it has
    another list. All are here then, and can found together.
    """
    nodes = local.founding_nodes
    founded = next((h.member.node for h in recent.values() if h.answer.last != START), None)
    if founded:
        return Wish(None, f"empty: waiting for the log from {founded}")
    missing = sorted(set(nodes) - {local.member.node} - {h.member.node for h in recent.values()})
    if missing:
        text = f"once: awaiting {', '.join(missing)}"
        if nodes == local.nodes:
            return Wish(None, f"first start needs every node {text}; with fewer: foodctl member found")
        return Wish(None, f"first start needs {', '.join(nodes)} {text}")
    other = next((h for h in recent.values() if h.answer.nodes != nodes), None)
    if other:
        return Wish(None, f"first start: {other.member.node} has another node list ({', '.join(other.answer.nodes)})")
    return Wish(SCORE_ELIGIBLE, "ready for the first start")


class Scores:
    """Hysteresis: a score is lowered at once and raised only when it was deserved for a while."""

    def __init__(self) -> None:
        self.wish = Wish(None, "starting")
        self._better: tuple[Wish, int] | None = None  # a better one, deserved since
        self._hold_ms = 0  # the first score of a process comes at once
        self._raised_ms = 0

    def update(self, wish: Wish, now_ms: int, at_once: bool) -> None:
        """`at_once`: a role changed, which is not a measurement that may flap."""
        if wish.score == self.wish.score and wish.unless_alone == self.wish.unless_alone:
            self.wish, self._better = wish, None
        elif at_once or (wish.score or -1) < (self.wish.score or -1):
            if self.wish.score is not None and wish.score is None and not at_once:
                flapping = now_ms - self._raised_ms < HOLD_MOST_MS
                self._hold_ms = min(max(self._hold_ms * 2, HOLD_MS), HOLD_MOST_MS) if flapping else HOLD_MS
            self.wish, self._better = wish, None
        elif self._better is None:
            self._better = (wish, now_ms)
        elif (wish.score or -1) <= (self._better[0].score or -1):
            self._better = (wish, self._better[1])  # the least of them was deserved all the time
        if self._better and now_ms - self._better[1] >= self._hold():
            self.wish, self._better, self._raised_ms = self._better[0], None, now_ms

    def _hold(self) -> int:
        return self._hold_ms if self.wish.score is None else HOLD_MS
