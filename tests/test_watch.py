"""What the guardian decides (food/watch.py), with time in the test's hand and no process anywhere."""

from __future__ import annotations

import itertools
from typing import Any

from food import watch
from food.watch import Job, Watch


def up(role: str = "backup", score: int | None = 100) -> Watch:
    """A daemon that is up at time 1 with its score in place."""
    guard = Watch(0.0, 1500)
    guard.node, guard.nodes = "n1", ["n1", "n2", "n3"]
    guard.beat(1.0)
    guard.role_is(role, 1.0)
    guard.order_score(1, score, "in sync", False, 1.0)
    run(guard, 1.0)
    guard.answers.clear()
    return guard


def run(guard: Watch, now: float, found: dict[str, Any] | None = None, fails: str = "") -> list[str]:
    """Carries out all jobs that are due: their names. `found` answers the questions; None is "nothing there"."""
    done: list[str] = []
    while (job := guard.next_job(now, busy=False)) is not None:
        done.append(repr(job)[4:-1])
        value = (found or {}).get(job.kind + job.name, guard.score_wanted if job.kind == "get_score" else job.value)
        guard.done(job, job.kind != fails, value, "tool: broken", now)
        assert len(done) < 50
    return [name for name in done if name != "nodes"]


def test_a_score_is_written_once_and_the_order_answered() -> None:
    guard = Watch(0.0, 1500)
    guard.order_score(7, 100, "in sync", False, 1.0)
    assert guard.answers == []
    assert run(guard, 1.0) == ["set_score 100"]
    assert guard.answers == [(7, None)]
    guard.order_score(8, 100, "still in sync", False, 1.1)
    assert run(guard, 1.1) == []
    assert guard.answers[1:] == [(8, None)]


def test_only_the_newest_score_order_counts() -> None:
    guard = Watch(0.0, 1500)
    guard.order_score(1, 10, "catching up", False, 1.0)
    guard.order_score(2, 100, "in sync", False, 1.0)
    assert guard.answers == [(1, None)]
    assert run(guard, 1.0) == ["set_score 100"]
    assert guard.answers == [(1, None), (2, None)]


def test_a_score_overtaken_while_its_tool_runs_is_written_after_it() -> None:
    guard = Watch(0.0, 1500)
    guard.order_score(1, 10, "catching up", False, 1.0)
    job = guard.next_job(1.0, busy=False)
    assert job is not None
    guard.order_score(2, 100, "in sync", False, 1.01)
    guard.done(job, True, None, "", 1.02)
    assert guard.answers == [(1, None)]
    assert run(guard, 1.02) == ["set_score 100"]


def test_a_failing_tool_is_tried_again_later_and_logged_once() -> None:
    guard = Watch(0.0, 1500)
    guard.order_score(1, 100, "in sync", False, 1.0)
    now, tries = 1.0, 0
    for _ in range(200):
        tries += run(guard, now, fails="set_score").count("set_score 100")
        now += 0.1
    assert 5 <= tries <= 10
    assert guard.answers == [(1, "tool: broken")], "the daemon is told after some tries, the wish stays"
    assert len([text for _, text in guard.log if "failed" in text]) == 1
    assert run(guard, now + 20) == ["set_score 100"]
    assert any("works again" in text for _, text in guard.log)


def test_a_lost_score_is_deleted_and_set() -> None:
    guard = up()
    assert run(guard, 2.0, {"get_score": None}) == ["get_score", "delete_score in sync", "set_score 100"]
    assert any("restoring" in text for _, text in guard.log)


def test_another_value_is_overwritten_without_deleting_which_would_demote() -> None:
    guard = up("primary", 1000)
    assert run(guard, 2.0, {"get_score": 5}) == ["get_score", "set_score 1000"]
    for now in (2.6, 3.2, 6.9):  # a busy cluster's CIB lags behind
        assert run(guard, now, {"get_score": 5}) == ["get_score"]
    now = 2.0 + watch.CIB_LAG_S
    assert run(guard, now + 0.5, {"get_score": 5}) == ["get_score", "delete_score in sync", "set_score 1000"]


