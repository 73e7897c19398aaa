"""`foodctl`: what operators and scripts type. Words and exit codes are here; requests are food/client.py's."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import zmq

from .bench import CLIENTS_MOST, Figures, bench
from .calls import CompareFailed, FoodError, OutcomeUnknown, Unavailable, printable, show
from .client import RANGE_LIMIT, TIMEOUT_S, Client, Status, default_endpoints, own_socket, split_endpoints
from .codec import shown
from .keyring import ask
from .keys import client_file
from .member import WAIT_S, Done, change, found, meaning, view_of
from .settings import INSECURE

EXIT_CODES = """\
exit codes:
  0   done
  1   get: no such key; status: nobody is primary
  2   wrong usage
  3   no primary answered in time; nothing was changed
  4   outcome unknown: the write took effect once, or not at all
  5   put --if-revision: the key is at another revision
  6   refused (too large, no space, malformed), or an answer that was not understood
  130 interrupted; a write under way has an unknown outcome
"""
WORD_MOST = 60  # characters of a name or a number that a server says
KINDS_MOST = 40  # of refusals
AGO_MOST_S = 10**12
STATE_MOST = 200  # characters of a member's state: a remedy is in it
NOT_THERE, USAGE, UNAVAILABLE, UNKNOWN, COMPARE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(options, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # else the interpreter complains at its end
        return 0
    except CompareFailed as error:
        return _fail(options, str(error), COMPARE, revision=error.revision)
    except OutcomeUnknown as error:
        return _fail(options, str(error), UNKNOWN)
    except Unavailable as error:
        return _fail(options, str(error), UNAVAILABLE)
    except (FoodError, OSError) as error:
        return _fail(options, str(error), REFUSED)
    except ValueError as error:  # an endpoint that is none
        return _fail(options, str(error), USAGE)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="foodctl",
        description="Reads, writes and inspects the replicated state of food.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(top, {})
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        _common(made, {"default": argparse.SUPPRESS})  # they may stand before the command or after it
        made.set_defaults(run=run)
        return made

    put = command("put", _put, "Sets a key.")
    put.add_argument("key")
    put.add_argument("value", help="- reads it from standard input")
    put.add_argument(
        "--if-revision", type=_count, metavar="N", help="only if the key is at this revision (0: if it is absent)"
    )
    get = command("get", _get, "Prints the value of a key.")
    get.add_argument("key")
    get.add_argument("--stale", action="store_true", help="from any node, even without a primary; may be old")
    delete = command("del", _delete, "Deletes a key.")
    delete.add_argument("key")
    listing = command("list", _list, "Lists keys in order, with revision and value.")
    listing.add_argument("prefix", nargs="?", default="")
    listing.add_argument("--limit", type=_count, default=RANGE_LIMIT, help="(default: %(default)s)")
    listing.add_argument("--stale", action="store_true", help="from any node, even without a primary; may be old")
    command("status", _status, "Shows every member: role, epoch, position, lag, score, since when.")
    _member_parsers(command("member", _member_list, "Shows and changes who votes: members by command."))
    key = command("client-key", _client_key, "Prints the key for clients elsewhere; run it on a node.")
    key.add_argument("file", nargs="?", help="a new file to write it to, open to its owner only")
    measure = command("bench", _bench, "Measures writes (or reads) a second; a connection a client.")
    measure.add_argument("--clients", type=_counts, default=[1, 64, 500], metavar="N,…", help="(default: 1,64,500)")
    measure.add_argument("--seconds", type=_positive, default=5.0, help="for each number (default: %(default)s)")
    measure.add_argument("--value-bytes", type=_count, default=100, help="(default: %(default)s)")
    measure.add_argument("--reads", action="store_true", help="linearizable reads instead of writes")
    return top


def _common(to: argparse.ArgumentParser, suppress: dict[str, Any]) -> None:
    to.add_argument(
        "--endpoints",
        metavar="HOST:PORT,…",
        help="nodes to ask (the port is the clone's `port` + 2); default: FOOD_ENDPOINTS, else this machine's node",
        **suppress,
    )
    to.add_argument(
        "--key-file",
        metavar="FILE",
        help="made by `foodctl client-key`, to reach nodes from elsewhere; default: FOOD_KEY_FILE, else this machine's "
        "food is asked",
        **suppress,
    )
    to.add_argument("--id", help="which clone of this machine, if several run: the resource's name", **suppress)
    to.add_argument(
        "--timeout",
        type=_positive,
        metavar="SECONDS",
        help=f"for each request (default: {TIMEOUT_S:g}); member: for all of it (default: {WAIT_S:g})",
        **suppress,
    )
    to.add_argument("--output", choices=["text", "json"], **(suppress or {"default": "text"}))


def _member_parsers(member: argparse.ArgumentParser) -> None:
    verbs = member.add_subparsers(required=True, metavar="WHAT")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        _common(made, {"default": argparse.SUPPRESS})
        made.set_defaults(run=run, op=name)
        return made

    verb("list", _member_list, "Shows the member list, and the stores that are not in it.")
    for name, text in (
        ("add", "Makes the store that a node has now a member, once it has caught up."),
        ("remove", "Ends the vote of a node's store."),
        ("replace", "A node lost its disk: ends the old store's vote, and makes the new one a member."),
    ):
        made = verb(name, _member_change, text)
        made.add_argument("node")
        made.add_argument(
            "--force", action="store_true", help="although the members left have yet to catch up: writes wait for them"
        )
    first = verb("found", _member_found, "The very first start with fewer nodes than Corosync's list has (README).")
    first.add_argument("nodes", nargs="+", metavar="node", help="every node that is to be a member, all empty")
    first.add_argument("--yes", action="store_true", help="the other nodes never had data of this cluster")


# --- Commands ---


def _put(options: argparse.Namespace) -> int:
    key = _bytes(options.key)
    value = sys.stdin.buffer.read() if options.value == "-" else _bytes(options.value)
    with _client(options) as client:
        if options.if_revision is None:
            revision = client.put(key, value)
        else:
            revision = client.cas(key, options.if_revision, value)
    _tell(options, f"revision {revision}", {"revision": revision})
    return 0


def _get(options: argparse.Namespace) -> int:
    key = _bytes(options.key)
    with _client(options) as client:
        row = client.get(key, stale=options.stale)
    if row is None:
        return _fail(options, f"{show(key)}: no such key", NOT_THERE)
    if options.output == "json":
        print(json.dumps({**_named("value", row.value), "revision": row.revision}))
    else:
        sys.stdout.buffer.write(row.value + (b"\n" if sys.stdout.isatty() else b""))
    return 0


def _delete(options: argparse.Namespace) -> int:
    with _client(options) as client:
        revision = client.delete(_bytes(options.key))
    _tell(options, f"revision {revision}" if revision else "was absent", {"revision": revision})
    return 0


def _list(options: argparse.Namespace) -> int:
    with _client(options) as client:
        rows = client.range(_bytes(options.prefix), options.limit, stale=options.stale)
    if options.output == "json":
        maps = [{**_named("key", r.key), **_named("value", r.value), "revision": r.revision} for r in rows]
        print(json.dumps(maps))
        return 0
    if rows:
        print(table(["KEY", "REVISION", "VALUE"], [[show(r.key), str(r.revision), show(r.value)] for r in rows]))
    if len(rows) >= options.limit:
        print(f"There may be more than these {len(rows)}: raise --limit or name a longer prefix.", file=sys.stderr)
    return 0


def _status(options: argparse.Namespace) -> int:
    with _client(options) as client:
        status = client.status()
    if options.output == "json":
        print(json.dumps({"leader": status.leader, "answers": _plain(status.answers)}))
    else:
        print(describe(status))
    if not any(status.answers.values()):
        found = (f"{one}: {status.failed[one]}" if one in status.failed else one for one in status.answers)
        raise Unavailable("no node answered: " + "; ".join(found))
    return 0 if status.leader else NOT_THERE


def _client_key(options: argparse.Namespace) -> int:
    if options.endpoints or options.key_file:
        raise ValueError("client-key asks this machine's own food: without --endpoints and --key-file")
    with zmq.Context() as context:
        keys = ask(context, own_socket(options.id))
    if keys is None:
        return _fail(options, f"there are no keys: food runs with plaintext={INSECURE}", REFUSED)
    text = client_file(keys, f"of {options.id or 'food'}, from {os.uname().nodename}")
    if options.file is None:
        print(text, end="")
        return 0
    with open(os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return 0


def _bench(options: argparse.Namespace) -> int:
    def tell(figures: Figures) -> None:
        if options.output == "text":
            if figures.clients == options.clients[0]:
                print(
                    f"{'CLIENTS':>7} {figures.kind.upper() + '/S':>10} {'P50 MS':>8} {'P99 MS':>8} {'WORST':>8}  ERRORS"
                )
            print(
                f"{figures.clients:>7} {figures.per_second:>10,.0f} {figures.p50_ms:>8.2f} {figures.p99_ms:>8.2f} "
                f"{figures.worst_ms:>8.1f}  {figures.errors}",
                flush=True,
            )

    results = bench(
        _endpoints(options),
        options.clients,
        options.seconds,
        options.value_bytes,
        options.reads,
        options.timeout or TIMEOUT_S,
        tell,
        options.key_file,
        options.id,
    )
    if options.output == "json":
        print(json.dumps([figures.as_map() for figures in results]))
    for text in {text for figures in results for text in figures.error_texts}:
        print(f"foodctl: {text}", file=sys.stderr)
    return 0


def _member_list(options: argparse.Namespace) -> int:
    with _client(options) as client:
        status = client.status()
    answers = [answer for answer in status.answers.values() if answer]
    answer = status.answers.get(status.leader or "") or max(answers, key=_progress, default={})
    view = view_of(answer)
    if not answer:
        return _fail(options, f"no node answered: {', '.join(status.answers)}", UNAVAILABLE)
    rows = sorted([*view.voting.values(), *view.learners.values()], key=lambda row: (row["node"], row["store"]))
    if options.output == "json":
        print(json.dumps({"number": view.number, "primary": bool(status.leader), "stores": _plain(rows)}))
        return 0
    if not view.number:
        print(f"No member list: nothing is founded yet, as {_name(answer)} knows it.")
        return 0
    known = "" if status.leader else f", as {_name(answer)} knows it; nobody is primary"
    print(f"Member list {view.number}{known}: {meaning(list(view.voting))}.\n")
    print(table(["NODE", "STORE", "VOTES", "LAG", "STATE"], [_voter(row) for row in rows]))
    return 0


def _voter(row: dict[str, Any]) -> list[str]:
    lag = row.get("lag")
    votes = "yes" if row.get("voting") is True else "no"
    cells = [row["node"], row["store"], votes, "?" if lag is None else lag, row.get("state")]
    return [printable(cell, STATE_MOST) for cell in cells]


def _member_change(options: argparse.Namespace) -> int:
    with _client(options) as client:
        done = change(client, options.op, options.node, options.force, options.timeout or WAIT_S, _progress_line())
    if isinstance(done, Done):
        _tell(options, done.text, {"done": done.text})
    else:
        nodes = [node for node, _ in done.members]
        text = f"member list {done.number}: {', '.join(nodes)}; {meaning(nodes)}"
        _tell(options, text, {"number": done.number, "members": [list(member) for member in done.members]})
    return 0


def _member_found(options: argparse.Namespace) -> int:
    nodes = sorted(set(options.nodes))
    with _client(options) as client:
        view = found(client, nodes, options.yes, options.timeout or WAIT_S, _progress_line())
    voters = sorted(view.voting)
    text = f"founded: member list {view.number}: {', '.join(voters)}; {meaning(voters)}"
    _tell(options, text, {"number": view.number, "members": voters})
    return 0


def _progress_line() -> Callable[[str], None]:
    """Says on standard error what is waited for, whenever it changes."""
    said = [""]

    def tell(text: str) -> None:
        if text != said[0]:
            said[0] = text
            print(f"foodctl: {text}", file=sys.stderr, flush=True)

    return tell


# --- Status in words ---


def describe(status: Status) -> str:
    """A line on the whole, a line for each member, and what did not answer."""
    answers = {endpoint: answer for endpoint, answer in status.answers.items() if answer}
    lines = [_headline(status)]
    # The primary knows how far everybody is; without one, each node is believed about itself.
    best = answers.get(status.leader or "") or max(answers.values(), key=_progress, default={})
    # A row a store: a node whose disk was replaced has two, the one that votes and the one that is there.
    rows = {(_name(m), printable(m.get("store"))): m for m in _maps(best.get("members"))}
    for answer in answers.values():
        own = answer.get("self")
        key = (_name(answer), printable(own.get("store") if isinstance(own, dict) else None))
        rows.setdefault(key, {}).update({name: answer[name] for name in ("role", "epoch", "last") if name in answer})
    if rows:
        head = ["NODE", "ROLE", "EPOCH", "POSITION", "LAG", "SCORE", "SINCE", "STATE"]
        lines += [
            "",
            table(head, [_member(node, row) for (node, _), row in sorted(rows.items(), key=lambda item: item[0])]),
        ]
    silent = [endpoint for endpoint, answer in status.answers.items() if not answer]
    if silent:
        mute = [endpoint for endpoint in silent if endpoint not in status.failed]
        lines += ["", *(f"No answer from {e}: {status.failed[e]}." for e in silent if e not in mute)]
        if mute:
            lines.append("No answer from " + ", ".join(mute) + " (stopped, cut off, or not food).")
    for answer in answers.values():
        own = answer.get("self")
        if isinstance(own, dict) and own.get("no_space"):
            lines += ["", printable(own["no_space"], 300)]
    lines += _warnings(answers.values())
    clusters = {printable(answer["cluster"]) for answer in answers.values() if answer.get("cluster")}
    if len(clusters) > 1:
        lines += ["", "These nodes belong to different clusters: " + ", ".join(sorted(clusters)) + "."]
    return "\n".join(lines)


def _warnings(answers: Iterable[dict[str, Any]]) -> list[str]:
    """What an operator must not overlook: no keys, and who tried in vain."""
    lines = []
    for answer in answers:
        own = answer.get("self")
        keys, refused = (own.get("keys"), own.get("refused")) if isinstance(own, dict) else (None, None)
        if isinstance(keys, str) and keys.startswith("PLAINTEXT"):
            lines.append(f"{_name(answer)}: {printable(keys, WORD_MOST)}.")
        if isinstance(refused, dict) and refused:
            counts = sorted(
                (printable(kind, WORD_MOST), printable(count, WORD_MOST)) for kind, count in refused.items()
            )
            kinds = ", ".join(f"{kind} {count}" for kind, count in counts[:KINDS_MOST])
            lines.append(f"{_name(answer)}: refused since its start: {kinds}. Its log says from where.")
    return ["", *lines] if lines else []


def _headline(status: Status) -> str:
    answers = [answer for answer in status.answers.values() if answer]
    leader = status.answers.get(status.leader or "")
    if leader:
        text = f"{_name(leader)} is primary, epoch {_epoch(leader.get('epoch'))}, at {status.leader}"
        rivals = [_name(a) for a in answers if a.get("role") == "primary" and _name(a) != _name(leader)]
        if rivals:
            text += f"; {', '.join(rivals)} still claims the role, of an older epoch: it cannot acknowledge anything"
        return f"{text}. Revision {printable(leader.get('revision'), WORD_MOST)}."
    if answers and len(answers) < len(status.answers):
        return "No primary among those that answered; another node may be it. See crm_mon -A1."
    if answers:
        return "Nobody is primary: nothing can be written. Promoting is Pacemaker's work: see crm_mon -A1."
    return "No node answered."


def _member(node: str, row: dict[str, Any]) -> list[str]:
    score = row.get("score")
    state = printable(row.get("state") or "?", STATE_MOST)
    if row.get("voting") is False:
        state += " (no vote)"
    return [
        printable(node, WORD_MOST),
        printable(row.get("role") or "?", WORD_MOST),
        _epoch(row.get("epoch")),
        str(_index(row.get("last"), "?")),
        "?" if row.get("lag") is None else printable(row["lag"], WORD_MOST),
        "none" if score is None else printable(score, WORD_MOST),
        _ago(row.get("since_s")),
        printable(state, STATE_MOST),
    ]


def _epoch(epoch: Any) -> str:
    """An epoch is its number, or [number, candidate]."""
    match epoch:
        case int(number) | [int(number), *_] if type(number) is int:
            return str(number)
    return "?"


def _index(position: Any, unknown: Any) -> Any:
    """A position is an index, or [epoch, index]."""
    match position:
        case int(index) | [_, int(index)]:
            return index
    return unknown


def _progress(answer: dict[str, Any]) -> tuple[int, int]:
    epoch = _epoch(answer.get("epoch"))
    return (int(epoch) if epoch != "?" else -1, _index(answer.get("last"), -1))


def _ago(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)) or not abs(seconds) < AGO_MOST_S:  # nor is it with no number
        return "?"
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h"
    return f"{whole // 86400} d"


def _name(answer: dict[str, Any]) -> str:
    return printable(answer.get("node"), WORD_MOST)


def _maps(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- Small things ---


def table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)


def _client(options: argparse.Namespace) -> Client:
    timeout_s = options.timeout or TIMEOUT_S
    return Client(_endpoints(options), timeout_s=timeout_s, node_id=options.id, key_file=options.key_file)


def _endpoints(options: argparse.Namespace) -> list[str]:
    endpoints = split_endpoints(options.endpoints) if options.endpoints else default_endpoints(options.id)
    if not endpoints:
        raise ValueError("no endpoint given: name at least one node, as host:port")
    return endpoints


def _tell(options: argparse.Namespace, text: str, fields: dict[str, Any]) -> None:
    print(json.dumps(fields) if options.output == "json" else text)


def _fail(options: argparse.Namespace, text: str, code: int, **fields: Any) -> int:
    if options.output == "json":
        print(json.dumps({"error": text, "code": code, **fields}))
    else:
        print(f"foodctl: {text}", file=sys.stderr)
    return code


def _bytes(argument: str) -> bytes:
    """As it was typed, valid UTF-8 or not."""
    return argument.encode("utf-8", "surrogateescape")


def _named(name: str, data: bytes) -> dict[str, str]:
    """{name: text}, or {name_base64: …} for bytes that are no text."""
    try:
        return {name: data.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _plain(value: Any, levels: int = 8) -> Any:
    """What a server said as JSON can carry it, whatever it is."""
    if isinstance(value, dict) and levels:
        return {printable(name): _plain(part, levels - 1) for name, part in value.items()}
    if isinstance(value, list | tuple) and levels:
        return [_plain(part, levels - 1) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return show(value) if isinstance(value, bytes) else shown(value)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: more than 0 is expected")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is expected")
    return value


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",") if part.strip()]
    if not counts or not all(0 < count <= CLIENTS_MOST for count in counts):
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1 to {CLIENTS_MOST}, separated by commas")
    return counts


if __name__ == "__main__":
    sys.exit(main())
