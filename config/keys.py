"""The names of the keys in Redis, for the rooms that read and write them and for the rules of who may (acl.py).

A name that ends in ``:`` begins one key for each batch, call, worker and so on; :func:`pattern` stands for all of them.
"""

from __future__ import annotations

from typing import Final

BATCH: Final = "graft:batch:"
BATCHES: Final = "graft:batches"
PAUSED_BATCH: Final = f"{BATCH}paused:"  # What was not sent of a batch is held up.
BODY: Final = "graft:body:"
CALL: Final = "graft:call:"
CALLS: Final = "graft:calls:"
CANCEL: Final = "graft:cancel:"
CANCELLED: Final = "graft:cancelled"
CHORD: Final = "graft:chord:"
CHORDS: Final = "graft:chords"
COMPAT: Final = "graft:compat:"
DUE: Final = "graft:due"  # Also begins the names of the messages whose time has not come, and of their counts.
DURABLE: Final = "graft:durable:"
FUNCTION: Final = "graft:function:"
FUNCTION_STATS: Final = "graft:figures:"
FUNCTIONS: Final = "graft:figures"
GUESTS: Final = "graft:guests:"
OUTCOME: Final = "graft:outcome:"
OVERLAP: Final = "graft:overlap:"
PACE: Final = "graft:pace:"
POC: Final = "graft:poc:"
POOL: Final = "graft:pool:"
QUEUES: Final = "graft:queues"  # The queues that were ever declared here, each with the time.
SENT: Final = "graft:sent:"  # Says for a minute that a batch of messages was put on its queues.
SHARED: Final = "graft:shared:"
UNIQUE: Final = "graft:unique:"  # The call that has a key, of which there is one at a time.
VIRTUAL_TIMES: Final = "graft:virtual-times"  # Of each list on which batches wait.
RESOURCE_POOL: Final = "resource_pool:"  # Known to the callers of compat/celery_migration_poc by this name.
BETWEEN_CALLERS_AND_WORKERS: Final = (
    BATCH, BATCHES, BODY, CALL, CALLS, CANCEL, CANCELLED, CHORD, CHORDS, COMPAT, DUE, f"{DUE}:", DURABLE,
    FUNCTION_STATS, FUNCTIONS, FUNCTION, GUESTS, OUTCOME, OVERLAP, PACE, POC, POOL, QUEUES, SENT, SHARED, UNIQUE,
    VIRTUAL_TIMES,
    RESOURCE_POOL,
)  # fmt: skip

ATTEMPTS: Final = "graft:attempts"  # A stream: how each run of an envelope or task ended.
AUDIT: Final = "graft:audit"  # A stream: what people did through Flower's pages.
BEATS: Final = "graft:beats"
BEAT_SCHEDULES: Final = "graft:beats:schedules"
BEAT_SENT: Final = "graft:beats:sent"
BEAT_ENDED: Final = "graft:beats:ended"  # How the last run of each entry ended.
DEAD_LETTERS: Final = "graft:dead-letters"  # Also begins the names of its index, locks and replays.
HEALTH: Final = "graft:health"
JANITOR: Final = "graft:janitor:"
LEAKS: Final = "graft:leaks:"
LIMIT: Final = "graft:limit:"  # A hash for each limit: what it did.
LIMITS: Final = "graft:limits"  # Their names, with the time of their last use.
LIMIT_KEYS: Final = "graft:limit-keys:"  # The keys of each, likewise.
TRACE: Final = "graft:leaks:trace"
PAUSED: Final = "graft:paused"
QUARANTINE: Final = "graft:quarantine"  # Also begins the name of its counts.
REDBEAT: Final = "graft:redbeat:"
RUN: Final = "graft:run:"
UNSIGNED: Final = "graft:unsigned"
WORKER: Final = "graft:worker:"
WORKERS: Final = "graft:workers"

# The messages that hardened workers hold: a hash, its index by time, the lock of those who sweep them. kombu's own
# names are those of stock workers: the two may share queues, and neither gives away what the other runs.
UNACKED: Final = "graft:unacked"
UNACKED_INDEX: Final = "graft:unacked_index"
RETURNED: Final = "graft:returned:"  # A delivery whose message went back to its queue: its run concludes nothing more.

# Celery's and kombu's.
STOCK_HELD: Final = "unacked*"  # The hash, index and lock of stock workers, which hardened ones sweep too.
BINDINGS: Final = "_kombu.binding."
RESULT: Final = "celery-task-meta-"


def pattern(name: str) -> str:
    """The pattern of the keys whose names begin with *name*; *name* itself where it is a whole one."""
    return f"{name}*" if name.endswith((":", ".", "-")) else name
