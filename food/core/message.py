"""The protocol's words and messages: values only, no behaviour beyond order and equality.

How they look on the wire is food/wire.py's business; what they mean is the other files' of this package.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Epoch(NamedTuple):
    """One promotion. A number alone is not enough: two candidates may pick the same one at the same time."""

    number: int
    candidate: str  # store id of the member that leads, or tries to lead, this epoch


class Position(NamedTuple):
    """How far a log goes. Logs compare by the epoch of the last entry first, then by its index (Raft 5.4.1)."""

    epoch: Epoch
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls


NO_EPOCH = Epoch(0, "")
START = Position(NO_EPOCH, 0)


class Member(NamedTuple):
    """A voter is a store, not a host: a host whose disk was replaced is somebody else."""

    node: str
    store: str


class MemberList(NamedTuple):
    """Who votes. `number` rises by one with every change; `cluster` names the cluster since its founding."""

    number: int
    cluster: str
    members: tuple[Member, ...]

    @property
    def stores(self) -> tuple[str, ...]:
        return tuple(member.store for member in self.members)

    def node_of(self, store: str) -> str:
        """The node's name of a listed store, or the store's id when it is not listed."""
        return next((member.node for member in self.members if member.store == store), store)


class Kind(IntEnum):
    """What an entry's data is."""

    COMMAND = 0  # a client's command: food/core/state.py
    BARRIER = 1  # the first entry of an epoch; no data
    MEMBERS = 2  # a member list: `pack_members`; the founding list is also its epoch's barrier


class Entry(NamedTuple):
    index: int  # type: ignore[assignment]  # as above
    epoch: Epoch
    kind: int
    data: bytes


# --- Asked and answered all the time: who is there, who may be promoted -----------------------------------------


class Ask(NamedTuple):
    """Promises nothing. `life` is the asking process's nonce, so that answers to a former life do not count."""

    life: str
    round: int


class Answer(NamedTuple):
    """What a node says of itself when asked."""

    life: str  # of the process that asked
    round: int
    promise: Epoch
    last: Position
    commit: int
    list_number: int  # of the newest member list it holds; 0 = not founded
    nodes: tuple[str, ...]  # the node names that Corosync gave it, sorted: what it would found with
    role: str
    score: int | None
    matched: bool  # its log was shown to equal the current primary's up to what it knew last
    since_ms: int  # how long it has had this role
    starts: int  # how often this store has been started; 0 to who has not yet said what it remembers of it
    own_life: str  # nonce of the answering process
    remembers: tuple[int, str] | None  # (starts, life) it has seen of the store that asks


class Digest(NamedTuple):
    """Comes with each Answer: what the sender's state was at indexes that others pass, too."""

    marks: tuple[tuple[int, int], ...]  # (applied index, hash of the state there)
    votes: bool  # whether it seals and acknowledges: a store that differs does not


# --- Promotion ----------------------------------------------------------------------------------------------------


class Seal(NamedTuple):
    """Asks for a durable promise to refuse epochs older than this one."""

    epoch: Epoch


class Sealed(NamedTuple):
    """The promise, durable by now, and the log that stands behind it."""

    epoch: Epoch
    last: Position
    list_number: int
    nodes: tuple[str, ...]


class Refused(NamedTuple):
    """An answer, not silence: the sender's epoch is older than `promise`.

    `led` says whether the refuser has heard from a primary of the epoch it promised.
    """

    promise: Epoch
    led: bool


# --- Replication --------------------------------------------------------------------------------------------------


class Append(NamedTuple):
    """Published by the primary: `entries` follow directly behind `prev`."""

    epoch: Epoch
    prev: Position
    entries: tuple[Entry, ...]
    commit: int


class Heartbeat(NamedTuple):
    """Published by the primary. PUB drops silently: `last` lets a backup see a gap at the tail."""

    epoch: Epoch
    last: Position
    commit: int
    round: int  # newest round of reads


class Ack(NamedTuple):
    """`matched` is durable at the sender and equal to the primary's log of this epoch, not merely present."""

    epoch: Epoch
    matched: int
    round: int


class Fetch(NamedTuple):
    """Wants the entries behind `after`, from the primary, or from a donor during promotion."""

    epoch: Epoch
    after: int


class Range(NamedTuple):
    """Answers Fetch with a bounded piece of the log."""

    epoch: Epoch
    prev: Position
    entries: tuple[Entry, ...]
    commit: int


class FetchChunk(NamedTuple):
    """Wants piece `number` of the snapshot that ends at `at`."""

    epoch: Epoch
    at: Position
    number: int


class Chunk(NamedTuple):
    """A piece of a snapshot: answers Fetch when the entries were compacted away, and FetchChunk."""

    epoch: Epoch
    at: Position
    number: int
    final: bool
    data: bytes


Message = (
    Ask | Answer | Digest | Seal | Sealed | Refused | Append | Heartbeat | Ack | Fetch | Range | FetchChunk | Chunk
)
