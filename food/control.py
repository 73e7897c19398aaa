"""The agent's requests: monitor, promote, demote, notify, reload, status, adopt, release (OCF resource agent API 1.1).

Promote and demote answer only once the promotion score that belongs to the new situation is in place: otherwise the
role bounces back as soon as `pcs resource move` removes its constraint. Knows the replica and the guardian's link;
knows no Pacemaker tool.

A daemon that was started outside Pacemaker replicates, and is not running as far as the agent is told, until the
guardian says that a resource has adopted it. Who that is, only the guardian knows for certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .codec import REQUEST_ITEMS_MOST, BadFrame, pack, shown, unpack
from .core.peers import SCORE_IN_SYNC, Wish
from .core.replica import Replica
from .link import Link
from .status import summary

OCF_SUCCESS, OCF_ERR_GENERIC, OCF_ERR_ARGS = 0, 1, 2
OCF_NOT_RUNNING, OCF_RUNNING_PROMOTED, OCF_FAILED_PROMOTED = 7, 8, 9
OCF_DEGRADED, OCF_DEGRADED_PROMOTED = 190, 191

VERSION = 1
CONTROL_FRAME_MOST_BYTES = 8 * 1024
TIMEOUT_MOST_MS = 24 * 3600 * 1000
WAITING_MOST = 16  # the cluster manager asks for one thing at a time
PROMOTE_SHARE = 0.8  # of an action's budget; the rest is for the score and the way back
DRAIN_SHARE = 0.2
DRAIN_MOST_MS = 2_000
ROLE_MOVE_MS = 3_000  # a deposed primary gave its score up; the role must have moved by then
FAIL_AGAIN_MS = 30_000
NOT_ADOPTED = "not adopted by Pacemaker"
ATTRIBUTE_QUIET_MS = 1_500  # an attribute written during a transition makes Pacemaker plan it anew


class Waiting(NamedTuple):
    """A promote, demote, adopt or release that is under way."""

    action: str
    reply: Callable[[bytes], None]
    deadline_ms: int


class Control:
    def __init__(
        self,
        replica: Replica,
        link: Link,
        name: str,
        log: Callable[[str, str], None],
        now_ms: int,
        *,
        external: bool = False,
    ):
        self.degraded = False
        self.keys = ""  # in words
        self._adopted = not external
        self._external = external
        self._handing_over = 0  # the guardian's order to adopt or release, while one is under way
        self._silent = external  # Pacemaker was, or is being, told the last of this node
        self._replica = replica
        self._link = link
        self._name = name
        self._log = log
        self._waiting: list[Waiting] = []
        self._live_settings: dict[str, str | None] | None = None  # as the agent said them last
        self._ordered: Wish | None = None
        self._score_order = 0
        self.role = ""
        self._text = ""
        self._text_since_ms = now_ms
        self._ordered_texts = ("", "")
        self._deposed_ms: int | None = None
        replica.withheld = NOT_ADOPTED if external else ""

    @property
    def busy(self) -> bool:
        """Whether a promote or demote is under way."""
        return bool(self._waiting)

    # --- Requests ---

    def request(self, frame: bytes, reply: Callable[[bytes], None], now_ms: int) -> None:
        """Handles one frame of the agent; `reply` is called now, or in a later turn."""
        try:
            found, timeout_ms = _read(frame)
        except BadFrame as error:
            return self._reply(reply, OCF_ERR_GENERIC, f"the daemon refused the request: {error}")
        match found.get("action"):
            case "monitor":
                self._restore_score(found.get("probe") is True)
                self._follow_settings(found.get("settings"))
                self._reply(reply, *self.monitor(now_ms), role=self._replica.role)
            case "promote" | "demote" | "adopt" | "release" if len(self._waiting) >= WAITING_MOST:
                self._reply(reply, OCF_ERR_GENERIC, f"{WAITING_MOST} promotes and demotes wait already")
            case "adopt" | "release" if not self._external:
                self._reply(reply, OCF_ERR_ARGS, "started by Pacemaker, not outside: it cannot be adopted or released")
            case "adopt" if any(waiting.action == "release" for waiting in self._waiting):
                self._reply(reply, OCF_ERR_GENERIC, "a release is under way")
            case "promote" if not self._adopted:
                self._reply(reply, OCF_NOT_RUNNING, NOT_ADOPTED)
            case "promote":
                self._log("notice", "promote ordered by the cluster")
                self._replica.promote(now_ms, now_ms + int(timeout_ms * PROMOTE_SHARE))
                self._waiting.append(Waiting("promote", reply, now_ms + int(timeout_ms * 0.95)))
            case "demote":
                self._log("notice", "demote ordered by the cluster")
                self._replica.demote(now_ms, min(int(timeout_ms * DRAIN_SHARE), DRAIN_MOST_MS))
                self._waiting.append(Waiting("demote", reply, now_ms + int(timeout_ms * 0.95)))
            case "adopt":
                self._handing_over = self._link.order(adopt=found["settings"])
                self._waiting.append(Waiting("adopt", reply, now_ms + int(timeout_ms * 0.95)))
            case "release":
                self._release(reply, now_ms, timeout_ms)
            case "notify":
                self._notify(found)
                self._reply(reply, OCF_SUCCESS, "")
            case "reload":
                # As the agent got them: the guardian judges them and gives back what they come to.
                self._live_settings = found["settings"]
                self._link.tell(settings=found["settings"])
                self._reply(reply, OCF_SUCCESS, "")
            case "status":
                self._reply(reply, OCF_SUCCESS, "", status=summary(self._replica, now_ms))
            case action:
                self._reply(reply, OCF_ERR_GENERIC, f"the daemon knows no action {shown(action)}")
        return None

    def monitor(self, now_ms: int) -> tuple[int, str]:
        """The OCF exit code of this node's state, and its reason."""
        replica = self._replica
        if not self._adopted:
            return OCF_NOT_RUNNING, NOT_ADOPTED
        if replica.deposed:
            return OCF_FAILED_PROMOTED, replica.failure or "another node is primary"
        renewing = replica.promotion is not None and not any(w.action == "promote" for w in self._waiting)
        if replica.role == "primary" or renewing:
            if self.degraded and replica.leading:
                in_sync = replica.leading.in_sync(now_ms - replica.isolation_ms)
                if len(in_sync) < len(replica.local.voters):
                    return OCF_DEGRADED_PROMOTED, summary(replica, now_ms)
            return OCF_RUNNING_PROMOTED, ""
        level = replica.wish.score == SCORE_IN_SYNC or replica.role == "candidate"
        return (OCF_DEGRADED, summary(replica, now_ms)) if self.degraded and not level else (OCF_SUCCESS, "")

    def _restore_score(self, probe: bool) -> None:
        """A probe adopts a running primary, but Pacemaker demotes one without a score: set it again."""
        if probe:
            self._ordered = None

    def _release(self, reply: Callable[[bytes], None], now_ms: int, timeout_ms: int) -> None:
        """A primary steps down first; then nothing more is told to Pacemaker, and what stands there is deleted."""
        self._log("notice", "release ordered by the cluster")
        self._handing_over, self._silent = 0, True
        self._replica.demote(now_ms, min(int(timeout_ms * DRAIN_SHARE), DRAIN_MOST_MS))
        self._waiting.append(Waiting("release", reply, now_ms + int(timeout_ms * 0.95)))

    def adopted_by(self, name: str | None) -> None:
        """The guardian's word: the resource that this daemon belongs to from now on; None after a release."""
        self._adopted = name is not None
        self._silent = name is None
        self._replica.withheld = "" if name is not None else NOT_ADOPTED
        self._log("notice", f"adopted by resource {name}" if name else "released: goes on without Pacemaker")
        if name is not None:
            self._name, self._ordered, self._ordered_texts = name, None, ("", "")

    def _follow_settings(self, settings: dict[str, str | None] | None) -> None:
        """A monitor with other values than the last one: Pacemaker planned anew, and forgot the reload that was due."""
        if settings is None:
            return
        if self._live_settings not in (None, settings):
            self._link.tell(settings=settings)
        self._live_settings = settings

    def _notify(self, found: dict[str, Any]) -> None:
        """A hint, never needed: it is logged, so that the daemon's log tells what the cluster was doing."""
        match found:
            case {"type": str(kind), "operation": str(operation)}:
                nodes = found.get(operation)
                if isinstance(nodes, list) and nodes and all(type(node) is str for node in nodes):
                    self._log("debug", f"notify: {kind:.20}-{operation:.20} of {', '.join(nodes):.400}")

    @staticmethod
    def _reply(reply: Callable[[bytes], None], code: int, reason: str, **more: Any) -> None:
        reply(pack({"v": VERSION, "rc": code, "reason": reason, **more}))

    # --- Turn by turn, after the effects went out ---

    def finish_turn(self, now_ms: int) -> None:
        replica = self._replica
        if replica.role != self.role:
            # A save of this turn may have moved it, behind the tick: the score of the new role comes first.
            replica.tick(now_ms)
            self.role = replica.role
            self._link.tell(role=self.role)
        if not self._silent:
            self._order_score(replica.wish)
            self._order_attribute(now_ms)
            self._report_deposed(now_ms)
        self._waiting = [waiting for waiting in self._waiting if not self._settle(waiting, now_ms)]

    def _order_score(self, wish: Wish) -> None:
        before = self._ordered
        if before and (before.score, before.unless_alone) == (wish.score, wish.unless_alone):
            return
        self._ordered = wish
        self._score_order = self._link.order(score=wish.score, why=wish.why, unless_alone=wish.unless_alone)
        self._log("info", f"promotion score {'none' if wish.score is None else wish.score}: {wish.why}")

    def _order_attribute(self, now_ms: int) -> None:
        text = summary(self._replica, now_ms)
        if text != self._text:
            self._text, self._text_since_ms = text, now_ms
        quiet = now_ms - self._text_since_ms >= ATTRIBUTE_QUIET_MS and not self._waiting
        if quiet and (text, self.keys) != self._ordered_texts:
            self._ordered_texts = text, self.keys
            local = self._replica.local
            store = f"{local.store}, start {local.starts}"  # a copied or rolled-back store shows here, too
            texts = {"state": text, "store": store, "keys": self.keys}  # and two nodes whose keys differ
            self._link.order(attributes={f"{self._name}-{name}": value for name, value in texts.items()})

    def _report_deposed(self, now_ms: int) -> None:
        """A deposed primary gave its score up at once; if the role stays here all the same, it is failed."""
        if not self._replica.deposed or self._waiting:
            self._deposed_ms = None
        elif self._deposed_ms is None:
            self._deposed_ms = now_ms
        elif now_ms - self._deposed_ms >= ROLE_MOVE_MS:
            self._deposed_ms = now_ms + FAIL_AGAIN_MS
            reason = self._replica.failure or "another node is primary"
            self._log("error", f"reporting a failure to the cluster: {reason}")
            self._link.order(fail=reason)

    def _settle(self, waiting: Waiting, now_ms: int) -> bool:
        """Answers a promote or demote once its role is reached and its score is in place."""
        replica = self._replica
        late = now_ms >= waiting.deadline_ms
        if waiting.action in ("adopt", "release"):
            return self._settle_handover(waiting, late)
        placed = late or not self._link.waits_for(self._score_order)
        if waiting.action == "demote":
            if (replica.role == "backup" or late) and placed:
                self._reply(waiting.reply, OCF_SUCCESS, "")
                return True
            return False
        if replica.role == "primary" and placed:
            self._reply(waiting.reply, OCF_SUCCESS, "")
            return True
        if (replica.role == "backup" and placed) or late:
            self._reply(waiting.reply, OCF_ERR_GENERIC, replica.failure or "not promoted in the time given")
            return True
        return False

    def _settle_handover(self, waiting: Waiting, late: bool) -> bool:
        """Answers an adopt or release once the guardian has carried it out, or has not."""
        if waiting.action == "release" and not self._handing_over and self._replica.role == "backup":
            self._handing_over = self._link.order(release=True)
        if not late and (not self._handing_over or self._link.waits_for(self._handing_over)):
            return False
        if self._adopted == (waiting.action == "adopt"):
            self._reply(waiting.reply, OCF_SUCCESS, "")
        else:
            why = self._link.error(self._handing_over) or "not in the time given"
            self._reply(waiting.reply, OCF_ERR_GENERIC, f"{waiting.action} was not carried out: {why}")
        return True


def _read(frame: bytes) -> tuple[dict[str, Any], int]:
    """A request and its timeout_ms. Raises BadFrame."""
    found = unpack(frame, CONTROL_FRAME_MOST_BYTES, REQUEST_ITEMS_MOST)
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise BadFrame(f"a request is a map with v: {VERSION}; agent and daemon are of different versions")
    timeout_ms = found.get("timeout_ms")
    if type(timeout_ms) is not int or not 0 < timeout_ms <= TIMEOUT_MOST_MS:
        raise BadFrame(f"timeout_ms must be a whole number from 1 to {TIMEOUT_MOST_MS}")
    if found.get("action") in ("reload", "adopt") or found.get("settings") is not None:
        settings = found.get("settings")
        if not isinstance(settings, dict) or not all(
            type(name) is str and (value is None or type(value) is str) for name, value in settings.items()
        ):
            raise BadFrame("settings must be a map of texts")
    return found, timeout_ms
