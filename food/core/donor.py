"""What this node gives to those who fetch: pieces of the log, or a snapshot where the log was compacted away.

One snapshot is read out at a time, for one reader: two that took turns would make each other begin anew for ever.
The log behind a snapshot is held until its reader has fetched it: else, under load, it would be compacted away
again before the snapshot has arrived. Knows nothing of roles; food/core/replica.py has checked who may ask.

What a primary gives is paced: its loop, and the processors it may share with its clients, are for their writes first.
A request that comes too soon waits in `due`. Only a reader that would otherwise have to begin anew gets all it can.
"""

from __future__ import annotations

from .local import Local
from .message import Fetch, FetchChunk, Member, Range
from .snapshot import ITEM_BYTES, Source

RANGE_MOST_BYTES = 256 * 1024
PACE_BYTES_PER_MS = 8 * 1024  # to all readers together, an item counted as ITEM_BYTES more than it has
PACE_BURST_BYTES = 512 * 1024
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
        self._waiting: dict[str, tuple[Member, Fetch | FetchChunk]] = {}  # by store, in order of asking
        self._purse = PACE_BURST_BYTES  # bytes that may be given now; below 0 after the last piece
        self._purse_ms: int | None = None  # when it was last filled
        self._appended = local.log.appended  # by then

    # --- Pace ---

    def _affords(self, sender: Member, fetch: Fetch | FetchChunk, now_ms: int) -> bool:
        """Whether it may be answered now; else it waits. A candidate serves nobody: it gets all it can take."""
        self._waiting.pop(sender.store, None)
        if sender.store == fetch.epoch.candidate or self._losing():
            return True
        self._fill(now_ms)
        if self._purse <= 0:
            self._waiting[sender.store] = (sender, fetch)
        return self._purse > 0

    def _fill(self, now_ms: int) -> None:
        """What is written is given beside the pace: else a reader would never be level with a fast writer."""
        passed_ms = now_ms - (now_ms if self._purse_ms is None else self._purse_ms)
        appended = self._local.log.appended
        more = passed_ms * PACE_BYTES_PER_MS + max(0, appended - self._appended)
        self._purse = min(PACE_BURST_BYTES, self._purse + more)
        self._purse_ms, self._appended = now_ms, appended

    def _pay(self, cost: int) -> None:
        """What was given in haste is not waited for afterwards."""
        self._purse = max(self._purse - cost, -PACE_BURST_BYTES)

    def _losing(self) -> bool:
        """Whether more is taken of the memory for the log behind the snapshot than was given of the snapshot."""
        source = self._source
        return source is not None and not source.ended and self._local.held_part * source.keys > source.given_keys

    def due(self) -> list[tuple[Member, Fetch | FetchChunk]]:
        """Requests that waited, to be judged afresh: who may ask may have changed meanwhile."""
        waiting, self._waiting = list(self._waiting.values()), {}
        return waiting

    # --- Pieces ---

    def on_fetch(self, sender: Member, fetch: Fetch, now_ms: int) -> None:
        local, log = self._local, self._local.log
        if sender.store in self._holds:
            self._hold(sender.store, fetch.after, now_ms)
        if log.base.index <= fetch.after <= log.last.index:
            if not self._affords(sender, fetch, now_ms):
                return
            entries = log.after(fetch.after, RANGE_MOST_BYTES)
            self._pay(sum(len(entry.data) + ITEM_BYTES for entry in entries))
            local.send(sender.node, Range(fetch.epoch, log.position(fetch.after), entries, local.commit))
        elif fetch.after < log.base.index:
            self._give(sender, fetch, None, now_ms)

    def on_fetch_chunk(self, sender: Member, fetch: FetchChunk, now_ms: int) -> None:
        if self._local.log.base.index:
            self._give(sender, fetch, fetch, now_ms)

    def _give(self, sender: Member, fetch: Fetch | FetchChunk, wanted: FetchChunk | None, now_ms: int) -> None:
        """The piece wanted; the first piece of a new snapshot when that one is not being read out (any more)."""
        if not self._admit(sender.store, now_ms) or not self._affords(sender, fetch, now_ms):
            return  # it asks again, or waits
        source, chunk = self._source, None
        if source and wanted and wanted.at == source.at:
            chunk = source.chunk(fetch.epoch, wanted.number)
        if source is None or chunk is None:
            self._close()
            self._source = source = self._open()
            chunk = source.chunk(fetch.epoch, 0)
        assert chunk is not None, "piece 0 is there from the start"
        self._read_ms = now_ms
        self._pay(source.cost)
        self._hold(sender.store, chunk.at.index, now_ms)
        self._local.send(sender.node, chunk)

    def given(self, store: str) -> tuple[int, int] | None:
        """How many keys of how many that reader was given of a snapshot, if it is receiving one."""
        source = self._source
        return (source.given_keys, source.keys) if source and not source.ended and store == self._reader else None

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