def test_what_stood_before_a_new_order_is_no_sign_of_a_loss() -> None:
    guard = up("backup", 100)
    assert run(guard, 2.0, {"get_score": 10}) == ["get_score", "set_score 100"]
    guard.order_score(2, 1000, "primary", False, 2.1)
    assert run(guard, 2.1) == ["set_score 1000"]
    assert run(guard, 2.7, {"get_score": 100}) == ["get_score", "set_score 1000"]


def test_the_score_is_checked_about_every_two_seconds() -> None:
    guard = up()
    checks = sum(run(guard, 2.0 + step / 10).count("get_score") for step in range(200))
    assert 9 <= checks <= 11


def test_a_question_without_an_answer_changes_nothing() -> None:
    guard = up()
    assert run(guard, 2.0, fails="get_score") == ["get_score"]


def test_a_dead_primary_loses_its_score_at_once_even_beside_a_running_tool() -> None:
    guard = up("primary", 1000)
    guard.died("killed by signal 9", 5.0)
    job = guard.next_job(5.0, busy=True)
    assert job is not None and job.kind == "delete_score" and job.urgent
    guard.done(job, True, None, "", 5.03)
    assert run(guard, 5.1) == [], "no failure is reported while the role may still move"
    guard.role_moved(5.2)
    assert not guard.awaits_role_move()
    assert "fail" not in " ".join(run(guard, 5.0 + watch.ROLE_MOVE_LIMIT_S + 1))


def test_a_dead_primary_whose_role_does_not_move_is_reported() -> None:
    guard = up("primary", 1000)
    guard.died("killed by signal 9", 5.0)
    run(guard, 5.0)
    assert "fail killed by signal 9" in run(guard, 5.01 + watch.ROLE_MOVE_LIMIT_S)


def test_a_dead_backup_is_reported_at_once_and_again_with_growing_pauses() -> None:
    guard = up()
    guard.died("exit status 1", 5.0)
    assert run(guard, 5.0) == ["delete_score the daemon is gone", "fail exit status 1"]
    times = []
    for tick in range(3000):
        now = 6.0 + tick
        if "fail exit status 1" in run(guard, now, {"get_history": True}):
            times.append(now)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == sorted(pauses) and pauses[0] >= 10 and pauses[-1] <= 301


def test_nothing_is_reported_again_while_pacemaker_has_forgotten_the_node() -> None:
    """Behind a cleanup, until the probe: such a failure would stay the newest for ever."""
    guard = up()
    guard.died("exit status 1", 5.0)
    run(guard, 5.0)
    again = 5.1 + watch.REPORT_AGAIN_FIRST_S

    def reports(now: float, remembers: bool, fails: str = "") -> list[str]:
        done = run(guard, now, {"get_history": remembers}, fails)
        return [name for name in done if name in ("get_history", "fail exit status 1")]

    assert reports(again, False) == ["get_history"]
    assert reports(again + 0.5, True) == []
    assert reports(again + watch.HISTORY_AGAIN_S, True, fails="get_history") == ["get_history"]
    assert reports(again + 2 * watch.HISTORY_AGAIN_S, True) == ["get_history", "fail exit status 1"]
    third = again + 5 * watch.REPORT_AGAIN_FIRST_S
    assert reports(third, False) == ["get_history"], "each time anew"
    job = guard.next_job(third + watch.HISTORY_AGAIN_S, busy=False)
    assert job is not None and job.kind == "get_history"
    guard.terminate(third + 2)
    guard.done(job, True, True, "", third + 2)
    assert "fail" not in " ".join(run(guard, third + 2)), "a stop came meanwhile"


def test_a_stop_cancels_the_report() -> None:
    guard = up("primary", 1000)
    guard.died("killed by signal 9", 5.0)
    run(guard, 5.0)
    guard.terminate(6.0)
    assert "fail" not in " ".join(run(guard, 9.0))
    assert guard.finished(9.0)


def test_a_daemon_that_never_came_up_ends_the_guardian_without_a_report() -> None:
    guard = Watch(0.0, 1500)
    guard.died("exit status 1", 1.0)
    assert guard.reason == "exit status 1"
    assert run(guard, 1.0) == ["delete_score"]
    assert guard.finished(1.1)


def test_the_daemons_own_last_words_are_the_reason() -> None:
    guard = up()
    guard.exiting("disk full")
    guard.died("exit status 1", 5.0)
    assert guard.reason == "disk full"


