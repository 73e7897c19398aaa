"""`foodctl member`: an operator's wish, step by step, from what the primary's status shows.

`next_step` is pure and looks at one view only, so that a command that was cut short is taken up again by running it
again. That each step is safe is food/core/members.py's business, at the primary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .calls import Behind, ListChanged, OutcomeUnknown, Refused, Unavailable, printable
from .client import Client, Members, Status

WAIT_S = 300.0  # for a new disk to catch up, unless --timeout says otherwise
LOOK_S = 1.0
LEVEL_ENTRIES = 1_000  # a new disk this near to the end may take the place of a lost one

Tell = Callable[[str], None]


class View(NamedTuple):
    """What the primary says of the members."""

    number: int
    voting: dict[str, dict[str, Any]]  # node: row of the store that votes
    learners: dict[str, dict[str, Any]]  # node: row of a store that does not, and is there


class Do(NamedTuple):
    """Ask the primary for this change."""

    op: str
    node: str
    store: str


class Wait(NamedTuple):
    """Not yet: why."""

    why: str


class Done(NamedTuple):
    """Nothing to do (any more)."""

    text: str


def view_of(answer: dict[str, Any]) -> View:
    """Of a node's status, whatever is in it."""
    own, rows = answer.get("self"), answer.get("members")
    number = own.get("member_list") if isinstance(own, dict) else None
    view = View(number if type(number) is int else 0, {}, {})
    for row in rows if isinstance(rows, list) else []:
        match row:
            case {"node": str(node), "store": str(store), "voting": True} if store:
                view.voting[node] = row
            case {"node": str(node), "store": str(store), "answers": True} if store:
                view.learners[node] = row
    return view


def next_step(op: str, node: str, view: View) -> Do | Wait | Done:
    """What is to be done for `op` (add, remove, replace) now. Raises Refused."""
    member, learner = view.voting.get(node), view.learners.get(node)
    if op == "remove":
        return Do("remove", node, member["store"]) if member else Done(f"{node} is no member")
    if member is None:
        if learner:
            return Do("add", node, learner["store"])
        return Wait(f"{node} does not answer: food must run there, and Corosync's node list must name it")
    if learner is None:
        if op == "replace" and not member.get("answers"):
            return Wait(f"{node} shows no new store: food must run there, with an empty data directory")
        return Done(f"{node} is a member with the store that it has")
    if op == "add":
        raise Refused(f"the former store of {node} still counts: foodctl member replace {node}")
    lag = learner.get("lag")
    if type(lag) is not int or lag > LEVEL_ENTRIES:  # the old one goes only when the new one can come at once
        return Wait(f"{node} is {lag if type(lag) is int else '?'} entries behind")
    return Do("remove", node, member["store"])


def change(client: Client, op: str, node: str, force: bool, wait_s: float, tell: Tell) -> Members | Done:
    """Carries `op` out, waiting for what must come first. Raises FoodError; the same command may be run again."""
    deadline = time.monotonic() + wait_s
    while True:
        status = client.status()
        view = view_of(status.answers.get(status.leader or "") or {})
        step = next_step(op, node, view) if status.leader else Wait("nobody is primary: see crm_mon -A1")
        if isinstance(step, Done):
            return step
        if isinstance(step, Do):
            try:
                done = client.change_members(view.number, *step, force)
            except (Behind, ListChanged, OutcomeUnknown, Unavailable) as error:
                step = Wait(str(error))
            else:
                if op == step.op or step.op == "add":
                    return done
                tell(f"the former store of {node} is no member any more (list {done.number})")
                continue
        _wait(step.why, deadline, tell)


def found(client: Client, nodes: Sequence[str], sure: bool, wait_s: float, tell: Tell) -> View:
    """Tells every named node with whom it is to found the cluster, and waits for the founding. Raises FoodError."""
    deadline = time.monotonic() + wait_s
    status = client.status()
    if not any(status.answers.values()):
        raise Unavailable(f"no node answered: {', '.join(status.answers)}")
    if ruling := _founded(status):
        if {*ruling.voting} == {*nodes}:
            return ruling  # done already
        raise Refused(f"founded already: member list {ruling.number} is {', '.join(sorted(ruling.voting))}")
    ways = _ways(status)
    lost = [node for node in nodes if node not in ways]
    if lost:
        raise Refused(f"no way to {', '.join(lost)} is known: food must run there; or name it in --endpoints")
    without = ", ".join(sorted(_named(status) - {*nodes}))
    if without and not sure:
        raise Refused(f"founds an empty cluster without {without}: say --yes if none of them ever had data of it")
    told: list[str] = []
    for node in nodes:
        try:
            client.found(ways[node], nodes)
        except (Refused, Unavailable) as error:
            taken_back = "name every node of Corosync's list instead, or restart food there, to take it back"
            so_far = f"; told already: {', '.join(told)}: {taken_back}" if told else ""
            raise type(error)(f"{node}: {error}{so_far}") from None
        told.append(node)
        tell(f"{node} was told")
    while True:
        status = client.status()
        if ruling := _founded(status):
            return ruling
        answers = [answer for answer in status.answers.values() if answer]
        _wait("; ".join(_why(answer) for answer in answers) or "no node answers", deadline, tell)


def _ways(status: Status) -> dict[str, str]:
    """Where each node answers clients: as asked just now, or as the others say."""
    ways = {row["node"]: row["endpoint"] for row in _rows(status) if isinstance(row.get("endpoint"), str)}
    asked = {printable(answer.get("node")): endpoint for endpoint, answer in status.answers.items() if answer}
    return ways | asked


def _founded(status: Status) -> View | None:
    return next((view for view in map(view_of, filter(None, status.answers.values())) if view.number), None)


def _named(status: Status) -> set[str]:
    """Every node that those that answer know: Corosync's."""
    return {row["node"] for row in _rows(status)}


def _rows(status: Status) -> Iterator[dict[str, Any]]:
    for answer in filter(None, status.answers.values()):
        rows = answer.get("members")
        for row in rows if isinstance(rows, list) else []:
            match row:
                case {"node": str(_)}:
                    yield row


def _why(answer: dict[str, Any]) -> str:
    own = answer.get("self")
    return f"{printable(answer.get('node'))}: {printable(own.get('why')) if isinstance(own, dict) else '?'}"


def _wait(why: str, deadline: float, tell: Tell) -> None:
    if time.monotonic() >= deadline:
        raise Unavailable(f"{why}; run the same command again to go on")
    tell(why)
    time.sleep(LOOK_S)


def meaning(members: Sequence[str]) -> str:
    """What a list of so many means for writes."""
    if len(members) == 1:
        return f"{members[0]} is alone: what is written is on one disk only"
    if len(members) == 2:
        return "both must be up for writes"
    return f"any {len(members) // 2 + 1} of {len(members)} suffice for writes"
