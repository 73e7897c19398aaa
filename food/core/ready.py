"""Effects: what the core wants done, and in which order.

The driver carries a Ready out in the order of its fields; the order is the safety (food/driver.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .message import Entry, Epoch, MemberList, Message, Position
from .snapshot import Piece, Snapshot
from .state import Changes, Result

STAGE_PIECES = 4  # of a snapshot share a transaction, unless another one comes first


@dataclass(slots=True)
class Save:
    """One transaction, carried out in the order of the fields; all of it or the process dies."""

    staged: list[Piece] = field(default_factory=list)  # put aside; counts for nothing until a snapshot takes it
    snapshot: Snapshot | None = None  # what was put aside becomes the state; the log is emptied
    truncate_from: int | None = None  # drop saved entries from this index on
    entries: list[Entry] = field(default_factory=list)
    promise: Epoch | None = None
    remembers: dict[str, tuple[int, str]] = field(default_factory=dict)  # store: (starts, life)
    changes: Changes | None = None  # the state tables catch up with these
    compact: tuple[Position, MemberList] | None = None  # drop entries up to this position; the list that ruled there
    commit: int = 0  # rides along; never worth a transaction of its own

    @property
    def needed(self) -> bool:
        return bool(
            self.entries
            or self.promise
            or self.changes
            or len(self.staged) >= STAGE_PIECES
            or self.snapshot
            or self.remembers
            or self.truncate_from is not None
            or self.compact
        )

    def truncate(self, index: int) -> None:
        """Entries from `index` on are to go, also those that this transaction would have added."""
        self.entries = [entry for entry in self.entries if entry.index < index]
        self.truncate_from = index if self.truncate_from is None else min(self.truncate_from, index)

    def install(self, snapshot: Snapshot, suffix: list[Entry]) -> None:
        """The log is `suffix` behind the snapshot; what was to be saved of log and state before is void."""
        self.snapshot, self.truncate_from, self.entries = snapshot, None, suffix
        self.changes, self.compact = None, None


@dataclass(slots=True)
class Ready:
    """What one turn of the core wants. Nothing but `publish` may leave the node before `save` is durable."""

    publish: list[Message] = field(default_factory=list)  # to all; may leave before the save
    save: Save | None = None
    publish_saved: list[Message] = field(default_factory=list)  # to all; only after the save
    send: list[tuple[str, Message]] = field(default_factory=list)  # (node, message); only after the save
    answers: list[tuple[object, Result]] = field(default_factory=list)  # (whose, what); only after the save
    events: list[str] = field(default_factory=list)  # one log line each