def test_watchdog_counts_from_the_first_beat() -> None:
    guard = Watch(0.0, 1500)
    assert guard.condemned(watch.START_LIMIT_S - 1) is None
    assert "did not come up" in (guard.condemned(watch.START_LIMIT_S) or "")
    guard.beat(20.0)
    assert guard.condemned(21.4) is None
    assert "stood still for 1500 ms" in (guard.condemned(21.5) or "")


def test_a_paused_machine_is_not_the_daemons_fault() -> None:
    guard = up()
    guard.overslept(60.0)
    assert guard.condemned(61.5) is None
    assert guard.condemned(63.0) is not None


def test_surrender_only_while_another_node_shows_a_score() -> None:
    guard = up("primary", 1000)
    guard.order_score(2, None, "no majority", True, 5.0)
    assert guard.answers == [(2, None)]
    alone = {"get_othern2": None, "get_othern3": -1}
    assert [job for job in run(guard, 5.0, alone) if job.startswith(("get_other", "delete"))] == [
        "get_other n2",
        "get_other n3",
    ]
    assert "delete_score no majority" in run(guard, 5.6, {"get_othern2": None, "get_othern3": 10})
    guard.order_score(3, 1000, "majority again", False, 6.0)
    assert run(guard, 6.0) == ["set_score 1000"]


def test_a_new_order_ends_the_surrender() -> None:
    guard = up("primary", 1000)
    guard.order_score(2, None, "no majority", True, 5.0)
    guard.order_score(3, 1000, "majority again", False, 5.1)
    assert not [job for job in run(guard, 7.0, {"get_othern2": 10}) if job.startswith(("get_other", "delete"))]


def test_attributes_wait_until_the_role_has_settled_but_not_for_ever() -> None:
    guard = up()
    guard.order_attributes(5, {"food-state": "in sync"}, 1.1)
    assert guard.answers == [(5, None)]
    assert "set_attribute food-state in sync" not in run(guard, 1.2)
    assert "set_attribute food-state in sync" in run(guard, 3.0)
    now, written = 10.0, 0
    guard.order_attributes(6, {"food-state": "catching up"}, now)
    for step in range(150):
        guard.role_is("backup", now + step / 10)
        written += run(guard, now + step / 10).count("set_attribute food-state catching up")
    assert written == 1


def test_lost_attributes_are_restored() -> None:
    guard = up()
    guard.order_attributes(5, {"food-state": "in sync"}, 1.0)
    run(guard, 5.0)
    jobs = run(guard, 30.0, {"get_attributefood-state": None})
    wanted = ["get_attribute food-state", "delete_attribute food-state", "set_attribute food-state in sync"]
    assert [job for job in jobs if "attribute" in job] == wanted


def test_a_stop_removes_score_and_attributes_and_waits_for_the_daemon() -> None:
    guard = up()
    guard.order_attributes(5, {"food-state": "in sync"}, 1.0)
    run(guard, 5.0)
    guard.terminate(6.0)
    assert run(guard, 6.0) == ["delete_score in sync", "delete_attribute food-state"]
    assert not guard.finished(6.1)
    guard.died("exit status 0", 6.1)
    assert guard.finished(6.1)


def test_what_is_being_set_at_a_stop_is_given_up_before_it_is_deleted() -> None:
    """Side by side the one that acts last could end first, and what it set would be taken for deleted."""
    guard = up(score=None)
    guard.order_attributes(5, {"food-state": "in sync"}, 1.0)
    guard.order_score(6, 100, "in sync", False, 5.9)
    job = guard.next_job(5.9, busy=False)
    assert job is not None and job.kind == "set_score" and not guard.voids(job)
    guard.terminate(6.0)
    assert guard.voids(job)
    guard.dropped(job)
    guard.died("exit status 0", 6.0)
    assert not guard.finished(6.0)
    assert run(guard, 6.0) == ["delete_score in sync", "delete_attribute food-state"]
    assert guard.finished(6.0)


