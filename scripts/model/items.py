"""What the tasks of the model do. The first words of a label say it; the label is also the id.

``plain`` returns; ``raises`` fails; ``fails-first`` fails in its first run; ``kills-process`` and ``kills-worker`` end
what runs them; ``retries`` asks for a second run; ``chained`` is followed by another task; ``garbled`` is no message.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from celery import Task

from graft.scripts.model.actors import INSIDE, Died, Scheduler

TASK: Final = "model.work"
CHAINED: Final = "chained"
FAILS_FIRST: Final = "fails-first"
GARBLED: Final = "garbled"
# Who finds it in the quarantine knows what it was.
GARBLED_TEXT: Final = '{"properties": {"correlation_id": "%s"}}'


class ExpectedError(Exception):
    """What a task raises because it is told to."""


class Witness(Protocol):
    """Sees what tasks and items do."""

    scheduler: Scheduler

    def note_begin(self, task_id: str) -> int:
        """The number of this run, from 1."""

    def note_kill(self, task_id: str) -> None: ...
    def note_end(self, task_id: str) -> None: ...


_witnesses: list[Witness] = []  # The one that sees items: they have nothing but their argument.


def run_item(name: str) -> str:
    """One item of an envelope: does what the first words of its name say."""
    witness = _witnesses[-1]
    number = witness.note_begin(name)
    witness.scheduler.stop(INSIDE)
    if name.startswith("kills"):
        witness.note_kill(name)
        witness.scheduler.stop(name)  # The model ends the process there.
        raise Died
    witness.note_end(name)
    if name.startswith(FAILS_FIRST) and number == 1:
        raise ExpectedError(name)
    return name


def follower(label: str) -> str:
    """The task that follows the one named *label*."""
    return f"follows-{label}"


def chain_of(app: Any, label: str) -> list[Any] | None:
    """What follows the task named *label*, as its message says it."""
    if not label.startswith(CHAINED):
        return None
    name = follower(label)
    return [dict(app.signature(TASK, args=[name], immutable=True, options={"task_id": name}))]


def define(app: Any, witness: Witness) -> None:
    """Make the task, whose runs *witness* sees, and have it see the items of envelopes."""
    _witnesses.append(witness)

    class Work(Task):
        abstract = True
        graft_letters = True

    @app.task(name=TASK, base=Work, bind=True)
    def work(task: Any, label: str) -> str:
        """It can be stopped before it begins and in the middle."""
        number = witness.note_begin(task.request.id)
        witness.scheduler.stop(INSIDE)
        if label.startswith("kills"):
            witness.note_kill(task.request.id)
            witness.scheduler.stop(label)  # The model ends the process there.
            raise Died
        witness.note_end(task.request.id)
        if label.startswith("retries") and not task.request.retries:
            raise task.retry(countdown=0)
        if label.startswith("raises") or (label.startswith(FAILS_FIRST) and number == 1):
            raise ExpectedError(label)
        return label
