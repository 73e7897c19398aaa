"""What operators see of a running daemon: foodctl's status and the node's attributes. Reads, changes nothing."""

from __future__ import annotations

from typing import Any

from .core.message import Member
from .core.peers import Heard, admission
from .core.replica import ISOLATED, Replica
from .keys import Keys
from .transport import Transport


def summary(replica: Replica, now_ms: int) -> str:
    """One line on this node's state, for `crm_mon -A`. Free of numbers that change all the time."""
    text, agreement = _state(replica, now_ms), replica.agreement
    if agreement.differing and not agreement.odd:  # who is odd says so in so many words
        text += f"; the state of {', '.join(sorted(agreement.differing))} differs"
    return text + (", no space" if replica.local.no_space else "")


def _state(replica: Replica, now_ms: int) -> str:
    epoch = replica.local.promise.number
    wish = replica.wish
    if replica.deposed:
        return f"failed in epoch {epoch}: {replica.failure or 'superseded'}"
    if leading := replica.leading:
        if wish.why == ISOLATED:
            return f"primary, epoch {epoch}, {wish.why}"
        in_sync = len(leading.in_sync(now_ms - replica.isolation_ms))
        text = f"{replica.role}, epoch {epoch}, {in_sync} of {len(replica.local.voters)} in sync"
        return "; ".join([text, *(_leftover(node) for node in left_over(replica))])
    return f"{replica.role}, epoch {epoch}, {wish.why}"


def left_over(replica: Replica) -> list[str]:
    """Nodes that Corosync names no longer, and that vote until an operator ends it."""
    members = replica.local.log.members
    return [m.node for m in members.members if m.node not in replica.local.nodes] if members else []


def _leftover(node: str) -> str:
    return f"{node} left Corosync, still counts: foodctl member remove {node}"


def keys_text(keys: Keys | None) -> str:
    """How this node's tcp ports are kept."""
    return f"keys {keys.name} from {keys.source}" if keys else "PLAINTEXT, anyone can read and write"


def report(replica: Replica, transport: Transport, now_ms: int) -> dict[str, Any]:
    """The answer to a client's "i": this node, the primary as far as known, and every member."""
    local = replica.local
    members = local.log.members
    return {
        "node": local.member.node,
        "cluster": members.cluster if members else None,
        "role": replica.role,
        "epoch": list(local.promise),
        "primary": _primary(replica, transport),
        "commit": local.commit,
        "last": local.log.last.index,
        "applied": local.state.applied,
        "revision": local.state.revision,
        "keys": len(local.state.rows),
        "sessions": len(local.state.sessions),
        "members": [_member(replica, transport, member, now_ms) for member in _known(replica)],
        "self": {
            "store": local.store,
            "starts": local.starts,
            "score": replica.wish.score,
            "why": replica.wish.why,
            "no_space": local.no_space or None,
            "state_hash": f"{local.state.hash:016x}",
            "votes": not replica.agreement.odd,
            "member_list": members.number if members else 0,
            "keys": keys_text(transport.keys),
            "refused": dict(transport.gate.totals),
        },
    }


def _primary(replica: Replica, transport: Transport) -> dict[str, Any] | None:
    if replica.role == "primary":
        return {"node": replica.local.member.node, "endpoint": transport.endpoint}
    if replica.following:
        node = replica.following.primary.node
        return {"node": node, "endpoint": transport.client_endpoint(node)}
    return None


def _known(replica: Replica) -> list[Member]:
    """The voters, then others of Corosync's nodes: those that answered (learners), and those that never did."""
    local = replica.local
    known = list(local.log.members.members) if local.log.members else [local.member]
    others = (heard.member for heard in replica.peers.heard.values() if heard.member.node in local.nodes)
    known += [member for member in others if member not in known]
    if local.member not in known:
        known.append(local.member)
    names = {member.node for member in known}
    return sorted(known) + [Member(node, "") for node in local.nodes if node not in names]


def _member(replica: Replica, transport: Transport, member: Member, now_ms: int) -> dict[str, Any]:
    local = replica.local
    voting = member.store in local.voters
    row: dict[str, Any] = {"node": member.node, "store": member.store, "voting": voting, "answers": False}
    row["differs"] = _differs(replica, member)
    row["endpoint"] = transport.client_endpoint(member.node)
    heard = replica.peers.heard.get(member.store)
    if member.store == local.store:
        lag = replica.following.behind if replica.following else 0
        row |= {
            "answers": True,
            "endpoint": transport.endpoint,
            "role": replica.role,
            "epoch": local.promise.number,
            "last": local.log.last.index,
            "lag": lag,
            "state": _with_snapshot(replica.wish.why, replica.following.received if replica.following else None),
            "score": replica.wish.score,
            "since_s": (now_ms - replica.since_ms) // 1000,
        }
    elif heard:
        row |= _other(replica, heard, now_ms)
    else:
        row |= dict.fromkeys(("role", "epoch", "last", "lag", "score", "since_s"))
        row["state"] = "never answered this process"
    if voting and member.node in left_over(replica):
        row["state"] = f"{row['state']}; {_leftover(member.node)}"
    elif heard and local.log.members and not voting:
        row["state"] = f"learner, {row['state']}: {admission(local.log.members, member.node)}"
    return row


def _other(replica: Replica, heard: Heard, now_ms: int) -> dict[str, Any]:
    answer = heard.answer
    age_ms = now_ms - heard.at_ms
    lag = max(0, replica.local.log.last.index - answer.last.index)
    state = "in sync" if answer.matched else "catching up"
    state = _with_snapshot(state, replica.donor.given(heard.member.store))
    if differs := _differs(replica, heard.member):
        state = f"the state differs at entry {differs['entry']}: {differs['there']}, here {differs['here']}"
    if age_ms > replica.isolation_ms:
        state = f"no answer for {age_ms // 1000} s"
    return {
        "answers": age_ms <= replica.isolation_ms,
        "role": answer.role,
        "epoch": answer.promise.number,
        "last": answer.last.index,
        "lag": lag,
        "state": state,
        "score": answer.score,
        "since_s": answer.since_ms // 1000,
    }


def _differs(replica: Replica, member: Member) -> dict[str, Any] | None:
    """Where another node's state hashes to something else than ours."""
    found = replica.agreement.differing.get(member.node)
    return {"entry": found.index, "here": f"{found.here:016x}", "there": f"{found.there:016x}"} if found else None


def _with_snapshot(state: str, keys: tuple[int, int] | None) -> str:
    if not keys:
        return state
    return f"{state}: snapshot, {keys[0]:,} of {keys[1]:,} keys ({100 * keys[0] // max(1, keys[1])} %)"