def test_what_the_daemon_orders_after_the_stop_began_is_refused() -> None:
    """It says so before it hears of the stop, and nobody would delete it again."""
    guard = up(score=10)
    guard.terminate(6.0)
    guard.order_score(6, 100, "in sync", False, 6.0)
    guard.order_score(7, None, "isolated", True, 6.0)
    guard.order_attributes(8, {"food-state": "in sync"}, 6.0)
    guard.order_fail(9, "its disk", 6.0)
    assert guard.answers == [(order, "a stop or a release is under way") for order in (6, 7, 8, 9)]
    guard.died("exit status 0", 6.1)
    assert run(guard, 6.1) == ["delete_score in sync"]
    assert guard.finished(6.1)


def test_a_stop_does_not_wait_out_what_failed_before_it() -> None:
    guard = up(score=None)
    guard.order_score(2, 100, "in sync", False, 1.0)
    for _ in range(8):
        run(guard, 1.0, fails="set_score")
        guard._score_tries.at = 0.0
    guard.terminate(6.0)
    assert run(guard, 6.0, fails="delete_score") == ["delete_score in sync"]
    assert run(guard, 6.3) == ["delete_score in sync"]


def test_a_stop_waits_for_no_question() -> None:
    guard = up(score=None)
    job = guard.next_job(20.0, busy=False)
    assert job is not None and job.kind == "nodes"
    guard.terminate(20.0)
    run(guard, 20.0)
    guard.died("exit status 0", 20.1)
    assert guard.finished(20.1)


def test_a_report_does_not_outlive_its_cause() -> None:
    guard = up("primary", 1000)
    guard.order_fail(5, "another node is primary", 2.0)
    run(guard, 2.0, fails="fail")
    guard.order_score(6, 100, "in sync", False, 2.1)
    assert "fail" not in " ".join(run(guard, 30.0))
    guard.order_fail(7, "another node is primary", 31.0)
    job = guard.next_job(31.0, busy=False)
    assert job is not None and job.kind == "fail"
    guard.terminate(31.1)
    assert guard.voids(job), "nobody fails what is being stopped"
    guard.dropped(job)
    assert "fail" not in " ".join(run(guard, 31.1))


def test_what_is_heard_of_the_dead_is_refused() -> None:
    guard = up("backup", 100)
    guard.died("killed by signal 9", 2.0)
    guard.order_score(6, 1000, "primary", False, 2.0)
    assert guard.answers == [(6, "the daemon is gone")]
    assert "set_score" not in " ".join(run(guard, 2.0))


def test_a_stop_ends_although_the_tools_do_not_work() -> None:
    guard = up()
    guard.terminate(6.0)
    guard.died("exit status 0", 6.1)
    run(guard, 6.1, fails="delete_score")
    assert not guard.finished(6.2)
    assert guard.finished(6.0 + watch.STOP_TOOLS_LIMIT_S)


def test_a_stop_kills_a_daemon_that_does_not_end() -> None:
    guard = up()
    guard.terminate(6.0)
    assert guard.condemned(6.1) is None
    assert guard.condemned(6.0 + watch.STOP_GRACE_S) is not None


def test_a_living_daemons_report_is_carried_out_and_answered() -> None:
    guard = up()
    guard.order_fail(9, "role did not move", 5.0)
    assert "fail role did not move" in run(guard, 5.0)
    assert guard.answers == [(9, None)]
    assert "fail" not in " ".join(run(guard, 60.0)), "once: only a dead daemon's is repeated"


def test_a_candidates_death_is_left_to_the_failing_promote_first() -> None:
    guard = up("candidate")
    guard.died("killed by signal 9", 5.0)
    assert run(guard, 5.1) == ["delete_score the daemon is gone"]
    assert "fail killed by signal 9" in run(guard, 5.6)


def test_one_tool_at_a_time() -> None:
    guard = up()
    guard.order_score(2, 10, "catching up", False, 5.0)
    assert guard.next_job(5.0, busy=True) is None


def test_a_tool_killed_for_something_more_pressing_is_run_again() -> None:
    guard = up()
    guard.died("exit status 1", 5.0)
    jobs: list[Job] = []
    while (job := guard.next_job(5.0, busy=False)) is not None:
        jobs.append(job)
    failing = next(job for job in jobs if job.kind == "fail")
    guard.dropped(failing)
    assert "fail exit status 1" in run(guard, 5.1)


