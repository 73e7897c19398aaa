"""Changes of the member list by command: what must hold before the primary makes the next list.

Any change that food/core/leading.py accepts is safe. The rules here keep an operator from a list that cannot commit
anything: a list rules from its append, and if the disks of its majority are gone, nobody can ever undo it. So `force`
may cost time (members that have yet to catch up), but never waives that a majority of the new list answers now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from . import quorum
from .local import Local
from .message import Member, MemberList
from .state import Result

ANSWERING_MS = 1_500  # a round trip this recent: its node is there
LEVEL_ENTRIES = 1_000  # so few entries behind is caught up: under load every backup is some batches behind


class Change(NamedTuple):
    """What an operator asks for. Sent again it harms nothing: it makes list `number` + 1, or none."""

    number: int  # of the list that the operator looked at
    op: str  # "add" or "remove"
    member: Member
    force: bool


def parse(body: list[Any]) -> Change | None:
    """The change in a request's body [op, number, node, store, force]; None if it is none."""
    match body:
        case ["add" | "remove" as op, int(number), str(node), str(store), bool(force)] if node and store:
            return Change(number, op, Member(node, store), force)
    return None


def next_list(
    change: Change, local: Local, answering: Collection[Member], behind: Callable[[str], int]
) -> MemberList | Result:
    """The list that `change` makes, or what to answer instead.

    `answering` are the other nodes that are there; `behind` is how many entries a store lacks.
    """
    current = local.log.members
    assert current is not None, "a primary's log was founded"
    if local.log.members_index > local.commit:
        return Result("busy", {"text": "the former change of members is not committed yet: try again"})
    if (change.member in current.members) == (change.op == "add"):
        return Result(0, current)  # done already: the answer was lost, or somebody else did it
    if change.number != current.number:
        text = f"member list {current.number} rules by now, not {change.number}: look at it again"
        return Result("list_changed", {"text": text})
    wanted = _added(change, current, local, answering) if change.op == "add" else _left(change, current, local)
    if isinstance(wanted, Result):
        return wanted
    new = MemberList(current.number + 1, current.cluster, wanted)
    return _committable(change, new, {local.store, *(member.store for member in answering)}, behind) or new


def _added(
    change: Change, current: MemberList, local: Local, answering: Collection[Member]
) -> tuple[Member, ...] | Result:
    node, store = change.member
    if any(member.node == node for member in current.members):
        return _refuse(f"the former store of {node} still counts: foodctl member replace {node}")
    if node not in local.nodes:
        return _refuse(f"{node} is not in Corosync's node list: add it there first")
    if change.member not in answering:
        return _refuse(f"{node} does not answer with store {store}: food must run there and reach the primary")
    return tuple(sorted((*current.members, change.member)))


def _left(change: Change, current: MemberList, local: Local) -> tuple[Member, ...] | Result:
    if change.member == local.member:
        return _refuse(f"{change.member.node} is the primary: move the role first (pcs resource move … --promoted)")
    return tuple(member for member in current.members if member != change.member)


def _committable(
    change: Change, new: MemberList, present: Collection[str], behind: Callable[[str], int]
) -> Result | None:
    """Why the new list would not commit now. Whoever is added must be level in any case: it raises the majority."""
    silent = [member.node for member in new.members if member.store not in present]
    if not quorum.holds(new.stores, present):
        without = "without" if change.op == "remove" else "with"
        names = ", ".join(silent)
        return _refuse(f"no answer from {names}: a list {without} {change.member.node} could not commit anything")
    lacking = {member: behind(member.store) for member in new.members if member.store in present}
    late = {member: count for member, count in lacking.items() if count > LEVEL_ENTRIES}
    level = [member.store for member in lacking if member not in late]
    if change.op == "add" and change.member in late:
        return _behind({change.member: late[change.member]}, "wait")
    if not change.force and not quorum.holds(new.stores, level):
        return _behind(late, "wait, or --force: writes then wait until they have caught up")
    return None


def _behind(late: dict[Member, int], remedy: str) -> Result:
    names = ", ".join(f"{member.node} is {count} entries behind" for member, count in sorted(late.items()))
    return Result("behind", {"text": f"{names}: {remedy}", "behind": max(late.values())})


def _refuse(text: str) -> Result:
    return Result("refused", {"text": text})
