"""foodctl member: each step from one look at the list, whatever the answers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from food import cli, member
from food.calls import (
    BadRequest,
    Behind,
    FoodError,
    ListChanged,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    Request,
    Unavailable,
    Worker,
)
from food.client import Client, Members, Status
from food.codec import pack
from food.directory import Directory
from food.member import LEVEL_ENTRIES, Do, Done, View, Wait, change, found, meaning, next_step, view_of

A, B = "a:1", "b:1"


def row(node: str, store: str, voting: bool = True, answers: bool = True, **more: Any) -> dict[str, Any]:
    return {"node": node, "store": store, "voting": voting, "answers": answers, "lag": 0, "state": "x", **more}


def view(*rows: dict[str, Any], number: int = 4) -> View:
    return view_of({"self": {"member_list": number}, "members": list(rows)})


VOTER, LEARNER = row("n3", "old"), row("n3", "new", voting=False)
GONE = row("n3", "old", answers=False)
LATE = row("n3", "new", voting=False, lag=LEVEL_ENTRIES + 1)


@pytest.mark.parametrize(
    ("op", "rows", "step"),
    [
        ("add", [], Wait("n3 does not answer: food must run there, and Corosync's node list must name it")),
        ("add", [LEARNER], Do("add", "n3", "new")),
        ("add", [LATE], Do("add", "n3", "new")),  # the primary says how far behind
        ("add", [VOTER], Done("n3 is a member with the store that it has")),
        ("remove", [VOTER], Do("remove", "n3", "old")),
        ("remove", [GONE, LEARNER], Do("remove", "n3", "old")),
        ("remove", [LEARNER], Done("n3 is no member")),
        ("replace", [VOTER], Done("n3 is a member with the store that it has")),
        ("replace", [GONE], Wait("n3 shows no new store: food must run there, with an empty data directory")),
        ("replace", [GONE, LATE], Wait(f"n3 is {LEVEL_ENTRIES + 1} entries behind")),
        ("replace", [GONE, {**LATE, "lag": None}], Wait("n3 is ? entries behind")),
        ("replace", [GONE, LEARNER], Do("remove", "n3", "old")),
        ("replace", [LEARNER], Do("add", "n3", "new")),
        ("replace", [], Wait("n3 does not answer: food must run there, and Corosync's node list must name it")),
    ],
)
def test_each_step_follows_from_what_is_there(op: str, rows: list[dict[str, Any]], step: Any) -> None:
    assert next_step(op, "n3", view(*rows, row("n1", "s1"))) == step


def test_a_second_store_of_one_node_is_not_added() -> None:
    with pytest.raises(Refused, match="former store of n3 still counts: foodctl member replace n3"):
        next_step("add", "n3", view(GONE, LEARNER))


@pytest.mark.parametrize("answer", [{}, {"self": 7, "members": 7}, {"members": [7, {}, {"node": "n", "store": ""}]}])
def test_any_answer_makes_a_view(answer: dict[str, Any]) -> None:
    assert view_of(answer) == View(0, {}, {})


def test_what_a_list_means() -> None:
    assert meaning(["n1"]) == "n1 is alone: what is written is on one disk only"
    assert meaning(["n1", "n2"]) == "both must be up for writes"
    assert meaning(["n1", "n2", "n3", "n4"]) == "any 3 of 4 suffice for writes"


# --- The loop ---


class Scripted(Client):
    """Status and answers as a test wants them, one after the other."""

    def __init__(self, looks: list[Status], answers: list[Members | FoodError]):
        self.looks, self.answers = looks, answers
        self.asked: list[tuple[Any, ...]] = []

    def status(self) -> Status:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def change_members(self, *asked: Any) -> Members:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, FoodError):
            raise answer
        return answer

    def found(self, *asked: Any) -> None:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, FoodError):
            raise answer


def look(*rows: dict[str, Any], number: int = 4) -> Status:
    return Status(A, {A: {"self": {"member_list": number}, "members": list(rows)}, B: None})


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "LOOK_S", 0)


def test_replace_removes_then_adds() -> None:
    five, six = Members(5, [("n1", "s1")]), Members(6, [("n1", "s1"), ("n3", "new")])
    client = Scripted([look(GONE, LEARNER), look(LEARNER, number=5)], [five, six])
    said: list[str] = []
    assert change(client, "replace", "n3", False, 5, said.append) == six
    assert client.asked == [(4, "remove", "n3", "old", False), (5, "add", "n3", "new", False)]
    assert said == ["the former store of n3 is no member any more (list 5)"]


@pytest.mark.parametrize(
    "error",
    [Behind("n3 is 9 entries behind: wait", 9), ListChanged("list 5"), Unavailable("moved"), OutcomeUnknown("moved")],
)
def test_what_passes_is_waited_for(error: FoodError) -> None:
    done = Members(5, [("n3", "new")])
    client = Scripted([look(LEARNER)], [error, done])
    said: list[str] = []
    assert change(client, "add", "n3", True, 5, said.append) == done
    assert said == [str(error)]
    assert client.asked == [(4, "add", "n3", "new", True)] * 2


def test_what_does_not_pass_is_said_at_once() -> None:
    client = Scripted([look(VOTER)], [Refused("n3 is the primary: move the role first")])
    with pytest.raises(Refused, match="move the role"):
        change(client, "remove", "n3", False, 5, print)


def test_nothing_to_do_is_done() -> None:
    assert change(Scripted([look(VOTER)], []), "add", "n3", False, 5, print) == Done(
        "n3 is a member with the store that it has"
    )


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Scripted([Status(None, {A: None})], [])
    with pytest.raises(Unavailable, match="nobody is primary: see crm_mon -A1; run the same command again to go on"):
        change(client, "add", "n3", False, 0, print)


# --- Founding ---


def unfounded(*rows: dict[str, Any], why: str = "awaiting n3") -> dict[str, Any]:
    return {"node": "n1", "self": {"member_list": 0, "why": why}, "members": list(rows)}


def test_every_named_node_is_told_where_it_answers() -> None:
    far = row("n2", "s2", False, endpoint="10.0.0.2:10001")
    client = Scripted(
        [Status(None, {A: unfounded(far)}), Status(None, {A: unfounded(), B: {"node": "n2"}}), look(VOTER, number=1)],
        [Members(0, []), Members(0, [])],
    )
    said: list[str] = []
    assert found(client, ["n1", "n2"], False, 5, said.append).number == 1
    assert client.asked == [(A, ["n1", "n2"]), ("10.0.0.2:10001", ["n1", "n2"])]
    assert said == ["n1 was told", "n2 was told", "n1: awaiting n3; n2: ?"]


def test_a_node_that_refuses_is_named_and_those_that_were_told() -> None:
    client = Scripted([Status(None, {A: unfounded(row("n2", "s", endpoint="x:1"))})], [Members(0, []), Refused("no")])
    with pytest.raises(Refused, match="n2: no; told already: n1: name every node of Corosync's list instead"):
        found(client, ["n1", "n2"], False, 5, print)
    client = Scripted([Status(None, {A: unfounded()})], [Unavailable("no answer")])
    with pytest.raises(Unavailable, match=r"^n1: no answer$"):
        found(client, ["n1"], False, 5, print)


def test_a_node_that_nobody_knows_and_a_cluster_that_does_not_answer() -> None:
    with pytest.raises(Refused, match="no way to n8, n9 is known"):
        found(Scripted([Status(None, {A: unfounded()})], []), ["n1", "n8", "n9"], False, 5, print)
    with pytest.raises(Unavailable, match="no node answered: a:1"):
        found(Scripted([Status(None, {A: None})], []), ["n1"], False, 5, print)


def test_what_is_founded_already_is_done_or_refused() -> None:
    ruling = look(row("n1", "s1"), row("n2", "s2"), number=1)
    assert found(Scripted([ruling], []), ["n2", "n1"], False, 5, print).number == 1
    with pytest.raises(Refused, match="founded already: member list 1 is n1, n2"):
        found(Scripted([ruling], []), ["n1"], False, 5, print)


def test_founding_without_a_node_that_is_known_wants_a_word_more() -> None:
    looks = [Status(None, {A: unfounded(row("n1", "s1"), row("n3", "", False, False), {"node": 7})})]
    with pytest.raises(Refused, match="founds an empty cluster without n3: say --yes if none of them ever had data"):
        found(Scripted(looks, []), ["n1"], False, 5, print)
    client = Scripted([*looks, look(VOTER, number=1)], [Members(0, [])])
    assert found(client, ["n1"], True, 5, lambda text: None).number == 1


def test_waiting_for_the_founding_ends() -> None:
    client = Scripted([Status(None, {A: unfounded(why="ready")}), Status(None, {A: None})], [Members(0, [])])
    with pytest.raises(Unavailable, match="no node answers; run the same command again"):
        found(client, ["n1"], False, 0, print)


# --- What the primary answers, and the retry rules ---


def asked(request: Request) -> Worker:
    worker = Worker(Directory([A, B]))
    assert worker.submit(request, 0.0, 5.0) is None
    worker.directory.on_info(A, {"node": "n1", "role": "primary", "epoch": [1, "s"]}, 0.0)
    target = worker.due(0.0)
    assert target
    assert worker.frame()
    worker.sent(target, 0.0)
    return worker


ADD = Request("m", "add", (4, "n3", "new", False))


@pytest.mark.parametrize(
    ("status", "value", "error"),
    [
        ("refused", {"text": "why"}, Refused),
        ("list_changed", {"text": "why"}, ListChanged),
        ("behind", {"text": "why", "behind": 7}, Behind),
        ("behind", {"text": "why", "behind": "x"}, Behind),
        ("bad_request", {"text": "why"}, BadRequest),
    ],
)
def test_a_refusal_ends_the_request(status: str, value: dict[str, Any], error: type[FoodError]) -> None:
    outcome = asked(ADD).receive(A, pack([1, status, value]), 0.1)
    assert outcome and type(outcome.error) is error and str(outcome.error) == "why"
    if isinstance(outcome.error, Behind):
        assert outcome.error.entries == (7 if value["behind"] == 7 else 0)


def test_an_unknown_change_goes_to_the_next_primary_and_stays_unknown_without_one() -> None:
    worker = asked(ADD)
    assert worker.receive(A, pack([1, "unknown", {"text": "moved"}]), 0.1) is None
    assert worker.due(0.2) == A
    outcome = worker.expire(9.0)
    assert outcome and isinstance(outcome.error, OutcomeUnknown) and str(outcome.error).startswith("member add: ")
    refused = asked(ADD)
    assert refused.receive(A, pack([1, "not_primary", {"text": "no"}]), 0.1) is None
    outcome = refused.expire(9.0)
    assert outcome and isinstance(outcome.error, Unavailable)


def test_the_frames_are_those_of_the_readme() -> None:
    """Other languages speak them too."""
    for request, body in (
        (ADD, ["add", 4, "n3", "new", False]),
        (Request("m", "remove", (4, "n3", "old", True)), ["remove", 4, "n3", "old", True]),
        (Request("m", "found", (["n1", "n2"],), B), ["found", ["n1", "n2"]]),
    ):
        worker = Worker(Directory([A, B]))
        worker.submit(request, 0.0, 5.0)
        assert worker.frame() == pack([1, "m", body])


def test_what_is_meant_for_one_node_goes_to_it_again_and_again() -> None:
    worker = asked(Request("m", "found", (["n2"],), B))
    assert worker.due(0.1) is None
    assert worker.due(0.6) == B
    outcome = worker.expire(9.0)
    assert outcome and str(outcome.error) == f"member found: no answer from {B}"


@pytest.mark.parametrize("answer", [None, [1, "c"], [1, "c", [7]], [1, "c", [["n1"]]]])
def test_an_answer_that_is_no_list_is_not_understood(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client([A]) as client:
        monkeypatch.setattr(client, "_run", lambda request: answer)
        with pytest.raises(ProtocolError):
            client.change_members(1, "add", "n1", "s")


def test_a_list_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client([A]) as client:
        monkeypatch.setattr(client, "_run", lambda request: [2, "c", [["n1", "s1"]]])
        assert client.change_members(1, "add", "n1", "s1") == Members(2, [("n1", "s1")])


# --- Words ---


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Callable[[Status], None]:
    def answer(given: Status) -> None:
        monkeypatch.setattr(Client, "status", lambda self: given)

    return answer


def test_list_shows_voters_and_learners(status: Callable[[Status], None], capsys: pytest.CaptureFixture[str]) -> None:
    status(look(row("n1", "s1"), GONE, {**LEARNER, "lag": None, "state": "learner: foodctl member replace n3"}))
    assert cli.main(["--endpoints", A, "member", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Member list 4: both must be up for writes.",
        "",
        "NODE  STORE  VOTES  LAG  STATE",
        "n1    s1     yes    0    x",
        "n3    new    no     ?    learner: foodctl member replace n3",
        "n3    old    yes    0    x",
    ]


def test_list_without_a_primary_a_founding_or_an_answer(
    status: Callable[[Status], None], capsys: pytest.CaptureFixture[str]
) -> None:
    status(
        Status(None, {A: {"node": "n2", "self": {"member_list": 3}, "members": [row("n2", "s")]}, B: {"node": "n1"}})
    )
    assert cli.main(["--endpoints", A, "member", "list"]) == 0
    assert "Member list 3, as n2 knows it; nobody is primary: n2 is alone" in capsys.readouterr().out
    status(Status(None, {A: unfounded()}))
    assert cli.main(["--endpoints", A, "member", "list"]) == 0
    assert "nothing is founded yet, as n1 knows it" in capsys.readouterr().out
    status(Status(None, {A: None}))
    assert cli.main(["--endpoints", A, "member", "list"]) == 3
    assert "no node answered: a:1" in capsys.readouterr().err


def test_progress_is_said_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    tell = cli._progress_line()
    for text in ("a", "a", "b"):
        tell(text)
    assert capsys.readouterr().err == "foodctl: a\nfoodctl: b\n"


def test_a_timeout_before_the_words_or_behind_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def note(client: Client, op: str, node: str, force: bool, wait_s: float, tell: object) -> Members:
        waits.append(wait_s)
        return Members(2, [("n1", "s1")])

    monkeypatch.setattr(cli, "change", note)
    for words in (["--timeout", "7", "member", "add", "n1"], ["member", "add", "n1", "--timeout", "7"]):
        assert cli.main(["--endpoints", A, *words]) == 0
    assert cli.main(["--endpoints", A, "--output", "json", "member", "add", "n1"]) == 0
    assert waits == [7, 7, member.WAIT_S]
    assert capsys.readouterr().out.endswith('{"number": 2, "members": [["n1", "s1"]]}\n')
