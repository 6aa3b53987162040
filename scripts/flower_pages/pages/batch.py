"""One batch: how far it is, what failed and why, its envelopes and workers; cancelled, paused, resumed, forgotten."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config.redis_client import patient_broker, shared
from graft.config.words import several
from graft.scripts.commands.batch import running as running_batches
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.pages.batches import BatchRow, of_left_behind, of_note, of_record
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.tasks import codec
from graft.tasks.dead_letters.store import without_values
from graft.tasks.durable import feeder_lease
from graft.tasks.durable import record as records
from graft.tasks.durable.failures import FailureCause, failures
from graft.tasks.durable.record import BatchRecord
from graft.tasks.durable_batch import DurableBatch
from graft.tasks.errors import TaskQueueError
from graft.tasks.queues import peek, purge
from graft.tasks.results import attempts
from graft.tasks.results.attempts import Attempt
from graft.tasks.sending import progress

SHOWN: Final = 100  # Runs, and causes of failed items.
DURABLE_CANCEL: Final = " Cancelled items of a durable batch can be run after all, as failed ones."
ID_LENGTHS: Final = range(16, 256)
LATELY: Final = 10.0  # Seconds for which causes serve while more items fail.
REMEMBERED: Final = 20  # Batches whose causes are.


@dataclass(frozen=True)
class Why:
    """Why it has failed: a durable batch by item, from the outcomes that it keeps; others by run that is remembered.

    ``known`` of ``total`` failures were read; ``note`` says why there are no causes where there should be.
    """

    causes: tuple[FailureCause, ...] = ()
    known: int = 0
    total: int = 0
    by_item: bool = False
    note: str = ""


@dataclass(frozen=True)
class BatchLook:
    """One batch. ``workers`` are runs by worker.

    ``waiting`` and ``held`` are messages in its queue and with workers, ``feeder`` the worker that sends a durable one.
    """

    row: BatchRow
    waiting: int
    held: int
    feeder: str
    runs: tuple[Attempt, ...]
    run_count: int
    why: Why
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
        queue_side = patient_broker()
        waiting, held = (0, 0) if row.ended else messages(row.id, queue_side, row.queue)
        feeder = feeder_lease.holder(client) or "" if row.is_durable and not row.ended else ""
        why = _why_items(records.read(row.id, client), client) if row.is_durable else _why_runs(runs)
        return BatchLook(row, waiting, held, feeder, tuple(runs[-SHOWN:]), len(runs), why, _workers(runs))


def _why_runs(runs: Sequence[Attempt]) -> Why:
    errors = {without_values(run.error): run.error for run in runs if run.error}
    counts = Counter(without_values(run.error) for run in runs if run.error)
    causes = (FailureCause(errors[cause], "", count, ()) for cause, count in counts.most_common(SHOWN))
    total = sum(counts.values())
    return Why(tuple(causes), total, total)


_known: OrderedDict[tuple[str, int], tuple[int, float, Why]] = OrderedDict()


def _why_items(record: BatchRecord, client: Any) -> Why:
    """Read anew where more has failed, but not every second: it may be many megabytes."""
    if not record.failed and not record.fatal:
        return Why()
    key = (record.id, record.generation)
    count, at, known = _known.get(key, (-1, 0.0, Why()))
    if count == record.failed or time.monotonic() - at < LATELY:
        return known
    try:
        found = failures(record, client)
        fatal = codec.describe_error(codec.unseal(f"fatal:{record.id}", record.fatal)) if record.fatal else ()
        note = f"It cannot run at all: {': '.join(fatal[:2])}" if fatal else ""
        why = Why(found.causes[:SHOWN], found.read, found.total, True, note)
    except TaskQueueError as error:
        why = Why((), 0, record.failed, True, f"the outcomes cannot be read here: {error}")
    _known[key] = (record.failed, time.monotonic(), why)
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)
    return why


def _workers(runs: Sequence[Attempt]) -> tuple[tuple[str, int, float], ...]:
    counts, times = Counter(run.worker for run in runs), Counter[str]()
    for run in runs:
        times[run.worker] += run.seconds  # type: ignore[assignment]  # Typed for whole numbers alone.
    return tuple((name, count, times[name]) for name, count in counts.most_common())


def messages(batch: str, client: Any, queue: str = "") -> tuple[int, int]:
    """How many messages of *batch* wait, in *queue* if it is known, and how many workers hold."""
    queues = [queue] if queue and len(queue) < attempts.LONGEST_QUEUE else ()
    return sum(1 for _ in purge.waiting_of(batch, client, queues)), peek.held(batch, client)


def find(name: str, runs: Sequence[Attempt] = ()) -> BatchRow:
    """The batch *name*, an id or a durable batch's name; one that has ended is known by its *runs*.

    Raises:
        LookupError: nothing is known of it.
    """
    client = shared()
    if kept := records.read_all([records.id_of(name, client)], client):
        return of_record(kept[0])
    if len(name) in ID_LENGTHS:
        is_cancelled = bool(running_batches.cancelled([name]))
        for note in progress.running():
            if note.id == name:
                return of_note(note, is_cancelled=is_cancelled)
        waiting, held = messages(name, patient_broker(), runs[-1].queue if runs else "")
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
    withdrawn = running_batches.stop(row.id, running=running)
    return f"cancelled batch {row.id}; {several(withdrawn, 'waiting message')} taken out of the queue"


def _plan_pause(given: Given) -> Plan:
    row = _row(given)
    if not row.may_pause:
        raise ValueError(f"batch {row.id} cannot be paused: no caller that could hold it up reports it now")
    left = row.total - row.done - row.under_way if row.total is not None else 0
    effect = "Nothing more of it is sent; what was sent is finished. Resuming goes on."
    if not row.is_durable:
        effect += " Its caller obeys within two seconds; time limits of its own go on, and the pause ends with it."
    note = f"{several(left, 'item')} will wait." if left > 0 else ""
    return Plan(f"Pause the batch {row.name or row.id}", effect, "Pause it", max(left, 0), (_told(row),), note)


def _pause(given: Given) -> str:
    return _hold(_row(given), is_paused=True)


def _hold(row: BatchRow, *, is_paused: bool) -> str:
    """Pause or resume a batch, durable or not; what was done."""
    done = f"paused batch {row.name or row.id}" if is_paused else f"batch {row.name or row.id} goes on"
    if row.is_durable:
        batch = DurableBatch(records.read(row.id))
        batch.pause() if is_paused else batch.resume()
        return done
    note = next((note for note in progress.running() if note.id == row.id), None)
    if note is None:
        raise LookupError(f"batch {row.id} has ended, or its caller is gone")
    if not running_batches.hold(note, is_paused=is_paused):
        return f"the caller {note.caller} of batch {row.id} was asked, and has not obeyed yet"
    return done


def _plan_resume(given: Given) -> Plan:
    row = _row(given)
    if given.get("failed"):
        row = of_record(records.read(row.id))
        return Plan(
            f"Run the failed items of {row.name or row.id} again",
            "They run once more, as a new generation. Restart the workers first where code was mended.",
            "Run them again", row.failed, (_told(row),),
        )  # fmt: skip
    return Plan(f"Resume the batch {row.name or row.id}", "It goes on.", "Resume it", rows=(_told(row),))


def _resume(given: Given) -> str:
    if not given.get("failed"):
        return _hold(_row(given), is_paused=False)
    batch = _durable(given)
    count = batch.resume(failed=True)
    return f"again: {several(count, 'failed item', 'run')}, of {batch.name or batch.id}"


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
ADDRESSES: Final = addresses(r"/batch/(.+)", BatchPage, "graft-batch")