def test_waking_times_lie_ahead() -> None:
    guard = up()
    for step in range(100):
        now = 1.0 + step / 7
        run(guard, now)
        assert now < guard.wake_at(now) <= now + 1.0


# Started outside Pacemaker


def adopted(role: str = "backup", score: int | None = 100) -> Watch:
    guard = Watch(0.0, 1500, external=True)
    guard.beat(1.0)
    guard.role_is(role, 1.0)
    guard.adopt()
    guard.order_score(1, score, "in sync", False, 1.0)
    guard.order_attributes(2, {"food-state": "in sync"}, 1.0)
    run(guard, 5.0)
    guard.answers.clear()
    return guard


def test_before_its_adoption_nothing_is_told_to_pacemaker() -> None:
    guard = Watch(0.0, 1500, external=True)
    guard.beat(1.0)
    guard.role_is("backup", 1.0)
    guard.order_score(1, 100, "in sync", False, 1.0)
    guard.order_attributes(2, {"food-state": "in sync"}, 1.0)
    guard.order_fail(3, "role did not move", 1.0)
    assert [error for _, error in guard.answers] == ["no resource has adopted this daemon"] * 3
    guard.order_release(4, 2.0)
    assert guard.answers[3:] == [(4, None)]
    assert run(guard, 60.0) == []
    guard.died("killed by signal 9", 61.0)
    assert run(guard, 61.0) == [] and guard.finished(61.0)


def test_a_release_is_answered_when_score_and_attributes_are_gone() -> None:
    guard = adopted()
    guard.order_release(9, 6.0)
    assert not guard.released(6.0) and guard.answers == []
    assert run(guard, 6.0) == ["delete_score in sync", "delete_attribute food-state"]
    assert guard.released(6.1) and guard.answers == [(9, None)]
    assert not guard.released(6.1), "once"
    assert run(guard, 60.0) == []
    guard.adopt()
    guard.order_score(10, 100, "in sync", False, 61.0)
    assert run(guard, 61.0) == ["set_score 100"]


def test_a_release_waits_for_a_tool_that_may_still_write() -> None:
    guard = adopted()
    guard.order_score(3, 10, "catching up", False, 6.0)
    late = guard.next_job(6.0, busy=False)
    assert late is not None and late.kind == "set_score"
    guard.order_release(9, 6.0)
    run(guard, 6.0)
    assert not guard.released(6.1)
    guard.done(late, True, None, "", 6.2)
    assert not guard.released(6.2)
    assert run(guard, 6.2) == ["delete_score catching up"]
    assert guard.released(6.3)


def test_a_release_that_the_tools_do_not_carry_out_is_refused_in_time() -> None:
    guard = adopted()
    guard.order_release(9, 6.0)
    run(guard, 6.0, fails="delete_score")
    assert not guard.released(6.1)
    assert not guard.released(6.0 + watch.STOP_TOOLS_LIMIT_S)
    assert guard.answers == [(9, "score and attributes could not be deleted in time")]
    assert guard.adopted


def test_a_death_during_a_release_is_no_failure() -> None:
    guard = adopted()
    guard.order_release(9, 6.0)
    guard.died("killed by signal 9", 6.0)
    assert not [job for job in run(guard, 6.1) if job.startswith("fail")]
    guard.terminate(6.2)
    run(guard, 6.2)
    assert guard.finished(6.2)


def test_a_dead_external_daemon_is_reported_and_then_left_to_who_started_it() -> None:
    guard = adopted("primary", 1000)
    guard.died("killed by signal 9", 10.0)
    assert run(guard, 10.0) == ["delete_score the daemon is gone"]
    assert "fail killed by signal 9" in run(guard, 10.0 + watch.ROLE_MOVE_LIMIT_S)
    guard.leave(10.0 + watch.LEAVE_S - 0.1)
    assert guard.phase == "dead"
    guard.leave(10.0 + watch.LEAVE_S)
    run(guard, 10.0 + watch.LEAVE_S)
    assert guard.finished(10.0 + watch.LEAVE_S)


def test_pacemakers_own_guardian_waits_for_its_stop() -> None:
    guard = up()
    guard.died("killed by signal 9", 10.0)
    guard.leave(1000.0)
    assert guard.phase == "dead"
