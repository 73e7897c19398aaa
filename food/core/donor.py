"""What this node gives to those who fetch: pieces of the log, or a snapshot where the log was compacted away.

One snapshot is read out at a time, for one reader: two that took turns would make each other begin anew for ever.
Knows nothing of roles; food/core/replica.py has checked that the reader may ask.
"""

from __future__ import annotations

from .local import Local
from .message import Fetch, FetchChunk, Member, Range
from .snapshot import Source

RANGE_MOST_BYTES = 512 * 1024
READER_PATIENCE_MS = 1_000  # a reader that does not ask for so long loses its turn to another
SOURCE_IDLE_MS = 10_000  # an unread snapshot is closed: it keeps every row that changes meanwhile


class Donor:
    def __init__(self, local: Local):
        self._local = local
        self._source: Source | None = None
        self._reader: str | None = None  # store for which it is read out
        self._read_ms = 0

    def on_fetch(self, sender: Member, fetch: Fetch, now_ms: int) -> None:
        local, log = self._local, self._local.log
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
        if self._source and self._reader != sender.store and now_ms - self._read_ms < READER_PATIENCE_MS:
            return  # it asks again
        chunk = None
        if self._source and self._reader == sender.store and wanted and wanted.at == self._source.at:
            chunk = self._source.chunk(fetch.epoch, wanted.number)
        if chunk is None:
            self._close()
            self._source, self._reader = self._open(), sender.store
            chunk = self._source.chunk(fetch.epoch, 0)
        assert chunk is not None, "piece 0 is there from the start"
        self._read_ms = now_ms
        self._local.send(sender.node, chunk)

    def _open(self) -> Source:
        local = self._local
        members = local.log.members_at(local.commit)
        assert members is not None, "what was committed was founded"
        return Source(local.log.position(local.commit), members, local.state.open_view())

    def _close(self) -> None:
        if self._source:
            self._source.close()
            self._source = None

    def tick(self, now_ms: int) -> None:
        if self._source and now_ms - self._read_ms > SOURCE_IDLE_MS:
            self._close()
