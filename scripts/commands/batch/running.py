"""Batches of callers that live, and what others have left behind: found, cancelled, held up. Durable: durable.py."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import click

from graft.config.redis_client import broker, patient_broker, shared
from graft.tasks.delivery import cancellation
from graft.tasks.durable import record as records
from graft.tasks.durable.record import BatchRecord
from graft.tasks.queues import peek, purge
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote

SHORTEST: Final = 4  # Characters of an id that may stand for it.
SETTLES: Final = 6.0  # Seconds within which a live caller notices the cancel and stops sending.
UNREPORTED: Final = 3.0  # Seconds within which a live caller has reported its batch.
SILENT: Final = 4.0  # Seconds without progress after which the caller may have ended.


@dataclass(frozen=True)
class BatchState:
    """The state of one batch. ``note`` is the progress that its caller last published; None without a caller."""

    id: str
    note: BatchNote | None
    waiting: int
    held: int
    is_cancelled: bool

    @property
    def is_unknown(self) -> bool:
        return self.note is None and not self.waiting and not self.held


@dataclass(frozen=True)
class Survey:
    """All batches that are known: durable ones, those that a live caller reports, what others have left behind."""

    durable: list[BatchRecord]
    notes: list[BatchNote]
    left_behind: dict[str, peek.Sent]
    cancelled: set[str]


def survey() -> Survey:
    """Look for all batches."""
    kept = records.every()
    ids = {record.id for record in kept}
    notes = [note for note in progress.running() if note.id not in ids]
    left = left_behind(peek.batches(patient_broker()), ids | {note.id for note in notes}, time.time())
    return Survey(kept, notes, left, cancelled([*(note.id for note in notes), *left]))


def left_behind(sent: Mapping[str, peek.Sent], running: Collection[str], now: float) -> dict[str, peek.Sent]:
    """The batches of *sent* that no caller reports, the oldest first. A caller reports after a second."""
    orphans = {name: one for name, one in sent.items() if name not in running and now - one.since > UNREPORTED}
    return dict(sorted(orphans.items(), key=lambda pair: pair[1].since))


def stop(batch_id: str, *, running: bool = False) -> int:
    """Cancel, and repeat until the caller has noticed. Returns how many waiting messages were taken out."""
    withdrawn = purge.cancel(batch_id, running=running)
    deadline = time.monotonic() + SETTLES
    before = None
    while time.monotonic() < deadline:
        note = next((note for note in progress.running() if note.id == batch_id), None)
        # The caller has published twice and sent nothing in between: it has noticed.
        if note is None or (before is not None and note.at > before.at + progress.EVERY and note.sent == before.sent):
            break
        if time.time() - note.at > SILENT:
            break
        before = before if before is not None and note.sent == before.sent else note
        time.sleep(progress.EVERY / 2)
        withdrawn += purge.cancel(batch_id)
    return withdrawn


def find(batch_id: str) -> BatchState | None:
    """The state of the batch with this id, or of the running one whose id ends with it.

    Raises:
        UsageError: several ids end with it.
    """
    notes = {note.id: note for note in progress.running()}
    meant = [name for name in notes if name == batch_id or (len(batch_id) >= SHORTEST and name.endswith(batch_id))]
    if len(meant) > 1:
        raise click.UsageError(f"several batches end in {batch_id}: {', '.join(meant)}")
    whole = meant[0] if meant else batch_id
    if not meant and not 16 <= len(batch_id) <= 255:
        return None  # Not an id of a batch. As a search text it would match messages of other batches.
    with broker() as client:
        waiting = sum(1 for _ in purge.waiting_of(whole, client))
        return BatchState(whole, notes.get(whole), waiting, peek.held(whole, client), whole in cancelled([whole]))


def hold(note: BatchNote, *, is_paused: bool) -> bool:
    """Pause or resume the batch of *note*; whether its caller has obeyed within a few seconds, or the batch has ended.

    Raises:
        ValueError: its caller cannot hold it up.
    """
    if is_paused and not note.may_pause:
        raise ValueError(
            f"batch {note.id} cannot be paused: its tasks wait in the index of a named or ordered pool, from which "
            f"workers take them; pause the queue {note.queue} instead"
        )
    if is_paused:
        progress.pause(note.id)
    else:
        progress.resume(note.id)
    deadline = time.monotonic() + SETTLES
    while time.monotonic() < deadline:
        now = next((one for one in progress.running() if one.id == note.id), None)
        if now is None or now.is_paused == is_paused:
            return True
        time.sleep(progress.EVERY / 5)
    return False


def cancelled(ids: Iterable[str]) -> set[str]:
    """The cancelled ones among *ids*."""
    wanted = list(ids)
    flags = shared().mget([cancellation.CANCEL_KEY + each for each in wanted]) if wanted else []
    return {each for each, flag in zip(wanted, flags, strict=True) if cancellation.is_whole(flag)}
