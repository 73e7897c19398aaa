"""The rules that tests/sim/invariants.py checks: each one's sentence, and where it comes from.

Raft: Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm (2014); D: Ongaro's dissertation;
VSR: Liskov and Cowling, Viewstamped Replication Revisited (2012). PROTOCOL: the section of the design's protocol page;
README: section 7 (its rules by number, its departures from Raft) or section 6 (promises).
"At most one holder of a solo list" has no rule here: a pair of nodes never goes on alone, W is both.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    sentence: str
    source: str

    def __str__(self) -> str:
        return f"{self.sentence} [{self.source}]"


# --- Epochs and seals: the promise pair is durable and monotonic; one leader an epoch ---

PROMISE_RISES = Rule("the promise only rises", "README rule 1; Raft 5.1; VSR 4.2, view-number")
FIRST_COME = Rule("first come for a number: the promised number rises", "PROTOCOL, Epochs; README, departures")
PROMISE_DURABLE = Rule("the promise is durable when the turn ends", "README rule 1; Raft figure 2, votedFor")
PROMISE_FIRST = Rule("the promise is durable before anything that speaks of it leaves", "PROTOCOL, Epochs; Raft 5.1")
PROMISE_KEPT = Rule("what a store said it promised it still promises after a restart", "README rule 1; Raft 5.1")
STEPS_DOWN = Rule("a member steps down before it answers a newer Seal", "PROTOCOL, Epochs; Raft 5.1")
BACKUP_AT_START = Rule("a primary that restarts is a backup", "PROTOCOL, Epochs [broken]; README, departures")
LEADS_OWN_EPOCH = Rule("only the candidate leads its epoch", "PROTOCOL, Epochs; README, departures")
LEADS_PROMISED = Rule("a primary leads only what it promised itself", "PROTOCOL, Epochs")
ONE_LEADER = Rule("one leader an epoch, in one life", "README promise 4; Raft 5.2, election safety")
ONE_NUMBER = Rule("no two epochs that are led share a number", "PROTOCOL, Epochs [broken]")
ONE_ROLE = Rule("one role at a time", "README section 7, roles")
ONLY_PRIMARY_PUBLISHES = Rule("only a primary publishes, in its own epoch", "Raft figure 2, leaders")
SEALED_BY_MAJORITY = Rule("a majority durably promised an epoch before it is led", "README rules 1 and 2; Raft 5.2")

# --- Log: log matching, uncommitted entries included; no truncation at or below the commit index ---

SAME_ENTRY = Rule("log matching: one position, one entry", "README rule 5; Raft 5.3")
SAME_PREFIX = Rule("log matching: an equal position means an equal prefix", "README rule 5; Raft 5.3")
NO_HOLES = Rule("no holes", "Raft 5.3")
EPOCHS_RISE = Rule("epochs never fall along a log", "Raft 5.3; PROTOCOL, Epochs")
BARRIER_FIRST = Rule("the first entry of an epoch is its barrier", "README rule 6; Raft 8 (no-op); PROTOCOL, Promotion")
NO_CUT = Rule("no truncation at or below the commit index", "README rule 5; PROTOCOL, Log")
COMMITTED_STAYS = Rule("an entry that was committed is never cut", "README promise 1; Raft 5.4.3")
DISK_IS_MEMORY = Rule("memory is never behind the disk, nor ahead after a turn", "PROTOCOL, Log; food/core/ready.py")
SAVED_COMMIT = Rule("the saved commit index is in the saved log", "PROTOCOL, Log")
SEALED_IS_DURABLE = Rule("what a member says it holds is durable", "PROTOCOL, Epochs; VSR 4.2, do-view-change")

# --- Commit: leader completeness; commit <= matched; applied <= commit ---

LEADER_COMPLETE = Rule("leader completeness: what was committed is in the log", "README rules 3, 4; Raft 5.4.3")
LATE_COMMIT = Rule(
    "leader completeness: what an older epoch commits late is in the newer primary's log", "README promise 4"
)
HELD_BY_MAJORITY = Rule("what is committed is on the disks of W members", "README promise 1, rule 2; Raft 5.3")
OWN_EPOCH_COUNTED = Rule("only entries of the own epoch are counted", "README rule 6; Raft 5.4.2, figure 8")
ONE_COMMITTED = Rule("one committed entry an index, on every node", "Raft 5.4.3, state machine safety")
COMMIT_DENSE = Rule("what is committed stands behind what was committed", "Raft 5.3")
COMMIT_RISES = Rule("the commit index only rises", "Raft figure 2, commitIndex")
COMMIT_MATCHED = Rule("commit <= matched", "README rule 7; PROTOCOL, Log [broken]")
ACK_MATCHED = Rule("an Ack speaks only of what the primary's log holds", "README rule 7; PROTOCOL, Log [broken]")
ACK_DURABLE = Rule("what an Ack speaks of is durable", "PROTOCOL, Log; Raft 5.3")
ACK_PROMISED = Rule("an Ack is of the epoch that is promised", "Raft 5.1")
APPLIED_COMMIT = Rule("applied <= commit <= last", "Raft figure 2; PROTOCOL, Invariants")
NOT_PAST_COMMIT = Rule(
    "after a restart the state is replayed up to the saved commit index, never past it", "PROTOCOL, Log [broken]"
)
STATE_IS_FOLD = Rule("the state is the fold of the log up to applied", "Raft 2, state machines; PROTOCOL, Invariants")
STATES_AGREE = Rule("all states are the same at one index", "Raft 5.4.3, state machine safety; food/core/agreement.py")
RIGHTLY_OUTVOTED = Rule("only a state that is wrong is outvoted", "food/core/agreement.py")

# --- Snapshots ---

SNAPSHOT_ABOVE = Rule("a snapshot is installed only above the commit index", "PROTOCOL, Log; Raft 7")
SNAPSHOT_COMMITTED = Rule("a snapshot holds only what is committed", "Raft 7; D 5.1")
PIECES_APART = Rule("pieces of two snapshots never mix", "PROTOCOL, Log [broken]")
SNAPSHOT_IS_FOLD = Rule(
    "a snapshot is the fold of the log up to its position, sessions included", "Raft 7; D 6.3; PROTOCOL, Log"
)
SNAPSHOT_LIST = Rule("a snapshot carries its member list", "PROTOCOL, Log; D 4, 5.1")

# --- Member list: neighbouring member lists' majorities overlap ---

FOUNDING_IS_ONE = Rule("the founding list is list 1", "PROTOCOL, Member list")
LIST_NUMBER = Rule("a list's number rises by one, in the same cluster", "PROTOCOL, Member list")
ONE_STORE = Rule("neighbouring lists differ by one store", "README rule 10; D 4.1; PROTOCOL, Member list [broken]")
OVERLAP = Rule("neighbouring member lists' majorities overlap", "README rule 10; D 4.1")
AS_ASKED = Rule(
    "a list differs from the one that an operator saw by what was asked for", "README, departures (changes of members)"
)
LIST_ALONE = Rule(
    "a list is appended only when the former list and this epoch's barrier are committed",
    "PROTOCOL, Member list [broken]; D 4.1 and its erratum",
)
LIST_SAVED = Rule("a member list is saved before it is published", "PROTOCOL, Member list [broken]")
LIST_TOLD = Rule("a list that an operator is told of is committed", "README, departures (changes of members)")
TOLD_IS_DONE = Rule("what an operator is told is done, is done", "README, departures (changes of members)")
LIST_RULES = Rule("the list that rules is everywhere", "README rule 10")

# --- Clients: a client session's result never changes ---

ACKED_IS_COMMITTED = Rule("an acknowledged write is committed", "README promise 1")
SERVED_AFTER_BARRIER = Rule("nothing is served before the barrier is committed", "README rule 8; D 6.4; Raft 8")
RESULT_STAYS = Rule("a client session's result never changes", "README promise 3, rule 9; D 6.3; VSR 4.1, client-table")
SESSION_KNOWN = Rule("a session that is neither evicted nor closed is known", "README promise 3; D 6.3")
READ_LATEST = Rule(
    "a linearizable read returns at least the latest acknowledged write", "README promise 2, rule 8; D 6.4"
)
STALE_WAS = Rule("a stale read returns some past state", "README promise 2")

RULES = {name: rule for name, rule in list(globals().items()) if isinstance(rule, Rule)}
