"""The agent's requests: monitor, promote, demote, notify, reload, status (OCF resource agent API 1.1).

Promote and demote answer only once the promotion score that belongs to the new situation is in place: otherwise the
role bounces back as soon as `pcs resource move` removes its constraint. Knows the replica and the guardian's link;
knows no Pacemaker tool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .codec import FRAME_MOST_BYTES, BadFrame, pack, unpack
from .core.peers import Wish
from .core.replica import Replica
from .link import Link
from .status import summary

OCF_SUCCESS, OCF_ERR_GENERIC, OCF_ERR_ARGS = 0, 1, 2
OCF_RUNNING_PROMOTED, OCF_FAILED_PROMOTED = 8, 9
OCF_DEGRADED, OCF_DEGRADED_PROMOTED = 190, 191

VERSION = 1
PROMOTE_SHARE = 0.8  # of an action's budget; the rest is for the score and the way back
DRAIN_SHARE = 0.2
DRAIN_MOST_MS = 2_000
ROLE_MOVE_MS = 3_000  # a deposed primary gave its score up; the role must have moved by then
FAIL_AGAIN_MS = 30_000
ATTRIBUTE_QUIET_MS = 1_500  # an attribute written during a transition makes Pacemaker plan it anew


class Waiting(NamedTuple):
    """A promote or demote that is under way."""

    action: str
    reply: Callable[[bytes], None]
    deadline_ms: int


class Control:
    def __init__(self, replica: Replica, link: Link, name: str, log: Callable[[str, str], None], now_ms: int):
        self.degraded = False
        self._replica = replica
        self._link = link
        self._attribute = f"{name}-state"
        self._log = log
        self._waiting: list[Waiting] = []
        self._ordered: Wish | None = None
        self._score_order = 0
        self._role = ""
        self._text = ""
        self._text_since_ms = now_ms
        self._text_ordered = ""
        self._deposed_ms: int | None = None

    # --- Requests ---

    def request(self, frame: bytes, reply: Callable[[bytes], None], now_ms: int) -> dict[str, Any] | None:
        """Handles one frame of the agent. Returns new settings when it was a reload."""
        try:
            found = unpack(frame, FRAME_MOST_BYTES)
            if not isinstance(found, dict) or found.get("v") != VERSION:
                raise BadFrame(f"a request is a map with v: {VERSION}; agent and daemon are of different versions")
            action, timeout_ms = found.get("action"), found.get("timeout_ms")
            if type(timeout_ms) is not int or timeout_ms <= 0:
                raise BadFrame("timeout_ms must be a whole number above 0")
        except BadFrame as error:
            self._reply(reply, OCF_ERR_GENERIC, f"the daemon refused the request: {error}")
            return None
        match action:
            case "monitor":
                self._restore_score(found.get("probe") is True)
                self._reply(reply, *self.monitor(now_ms))
            case "promote":
                self._log("notice", "promote ordered by the cluster")
                self._replica.promote(now_ms, now_ms + int(timeout_ms * PROMOTE_SHARE))
                self._waiting.append(Waiting("promote", reply, now_ms + int(timeout_ms * 0.95)))
            case "demote":
                self._log("notice", "demote ordered by the cluster")
                self._replica.demote(now_ms, min(int(timeout_ms * DRAIN_SHARE), DRAIN_MOST_MS))
                self._waiting.append(Waiting("demote", reply, now_ms + int(timeout_ms * 0.95)))
            case "notify":
                self._notify(found)
                self._reply(reply, OCF_SUCCESS, "")
            case "reload":
                self._reply(reply, OCF_SUCCESS, "")
                settings = found.get("settings")
                return settings if isinstance(settings, dict) else {}
            case "status":
                self._reply(reply, OCF_SUCCESS, "", status=summary(self._replica, now_ms))
            case _:
                self._reply(reply, OCF_ERR_GENERIC, f"the daemon knows no action {action!r}")
        return None

    def monitor(self, now_ms: int) -> tuple[int, str]:
        """The OCF exit code of this node's state, and its reason."""
        replica = self._replica
        if replica.deposed:
            return OCF_FAILED_PROMOTED, replica.failure or "another node is primary"
        renewing = replica.promotion is not None and not any(w.action == "promote" for w in self._waiting)
        if replica.role == "primary" or renewing:
            if self.degraded and replica.leading:
                in_sync = replica.leading.in_sync(now_ms - replica.isolation_ms)
                if len(in_sync) < len(replica.local.voters):
                    return OCF_DEGRADED_PROMOTED, summary(replica, now_ms)
            return OCF_RUNNING_PROMOTED, ""
        level = replica.wish.why == "in sync" or replica.role == "candidate"
        return (OCF_DEGRADED, summary(replica, now_ms)) if self.degraded and not level else (OCF_SUCCESS, "")

    def _restore_score(self, probe: bool) -> None:
        """A probe adopts a running primary, but Pacemaker demotes one without a score: set it again."""
        if probe:
            self._ordered = None

    def _notify(self, found: dict[str, Any]) -> None:
        """A hint, never needed: it is logged, so that the daemon's log tells what the cluster was doing."""
        what = f"{found.get('type')}-{found.get('operation')}"
        nodes = found.get(str(found.get("operation")))
        if isinstance(nodes, list) and nodes:
            self._log("debug", f"notify: {what} of {', '.join(map(str, nodes))}")

    @staticmethod
    def _reply(reply: Callable[[bytes], None], code: int, reason: str, **more: Any) -> None:
        reply(pack({"v": VERSION, "rc": code, "reason": reason, **more}))

    # --- Every turn, after the effects went out ---

    def finish_turn(self, now_ms: int) -> None:
        replica = self._replica
        if replica.role != self._role:
            self._role = replica.role
            self._link.tell(role=self._role)
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
        if quiet and text != self._text_ordered:
            self._text_ordered = text
            self._link.order(attributes={self._attribute: text})

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
