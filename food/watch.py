"""What the guardian decides: which tool to run next, when to kill, when to report a failure, when to leave.

Pure: events and the time go in; jobs, answers to the daemon and log lines come out. Knows neither processes nor command
lines. Everything wanted of Pacemaker is kept as a wish beside what is believed to stand there, and the
next job is whatever closes the difference; so a lost score, a failed tool and a new order are the same case.
"""

from collections.abc import Iterator

# A dead primary's role moves 0.15 to 0.2 s after its score is gone; past this the failure is injected.
ROLE_MOVE_LIMIT_S = 3.0
# A candidate's promote fails by itself as the agent sees the daemon's lock free; injecting at once would count twice.
CANDIDATE_PATIENCE_S = 0.5
# A reported failure that brings no stop is reported again (Pacemaker may be restarting, or the resource unmanaged).
REPORT_AGAIN_FIRST_S = 10.0
REPORT_AGAIN_MOST_S = 300.0
# Not while Pacemaker has just forgotten the node's history (pcs resource cleanup) and not looked anew: such a failure
# gets the call number 999999999, is newer than every start that follows, and is recovered again and again [seen].
HISTORY_AGAIN_S = 1.0
# A store of 1 GiB is read and checked at every start: some 5 s of processor time, and what a cold disk takes. Below the
# agent's start timeout of 60 s, so that the reason is heard.
START_LIMIT_S = 50.0
SCORE_CHECK_S = 2.0
SCORE_FIRST_CHECK_S = 0.5
CIB_LAG_S = 5.0  # an older score may stand in the CIB for so long behind attrd, on a busy cluster
NO_SCORE_CHECK_S = 10.0
SURRENDER_CHECK_S = 0.5
ATTRIBUTE_CHECK_S = 15.0
NODES_READ_S = 5.0
# Every write of a transient attribute makes Pacemaker plan again: attributes keep out of the way of a moving role.
ATTRIBUTE_QUIET_S = 1.5
ATTRIBUTE_WAIT_MOST_S = 10.0
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 10.0
ORDER_TRIES = 3  # after so many failed tries the daemon is told; the wish stays
STOP_TOOLS_LIMIT_S = 2.0
STOP_GRACE_S = 3.0
# A dead daemon that was started outside Pacemaker is a member that is missed: whoever started it shall start it again,
# even if Pacemaker asks for no stop (it is in maintenance, say). Past the first report, so that one was made.
LEAVE_S = 15.0
ATTRIBUTES_MOST = 64

UNKNOWN = object()  # what stands in the CIB is not known
LOST = object()  # the CIB has lost what attrd believes: only deleting and setting again helps


class Job:
    """One call of a tool. kind: set_score, delete_score, get_score, get_other, set_attribute, delete_attribute,
    get_attribute, get_history, fail, nodes."""

    __slots__ = ("kind", "name", "urgent", "value")

    def __init__(self, kind: str, name: str = "", value: object = None, *, urgent: bool = False) -> None:
        self.kind = kind
        self.name = name
        self.value = value
        self.urgent = urgent  # does not wait for a running tool

    def __repr__(self) -> str:
        return f"Job({self.kind}{self.name and ' ' + self.name}{'' if self.value in (None, '') else f' {self.value}'})"


