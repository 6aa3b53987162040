"""The sending side of a pool in one process: its tasks in envelopes, as many under way as the pool has slots.

    unnamed pool    the publisher sends an envelope as soon as a slot may be free, with what has gathered meanwhile
    named pool      the same, but it waits in the pool's index in Redis: what was accepted outlives this process
    strict order    each task is an envelope of its own there

A burst of tasks is one batch, so that progress and cancelling see it. Envelopes that were cut are spoken of by their
member: the time at which their first task was accepted, and their id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.queues import broker_priority, table
from graft.tasks import codec
from graft.tasks.callables import function_store
from graft.tasks.callables.references import FunctionRef
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import Child, Envelope, Outcome, PoolRef, WireFunction
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, EnvelopeLostError
from graft.tasks.ids import new_id
from graft.tasks.messages import payloads
from graft.tasks.pools import due_messages
from graft.tasks.pools.slot import Row
from graft.tasks.pools.state import RedisPool, Waiting, redis_or_error
from graft.tasks.results import early_outcomes
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.results.result_store import open_report
from graft.tasks.results.subscriber import Result, failure_of, inbox
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.coalescing import CallSource
from graft.tasks.sending.in_flight import OutgoingMessage, SentEnvelope
from graft.tasks.sending.pool_batch import PoolBatch, PoolTask
from graft.tasks.sending.publisher import publisher
from graft.tasks.sending.sizing import Pace, Run, Sizing

logger = logging.getLogger(__name__)

SECONDS: Final = 0.1  # Work in one envelope: a place in the queue is known to be free when its envelope has ended.
LONG: Final = 0.2  # The same where several times as much waits for each slot: who is last in line hardly notices.
ENOUGH: Final = 256  # Tiny tasks that are worth an envelope of their own.
QUIET: Final = 1.0  # Seconds without a task after which the next one begins another batch.


@dataclass
class Membership:
    """This process as a client of a pool. ``limit`` is the number of slots, 0 until the pool has been started.

    ``answered`` is told of each envelope that has ended, and whether it makes room for many; ``arrived`` of the results
    that came with its report: their slot, the worker's name, and rows. Where not ``is_reported``, results go to the
    list in Redis instead.
    """

    pool: RedisPool
    client: str
    is_strict: bool
    is_shared: bool
    label: str
    capacity: int
    answered: Callable[[bool], None]
    arrived: Callable[[int, str, Sequence[Row]], None]
    is_reported: bool
    limit: int = 0


class PoolSender(BatchSender[Outcomes]):
    """Cuts a pool's tasks into envelopes and takes their reports in."""

    def __init__(self, membership: Membership) -> None:
        function = FunctionRef("import", membership.label, b"", False)
        options = BatchOptions(function=function, queue=table().batch, priority=broker_priority(0))
        self.burst = PoolBatch()
        super().__init__(self.burst, CallSource(), options, publisher().wake)
        self._next = 0
        self.membership = membership
        self.sizing = Sizing(SECONDS, settings().envelope_items, settings().envelope_limit)
        self._long = replace(self.sizing, seconds=LONG)
        self._found = 1  # Pool processes of live workers.
        self._adding = threading.Lock()
        self._waiting: deque[tuple[int, PoolTask]] = deque()
        self._paces: dict[str, Pace] = {}
        self._cut_before: list[OutgoingMessage] = []
        self._members: dict[str, str] = {}
        self._last = time.monotonic()
        self._is_leaving = False
        self._has_left = threading.Event()

    # ---- on the caller's thread -------------------------------------------------------------------------------------

    def add(self, task: PoolTask) -> bool:
        """Send *task* when its turn has come; False when this batch has ended and another must be made."""
        with self._adding:
            if self.is_over:
                return False
            self._last = time.monotonic()
            is_first = self.burst.done()
            self.burst.add(self._next, task)
            self._waiting.append((self._next, task))
            self._next += len(task.frames)
        if is_first:
            publisher().start(self)
        elif self._is_parking or self._may_leave(task):  # Else an answer wakes the publisher.
            publisher().wake(self)
        return True

    def withdraw(self, tasks: set[PoolTask], error: BaseException | None = None, *, running: bool = False) -> None:
        """Keep *tasks* from beginning, as far as they have not; they end with *error*.

        *running*: end what runs too, unless it shares an envelope with others.
        """
        with self._adding:
            unsent = [one for one in self._waiting if one[1] in tasks]
            self._waiting = deque(one for one in self._waiting if one[1] not in tasks)
        error = error or CancelledBatchError("withdrawn before it ran")
        self._drop(unsent, error)
        found: dict[str, str] = {}
        counts: dict[str, int] = {}
        for envelope_id, one in self._in_flight.all():
            member, its = self._members.get(envelope_id, ""), {self.burst.task_at(at) for at in one.pending}
            if its <= tasks:
                found[member], counts[member] = envelope_id, len(its)
            elif its & tasks:
                some = [at for at in one.pending if self.burst.task_at(at) in tasks]
                cancellation.cancel_items(self.burst.id, some, settings().result_ttl)
        if found:
            out, due = self.membership.pool.withdraw(self.membership.client, counts)
            due_messages.publish(due)
            for member in out:
                envelope_id = found[member]
                inbox().forget(envelope_id)
                self._members.pop(envelope_id, None)
                if (sent := self._in_flight.answered(envelope_id)) is not None:
                    self._note_failed(sent.positions, error)
            for envelope_id in {found[member] for member in found.keys() - out} if running else ():
                cancellation.cancel(envelope_id, settings().result_ttl, running=True)
            if self._waiting:  # There is room for it now, and no answer to come may say so.
                self._wake(self)

    def tasks_of(self, members: Collection[str]) -> dict[str, list[PoolTask]]:
        """The tasks of those envelopes among *members* that this sender has sent, as far as they have no outcome."""
        found = {}
        for envelope_id, sent in self._in_flight.all():
            if (member := self._members.get(envelope_id, "")) in members:
                tasks = (self.burst.task_at(position) for position in sent.pending)
                found[member] = list(dict.fromkeys(task for task in tasks if task is not None))
        return found

    @property
    def is_over(self) -> bool:
        """Whether it takes no more tasks: its batch was cancelled, or has been idle for a while."""
        return self.is_finished or (time.monotonic() - self._last > QUIET and self.burst.done())

    def end(self) -> None:
        """The pool is down: what has not begun does not begin, and nobody waits any longer for what has."""
        with self._adding:
            self.is_finished = True
            self._waiting.clear()
        if self._members:  # What has ended by now, and its report is on the way.
            with redis_or_error():
                inbox().look_up(list(self._members))
        if (left := self.burst.give_up()) and self._members:
            cancellation.cancel(self.burst.id, settings().result_ttl)
        for envelope_id in list(self._members):
            inbox().forget(envelope_id)
        for task in left:
            if task.to == "caller":
                task.ended([Outcome(0, error=CancelledBatchError("its worker pool was shut down"))])
            task.note_kept()

    def leave(self, wait: float) -> None:
        """Have what is left wait in the pool's index: this process ends, or nobody holds the pool here any more.

        *wait* is how many seconds that may take; with 0 it is done on the publisher's thread, some time later.
        """
        if self.burst.done():
            return
        self._is_leaving = True
        publisher().wake(self)
        self._has_left.wait(wait)

    @property
    def unsent(self) -> int:
        return len(self._waiting)

    @property
    def may_pause(self) -> bool:
        """Not where its tasks wait in the pool's index: workers have them sent."""
        return not self._is_parking

    # ---- on the publisher's thread ----------------------------------------------------------------------------------

    def cut(self, client: Any) -> list[OutgoingMessage]:
        messages, self._cut_before = self._cut_before, []
        if self._is_parking:
            while self._waiting:
                messages.append(self._message(self._envelope_of(1 if self.membership.is_strict else self._size(1))))
        elif self._waiting and self.membership.limit and not self.is_paused:
            self._found = self._slots(client)
            while self._waiting and self._may_leave(self._waiting[0][1]):
                messages.append(self._message(self._envelope_of(self._size(min(self._found, self.membership.limit)))))
        if self._is_leaving and not messages:  # What was cut before has been published by now.
            self._has_left.set()
        return messages

    @property
    def _is_parking(self) -> bool:
        return self.membership.is_strict or self.membership.is_shared or self._is_leaving

    def pass_on(self, messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
        is_parking = self._is_parking
        self._cut_before = messages  # Should Redis not answer now, they are passed on once more.
        if is_parking and messages:
            self._park(messages)
            self._cut_before = []
        self._withdraw_cancelled(messages)
        self._cut_before = []
        return [] if is_parking else messages

    def _park(self, messages: list[OutgoingMessage]) -> None:
        """Have *messages* wait in the pool's index."""
        pool = self.membership.pool
        waiting = []
        for message in messages:
            if message.body is not None:
                payloads.store(message.id, message.body)
            task = self._task_of(message.id)
            text = due_messages.kept(message.id, message.group, message.args[0], f"({message.label})")
            waiting.append(Waiting(self._members[message.id], task.score if task else 0.0, text))
        due = pool.park(waiting)
        for message in messages:
            if (task := self._task_of(message.id)) is not None:
                task.note_kept()
        due_messages.publish(due or ())
        if self._is_leaving:
            self._has_left.set()

    def _withdraw_cancelled(self, messages: list[OutgoingMessage]) -> None:
        """Withdraw what was cancelled while it was neither among those that wait nor among those that were sent."""
        found: dict[tuple[BaseException, bool], set[PoolTask]] = {}
        for message in messages:
            for task in self._tasks_of(message.id):
                if task.cancelled is not None:
                    found.setdefault((task.cancelled, task.ends_running), set()).add(task)
        for (error, running), tasks in found.items():
            self.withdraw(tasks, error, running=running)

    def _tasks_of(self, envelope_id: str) -> list[PoolTask]:
        sent = self._in_flight.get(envelope_id)
        found = [self.burst.task_at(position) for position in sent.positions] if sent else []
        return [task for task in found if task is not None]

    def _task_of(self, envelope_id: str) -> PoolTask | None:
        sent = self._in_flight.get(envelope_id)
        return self.burst.task_at(sent.positions[0]) if sent else None

    def _may_leave(self, task: PoolTask) -> bool:
        """Whether an envelope with *task* may: there is a process without one, or enough to do for one to wait.

        Short tasks do not wait there: their queue is short, and the fewer envelopes, the more share the cost of one.
        """
        limit, sent = self.membership.limit, len(self._in_flight)
        if sent < min(limit, self._found):
            return True
        if sent >= min(limit, 2 * self._found):
            return False
        pace = self._paces.get(_name(task), Pace())
        return not pace.items or len(self._waiting) >= min(ENOUGH, SECONDS / max(pace.seconds, 1e-6))

    def _size(self, slots: int) -> int:
        """Tasks of the next envelope: one while nothing is known of how long they take."""
        pace, waiting = self._paces.get(_name(self._waiting[0][1]), Pace()), len(self._waiting)
        if not pace.items:
            return 1
        size = self.sizing.next_size(pace, waiting, slots)
        return size if self._is_parking else max(size, self._long.next_size(pace, max(waiting // 4, 1), slots))

    def _envelope_of(self, size: int) -> Envelope:
        with self._adding:
            first, head = self._waiting.popleft()
            chosen = [(first, head)]
            room = self.sizing.max_bytes - len(head.frames[0])
            while len(chosen) < size and self._waiting and head.goes_with(self._waiting[0][1]):
                room -= len(self._waiting[0][1].frames[0])
                if room < 0:
                    break
                chosen.append(self._waiting.popleft())
        positions = [first + index for first, task in chosen for index in range(len(task.frames))]
        member, since = self.membership, f"{head.since:016x}"
        to = "report" if head.to == "stream" and member.is_reported else head.to
        keys = {first: task.key for first, task in chosen} if to == "stream" else {}
        pool, is_unit = member.pool, len(chosen) == 1
        ref = PoolRef(pool.name, pool.generation, member.client, head.score, since, keys, to, is_unit)
        envelope = Envelope(
            new_id(), self.burst.id, _stored(head), positions,
            [frame for _, task in chosen for frame in task.frames], True, head.unpack, timeout=head.timeout,
            shared=len(chosen) > 1, pool=ref,
        )  # fmt: skip
        self._members[envelope.id] = since + envelope.id
        return envelope

    def _pace_of(self, envelope: Envelope) -> Pace:
        return self._paces.get(envelope.function.name, Pace())

    def _offer_function(self, client: Any) -> None:
        for task in self.burst.tasks():
            _stored(task)

    def _cut_short(self) -> None:
        cancellation.cancel(self.burst.id, settings().result_ttl, running=self._ends_running)
        with self._adding:
            self.is_finished = True
            unsent = list(self._waiting)
            self._waiting.clear()
        self._drop(unsent, CancelledBatchError("cancelled before it was sent"))

    def remember_pace(self, client: Any) -> None:
        """What is known of the pace is this burst's own."""

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def answered(self, envelope_id: str, result: Result) -> None:
        if isinstance(result, Mapping) and result["status"] == early_outcomes.EARLY:
            if (running := self._in_flight.get(envelope_id)) is not None:
                self._expect_children(envelope_id, running, early_outcomes.read(result, envelope_id).children)
            return
        error = failure_of(result) if isinstance(result, Mapping) else result
        if isinstance(error, EnvelopeLostError):
            if self.membership.pool.is_waiting(self._members.get(envelope_id, "")):
                inbox().expect(envelope_id, self.answered)
                return
            if self._in_flight.lost(envelope_id):
                logger.warning("envelope %s got lost in Redis and is sent again", envelope_id)
                self._wake(self)
                return
        sent = self._in_flight.answered(envelope_id)
        if sent is None:
            return
        children: Sequence[Child] = ()
        if isinstance(result, BrokerUnavailable):
            self.burst.fail(result)
        elif error is not None:
            self._end(envelope_id, sent, error)
        elif isinstance(result, Mapping):
            children = self._take_result(envelope_id, str(result["result"]), sent)
        self._expect_children(envelope_id, sent, children)
        self._members.pop(envelope_id, None)
        if self._waiting:
            self._wake(self)
        # Whoever waits for room had better come back for a good part of it.
        self.membership.answered(8 * len(sent.positions) >= self.membership.capacity or not len(self._in_flight))

    def _note_children(self, envelope_id: str, news: Sequence[Child]) -> None:
        since = self._members.get(envelope_id, "")[: -len(envelope_id)]
        self._members.update((child_id, since + child_id) for child_id, _ in news)

    def _take_result(self, envelope_id: str, text: str, sent: SentEnvelope) -> Sequence[Child]:
        task = self.burst.task_at(sent.positions[0])
        try:
            report = open_report(text, envelope_id)
        except Exception as error:
            self._note_failed(sent.positions, error)
            return ()
        self._fair_share.settle(sent, report.elapsed)
        if task is not None:
            run = Run(len(report.positions), report.busy, report.elapsed)
            self._paces[_name(task)] = self._paces.get(_name(task), Pace()).updated(run, max(sent.size, report.size))
        if task is None or task.to != "caller":
            for slot, worker, rows in report.values[1:]:
                keyed = []
                for at, *row in rows:
                    task = self.burst.task_at(at)
                    if task is not None and _was_cancelled(task, *row):
                        task.ended([Outcome(0, error=task.cancelled)], row[0], slot, worker)
                    elif task is not None:
                        keyed.append((task.key, *row))
                self.membership.arrived(slot, worker, keyed)
            self.burst.note_ended(report.positions, report.values[0], report.retries)
        else:
            self.burst.note_task_outcomes(list(report.outcomes()), report.retries, report.busy)
        return report.children

    def _end(self, envelope_id: str, sent: SentEnvelope, error: BaseException) -> None:
        """No worker has reported for this envelope, nor will: its slot and its places are free."""
        tasks = len({id(task) for at in sent.pending if (task := self.burst.task_at(at)) is not None})
        pool, member = self.membership.pool, self._members.get(envelope_id, "")
        try:
            due_messages.publish(pool.finish(member, self.membership.client, tasks, tasks, 0.0))
        except BrokerUnavailable as outage:
            logger.warning("a slot of pool %s stays taken: %s", pool.name, outage)
        self._note_failed(sent.pending, error)

    def _drop(self, unsent: Sequence[tuple[int, PoolTask]], error: BaseException) -> None:
        """Tasks that were accepted are not sent."""
        if not unsent:
            return
        try:
            due = self.membership.pool.abandon(self.membership.client, len(unsent))
        except BaseException:  # They are as they were.
            with self._adding:
                self._waiting = deque(sorted([*unsent, *self._waiting], key=itemgetter(0)))
            raise
        due_messages.publish(due)
        self._note_failed([first + at for first, task in unsent for at in range(len(task.frames))], error)


def _was_cancelled(task: PoolTask, seconds: float, succeeded: bool, content: Any) -> bool:
    """Whether a worker has ended *task*, or not begun it, because it was cancelled here."""
    return task.cancelled is not None and not succeeded and isinstance(codec.load_error(content), CancelledBatchError)


def _name(task: PoolTask) -> str:
    return task.function.name if task.function else ""


def _stored(task: PoolTask) -> WireFunction:
    """The callable of *task*, which is where workers find it when this returns."""
    assert task.function is not None
    return function_store.store(task.function)
