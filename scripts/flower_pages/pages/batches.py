"""Batches: those whose callers live, durable ones also after their end, and what callers have left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from graft.config.redis_client import broker, shared
from graft.scripts.commands import batch as batch_command
from graft.scripts.console import several
from graft.scripts.flower_pages.frame import Page, Paged, addresses
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.scripts.snapshot import seconds_left
from graft.tasks.dead_letters.store import without_values
from graft.tasks.durable import feeder_lease
from graft.tasks.durable import record as records
from graft.tasks.durable.record import BatchRecord
from graft.tasks.durable_batch import DurableBatch
from graft.tasks.queues import peek, purge
from graft.tasks.results import attempts
from graft.tasks.results.attempts import Attempt
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote

SHOWN: Final = 100  # Runs, and causes of failed items.
DURABLE_CANCEL: Final = " Cancelled items of a durable batch can be run after all, as failed ones."
ID_LENGTHS: Final = range(16, 256)


@dataclass(frozen=True)
class BatchRow:
    """One batch. ``total`` is None while the end of its input is not known, ``left`` seconds where they are known.

    ``state`` is that of a durable batch, or "running", "cancelled", "caller silent" and "no caller".
    """

    id: str
    function: str
    state: str
    queue: str = ""
    name: str = ""
    total: int | None = None
    done: int = 0
    failed: int = 0
    retries: int = 0
    under_way: int = 0
    rate: float = 0.0
    left: float | None = None
    caller: str = ""
    began: float = 0.0
    ended: float = 0.0
    is_durable: bool = False


def of_record(record: BatchRecord) -> BatchRow:
    """The row of a durable batch. Pure."""
    rate = record.done / record.seconds if record.seconds else 0.0
    left = (record.total - record.done) / rate if rate and record.state == "running" else None
    return BatchRow(
        record.id, record.function, record.state, record.queue, record.name, record.total, record.done, record.failed,
        record.retries, record.sent, rate, left, "durable", record.created, record.ended, True,
    )  # fmt: skip


def of_note(note: BatchNote, *, is_cancelled: bool) -> BatchRow:
    """The row of a batch whose caller reports it."""
    is_silent = time.time() - note.at > batch_command.SILENT
    state = "cancelled" if is_cancelled else "caller silent" if is_silent else "running"
    return BatchRow(
        note.id, note.function, state, note.queue, "", note.total, note.done, note.failed, note.retries,
        note.sent - note.done, batch_command.rate(note), seconds_left(note), note.caller, note.at - note.seconds,
    )  # fmt: skip


def of_left_behind(name: str, sent: peek.Sent, *, is_cancelled: bool) -> BatchRow:
    """The row of what a caller that is gone has sent."""
    state = "cancelled" if is_cancelled else "no caller"
    return BatchRow(name, sent.function, state, under_way=sent.waiting + sent.held, began=sent.since)


@dataclass(frozen=True)
class Batches:
    """One page of the batches: what runs first, the latest first."""

    rows: tuple[BatchRow, ...]
    paged: Paged


class BatchesPage(Page):
    template = "graft_batches.html"
    tab = "graft-batches"
    title = "Batches"

    def question(self, *path: str) -> Hashable:
        return self.page_asked()

    def read(self, question: int) -> Batches:
        rows = every()
        paged = Paged(question, len(rows))
        return Batches(tuple(rows[paged.first : paged.first + paged.rows]), paged)


def every() -> list[BatchRow]:
    """All batches that there are, as ``batch list`` finds them."""
    kept = records.every()
    ids = {record.id for record in kept}
    notes = [note for note in progress.running() if note.id not in ids]
    with broker() as client:
        left = batch_command.left_behind(peek.batches(client), ids | {note.id for note in notes}, time.time())
    stopped = batch_command.cancelled([*(note.id for note in notes), *left])
    rows = [of_record(record) for record in kept]
    rows += [of_note(note, is_cancelled=note.id in stopped) for note in notes]
    rows += [of_left_behind(name, sent, is_cancelled=name in stopped) for name, sent in left.items()]
    return sorted(rows, key=lambda row: (bool(row.ended), -(row.ended or row.began)))


@dataclass(frozen=True)
class BatchLook:
    """One batch. ``causes`` are the latest error of each cause with its runs, ``workers`` runs by worker.

    ``waiting`` and ``held`` are messages in its queue and with workers, ``feeder`` the worker that sends a durable one.
    """

    row: BatchRow
    waiting: int
    held: int
    feeder: str
    runs: tuple[Attempt, ...]
    run_count: int
    causes: tuple[tuple[str, int], ...]
    workers: tuple[tuple[str, int, float], ...]


class BatchPage(Page):
    template = "graft_batch.html"
    tab = "graft-batches"
    title = "Batch"

    def read(self, question: tuple[str]) -> BatchLook:
        client = shared()
        name = records.id_of(question[0], client)
        runs = attempts.of(name, client)
        row = find(name, runs)
        with broker() as queue_side:
            waiting = sum(1 for _ in purge.waiting_of(row.id, queue_side)) if not row.ended else 0
            held = peek.held(row.id, queue_side) if not row.ended else 0
        feeder = feeder_lease.holder(client) or "" if row.is_durable and not row.ended else ""
        return BatchLook(row, waiting, held, feeder, tuple(runs[-SHOWN:]), len(runs), *_sums(runs))


def _sums(runs: Sequence[Attempt]) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int, float], ...]]:
    errors = {without_values(run.error): run.error for run in runs if run.error}
    causes = Counter(without_values(run.error) for run in runs if run.error)
    counts, times = Counter(run.worker for run in runs), Counter[str]()
    for run in runs:
        times[run.worker] += run.seconds  # type: ignore[assignment]  # Typed for whole numbers alone.
    latest = tuple((errors[cause], count) for cause, count in causes.most_common(SHOWN))
    return latest, tuple((name, count, times[name]) for name, count in counts.most_common())


def find(name: str, runs: Sequence[Attempt] = ()) -> BatchRow:
    """The batch *name*, an id or a durable batch's name; one that has ended is known by its *runs*.

    Raises:
        LookupError: nothing is known of it.
    """
    client = shared()
    if kept := records.read_all([records.id_of(name, client)], client):
        return of_record(kept[0])
    if len(name) in ID_LENGTHS:
        is_cancelled = bool(batch_command.cancelled([name]))
        for note in progress.running():
            if note.id == name:
                return of_note(note, is_cancelled=is_cancelled)
        with broker() as queue_side:
            held = peek.held(name, queue_side)
            waiting = sum(1 for _ in purge.waiting_of(name, queue_side))
        if held or waiting:
            sent = peek.Sent(runs[-1].name if runs else "", waiting, held, runs[0].began if runs else 0.0)
            return of_left_behind(name, sent, is_cancelled=is_cancelled)
        if runs:
            return BatchRow(name, runs[-1].name, "cancelled" if is_cancelled else "ended", ended=runs[-1].ended)
    raise LookupError(f"no batch {name} is known: it has ended and its runs are forgotten, or it was never sent here")


# ---- what the buttons do ----


def _row(given: Given) -> BatchRow:
    name = given.get("batch", "")
    return find(name, attempts.of(name) if name else ())


def _durable(given: Given) -> DurableBatch:
    return DurableBatch(records.read(given.get("batch", "")))


def _told(row: BatchRow) -> str:
    total = "?" if row.total is None else f"{row.total:,}"
    return f"{row.function}: {row.done:,} of {total} items done, {row.failed:,} failed, {row.under_way:,} under way"


def _plan_cancel(given: Given) -> Plan:
    row = _row(given)
    left = (row.total - row.done) if row.total is not None else row.under_way
    fate = "ended" if given.get("running") else "finished"
    return Plan(
        f"Cancel the batch {row.name or row.id}",
        f"Running items are {fate}, no other item starts. Each item that did not run raises CancelledBatchError at its "
        f"caller.{DURABLE_CANCEL if row.is_durable else ''}",
        "Cancel it", left, (_told(row),), f"{several(left, 'item')} will not run." if left else "",
        is_grave=not row.is_durable, choices=(("running", "End what runs, too (write yes)", given.get("running", "")),),
    )  # fmt: skip


def _cancel(given: Given) -> str:
    row, running = _row(given), bool(given.get("running"))
    if row.is_durable:
        DurableBatch(records.read(row.id)).cancel(running=running)
        return f"cancelled batch {row.name or row.id}"
    withdrawn = batch_command.stop(row.id, running=running)
    return f"cancelled batch {row.id}; {several(withdrawn, 'waiting message')} taken out of the queue"


def _plan_pause(given: Given) -> Plan:
    row = of_record(records.read(given.get("batch", "")))
    effect = "Nothing more of it is sent; what was sent is finished. Resuming goes on."
    return Plan(f"Pause the batch {row.name or row.id}", effect, "Pause it", rows=(_told(row),))


def _pause(given: Given) -> str:
    batch = _durable(given)
    batch.pause()
    return f"paused batch {batch.name or batch.id}"


def _plan_resume(given: Given) -> Plan:
    row = of_record(records.read(given.get("batch", "")))
    if given.get("failed"):
        return Plan(
            f"Run the failed items of {row.name or row.id} again",
            "They run once more, as a new generation. Restart the workers first where code was mended.",
            "Run them again", row.failed, (_told(row),),
        )  # fmt: skip
    return Plan(f"Resume the batch {row.name or row.id}", "It goes on.", "Resume it", rows=(_told(row),))


def _resume(given: Given) -> str:
    batch, failed = _durable(given), bool(given.get("failed"))
    count = batch.resume(failed=failed)
    name = batch.name or batch.id
    return f"{several(count, 'failed item')} of {name} run again" if failed else f"batch {name} goes on"


def _plan_forget(given: Given) -> Plan:
    row = of_record(records.read(given.get("batch", "")))
    effect = "Its record and results are removed; what of it has not begun never does."
    return Plan(f"Forget the batch {row.name or row.id}", effect, "Forget it", row.done, (_told(row),), is_grave=True)


def _forget(given: Given) -> str:
    batch = _durable(given)
    batch.forget()
    return f"forgot batch {batch.name or batch.id}"


ACTIONS: Final = {
    "cancel-batch": Action(_plan_cancel, _cancel),
    "pause-batch": Action(_plan_pause, _pause),
    "resume-batch": Action(_plan_resume, _resume),
    "forget-batch": Action(_plan_forget, _forget),
}
ADDRESSES: Final = [
    *addresses(r"/batches", BatchesPage, "graft-batches"),
    *addresses(r"/batch/(.+)", BatchPage, "graft-batch"),
]