class Retry:
    """When one kind of thing may be tried again; logs once per change, not once per try."""

    __slots__ = ("at", "failures", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.at = 0.0
        self.failures = 0

    def failed(self, now: float, text: str) -> str | None:
        self.at = now + min(RETRY_FIRST_S * 2 ** min(self.failures, 10), RETRY_MOST_S)
        self.failures += 1
        return f"{self.what} failed: {text}; will be tried again" if self.failures == 1 else None

    def at_once(self) -> None:
        """What is wanted now has not been tried yet."""
        self.at, self.failures = 0.0, 0

    def worked(self) -> str | None:
        tries, self.failures, self.at = self.failures, 0, 0.0
        return f"{self.what} works again after {tries} failed tries" if tries else None


class Watch:
    """`external`: started outside Pacemaker. Nothing is told to it, and no failure reported, but for as long as a
    resource has adopted the daemon."""

    def __init__(self, now: float, watchdog_ms: int, *, external: bool = False) -> None:
        self.watchdog_ms = watchdog_ms
        self.external = external
        self.adopted = not external
        self._release_order: int | None = None
        self._release_at = 0.0
        self._leave_at: float | None = None
        # starting → up → dead, and stopping from any of them
        self.phase = "starting"
        self.role = "starting"
        self.daemon_lives = True
        self.reason = ""
        self.answers: list[tuple[int, str | None]] = []
        self.log: list[tuple[str, str]] = []
        self._spawned = now
        self._last_beat: float | None = None
        self._announced_end = ""
        # score
        self.score_wanted: object = UNKNOWN  # until the first order
        self.score_believed: object = UNKNOWN
        self._score_why = ""
        self._score_order: int | None = None
        self._score_check_at = 0.0
        self._score_mismatches = 0
        self._score_written_at = 0.0
        self._score_tries = Retry("writing the promotion score")
        self._surrender = False  # the score goes as soon as another node shows one
        self._others: list[str] = []
        self._surrender_at = 0.0
        # attributes: name → text, None for "delete"
        self.attributes_wanted: dict[str, str | None] = {}
        self.attributes_believed: dict[str, object] = {}
        self._attribute_tries = Retry("writing node attributes")
        self._attribute_check_at = 0.0
        self._to_check: list[str] = []
        self._quiet_until = 0.0
        self._waiting_since: float | None = None
        # failure report
        self.report_at: float | None = None
        self._report_orders: list[int] = []
        self._report_text = ""
        self._report_tries = Retry("reporting the failure")
        self._reports = 0
        self._told = False  # a failure was reported before
        self._remembered = False  # Pacemaker was seen to remember this node's actions
        self._moved = False
        # nodes
        self.nodes: list[str] = []
        self.nodes_error = ""  # why there is no list yet
        self.node = ""
        self._nodes_at = 0.0
        self._nodes_tries = Retry("reading Corosync's node list")
        # stop
        self._stop_at = 0.0
        self._running: list[Job] = []

    # Events from the daemon

    def beat(self, now: float) -> None:
        self._last_beat = now

    def overslept(self, seconds: float) -> None:
        """The guardian itself stood still (a paused machine): the daemon is not blamed for that time."""
        if self._last_beat is not None:
            self._last_beat += seconds

    def role_is(self, role: str, now: float) -> None:
        self.role = role
        self._quiet(now)
        if role != "starting" and self.phase == "starting":
            self.phase = "up"

    def order_score(self, order: int, score: int | None, why: str, unless_alone: bool, now: float) -> None:
        if not self._may_speak(order):
            return
        self._answer_score(None)  # superseded
        self._quiet(now)
        if unless_alone and score is None:
            self._surrender, self._surrender_at, self._others = True, now, []
            self._score_why = why
            self.answers.append((order, None))
            return
        self._surrender = False
        if score != self.score_wanted:
            # The daemon logs its own wishes.
            self._say("debug", f"promotion score {score if score is not None else 'deleted'}: {why}")
        self.score_wanted, self._score_why, self._score_order = score, why, order
        self._new_score()
        if score is not None:
            self.report_at = None  # what was to be reported is over
            self._answer_reports("the daemon may be promoted again")
        if self._score_settled():
            self._answer_score(None)

    def order_attributes(self, order: int, attributes: dict[str, str | None], now: float) -> None:
        """Answered at once: attributes are for people, and nothing waits for them."""
        if not self._may_speak(order):
            return
        if len(self.attributes_wanted.keys() | attributes.keys()) > ATTRIBUTES_MOST:
            self.answers.append((order, f"more than {ATTRIBUTES_MOST} attributes"))
            return
        self.attributes_wanted.update(attributes)
        self.answers.append((order, None))

    def order_fail(self, order: int, why: str, now: float) -> None:
        if not self._may_speak(order):
            return
        self._report_orders.append(order)
        self._report_text = why
        self.report_at = now

    def adopt(self) -> None:
        """A resource takes this daemon over; what is wanted of Pacemaker follows from the daemon's next orders."""
        if not self.adopted:
            self.adopted = True
            self.score_wanted = self.score_believed = UNKNOWN

    def order_release(self, order: int, now: float) -> None:
        """Score and attributes go; answered when they are gone, or when that took too long."""
        if not self.adopted or self.phase == "stopping":
            self.answers.append((order, None))
            return
        self._release_order, self._release_at = order, now
        self._withdraw()

    def cleared(self, now: float) -> bool:
        """Whether score and attributes are as they are wanted: in the end, gone."""
        return not self._under_way() and next(self._jobs(now + RETRY_MOST_S), None) is None

    def _under_way(self) -> bool:
        """Whether a tool runs that changes something."""
        return any(job.kind.startswith(("set", "delete", "fail")) for job in self._running)

    def released(self, now: float) -> bool:
        """Whether a release has come to its end just now: the resource's name is not needed any more."""
        if self._release_order is None:
            return False
        cleared = self.cleared(now)
        if not cleared and now - self._release_at < STOP_TOOLS_LIMIT_S:
            return False
        error = None if cleared else "score and attributes could not be deleted in time"
        self.answers.append((self._release_order, error))
        self._release_order = None
        if cleared:
            self.adopted = False
            self.score_wanted = UNKNOWN
            self.attributes_wanted.clear()
            self.attributes_believed.clear()
            self._to_check.clear()
        return cleared

    def exiting(self, why: str) -> None:
        self._announced_end = why

    # Events from outside

    def died(self, text: str, now: float) -> None:
        """The daemon is gone, unasked unless a stop runs."""
        self.daemon_lives = False
        self.answers.clear()
        self._report_orders.clear()
        self._score_order = None
        releasing, self._release_order = self._release_order is not None, None
        if self.phase == "stopping":
            return
        never_up = self.phase == "starting" or not self.adopted
        self.phase = "dead"
        self.reason = self._announced_end or self.reason or text
        self._say("error", f"the daemon is gone ({self.role}): {self.reason}")
        self._surrender = False
        if never_up:
            # The agent's start still waits, sees the lock free and says why, or Pacemaker knows nothing of this
            # daemon: nothing to inject.
            self.terminate(now)
            return
        # Even where none is believed to stand: a tool that is killed for this may still have set it.
        self.score_wanted, self.score_believed, self._score_why = None, UNKNOWN, "the daemon is gone"
        self._new_score()
        patience_s = {"primary": ROLE_MOVE_LIMIT_S, "candidate": CANDIDATE_PATIENCE_S}.get(self.role, 0.0)
        self.report_at = None if releasing else now + patience_s
        self._report_text = self.reason
        self._leave_at = now + LEAVE_S if self.external else None

    def role_moved(self, now: float) -> None:
        """The agent's demote left its mark: Pacemaker knows, and the monitor that follows the demote says the rest."""
        if self.awaits_role_move():
            self._moved = True
            self.report_at = now + REPORT_AGAIN_FIRST_S

    def awaits_role_move(self) -> bool:
        return self.phase == "dead" and self.role == "primary" and not self._moved

    def terminate(self, now: float) -> None:
        if self.phase == "stopping":
            return
        self.phase = "stopping"
        self._stop_at = now
        if self.adopted:
            self._withdraw()

    def leave(self, now: float) -> None:
        """Ends a guardian whose dead daemon somebody outside starts again, where no stop came."""
        if self._leave_at is not None and now >= self._leave_at and self.phase == "dead":
            self.terminate(now)

    def _withdraw(self) -> None:
        """Nothing of this node shall stand in Pacemaker any more."""
        self.report_at = None  # a stop cancels a pending injection
        self._surrender = False
        self.score_wanted = None
        self.attributes_wanted = dict.fromkeys([*self.attributes_wanted, *self.attributes_believed])
        self._new_score()
        self._attribute_tries.at_once()

    @property
    def _withdrawing(self) -> bool:
        return self.phase == "stopping" or self._release_order is not None

    # Verdicts on the daemon

    def condemned(self, now: float) -> str | None:
        """Why the daemon must be killed now."""
        if not self.daemon_lives:
            return None
        if self.phase == "stopping":
            late = now - self._stop_at >= STOP_GRACE_S
            return f"the daemon did not end within {STOP_GRACE_S:.0f} s of being asked" if late else None
        if self._last_beat is None:
            late = now - self._spawned >= START_LIMIT_S
            waits = self.nodes_error and f": {self.nodes_error}"
            return f"the daemon did not come up within {START_LIMIT_S:.0f} s{waits}" if late else None
        if now - self._last_beat >= self.watchdog_ms / 1000:
            return f"the daemon's loop stood still for {(now - self._last_beat) * 1000:.0f} ms"
        return None

    def killed(self, why: str) -> None:
        self.reason = why

    def finished(self, now: float) -> bool:
        if self.phase != "stopping" or self.daemon_lives:
            return False
        if now - self._stop_at >= STOP_TOOLS_LIMIT_S:
            return True
        return not self._under_way() and next(self._jobs(now + RETRY_MOST_S), None) is None

    # Jobs

    def next_job(self, now: float, busy: bool) -> Job | None:
        """The most pressing thing to do now. One tool runs at a time, but at a stop, and for a dead daemon's score."""
        for job in self._jobs(now):
            if busy and not job.urgent and not self._withdrawing:
                return None
            if any(job.kind == other.kind and job.name == other.name for other in self._running):
                continue
            self._running.append(job)
            if job.kind == "fail":
                self.report_at, self._remembered = None, False
            elif job.kind == "get_history":
                self.report_at = now + HISTORY_AGAIN_S
            return job
        return None

    def _jobs(self, now: float) -> Iterator[Job]:
        if now >= self._score_tries.at and not self._score_settled():
            yield self._score_job()
        if self._withdrawing:
            if now >= self._attribute_tries.at:
                yield from self._attribute_jobs()
            return
        if self.report_at is not None and now >= max(self.report_at, self._report_tries.at):
            # The first one is in a hurry, and what it is about is new to Pacemaker.
            yield Job("get_history") if self._told and not self._remembered else Job("fail", value=self._report_text)
        if now >= self._nodes_at and now >= self._nodes_tries.at and self.daemon_lives:
            yield Job("nodes")
        if self._surrender and self._score_there():
            if not self._others and now >= self._surrender_at:
                self._others = [name for name in self.nodes if name != self.node]
                self._surrender_at = now + SURRENDER_CHECK_S
            if self._others:
                yield Job("get_other", self._others[0])
        if self._score_settled() and self.score_wanted is not UNKNOWN and now >= self._score_check_at:
            yield Job("get_score")
        if now >= self._attribute_tries.at:
            yield from self._calm_attribute_jobs(now)

    def _score_job(self) -> Job:
        urgent = not self.daemon_lives
        if self.score_wanted is None or self.score_believed is LOST:
            return Job("delete_score", value=self._score_why, urgent=urgent)
        return Job("set_score", value=self.score_wanted)

    def _calm_attribute_jobs(self, now: float) -> Iterator[Job]:
        pending = list(self._attribute_jobs())
        if not pending:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if pending and self._waiting_since is not None:
            if now >= min(self._quiet_until, self._waiting_since + ATTRIBUTE_WAIT_MOST_S):
                yield from pending
            return
        if not self._to_check and now >= self._attribute_check_at:
            self._attribute_check_at = now + ATTRIBUTE_CHECK_S
            self._to_check = [name for name, value in self.attributes_wanted.items() if value is not None]
        if self._to_check and now >= self._quiet_until:
            yield Job("get_attribute", self._to_check[0])

    def _attribute_jobs(self) -> Iterator[Job]:
        for name, value in self.attributes_wanted.items():
            believed = self.attributes_believed.get(name, UNKNOWN)
            if believed == value:
                continue
            if value is None or believed is LOST:
                yield Job("delete_attribute", name)
            else:
                yield Job("set_attribute", name, value)

    # Results

    def done(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        """A tool ended. `value` is what a question found; `text` says what went wrong."""
        if job in self._running:
            self._running.remove(job)
        handler = {
            "set_score": self._score_written,
            "delete_score": self._score_written,
            "get_score": self._score_found,
            "get_other": self._other_found,
            "set_attribute": self._attribute_written,
            "delete_attribute": self._attribute_written,
            "get_attribute": self._attribute_found,
            "get_history": self._history_found,
            "fail": self._reported,
            "nodes": self._nodes_read,
        }[job.kind]
        handler(job, worked, value, text, now)

    def voids(self, job: Job) -> bool:
        """Whether a tool that runs must be killed: it sets what is to be deleted, and beside the deletion nobody could
        tell which of the two came last; or it reports a failure of what is being stopped."""
        return self._withdrawing and job.kind in ("set_score", "set_attribute", "fail")

    def dropped(self, job: Job) -> None:
        """A tool was killed because something more pressing stands in its place. It may have done its work."""
        self._running.remove(job)
        if job.kind == "set_score":
            self.score_believed = UNKNOWN
        if job.kind == "set_attribute":
            self.attributes_believed[job.name] = UNKNOWN
        if job.kind == "fail" and self.report_at is None and not self._withdrawing:
            self.report_at = 0.0

    def running(self) -> tuple[Job, ...]:
        return tuple(self._running)

    def _score_written(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if not worked:
            self.score_believed = UNKNOWN if self.score_believed is not LOST else LOST
            self._say_if("warning", self._score_tries.failed(now, text))
            if self._score_tries.failures >= ORDER_TRIES:
                self._answer_score(text or "the promotion score could not be written")
            return
        self._say_if("notice", self._score_tries.worked())
        self.score_believed = job.value if job.kind == "set_score" else None
        self._score_written_at, self._score_check_at = now, now + SCORE_FIRST_CHECK_S
        self._quiet(now)
        if self._score_settled():
            self._answer_score(None)

    def _score_found(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if self.score_wanted is UNKNOWN:
            return  # released meanwhile
        self._score_check_at = now + (SCORE_CHECK_S if self._score_there() else NO_SCORE_CHECK_S)
        if not worked or not self._score_settled():
            return
        if value == self.score_wanted:
            self._score_mismatches = 0
            return
        if self._score_mismatches and value is not None and now - self._score_written_at < CIB_LAG_S:
            self._score_check_at = now + SCORE_FIRST_CHECK_S
            return
        wanted = "deleted" if self.score_wanted is None else f"set to {self.score_wanted}"
        there = "gone" if value is None else value
        self._say("warning", f"the promotion score was {wanted}, and is {there} in the CIB: restoring it")
        if value is None:
            self._attribute_check_at = now  # what lost the score has hardly kept the attributes
        # Deleting would take the role from a healthy primary; it is right only where nothing is left to delete, or
        # where setting did not help: attrd writes nothing when it believes that the value stands already.
        self.score_believed = LOST if value is None or self._score_mismatches else value
        self._score_mismatches += 1

    def _new_score(self) -> None:
        """What is wanted is another one from now on: at once, and whatever stood before is no sign of a loss."""
        self._score_tries.at_once()
        self._score_mismatches = 0

    def _other_found(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if self._others and self._others[0] == job.name:
            self._others.pop(0)
        if not (self._surrender and worked and isinstance(value, int) and value >= 0):
            return
        self._surrender = False
        self._say("info", f"promotion score deleted, {job.name} shows {value}: {self._score_why}")
        self.score_wanted = None
        self._new_score()

    def _attribute_written(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if not worked:
            self.attributes_believed[job.name] = UNKNOWN
            self._say_if("warning", self._attribute_tries.failed(now, text))
            return
        self._say_if("notice", self._attribute_tries.worked())
        self.attributes_believed[job.name] = job.value if job.kind == "set_attribute" else None
        self._attribute_check_at = max(self._attribute_check_at, now + ATTRIBUTE_QUIET_S)

    def _attribute_found(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if self._to_check and self._to_check[0] == job.name:
            self._to_check.pop(0)
        wanted = self.attributes_wanted.get(job.name)
        if worked and wanted is not None and value != wanted and self.attributes_believed.get(job.name) == wanted:
            self._say("info", f"node attribute {job.name} was {wanted!r}, and is {value!r} in the CIB: restoring it")
            self.attributes_believed[job.name] = LOST

    def _history_found(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if not worked:
            self._say_if("warning", self._report_tries.failed(now, text))
        elif value and self.report_at is not None:
            self.report_at, self._remembered = now, True

    def _reported(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if self._withdrawing:
            return
        if not worked:
            self._say_if("warning", self._report_tries.failed(now, text))
            self.report_at = now
            if self._report_tries.failures >= ORDER_TRIES:
                self._answer_reports(text or "the failure could not be reported")
            return
        self._say("notice", f"failure reported to Pacemaker: {job.value}")
        self._say_if("notice", self._report_tries.worked())
        self._answer_reports(None)
        self._told = True
        if not self.daemon_lives:
            self.report_at = now + min(REPORT_AGAIN_FIRST_S * 2 ** min(self._reports, 10), REPORT_AGAIN_MOST_S)
            self._reports += 1

    def _nodes_read(self, job: Job, worked: bool, value: object, text: str, now: float) -> None:
        if worked:
            self._nodes_at, self.nodes_error = now + NODES_READ_S, ""
            self._say_if("notice", self._nodes_tries.worked())
        else:
            self.nodes_error = text
            self._say_if("warning", self._nodes_tries.failed(now, text))

    # Time

    def wake_at(self, now: float) -> float:
        """When to look again although nothing happened. What is overdue waits for a running tool, whose end wakes."""
        times = [now + 1.0]
        if self.daemon_lives and self.phase != "stopping":
            start = self._spawned + START_LIMIT_S
            times.append(start if self._last_beat is None else self._last_beat + self.watchdog_ms / 1000)
            times.append(max(self._nodes_at, self._nodes_tries.at))
        if self.phase == "stopping":
            times.append(self._stop_at + (STOP_GRACE_S if self.daemon_lives else STOP_TOOLS_LIMIT_S))
        if self._release_order is not None:
            times.append(self._release_at + STOP_TOOLS_LIMIT_S)
        if self._leave_at is not None:
            times.append(self._leave_at)
        for retry in (self._score_tries, self._attribute_tries, self._report_tries):
            if retry.failures:
                times.append(retry.at)
        if self.report_at is not None:
            times.append(max(self.report_at, self._report_tries.at))
        if self._surrender:
            times.append(self._surrender_at)
        if self.score_wanted is not UNKNOWN and self.phase != "stopping":
            times.append(self._score_check_at)
        if self._waiting_since is not None:
            times.append(min(self._quiet_until, self._waiting_since + ATTRIBUTE_WAIT_MOST_S))
        if self.awaits_role_move():
            times.append(now + 0.05)
        return min(time for time in times if time > now)

    # Small helpers

    def _score_settled(self) -> bool:
        return self.score_wanted is UNKNOWN or self.score_wanted == self.score_believed

    def _score_there(self) -> bool:
        return isinstance(self.score_wanted, int)

    def _quiet(self, now: float) -> None:
        self._quiet_until = now + ATTRIBUTE_QUIET_S

    def _may_speak(self, order: int) -> bool:
        """Whether Pacemaker may be told anything of this daemon; an order that may not is answered. Once a stop or a
        release runs none may: the daemon sent it before it knew, and nobody would take back what it set."""
        if self.adopted and self.daemon_lives and not self._withdrawing:
            return True
        why = "no resource has adopted this daemon"
        if self.adopted:
            why = "a stop or a release is under way" if self.daemon_lives else "the daemon is gone"
        self.answers.append((order, why))
        return False

    def _answer_score(self, error: str | None) -> None:
        if self._score_order is not None:
            self.answers.append((self._score_order, error))
            self._score_order = None

    def _answer_reports(self, error: str | None) -> None:
        self.answers += [(order, error) for order in self._report_orders]
        self._report_orders.clear()

    def _say(self, level: str, text: str) -> None:
        self.log.append((level, text))

    def _say_if(self, level: str, text: str | None) -> None:
        if text:
            self.log.append((level, text))
