"""Members by command on real daemons, under load: a disk lost and replaced, a node added, one removed, two of three
founding. foodctl is typed as an operator would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from daemons import Cluster, Node, wait
from test_daemons import Load, ask, judge, level, report

from food import cli

PORT = 19_960
ALL = {f"n{i}": f"127.0.1.{i}" for i in range(1, 5)}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three daemons, n1 promoted."""
    with Cluster(3, PORT) as raised:
        raised.promote("n1")
        yield raised


def foodctl(cluster: Cluster, *words: str, code: int = 0) -> None:
    """At n2's endpoint: a backup shows the way."""
    assert cli.main(["--endpoints", cluster["n2"].endpoint, "--timeout", "30", "member", *words]) == code


def members(node: Node) -> list[str]:
    return sorted(row["node"] for row in report(node)["members"] if row["voting"])


def votes(primary: Node, name: str) -> list[bool]:
    """Whether each store that the primary knows of that node votes."""
    return sorted(row["voting"] for row in report(primary)["members"] if row["node"] == name)


def wiped(node: Node) -> str:
    """The node comes back with an empty disk; returns the store that it lost."""
    store = str(report(node)["self"]["store"])
    node.kill()
    shutil.rmtree(node.data_dir)
    node.data_dir.mkdir()
    node.start()
    return store


def test_a_lost_disk_is_replaced_under_load(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    n1, n2, n3 = cluster
    with Load(cluster, 60) as load:
        old = wiped(n3)
        wait(lambda: "foodctl member replace n3" in report(n3)["self"]["why"], 10, "no remedy is named")
        wait(lambda: votes(n1, "n3") == [False, True], 10, "the primary does not see both stores")
        foodctl(cluster, "add", "n3", code=6)
        assert "the former store of n3 still counts: foodctl member replace n3" in capsys.readouterr().err
        foodctl(cluster, "replace", "n3")
        shown = capsys.readouterr()
        assert shown.out == "member list 3: n1, n2, n3; any 2 of 3 suffice for writes\n"
        assert "the former store of n3 is no member any more (list 2)" in shown.err
        foodctl(cluster, "replace", "n3")  # again: nothing to do
        assert capsys.readouterr().out == "n3 is a member with the store that it has\n"
        foodctl(cluster, "list", "--output", "json")
        listed = json.loads(capsys.readouterr().out)
        assert listed["number"] == 3 and all(row["voting"] for row in listed["stores"])
        assert old not in [row["store"] for row in listed["stores"]]
        n2.kill()  # the new disk counts
        judge(load.end(), 100)
    wait(lambda: n3.score == 100, 10, f"n3 is not eligible: {n3.why}")


def test_a_node_is_added_and_one_removed_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(4, PORT) as cluster:
        n1, _, n3, n4 = cluster
        n4.kill()
        three = {name: at for name, at in ALL.items() if name != "n4"}
        for node in cluster:
            if node.alive:
                node.says(nodes=three)
        cluster.promote("n1")
        with Load(cluster, 60) as load:
            for node in cluster:
                if node.alive:
                    node.says(nodes=ALL)
            n4.start()
            wait(lambda: "foodctl member add n4" in report(n4).get("self", {}).get("why", ""), 10, "it is no learner")
            foodctl(cluster, "add", "n4")
            assert capsys.readouterr().out == "member list 2: n1, n2, n3, n4; any 3 of 4 suffice for writes\n"
            for node in cluster:
                node.says(nodes={name: at for name, at in ALL.items() if name != "n3"})
            n3.kill()
            left = "n3 left Corosync, still counts: foodctl member remove n3"
            wait(lambda: left in n1.request("status")["status"], 10, "what is left over is not named")
            assert next(row["state"] for row in report(n1)["members"] if row["node"] == "n3").endswith(left)
            foodctl(cluster, "remove", "n3")
            assert "member list 3: n1, n2, n4; any 2 of 3" in capsys.readouterr().out
            assert left not in n1.request("status")["status"]
            assert "n3" not in [row["node"] for row in report(n1)["members"]]
            foodctl(cluster, "list")
            assert "Member list 3: any 2 of 3 suffice for writes." in capsys.readouterr().out
            judge(load.end(), 100)
        level(cluster, "n1", "n2", "n4")
        n1.kill()
        cluster.promote("n4")
        assert members(n4) == ["n1", "n2", "n4"]


def test_two_of_three_found_and_the_third_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(3, PORT) as cluster:
        n1, n2, n3 = cluster
        n3.kill()
        shutil.rmtree(n3.data_dir)
        n3.data_dir.mkdir()
        wait(lambda: report(n2) and "awaiting n3" in report(n2)["self"]["why"], 10, "n1 and n2 do not know each other")
        foodctl(cluster, "found", "n1", "n9", code=6)
        assert "no way to n9 is known" in capsys.readouterr().err
        foodctl(cluster, "list")
        assert capsys.readouterr().out == "No member list: nothing is founded yet, as n2 knows it.\n"
        words = ["--endpoints", n2.endpoint, "--timeout", "2", "member", "found", "n1", "n2", "--yes"]
        assert cli.main(words) == 3  # told, and Pacemaker has not promoted anybody yet
        assert "ready for the first start" in capsys.readouterr().err
        cluster.promote("n1")
        foodctl(cluster, "found", "n1", "n2")  # again: done already
        assert capsys.readouterr().out == "founded: member list 1: n1, n2; both must be up for writes\n"
        foodctl(cluster, "found", "n1", code=6)
        assert "founded already: member list 1 is n1, n2" in capsys.readouterr().err
        refused = ask(n1, [0, "m", ["found", ["n1"]]])
        assert refused == [0, "refused", {"text": "n1 has a log: its cluster is founded already"}]
        n3.start()
        foodctl(cluster, "add", "n3")
        assert "member list 2: n1, n2, n3" in capsys.readouterr().out
        cluster_id = report(n1)["cluster"]
        stores = [[row["node"], row["store"]] for row in report(n1)["members"]]
        assert ask(n1, [0, "m", ["add", 1, *stores[2], False]]) == [0, 0, [2, cluster_id, stores]]  # done already
        assert ask(n1, [1, "m", ["found", []]])[1] == "bad_request"
        assert ask(n1, [2, "m", ["add", 1, "n1"]])[1] == "bad_request"
        assert ask(n2, [3, "m", ["remove", 2, "n3", "s", False]])[1] == "not_primary"


def test_the_survivor_of_two_goes_on_alone_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(2, PORT) as cluster:
        n1, n2 = cluster
        cluster.promote("n2")
        n1.kill()
        foodctl(cluster, "remove", "n2", code=6)
        assert "n2 is the primary: move the role first" in capsys.readouterr().err
        foodctl(cluster, "remove", "n1")
        assert capsys.readouterr().out == "member list 2: n2; n2 is alone: what is written is on one disk only\n"
        assert cli.main(["--endpoints", n2.endpoint, "put", "k", "v"]) == 0
