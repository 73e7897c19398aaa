"""What this node gives to those who fetch: pieces of the log, or a snapshot where the log was compacted away.

One snapshot is read out at a time, for one reader: two that took turns would make each other begin anew for ever.
The log behind a snapshot is held until its reader has fetched it: else, under load, it would be compacted away
again before the snapshot has arrived. Knows nothing of roles; food/core/replica.py has checked who may ask.
"""

from __future__ import annotations

from .local import Local
from .message import Fetch, FetchChunk, Member, Range
from .snapshot import Source

RANGE_MOST_BYTES = 512 * 1024
READER_PATIENCE_MS = 1_000  # a reader that does not ask for so long loses its turn to another
SOURCE_IDLE_MS = 10_000  # after so long an unread snapshot is closed and its reader's log let go


NOBODY = ("", -READER_PATIENCE_MS)


class Donor:
    def __init__(self, local: Local):
        self._local = local
        self._source: Source | None = None
        self._reader = ""  # store for which it is read out
        self._read_ms = 0
        self._next = NOBODY  # who was turned away first, and when it asked
        self._holds: dict[str, tuple[int, int]] = {}  # by store: what it has, when it asked last

    def on_fetch(self, sender: Member, fetch: Fetch, now_ms: int) -> None:
        local, log = self._local, self._local.log
        if sender.store in self._holds:
            self._hold(sender.store, fetch.after, now_ms)
        if log.base.index <= fetch.after <= log.last.index:
            entries = log.after(fetch.after, RANGE_MOST_BYTES)
            local.send(sender.node, Range(fetch.epoch, log.position(fetch.after), entries, local.commit))
        elif fetch.after < log.base.index:
            self._give(sender, fetch, None, now_ms)

    def on_fetch_chunk(self, sender: Member, fetch: FetchChunk, now_ms: int) -> None:
        if self._local.log.base.index:
            self._give(sender, fetch, fetch, now_ms)

    def _give(self, sender: Member, fetch: Fetch | FetchChunk, wanted: FetchChunk | None, now_ms: int) -> None:
        """The piece wanted; the first piece of a new snapshot when that one is not being read out (any more)."""
        if not self._admit(sender.store, now_ms):
            return  # it asks again
        chunk = None
        if self._source and wanted and wanted.at == self._source.at:
            chunk = self._source.chunk(fetch.epoch, wanted.number)
        if chunk is None:
            self._close()
            self._source = self._open()
            chunk = self._source.chunk(fetch.epoch, 0)
        assert chunk is not None, "piece 0 is there from the start"
        self._read_ms = now_ms
        self._hold(sender.store, chunk.at.index, now_ms)
        self._local.send(sender.node, chunk)

    def _admit(self, store: str, now_ms: int) -> bool:
        """One reader at a time; who was turned away first comes next."""
        reading = self._source is not None and not self._source.ended and now_ms - self._read_ms < READER_PATIENCE_MS
        if reading and store == self._reader:
            return True
        first, asked_ms = self._next
        others_turn = first != store and now_ms - asked_ms < READER_PATIENCE_MS
        if reading or others_turn:
            if not others_turn:
                self._next = (store, now_ms)
            return False
        if store != self._reader:
            self._close()
            self._reader, self._next = store, NOBODY
        return True

    def _open(self) -> Source:
        local = self._local
        members = local.log.members_at(local.commit)
        assert members is not None, "what was committed was founded"
        return Source(local.log.position(local.commit), members, local.state.open_view())

    def _close(self) -> None:
        if self._source:
            self._source.close()
            self._source = None

    def _hold(self, store: str, index: int, now_ms: int) -> None:
        self._holds[store] = (index, now_ms)
        self._local.hold = min(held for held, _ in self._holds.values())

    def tick(self, now_ms: int) -> None:
        if self._source and now_ms - self._read_ms > SOURCE_IDLE_MS:
            self._close()
        for store in [s for s, (_, asked_ms) in self._holds.items() if now_ms - asked_ms > SOURCE_IDLE_MS]:
            del self._holds[store]
            self._local.hold = min((held for held, _ in self._holds.values()), default=None)
