"""A backup's side of an epoch: match the primary's log, fetch what is missing, acknowledge what matches.

Knows nothing of who may lead; food/core/replica.py has checked the epoch of every message that arrives here.
Invariant: commit <= matched, and Ack carries `matched`, never what the log merely holds.
"""

from __future__ import annotations

from .local import Local
from .message import Ack, Append, Chunk, Epoch, Fetch, FetchChunk, Heartbeat, Member, Position, Range
from .snapshot import Assembly

FETCH_RETRY_MS = 300


class Fetcher:
    """One bounded piece outstanding: entries behind `after`, or the next piece of a snapshot."""

    def __init__(self, local: Local, epoch: Epoch, source: Member, now_ms: int):
        self._local = local
        self._epoch = epoch
        self.source = source
        self._asked_ms: int | None = None
        self._assembly: Assembly | None = None
        self.progress_ms = now_ms  # when an answer last came

    @property
    def received(self) -> tuple[int, int] | None:
        """How many keys of how many have come of a snapshot, if one is being received."""
        return (self._assembly.received_keys, self._assembly.snapshot.keys) if self._assembly else None

    def want(self, after: int, now_ms: int) -> None:
        """Asks for what is behind `after`, unless an answer is still awaited."""
        if self._assembly and self._assembly.at.index <= self._local.commit:
            self._assembly = None  # overtaken by entries
        if self._asked_ms is None or now_ms - self._asked_ms >= FETCH_RETRY_MS:
            self._asked_ms = now_ms
            assembly = self._assembly
            request = FetchChunk(self._epoch, assembly.at, assembly.next) if assembly else Fetch(self._epoch, after)
            self._local.send(self.source.node, request)

    def got_range(self, now_ms: int) -> None:
        self._asked_ms, self._assembly, self.progress_ms = None, None, now_ms

    def got_chunk(self, chunk: Chunk, now_ms: int) -> Position | None:
        """Takes a piece of a snapshot; returns its position once the whole is installed."""
        local = self._local
        if chunk.at.index <= local.commit or local.installing:
            return None  # late: we are past it; or early, and asked for again
        try:
            if chunk.number == 0:  # also when the source lost its place and began anew
                self._assembly = Assembly(self.source.store, chunk.at, chunk.data)
                local.stage(self._assembly.begin())
                local.event(f"catch-up: receiving a snapshot at {chunk.at.index} from {self.source.node}")
            elif self._assembly and (self._assembly.at, self._assembly.next) == (chunk.at, chunk.number):
                local.stage(self._assembly.add(chunk))
                if chunk.final:
                    local.install(self._assembly.snapshot, self._assembly.finish())
                    self.got_range(now_ms)
                    local.event(f"catch-up: installed a snapshot at {chunk.at.index} with {len(local.state.rows)} keys")
                    return chunk.at
            else:
                return None  # a piece of another snapshot, or one that came twice
        except ValueError as error:
            local.event(f"snapshot from {self.source.node} refused, asking again: {error}")
            self._assembly = None
            return None
        self._asked_ms, self.progress_ms = None, now_ms
        self.want(0, now_ms)
        return None


class Following:
    """Following the primary of one epoch, from its first message on."""

    def __init__(self, local: Local, primary: Member, epoch: Epoch, now_ms: int):
        self._local = local
        self.primary = primary
        self.epoch = epoch
        # A new epoch resets matched: an old tail may look fitting and still be replaced.
        self.matched = local.commit
        self.heard_ms = now_ms
        self.last_seen = local.log.last  # the primary's log, as far as we were told
        self._round = 0
        self._ack_due = False
        self._fetcher = Fetcher(local, epoch, primary, now_ms)

    @property
    def behind(self) -> int:
        """Entries that the primary has and we do not."""
        return max(0, self.last_seen.index - self.matched)

    @property
    def received(self) -> tuple[int, int] | None:
        return self._fetcher.received

    def on_append(self, message: Append | Range, now_ms: int) -> None:
        self.heard_ms = now_ms
        if isinstance(message, Range):
            self._fetcher.got_range(now_ms)
        if message.entries:
            newest = message.entries[-1]
            self.last_seen = max(self.last_seen, Position(newest.epoch, newest.index))
        matched = self._local.merge(message.prev, message.entries, self.matched)
        if matched is not None:
            self._match(matched, message.commit)
        if matched is None or (isinstance(message, Range) and self.behind):
            self._fetcher.want(self.matched, now_ms)

    def on_heartbeat(self, message: Heartbeat, now_ms: int) -> None:
        self.heard_ms = now_ms
        self._round = max(self._round, message.round)
        self._ack_due = True
        self.last_seen = message.last
        if self._local.log.has(message.last):
            self._match(message.last.index, message.commit)
        elif message.last.index > self.matched:
            self._fetcher.want(self.matched, now_ms)

    def on_chunk(self, chunk: Chunk, now_ms: int) -> None:
        self.heard_ms = now_ms
        if self._fetcher.got_chunk(chunk, now_ms):
            self._match(chunk.at.index, chunk.at.index)
            self._fetcher.want(self.matched, now_ms)

    def _match(self, index: int, commit: int) -> None:
        self.matched = max(self.matched, index)
        self._ack_due = True
        # Commit goes up to matched only: what we merely hold behind it may be replaced.
        if (commit := min(commit, self.matched)) > self._local.commit:
            self._local.advance(commit)
        assert self._local.commit <= self.matched <= self._local.log.last.index

    def finish_turn(self) -> None:
        """One Ack a turn, after the save of everything it speaks of."""
        if self._ack_due:
            self._ack_due = False
            self._local.send(self.primary.node, Ack(self.epoch, self.matched, self._round))
