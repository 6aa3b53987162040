"""One run of one envelope: runs its items, sends back what may run again, buries what may not, and reports the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import redis
from celery.exceptions import Reject, Retry

from graft.config.deployment import settings
from graft.config.redis_client import server_time
from graft.tasks.base import ReliableTask
from graft.tasks.callables import function_store
from graft.tasks.delivery import lease
from graft.tasks.delivery.cancellation import Cancelled
from graft.tasks.delivery.poison_isolation import NotAloneError
from graft.tasks.delivery.run_counter import Delivery, Runs, delivery_of, is_redelivered
from graft.tasks.durable import outcomes as durable_outcomes
from graft.tasks.envelope import RUN_ENVELOPE, Child, Envelope, Report, error_frame, value_frame
from graft.tasks.errors import CancelledBatchError, EnvelopeError, EnvelopeLostError, PoisonedError
from graft.tasks.messages import payloads
from graft.tasks.monitoring import function_stats
from graft.tasks.monitoring.run_counts import run_counts
from graft.tasks.policy import FailedRun
from graft.tasks.queues import unique
from graft.tasks.results import attempts, early_outcomes
from graft.tasks.results.early_outcomes import EarlyPublisher
from graft.tasks.results.result_store import Conclusion, LabelledText, label, reference_text, result_text
from graft.tasks.running import run_report, work_stealing
from graft.tasks.running.item_limits import ItemLimits
from graft.tasks.running.item_runner import run_items
from graft.tasks.running.kept_items import keep, keep_failures
from graft.tasks.running.run_outcomes import AfterRun, RunOutcomes
from graft.tasks.running.run_plan import RunPlan
from graft.tasks.running.run_report import Frames
from graft.tasks.worker_runtime import WorkerEndsError, off_loop

if TYPE_CHECKING:
    from graft.tasks.pools.slot import Slot

logger = logging.getLogger(__name__)

LOGGED = 3  # Items of one envelope whose retry has a line of its own in the log.


def _refused(*_: Any) -> Any:
    """Stands for a callable that cannot be had; it is not called."""


def _slot(envelope: Envelope, wire: str, hostname: str) -> Slot | None:
    """The slot in its worker pool, if *envelope* is of one."""
    if not envelope.pool:
        return None
    from graft.tasks.pools.slot import Slot  # Few deployments have such pools.

    return Slot(envelope, envelope.pool, wire, hostname)


@dataclass
class EnvelopeRun:
    """One run of one envelope, for the Celery task that received it.

    ``frames`` are outcomes of earlier runs, and of recorded items of this one; ``children`` answer for other items.
    """

    task: ReliableTask
    request: Any
    envelope: Envelope
    func: Callable[..., Any]
    record: Runs
    delivery: Delivery
    frames: Frames
    children: tuple[Child, ...]
    slot: Slot | None = None
    recorded_errors: dict[int, BaseException] = field(default_factory=dict)  # Of a recorded run, by index.

    @classmethod
    def opened(cls, task: ReliableTask, wire: str) -> EnvelopeRun:
        """The run of the envelope in *wire*, counted. An envelope of a worker pool has a slot then.

        Raises:
            Ignore: its worker pool has no slot for it now, and sends it when it has; or another worker has it.
        """
        lease.refuse_if_lost(task.request)  # It may have waited here for longer than its lease held.
        lease.hold(task.request, task.acks_late)
        envelope = Envelope.open(payloads.fetch(wire, task.request.id), task.request.id)
        slot = _slot(envelope, wire, task.request.hostname)
        func = _refused
        try:
            func = function_store.load(envelope.function)
        except EnvelopeLostError:
            raise
        except EnvelopeError as error:
            if slot is None:
                raise
            slot.refusal = error
        record = Runs(envelope.id, envelope.retries, delivery=delivery_of(task.request))
        try:
            delivery, kept = record.begin(
                envelope.batch, envelope.positions,
                is_redelivered=is_redelivered(task.request), run_limit=settings().run_limit,
            )  # fmt: skip
        except NotAloneError:
            if slot is not None:
                slot.step_back()
            raise
        if not unique.may_begin(task.request):
            delivery = replace(delivery, cancelled=Cancelled(everything=True))
        children = (*envelope.children, *delivery.children)
        frames = {**envelope.carried, **kept}
        run = cls(task, task.request, envelope, func, record, delivery, frames, children, slot)
        if slot is not None and isinstance(slot.refusal, EnvelopeError):
            keep(task.request, envelope, range(len(envelope.items)), slot.refusal, "unreferenceable")
        return run

    def report_or_raise_retry(self) -> str:
        """The result, once every item has an outcome; raises Celery's Retry when items have been sent to run again."""
        try:
            outcomes = self.run()
        except WorkerEndsError as error:
            off_loop(self.step_back)
            raise Reject(error, requeue=True) from error
        text: str = off_loop(self.finish_or_raise_retry, outcomes)
        return text

    def run(self) -> RunOutcomes:
        """Run what is left to do."""
        elsewhere = {position for _, positions in self.children for position in positions}
        plan = RunPlan.decide(self.envelope, self.delivery, self.frames.keys() | elsewhere, settings().run_limit)
        refusal = self.slot.refusal if self.slot is not None else None
        if refusal is not None:
            return RunOutcomes(errors=dict.fromkeys((*plan.begin, *plan.cancelled), refusal))
        unwanted: dict[int, BaseException]
        unwanted = dict.fromkeys(plan.cancelled, CancelledBatchError("cancelled before it ran"))
        envelope = self.envelope
        if plan.cancelled and envelope.postponed:
            off_loop(self.leave_lines, plan.cancelled)
        if not plan.begin and not plan.poisoned:
            return RunOutcomes(errors=unwanted)
        if not plan.is_recorded:
            outcomes = run_items(
                envelope, self.func, plan.begin, share=self.share if envelope.shared else None,
                publish_early=EarlyPublisher(envelope) if self.is_read_early else None,
            )  # fmt: skip
            outcomes.errors.update(unwanted)
            return outcomes
        for index in plan.poisoned:
            off_loop(self.bury_poisoned, index)
        outcomes = run_items(envelope, self.func, plan.begin, recorder=self)
        # Outcomes of items that began are in self.frames already, encoded when they were recorded.
        positions = envelope.positions
        unwanted |= {index: error for index, error in outcomes.errors.items() if positions[index] not in self.frames}
        return replace(outcomes, values={}, errors=unwanted)

    def leave_lines(self, cancelled: Sequence[int]) -> None:
        """Items that have waited for a limit are cancelled: nobody need wait behind them."""
        limits = ItemLimits.of(self.envelope, self.func)
        if limits is not None:
            limits.withdraw(cancelled, is_plain=not self.envelope.function.is_async)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller hears of this envelope while it runs."""
        return not (self.envelope.stores_report or self.request.ignore_result)

    @property
    def is_read_early(self) -> bool:
        """Whether somebody takes outcomes before the report has come."""
        return self.is_awaited and self.envelope.pool is None and self.envelope.generation is None

    def step_back(self) -> None:
        """This run ends with its worker: it is no death, and the message goes back."""
        self.record.survived()
        if self.slot is not None:
            self.slot.step_back()

    def share(self, indexes: list[int]) -> bool:
        """Have others run the items at *indexes*; whether they will. Called on another thread during the run."""
        children = work_stealing.send_children(self.envelope, indexes, RUN_ENVELOPE, self.request)
        if not children:
            return False
        self.children += children
        try:
            self.record.note_children(self.children)
        except redis.RedisError as error:  # Should this run end with its process, they run here once more.
            logger.warning("the children of envelope %s could not be recorded: %r", self.envelope.id, error)
        if self.envelope.generation is not None:
            self._note_in_batch(children)
        if self.is_awaited:  # Whoever waits for their results need not wait for ours.
            early_outcomes.publish(self.envelope.id, Report([], [], False, 0.0, 0.0, 0, children=children))
        return True

    def _note_in_batch(self, children: Sequence[Child]) -> None:
        """Whoever feeds the durable batch next is to wait for *children*, too."""
        elsewhere = {position for _, positions in self.children for position in positions}
        left = [position for position in self.envelope.positions if position not in elsewhere]
        try:
            durable_outcomes.note_children(self.record.client, self.envelope, left, children)
        except redis.RedisError as error:  # The report has them again.
            logger.warning("the children of envelope %s are not in its batch's record: %r", self.envelope.id, error)

    # ---- an ItemRecorder --------------------------------------------------------------------------------------------

    def starting(self, index: int) -> None:
        self.record.starting(self.envelope.positions[index])

    def postponed(self, index: int) -> None:
        self.record.postponed(self.envelope.positions[index])

    def finished(self, index: int, value: Any, error: BaseException | None) -> None:
        position = self.envelope.positions[index]
        if error is not None and self.envelope.policy.next_wait(self.envelope.run_of(index), error, 0.0) is not None:
            self.record.postponed(position)  # It runs again, and has no outcome yet.
            return
        frame = error_frame(error, skip_frames=2) if error else value_frame(value, position, settings().item_limit)
        self.frames[position] = frame
        if error:
            self.recorded_errors[index] = error
        self.record.finished(position, frame)

    # ---- after the run ----------------------------------------------------------------------------------------------

    def finish_or_raise_retry(self, outcomes: RunOutcomes) -> str:
        """Publish the report of *outcomes*, or raise Celery's Retry when some of the items are to run again."""
        lease.refuse_if_lost(self.request)
        envelope = self.envelope
        since = self._since(outcomes) if envelope.policy.max_seconds is not None else 0.0
        elapsed = since and server_time(self.record.client) - since
        after = AfterRun.decide(outcomes, envelope.policy, envelope.run_of, elapsed)
        if self.slot is None or self.slot.refusal is None:  # Else none of them has run.
            unkept = {**self.recorded_errors, **{index: outcomes.errors[index] for index in after.unkept}}
            keep_failures(self.request, envelope, unkept)
        if after.again:
            self.raise_retry(outcomes, after, since)
        if after.exhausted:
            error = outcomes.errors[after.exhausted[0]]
            keep(self.request, envelope, after.exhausted, error, "retries_exhausted")
        report = run_report.make(envelope, outcomes, self.frames, self.children)
        first = next(iter({**self.recorded_errors, **outcomes.errors}.values()), None)
        with self.record.client.pipeline(transaction=False) as pipe:
            if self.slot is not None:  # First: whoever has the outcome finds it counted.
                report = self._give_slot_back(self.slot, pipe, report, outcomes)
            text = self._keep_in_batch(pipe, report) if envelope.generation is not None else result_text(
                pipe, envelope.id, report, is_stored=envelope.stores_report
            )  # fmt: skip
            is_alone = first is None and not len(pipe)
            ran = function_stats.Ran(envelope.function.name, len(outcomes.values) if is_alone else 0, outcomes.busy)
            conclusion = Conclusion.make(self.request, text, (*self.record.keys, payloads.BODY + envelope.id), ran)
            if is_alone:
                self._note_success(outcomes, label(report, None))
                conclusion.run(self.record.client)
            else:
                conclusion.put_on(pipe)
                self._note_end(pipe, outcomes, label(report, None), first)
                pipe.execute() if self.slot is None else self.slot.execute(pipe)
        unique.end_elsewhere(self.request)
        return LabelledText(text, label(report, first))

    def _note_success(self, outcomes: RunOutcomes, told: str) -> None:
        """Have people told within a second how a run without errors ended; nobody waits for it."""
        envelope, run = self.envelope, self.envelope.retries + self.delivery.run
        run_counts().note(envelope.function.name, len(outcomes.values))
        attempts.note(self.request, told, run=run, seconds=outcomes.elapsed, name=envelope.function.name)

    def _note_end(self, pipe: Any, outcomes: RunOutcomes, told: str, error: BaseException | None) -> None:
        self.note_attempt(pipe, outcomes, told, error)
        items, failed = len(outcomes.values) + len(outcomes.errors), len(outcomes.errors)
        function_stats.add(pipe, self.envelope.function.name, items, outcomes.busy, failed)

    def _keep_in_batch(self, pipe: Any, report: Report) -> str:
        """Keep *report* in the record of its durable batch; the result, which says no more than what it cost."""
        durable_outcomes.keep(pipe, self.envelope, report)
        return reference_text(self.envelope.id, report)

    def _give_slot_back(self, slot: Slot, pipe: Any, report: Report, outcomes: RunOutcomes) -> Report:
        positions = self.envelope.positions
        seconds = {positions[index]: each for index, each in outcomes.seconds.items()}
        is_cut_short = any(isinstance(error, CancelledBatchError) for error in outcomes.errors.values())
        fence = lease.fence_of(self.request)
        return slot.finish_on(pipe, report, seconds, is_cut_short=is_cut_short, delivery=fence)

    def _since(self, outcomes: RunOutcomes) -> float:
        """When the first run began, by Redis's clock."""
        return self.envelope.since or server_time(self.record.client) - outcomes.elapsed

    def raise_retry(self, outcomes: RunOutcomes, after: AfterRun, since: float) -> NoReturn:
        """Send what is to run again back to the queue, with the outcomes of the rest."""
        envelope = self.envelope
        countdown = after.countdown
        self._note_retries(outcomes, after, countdown)
        if after.postponed and self.is_read_early:
            # The wait may be long, and nobody need share it who has ended.
            EarlyPublisher(envelope)(outcomes.values, outcomes.errors, [*outcomes.values, *outcomes.errors])
        rest = replace(
            envelope.part(after.again),
            retries=envelope.retries + 1,
            reruns=envelope.reruns + after.retried,
            carried={**self.frames, **run_report.encode(envelope, outcomes.without(after.waits))},
            children=self.children,
            since=since,
            postponed=self._times_postponed(after),
            spent=run_report.cost(envelope, outcomes) if after.postponed or any(envelope.spent) else envelope.spent,
        )
        try:
            self.task.raise_retry(
                args=(payloads.store(rest.id, rest.sealed()),),
                argsrepr=f"({envelope.function.name}, {len(rest.items)} items from {rest.positions[0]})",
                countdown=countdown,
                exc=next(iter(outcomes.errors.values()), None),
            )
        except Retry:  # It is sent, and this run over; until here its record counts with those after it.
            self._note_sent_back(outcomes, after, len(rest.items))
            raise

    def _note_sent_back(self, outcomes: RunOutcomes, after: AfterRun, again: int) -> None:
        envelope = self.envelope
        with suppress(redis.RedisError), self.record.client.pipeline(transaction=False) as pipe:
            self.record.forget(pipe)
            items = len(outcomes.values) + after.failed
            function_stats.add(pipe, envelope.function.name, items, outcomes.busy, after.failed, after.retried)
            told = f"{after.failed} of {len(envelope.items)} items failed, {again} run again"
            if after.postponed:
                told += f", {len(after.postponed)} of them wait for a limit"
            if items or outcomes.left:
                self.note_attempt(pipe, outcomes, told, next(iter(outcomes.errors.values()), None))
            pipe.execute()

    def _times_postponed(self, after: AfterRun) -> dict[int, int]:
        """How often each item that is sent back was sent back without having run."""
        positions, before = self.envelope.positions, self.envelope.postponed
        times = {positions[index]: before.get(positions[index], 0) for index in after.again}
        for index in after.postponed:
            times[positions[index]] += 1
        return {position: number for position, number in times.items() if number}

    def note_attempt(self, pipe: Any, outcomes: RunOutcomes, told: str, error: BaseException | None) -> None:
        envelope = self.envelope
        attempts.add(
            pipe, self.request, run=envelope.retries + self.delivery.run, seconds=outcomes.elapsed, outcome=told,
            name=envelope.function.name, error=error,
        )  # fmt: skip

    def _note_retries(self, outcomes: RunOutcomes, after: AfterRun, wait: float) -> None:
        """Log a few of the items that failed and run again, count the rest, and call the policy's hook for each."""
        envelope, policy = self.envelope, self.envelope.policy
        failed = [index for index in after.waits if index not in after.postponed]
        for number, index in enumerate(failed):
            run = FailedRun(
                envelope.function.name, envelope.run_of(index), policy.runs, outcomes.errors[index], wait, envelope.id,
                envelope.positions[index],
            )  # fmt: skip
            if number < LOGGED:
                policy.note(run)
            else:
                policy.call_hook(run)
        if (rest := len(failed) - LOGGED) > 0:
            logger.warning("%d more items of envelope %s failed likewise and run again", rest, envelope.id)

    def bury_poisoned(self, index: int) -> None:
        """The item at *index* has used up its runs: its dead letter first, then its outcome."""
        position = self.envelope.positions[index]
        kills = max(self.delivery.kills(position), 1)
        times = "a worker process" if kills == 1 else f"{kills} worker processes"
        error = PoisonedError(
            f"item {position} of {self.envelope.function.name} was running when {times} died; it is not run again, and "
            f"is kept as dead letter {self.envelope.id}:{position}"
        )
        keep(self.request, self.envelope, [index], error, "poisoned", runs=kills, suffix=f":{position}")
        self.record.mark_poisoned()
        frame = error_frame(error)
        self.frames[position] = frame
        self.record.finished(position, frame)
