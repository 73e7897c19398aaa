"""A client's requests as state machines: who is asked, when again, what an answer means.

The retry rules live here, once. Pure: time is passed in, and sockets are somebody else's (food/client.py: one
client; food/fleet.py: many in one process), who does this with every Worker:

    worker.submit(request, now, timeout_s)
    each round: target = worker.due(now); send worker.frame() there; worker.sent(target, now), or unsendable(now)
    each frame received: worker.receive(endpoint, frame, now) → an Outcome, or None while it goes on
    from time to time: worker.expire(now); a directory.probe_frame() to each of directory.probes(now)

Exactly once: a write keeps its (session, seq) through every attempt, whoever is primary by then. A seq goes to
another write only once its own outcome is known; else the session is abandoned, and closed through the log before
the next one opens: a write of unknown outcome cannot take effect after a later one of the same client.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .codec import FRAME_MOST_BYTES, BadFrame, pack, shown, unpack
from .directory import PROBE_BIT, Directory

KEY_MOST_BYTES = 1024
VALUE_MOST_BYTES = 1024 * 1024

REPLY_MOST_BYTES = 2 * FRAME_MOST_BYTES  # a range may end with a large value

# No answer for so long: ask everybody who is primary. The least of it holds where answers usually come much sooner.
HEDGE_AFTER_S, HEDGE_LEAST_S, HEDGE_TIMES_USUAL = 0.2, 0.05, 8
RESEND_AFTER_S = 0.5  # the same primary still claims the role and has not answered: our request may be lost
RESEND_AFTER_MOST_S = 8.0  # doubled each time: slow is not dead
REFUSED_PAUSE_S = 0.02  # between two attempts at an endpoint that refused
BUSY_PAUSE_S, BUSY_PAUSE_MOST_S = 0.01, 0.2
TEXT_MOST_CHARS = 500  # of a server's words
ABANDONED_MOST = 8  # sessions still to close; older ones are left to the servers' eviction


class FoodError(Exception):
    """Base of what the client raises. `executed` says whether the request may have taken effect."""

    executed = False


class Unavailable(FoodError):
    """No primary answered in time. A write that ends so was not executed, and will not be."""


class OutcomeUnknown(FoodError):
    """The write was sent and its outcome could not be learned: it took effect once, or not at all."""

    executed = True


class CompareFailed(FoodError):
    """A cas found the key at another revision (0: absent)."""

    def __init__(self, text: str, revision: int):
        super().__init__(text)
        self.revision = revision


class TooLarge(FoodError):
    """A key, value, request or answer beyond the limit that the text names."""


class NoSpace(FoodError):
    """The primary's disk is short of space and takes only deletes; the write was not executed."""


class BadRequest(FoodError):
    """The server, or this library before it, refused the request as malformed."""


class ProtocolError(FoodError):
    """The server answered something that this client does not understand."""

    executed = True  # or not: who knows


class Refused(FoodError):
    """The primary refused a change of members, or a node to found the cluster: the text says why, and the remedy."""


class ListChanged(Refused):
    """The member list is another by now than the one that the change was meant for: look at it again."""


class Behind(Refused):
    """A store must catch up first; `entries` says how far it is behind."""

    def __init__(self, text: str, entries: int):
        super().__init__(text)
        self.entries = entries


class SessionLost(FoodError):
    """The servers do not know the session any more. Stays in this file: a new session, or OutcomeUnknown."""


class Outcome(NamedTuple):
    """How a request ended: `error` is None, or `value` is meaningless."""

    value: Any
    error: FoodError | None = None


class Request(NamedTuple):
    """kind: w (write), r (linearizable read), s (stale read: any node), m (members). `args` are those of `op`."""

    kind: str
    op: str
    args: tuple[Any, ...]
    at: str | None = None  # asks that endpoint only, whoever is primary

    def __str__(self) -> str:
        if self.kind == "m":
            return f"member {self.op}"
        key = self.args[0] if self.args and isinstance(self.args[0], bytes) else b""
        return f"{self.op} {show(key)}"


def show(key: bytes, most_chars: int = 60) -> str:
    """A key for an error's text: short, and nothing in it that a terminal would obey."""
    return printable(key.decode("utf-8", "backslashreplace"), most_chars)


