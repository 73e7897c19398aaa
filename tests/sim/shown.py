"""The world that shows each seeded defect: seed, temper (None: the seed's own), and what was noticed there.

Written by `tests/simulate --defects`, which any change of food's core or of the simulator may make necessary: where a
choice falls differently, a seed is another world. What chance meets too rarely is shown by a script.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

SCRIPTS = ("scenarios/test_broken_rules.py", "test_core_agreement.py")


class Shown(NamedTuple):
    seed: int
    temper: str | None
    rule: str


def scripted(defect: str) -> bool:
    """Whether a script shows it: a table of pairs (script, "defect")."""
    tests = Path(__file__).resolve().parent.parent
    return any(f', "{defect}"),' in (tests / name).read_text() for name in SCRIPTS)


SHOWN: dict[str, Shown] = {
    "half_is_enough_for_even_lists": Shown(0, None, "Violation: what is committed is on the disks of W membe"),
    "same_number_promised_twice": Shown(1, None, "Violation: first come for a number: the promised number"),
    "promise_not_saved": Shown(0, None, "Violation: the promise is durable before anything that "),
    "restart_keeps_leading": Shown(0, None, "Violation: a primary that restarts is a backup"),
    "seal_answered_without_stepping_down": Shown(0, None, "Violation: a member steps down before it answers a newe"),
    "rolled_back_store_votes": Shown(25, None, "Violation: liveness: not every node is a member within "),
    "life_told_before_it_was_checked": Shown(908, "churn", "Violation: liveness: not every node is a member within "),
    "pairs_that_merely_add_up": Shown(2, None, "Violation: a majority durably promised an epoch before "),
    "older_epochs_followed": Shown(0, None, "AssertionError: "),
    "lives_not_told_apart": Shown(25, None, "Violation: liveness: not every node is a member within "),
    "founded_with_a_node_missing": Shown(1, None, "Violation: liveness: not every client is served within "),
    "founded_although_a_log_is_there": Shown(4, None, "Violation: leader completeness: what was committed is i"),
    "a_promise_ends_blankness": Shown(2, None, "Violation: liveness: not every client is served within "),
    "donor_not_awaited": Shown(1, None, "Violation: leader completeness: what was committed is i"),
    "old_epochs_entries_counted": Shown(0, None, "Violation: only entries of the own epoch are counted"),
    "served_before_the_barrier": Shown(0, None, "Violation: nothing is served before the barrier is comm"),
    "read_before_the_barrier": Shown(0, None, "Violation: nothing is served before the barrier is comm"),
    "matched_not_reset": Shown(0, None, "Violation: an Ack speaks only of what the primary's log"),
    "commit_up_to_what_is_held": Shown(3, None, "Violation: commit <= matched"),
    "every_append_cuts_the_tail": Shown(0, None, "Violation: an entry that was committed is never cut"),
    "what_stands_before_is_not_compared": Shown(46, None, "Violation: log matching: an equal position means an equ"),
    "what_is_held_is_acknowledged": Shown(46, None, "Violation: an Ack speaks only of what the primary's log"),
    "cut_in_memory_only": Shown(0, None, "Violation: no holes"),
    "counted_before_its_own_save": Shown(8, None, "Violation: what is committed is on the disks of W membe"),
    "acknowledged_before_the_save": Shown(0, None, "Violation: the promise is durable before anything that "),
    "replayed_past_the_commit": Shown(0, None, "Violation: after a restart the state is replayed up to "),
    "sessions_outside_the_snapshot": Shown(0, None, "Violation: a snapshot is the fold of the log up to its "),
    "pieces_of_snapshots_mixed": Shown(17, None, "Violation: pieces of two snapshots never mix"),
    "results_outside_the_snapshot": Shown(0, None, "Violation: a snapshot is the fold of the log up to its "),
    "revision_outside_the_snapshot": Shown(0, None, "Violation: the state is the fold of the log up to appli"),
    "list_outside_the_snapshot": Shown(38, None, "Violation: a snapshot carries its member list"),
    "suffix_of_another_epoch_kept": Shown(46, None, "Violation: one committed entry an index, on every node"),
    "half_installed_snapshot": Shown(28, None, "ValueError: state hash 8cd0bf30183e8167 of 4 rows, expe"),
    "went_on_after_a_failed_save": Shown(3, None, "Violation: what an Ack speaks of is durable"),
    "corosync_says_who_votes": Shown(6, None, "Violation: a majority durably promised an epoch before "),
    "list_published_before_its_save": Shown(0, None, "Violation: a member list is saved before it is publishe"),
    "a_node_votes_whatever_its_disk": Shown(5, None, "Violation: leader completeness: what was committed is i"),
    "list_answered_at_its_append": Shown(0, None, "Violation: a list that an operator is told of is commit"),
    "later_sequences_do_not_wait": Shown(0, None, "Violation: the state is the fold of the log up to appli"),
    "duplicates_get_a_new_result": Shown(0, None, "Violation: a client session's result never changes"),
    "revision_rises_with_every_entry": Shown(0, None, "Violation: the state is the fold of the log up to appli"),
    "duplicates_applied_again": Shown(0, None, "Violation: the state is the fold of the log up to appli"),
    "a_key_forgotten_on_one_node": Shown(0, None, "Violation: the state is the fold of the log up to appli"),
}
