"""Every queue: what waits by priority, for how long, in and out, who reads; a look into one; pause, resume, purge."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final

from graft.config.queues import purpose
from graft.config.redis_client import patient_broker, shared
from graft.config.transport.task_validation import can_verify
from graft.config.words import several
from graft.scripts.commands import queue as queue_command
from graft.scripts.flower_pages.filters import Filter, seconds
from graft.scripts.flower_pages.frame import Page, Paged, addresses
from graft.scripts.flower_pages.moments import Moment, moments
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.scripts.flower_pages.series import Series, split
from graft.scripts.snapshot import QueueLine
from graft.tasks.messages.message_format import lists
from graft.tasks.monitoring import worker_registry
from graft.tasks.queues import existing
from graft.tasks.queues import pause as queue_pause
from graft.tasks.queues import peek as queue_peek
from graft.tasks.queues import purge as queue_purge
from graft.tasks.queues.peek import Group, Waiting

GROUPED: Final = 5000  # Messages that are read to group a queue; a longer one is grouped by its first.
SHOWN: Final = 20


@dataclass(frozen=True)
class QueueRow:
    """One queue. Rates are None until they are known; ``empty_in`` where it shrinks, in seconds."""

    name: str
    purpose: str
    waiting: int
    oldest: float | None
    readers: int
    is_paused: bool
    may_pause: bool
    remark: str
    into: float | None = None
    out: float | None = None
    grows: float | None = None
    empty_in: float | None = None


@dataclass(frozen=True)
class Queues:
    """One page of the queues, those with a warning first, then those with the most waiting."""

    rows: tuple[QueueRow, ...]
    paged: Paged
    waiting: int
    find: str


class QueuesPage(Page):
    template = "graft_queues.html"
    tab = "graft-queues"
    title = "Queues"
    filters = (Filter("find", "Part of a queue's name"),)

    def question(self, *path: str) -> Hashable:
        return self.asked("find"), self.page_asked()

    def read(self, question: tuple[str, int]) -> Queues:
        return queues(moments().take(), *question)


def queues(moment: Moment, find: str, page: int) -> Queues:
    """The page of *moment*; *find* is part of a name. Pure."""
    lines = [row_of(line, moment) for line in moment.now.queues if find.casefold() in line.name.casefold()]
    lines.sort(key=lambda row: (row.remark != "no reader", not row.is_paused, -row.waiting))
    paged = Paged(page, len(lines))
    return Queues(tuple(lines[paged.first : paged.first + paged.rows]), paged, sum(row.waiting for row in lines), find)


def line_of(name: str, moment: Moment) -> QueueLine:
    """The queue *name*.

    Raises:
        LookupError: there is no such queue.
    """
    for line in moment.now.queues:
        if line.name == name:
            return line
    raise LookupError(f"there is no queue {name!r}")


def row_of(line: QueueLine, moment: Moment) -> QueueRow:
    """The row of a queue. Pure."""
    name = line.name
    shown = QueueRow(
        name, purpose(name), line.waiting, line.oldest, line.readers, line.is_paused, not queue_pause.is_spared(name),
        line.remark,
    )  # fmt: skip
    if moment.rates is None:
        return shown
    grows = moment.rates.grows.get(name, 0.0)
    return replace(
        shown, into=moment.rates.into.get(name, 0.0), out=moment.rates.out.get(name, 0.0), grows=grows,
        empty_in=line.waiting / -grows if grows < -0.05 and line.waiting else None,
    )  # fmt: skip


@dataclass(frozen=True)
class QueueLook:
    """One queue. ``steps`` are messages by priority on the broker, 0 the most urgent; ``depth``, ``age``: the past."""

    row: QueueRow
    steps: tuple[int, ...]
    readers: tuple[str, ...]
    groups: tuple[Group, ...]
    grouped: int
    next: tuple[Waiting, ...]
    depth: Series
    age: Series
    verifies: bool


class QueuePage(Page):
    template = "graft_queue.html"
    tab = "graft-queues"
    title = "Queue"

    def read(self, question: tuple[str]) -> QueueLook:
        (name,) = question
        moment = moments().take()
        row = row_of(line_of(name, moment), moment)
        client = patient_broker()
        lengths = existing.lengths([name], client)
        past = [(one.at, one.queues.get(name, [0.0, 0.0])) for one in moments().past()]
        messages = list(islice(queue_peek.every(name, client), GROUPED))
        return QueueLook(
            row, tuple(lengths.get(key, 0) for key in lists(name)),
            tuple(one.name for one in worker_registry.workers(shared()) if name in one.queues),
            tuple(queue_peek.grouped(messages)[:SHOWN]), len(messages), tuple(queue_peek.peek(name, SHOWN, client)),
            split([(at, pair[0]) for at, pair in past], time.time()),
            split([(at, pair[1]) for at, pair in past], time.time()), can_verify(),
        )  # fmt: skip


# ---- what the buttons do ----


def _queue(given: Given) -> str:
    return existing.checked(given.get("queue", ""))


def _plan_pause(given: Given) -> Plan:
    queue = _queue(given)
    if queue_pause.is_spared(queue):
        raise ValueError(f"{queue} is not paused: checks and upkeep run there; stop Beat instead")
    readers = [one.name for one in worker_registry.workers() if queue in one.queues]
    return Plan(
        f"Pause the queue {queue}",
        "Workers finish what they run, and take no more of its messages, workers that start later too. "
        "New messages wait; nothing fails. Resuming ends it.",
        "Pause it", len(readers), tuple(readers[:SHOWN]), f"{several(len(readers), 'worker', 'read')} it now.",
    )  # fmt: skip


def _pause(given: Given) -> str:
    queue = _queue(given)
    queue_pause.pause(queue)
    if still := queue_command.readers_of([queue], wait=queue_command.OBEYS):
        return f"{queue} was asked to pause, but is still read by {', '.join(still[:5])}"
    return f"{queue} is paused; no worker reads it"


def _plan_resume(given: Given) -> Plan:
    queue = _queue(given)
    waiting = sum(line.waiting for line in moments().take().now.queues if line.name == queue)
    return Plan(
        f"Resume the queue {queue}", "Workers take its messages again.", "Resume it", waiting,
        note=f"{several(waiting, 'message', 'wait')}.",
    )  # fmt: skip


def _resume(given: Given) -> str:
    queue = _queue(given)
    return f"{queue} is resumed" if queue_pause.resume(queue) else f"{queue} was not paused"


def _wanted(given: Given) -> Any:
    function, older = given.get("function", ""), given.get("older", "")
    before = time.time() - seconds(older) if older else None

    def holds(one: Waiting) -> bool:
        if function and not fnmatchcase(one.function or one.task, function):
            return False
        return before is None or (one.sent_at is not None and one.sent_at < before)

    return holds


def _plan_purge(given: Given) -> Plan:
    queue = _queue(given)
    if not can_verify():
        raise ValueError("without GRAFT_SIGNING_KEY no message can be verified; give Flower the deployment's key")
    found, items = queue_command.survey(queue, _wanted(given))
    count = sum(found.values())
    choices = (
        ("function", "Only this callable (* and ? are wildcards)", given.get("function", "")),
        ("older", "Only sent longer ago than (90s, 15m, 2h, 7d)", given.get("older", "")),
    )
    return Plan(
        f"Purge {several(count, 'message')} ({several(items, 'item')}) of the queue {queue}",
        "They are moved to the dead letters, from which they can be replayed. Their callers get CancelledBatchError. "
        "Messages that workers have fetched are not touched.",
        "Move them to the dead letters", count,
        tuple(f"{number:,} × {name}" for name, number in found.most_common(SHOWN)), choices=choices,
    )  # fmt: skip


def _purge(given: Given) -> str:
    done = queue_purge.purge(_queue(given), _wanted(given))
    quarantined = f"; {several(done.quarantined, 'message')} to the quarantine" if done.quarantined else ""
    return f"moved {several(done.dead_letters, 'message')} to the dead letters{quarantined}"


ACTIONS: Final = {
    "pause": Action(_plan_pause, _pause),
    "resume": Action(_plan_resume, _resume),
    "purge": Action(_plan_purge, _purge),
}
ADDRESSES: Final = [
    *addresses(r"/queues", QueuesPage, "graft-queues"),
    *addresses(r"/queue/(.+)", QueuePage, "graft-queue"),
]