def printable(said: Any, most_chars: int = TEXT_MOST_CHARS) -> str:
    """The same of what a server said, whatever it is."""
    text = said if type(said) is str else shown(said, most_chars)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most_chars else text[: most_chars - 3] + "…"


def check(request: Request) -> FoodError | None:
    """The limits that a request can break before it is sent."""
    if request.kind == "m":
        return None
    key = request.args[0]
    least = 0 if request.op == "range" else 1
    if not least <= len(key) <= KEY_MOST_BYTES:
        what = "prefix" if request.op == "range" else "key"
        return TooLarge(f"{what} {show(key)!r} has {len(key)} bytes: {least} to {KEY_MOST_BYTES} are possible")
    if request.op in ("put", "cas") and len(request.args[-1]) > VALUE_MOST_BYTES:
        return TooLarge(
            f"value of {show(key)!r} has {len(request.args[-1])} bytes, the limit is {VALUE_MOST_BYTES}: "
            "split it over several keys"
        )
    return None


class Call:
    """One request and its attempts.

    `asked` holds the attempts that may still be answered or be executed unanswered; an attempt that was refused
    (not_primary, busy) was not executed and leaves it. `sent_to` is None when the next attempt may go out at once.
    """

    __slots__ = (
        "asked", "at", "body", "doubt", "hedge_at", "kind", "last", "patience", "pause_until", "sent_at", "sent_to",
        "tries", "version", "why",
    )  # fmt: skip

    def __init__(self, kind: str, body: Any, at: str | None = None):
        self.kind = kind
        self.at = at
        self.body = body
        self.asked: dict[int, str] = {}
        self.tries = 0
        self.last = 0
        self.doubt = False  # a node said "unknown": it may have been executed
        self.sent_to: str | None = None
        self.sent_at = 0.0
        self.hedge_at = 0.0
        self.version = -1
        self.pause_until = 0.0
        self.patience = RESEND_AFTER_S
        self.why = ""  # the last refusal's text

    @property
    def uncertain(self) -> bool:
        """It may have been executed, or still be."""
        return self.doubt or bool(self.asked)

    def due(self, now: float, directory: Directory) -> str | None:
        """Where to send it now."""
        if self.kind == "s":
            return self._due_anywhere(now, directory)
        if self.at:  # nothing that is asked of one node harms when it is asked twice
            return self.at if self.sent_to is None or now - self.sent_at >= RESEND_AFTER_S else None
        target = directory.target
        if target is None:
            directory.wanted = True
            return None
        if self.sent_to is None:
            return target if now >= self.pause_until else None
        if directory.version != self.version:
            self.patience = RESEND_AFTER_S
            return target
        if now >= self.hedge_at:
            directory.wanted = True
            if now - self.sent_at >= self.patience and directory.confirmed(self.sent_at + HEDGE_AFTER_S):
                self.patience = min(2 * self.patience, RESEND_AFTER_MOST_S)
                return target
        return None

    def _due_anywhere(self, now: float, directory: Directory) -> str | None:
        """A stale read is everybody's: one after the other until somebody answers."""
        if self.sent_to is not None and now < self.hedge_at:
            return None
        if now < self.pause_until:
            return None
        endpoints = directory.endpoints
        return endpoints[self.tries % len(endpoints)]

    def sent(self, attempt: int, endpoint: str, now: float, directory: Directory) -> None:
        self.asked[attempt] = endpoint
        self.tries += 1
        self.last = attempt
        self.sent_to, self.sent_at, self.version = endpoint, now, directory.version
        self.hedge_at = now + min(HEDGE_AFTER_S, max(HEDGE_LEAST_S, HEDGE_TIMES_USUAL * directory.usual_s))

    def unsendable(self, now: float, directory: Directory) -> None:
        """There is no connection to the target yet, or no longer: look around meanwhile."""
        directory.wanted = True
        if self.kind == "s":
            self.tries += 1
            self.pause_until = now + REFUSED_PAUSE_S

    def answered(self, attempt: int, status: Any, result: Any, now: float, directory: Directory) -> Outcome | None:
        """None: goes on (a refusal, or an answer to an attempt of another call)."""
        endpoint = self.asked.get(attempt)
        if endpoint is None:
            return None
        if status == 0:
            if attempt == self.last:
                directory.usual_s += (now - self.sent_at - directory.usual_s) / 8
            return Outcome(result)
        fields = result if isinstance(result, dict) else {}
        text = printable(fields.get("text", "no text"))
        match status:
            case "not_primary":
                del self.asked[attempt]
                directory.on_refused(endpoint, fields.get("primary"), text, now)
                self._again(attempt, text, now + REFUSED_PAUSE_S if directory.target == endpoint else now)
            case "busy":
                del self.asked[attempt]
                pause = min(BUSY_PAUSE_S * 2 ** min(self.tries, 10), BUSY_PAUSE_MOST_S)
                self._again(attempt, f"{endpoint}: {text}", now + pause)
            case "no_space":
                del self.asked[attempt]
                if not self.uncertain:
                    return Outcome(None, NoSpace(text))
                # An attempt before this one may have been executed: only another primary, or time, can tell.
                self._again(attempt, f"{endpoint}: {text}", now + BUSY_PAUSE_MOST_S)
            case "no_quorum":
                del self.asked[attempt]
                directory.wanted = True
                self._again(attempt, f"{endpoint}: {text}", now + REFUSED_PAUSE_S)
            case "unknown":
                # That node cannot say; the same (session, seq) at the next primary can. Only what has no
                # session stays unknown: nothing would recognise it there.
                del self.asked[attempt]
                self.doubt = directory.wanted = True
                self._again(attempt, f"{endpoint}: {text}", now + REFUSED_PAUSE_S)
            case "session" | "order":
                return Outcome(None, SessionLost(text))
            case "compare":
                revision = fields.get("revision")
                if type(revision) is not int:
                    return Outcome(None, ProtocolError(f"{endpoint} answered compare without a revision"))
                return Outcome(None, CompareFailed(text, revision))
            case "too_large":
                return Outcome(None, TooLarge(text))
            case "refused":
                return Outcome(None, Refused(text))
            case "list_changed":
                return Outcome(None, ListChanged(text))
            case "behind":
                entries = fields.get("behind")
                return Outcome(None, Behind(text, entries if type(entries) is int else 0))
            case "bad_request":
                return Outcome(None, BadRequest(text))
            case _:
                return Outcome(None, ProtocolError(f"{endpoint} answered {shown(status)}: {text}"))
        return None

    def _again(self, attempt: int, text: str, when: float) -> None:
        self.why = text
        if attempt == self.last:  # an older attempt's refusal says nothing about the one under way
            self.sent_to, self.pause_until = None, when


