"""Batches: those whose callers live, durable ones also after their end, and what callers have left behind."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from graft.scripts.commands.batch import running
from graft.scripts.flower_pages.frame import Page, Paged, addresses
from graft.scripts.snapshot import seconds_left
from graft.tasks.durable.record import BatchRecord
from graft.tasks.queues import peek
from graft.tasks.sending.progress import BatchNote


@dataclass(frozen=True)
class BatchRow:
    """One batch. ``total`` is None while the end of its input is not known, ``left`` seconds where they are known.

    ``state`` is that of a durable batch, or "running", "paused", "cancelled", "caller silent" and "no caller".
    ``may_pause``: it can be held up.
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
    may_pause: bool = False


def of_record(record: BatchRecord) -> BatchRow:
    """The row of a durable batch. Pure."""
    rate = record.done / record.seconds if record.seconds else 0.0
    left = (record.total - record.done) / rate if rate and record.state == "running" else None
    return BatchRow(
        record.id, record.function, record.state, record.queue, record.name, record.total, record.done, record.failed,
        record.retries, record.sent, rate, left, "durable", record.created, record.ended, True,
        not record.ended,
    )  # fmt: skip


def of_note(note: BatchNote, *, is_cancelled: bool) -> BatchRow:
    """The row of a batch whose caller reports it."""
    is_silent = time.time() - note.at > running.SILENT
    state = "cancelled" if is_cancelled else "caller silent" if is_silent else "paused" if note.is_paused else "running"
    return BatchRow(
        note.id, note.function, state, note.queue, "", note.total, note.done, note.failed, note.retries,
        note.sent - note.done, note.rate, seconds_left(note), note.caller, note.at - note.seconds,
        may_pause=note.may_pause,
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
    share = 60.0  # Redis has more to do for it than Flower.

    def question(self, *path: str) -> Hashable:
        return self.page_asked()

    def read(self, question: int) -> Batches:
        rows = every()
        paged = Paged(question, len(rows))
        return Batches(tuple(rows[paged.first : paged.first + paged.rows]), paged)


def every() -> list[BatchRow]:
    """All batches that there are, as ``batch list`` finds them."""
    found = running.survey()
    rows = [of_record(record) for record in found.durable]
    rows += [of_note(note, is_cancelled=note.id in found.cancelled) for note in found.notes]
    rows += [
        of_left_behind(name, sent, is_cancelled=name in found.cancelled) for name, sent in found.left_behind.items()
    ]
    return sorted(rows, key=lambda row: (bool(row.ended), -(row.ended or row.began)))


ADDRESSES: Final = addresses(r"/batches", BatchesPage, "graft-batches")
