"""food's links cut while Corosync's are whole: Pacemaker sees nothing, food must."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cluster.operations import Cluster, assert_clean, now

pytestmark = pytest.mark.cluster

LONGEST_GAP_MS = 15_000
UNDISTURBED_GAP_MS = 3_000
CUT_S = 4.0  # more than the isolation limit of 1.5 s, twice
CALM_S = 5.0  # a role that flaps would have moved again


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_the_primary_is_cut_from_the_others(settled: Cluster, figures: Any, direction: str) -> None:
    """The role moves without a restart, and stays there when the links are healed; the node is whole by itself."""
    old, pid = settled.primary(), settled.daemon(settled.primary())
    mark = settled.mark()
    with settled.load() as load:
        at, _ = now()
        settled.lab.cut(old, links="food", direction=direction)
        settled.say(f"food's links of {old} are cut ({direction}), Corosync's are not")
        new = settled.wait_primary_not(old)
        time.sleep(CUT_S)
        assert settled.score(old) is None, "the isolated node can be promoted"
        settled.say(f"{old}: {settled.states()[old]}")
        settled.lab.heal(old)
        healed = time.monotonic()
        settled.settle()
        back = time.monotonic() - healed
        assert settled.score(old), "healed, and not eligible"
        time.sleep(CALM_S)
        settled.settle()
        assert settled.primary() == new, "the role went back"
    assert settled.daemon(old) == pid, "the daemon was restarted"
    promoted = [action.node for action in settled.actions(mark, "promote")]
    assert promoted == [new], f"the role flapped: promoted on {', '.join(promoted)}"
    assert not settled.reasons(), "the role moved, but by a failure"
    gap = load.gap_ms(at)
    figures(f"food's links of the primary cut ({direction}): write gap", gap, bar="isolation 1500 + 1000")
    figures(f"food's links of the primary cut ({direction}): in sync after the heal", round(back * 1000))
    assert gap < LONGEST_GAP_MS
    assert_clean(load)


def test_a_backup_is_cut_from_the_others(settled: Cluster, figures: Any) -> None:
    """It says so and can not be promoted; nobody else notices."""
    primary, backup = settled.primary(), settled.backups()[0]
    before, pid = (primary, settled.daemon(primary), settled.epoch(primary)), settled.daemon(backup)
    with settled.load() as load:
        at, _ = now()
        settled.lab.cut(backup, links="food")
        settled.say(f"food's links of {backup} are cut, Corosync's are not")
        settled.wait(lambda: settled.score(backup) is None, "the isolated backup without a score")
        settled.wait(lambda: "in sync" not in settled.states().get(backup, "in sync"), "its attribute")
        settled.say(f"{backup}: {settled.states()[backup]}; {primary}: {settled.states()[primary]}")
        settled.lab.heal(backup)
        healed = time.monotonic()
        settled.settle()
        figures("food's links of a backup cut: in sync after the heal", round((time.monotonic() - healed) * 1000))
        assert settled.score(backup)
    assert (settled.primary(), settled.daemon(primary), settled.epoch(primary)) == before, "the primary was disturbed"
    assert settled.daemon(backup) == pid, "the backup was restarted"
    gap = load.gap_ms(at)
    figures("food's links of a backup cut: write gap", gap, bar="a few hundred")
    assert gap < UNDISTURBED_GAP_MS
    assert not settled.reasons()
    assert_clean(load)