class Session:
    """Numbers a client's writes. Invariant: `seq` was given out at most once, and all before it are answered."""

    def __init__(self) -> None:
        self.id = 0  # 0: none open
        self.seq = 0
        self.abandoned: list[int] = []

    def opened(self, number: int) -> None:
        self.id, self.seq = number, 0

    def body(self, request: Request) -> bytes:
        """The command under the next seq, which stays the next until `used`."""
        body: bytes = pack([self.id, self.seq + 1, self.seq, request.op, *request.args])
        return body

    def used(self) -> None:
        self.seq += 1

    def abandon(self) -> None:
        if self.id:
            self.abandoned = [*self.abandoned, self.id][-ABANDONED_MOST:]
        self.id = 0


class Worker:
    """One client: a session, and at most one request at a time, which may take several calls (close, open, write)."""

    def __init__(self, directory: Directory):
        self.directory = directory
        self.session = Session()
        self.call: Call | None = None
        self.request: Request | None = None
        self.deadline = 0.0
        self.started = 0.0
        self._phase = ""
        self._attempts = 0

    @property
    def busy(self) -> bool:
        return self.call is not None

    def submit(self, request: Request, now: float, timeout_s: float) -> Outcome | None:
        """An Outcome at once when the request breaks a limit."""
        assert self.call is None, "one request at a time"
        error = check(request)
        if error:
            return Outcome(None, error)
        self.request, self.started, self.deadline = request, now, now + timeout_s
        self._advance()
        return None

    def finish(self, now: float, timeout_s: float) -> bool:
        """Starts closing the session, so that the servers need not keep it; False if there is nothing to close."""
        assert self.call is None, "one request at a time"
        self.session.abandon()
        if not self.session.abandoned:
            return False
        self.request, self.started, self.deadline = None, now, now + timeout_s
        self._advance()
        return True

    def due(self, now: float) -> str | None:
        return self.call.due(now, self.directory) if self.call else None

    def frame(self) -> bytes:
        """The next attempt. Its id is never used again, so an answer is known for what it answers."""
        assert self.call
        self._attempts += 1
        frame: bytes = pack([self._attempts, self.call.kind, self.call.body])
        return frame

    def sent(self, endpoint: str, now: float) -> None:
        assert self.call
        self.call.sent(self._attempts, endpoint, now, self.directory)

    def unsendable(self, now: float) -> None:
        assert self.call
        self.call.unsendable(now, self.directory)

    def receive(self, endpoint: str, frame: bytes, now: float) -> Outcome | None:
        """A frame from `endpoint`: the outcome of the request if this ends it."""
        try:
            reply = unpack(frame, REPLY_MOST_BYTES)
        except BadFrame:
            return None  # as good as lost: the retry rules take over
        match reply:
            case [int(attempt), status, result]:
                pass
            case _:
                return None
        if attempt & PROBE_BIT:
            if status == 0:
                self.directory.on_info(endpoint, result, now)
            return None
        if self.call is None:
            return None
        outcome = self.call.answered(attempt, status, result, now, self.directory)
        return self._step(outcome) if outcome else None

    def expire(self, now: float) -> Outcome | None:
        """The outcome of a request whose time is over."""
        if self.call is None or now < self.deadline:
            return None
        where = self.directory.describe(now)
        why = f" ({self.call.why})" if self.call.why else ""
        if self.call.at:
            return self._end(Outcome(None, Unavailable(f"{self.request}: no answer from {self.call.at}")))
        text = f"{self.request or 'close'}: no primary answered within {now - self.started:.1f} s{why}: {where}"
        if self._phase in ("w", "m") and self.call.uncertain:
            return self._end(Outcome(None, OutcomeUnknown(f"{text}. It took effect once, or not at all")))
        return self._end(Outcome(None, Unavailable(text)))

    def interrupt(self) -> None:
        """Gives the request up (Ctrl-C): what it did is unknown."""
        if self.call:
            self._end(Outcome(None, OutcomeUnknown("interrupted")))

    def _advance(self) -> None:
        session, request = self.session, self.request
        if (request is None or request.kind == "w") and session.abandoned:
            self._phase = "close"
            self.call = Call("w", pack([0, 0, 0, "close", session.abandoned[0]]))
        elif request is None:
            self.call = None
        elif request.kind != "w":
            self._phase = "m" if request.kind == "m" else "r"
            self.call = Call(request.kind, [request.op, *request.args], request.at)
        elif not session.id:
            self._phase = "open"
            self.call = Call("w", pack([0, 0, 0, "open"]))
        else:
            self._phase = "w"
            self.call = Call("w", session.body(request))

    def _step(self, outcome: Outcome) -> Outcome | None:
        """A call has ended; perhaps the request has not."""
        call, error, session = self.call, outcome.error, self.session
        assert call
        if self._phase == "w":
            if isinstance(error, SessionLost):
                if len(call.asked) > 1 or call.doubt:
                    return self._end(Outcome(None, OutcomeUnknown(f"{self.request}: {error}")))
                # The only attempt that was not refused got this answer, so nothing was executed: a new session
                # may carry it.
                session.id = 0
                self._advance()
                return None
            if error is None or isinstance(error, CompareFailed):
                session.used()
                call.asked.clear()
                call.doubt = False
            return self._end(outcome)
        if self._phase in ("r", "m") or (error and not isinstance(error, SessionLost)):
            return self._end(outcome)
        if self._phase == "close":
            del session.abandoned[0]
        elif type(outcome.value) is int and outcome.value > 0:
            session.opened(outcome.value)
        else:
            return self._end(Outcome(None, ProtocolError(f"open answered {shown(outcome.value)}, not a session")))
        self._advance()
        return None if self.call else Outcome(None)

    def _end(self, outcome: Outcome) -> Outcome:
        if self._phase == "w" and self.call and (self.call.uncertain or isinstance(outcome.error, OutcomeUnknown)):
            self.session.abandon()
        self.call = self.request = None
        return outcome
