"""One run of one envelope: runs its items, sends back what may run again, buries what may not, and reports the rest."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import redis
from celery.exceptions import Reject

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.base import ReliableTask
from graft.tasks.callables import function_store
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import cancellation
from graft.tasks.delivery.poison_isolation import NotAloneError
from graft.tasks.delivery.run_counter import Delivery, Runs, pardon
from graft.tasks.envelope import RUN_ENVELOPE, Child, Envelope, Report, error_frame, value_frame
from graft.tasks.errors import CancelledBatchError, EnvelopeError, EnvelopeLostError, PoisonedError
from graft.tasks.messages import payloads
from graft.tasks.monitoring import function_stats
from graft.tasks.pools.slot import Slot
from graft.tasks.results import early_outcomes
from graft.tasks.results.early_outcomes import EarlyPublisher
from graft.tasks.results.result_store import acknowledge, publish, result_text
from graft.tasks.running import work_stealing
from graft.tasks.running.item_runner import run_items
from graft.tasks.running.run_outcomes import AfterRun, RunOutcomes
from graft.tasks.worker_runtime import WorkerEndsError, off_loop

logger = logging.getLogger(__name__)

Frames = dict[int, tuple[bool, bytes]]  # Outcomes as they travel, by position.


@dataclass(frozen=True)
class RunPlan:
    """The items of an envelope, by index, that a run begins, and the ``poisoned``, which have used up their runs.

    ``is_recorded``: a process has died with this envelope, so each item is recorded before it runs and after it.
    """

    begin: tuple[int, ...]
    poisoned: tuple[int, ...]
    is_cancelled: bool
    is_recorded: bool

    @classmethod
    def decide(cls, envelope: Envelope, delivery: Delivery, known: Collection[int], run_limit: int) -> RunPlan:
        """Decide what is left to do, where outcomes of the positions *known* are here, or come from other envelopes."""
        left = [index for index, position in enumerate(envelope.positions) if position not in known]
        poisoned: tuple[int, ...] = ()
        if delivery.is_watched and not delivery.cancelled:
            poisoned = tuple(index for index in left if delivery.is_dead(envelope.positions[index], run_limit))
        begin = tuple(index for index in left if index not in poisoned) if poisoned else tuple(left)
        return cls(begin, poisoned, delivery.cancelled, delivery.is_watched)


def _refused(*_: Any) -> Any:
    """Stands for a callable that cannot be had; it is not called."""


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

    @classmethod
    def opened(cls, task: ReliableTask, wire: str) -> EnvelopeRun:
        """The run of the envelope in *wire*, counted. An envelope of a worker pool has a slot then.

        Raises:
            Ignore: its worker pool has no slot for it now, and sends it when it has.
        """
        envelope = Envelope.open(payloads.fetch(wire, task.request.id), task.request.id)
        slot = Slot(envelope, envelope.pool, wire, task.request.hostname) if envelope.pool else None
        func = _refused
        try:
            func = function_store.load(envelope.function)
        except EnvelopeLostError:
            raise
        except EnvelopeError as error:
            if slot is None:
                raise
            slot.refusal = error
        record = Runs(envelope.id, envelope.retries)
        try:
            delivery, kept = record.begin(envelope.batch, envelope.positions)
        except NotAloneError:
            if slot is not None:
                slot.step_back()
            raise
        children = (*envelope.children, *delivery.children)
        frames = {**envelope.carried, **kept}
        run = cls(task, task.request, envelope, func, record, delivery, frames, children, slot)
        if slot is not None and isinstance(slot.refusal, EnvelopeError):
            run.bury(range(len(envelope.items)), slot.refusal, "unreferenceable", envelope.retries + 1)
        return run

    def report_or_raise_retry(self) -> str:
        """The result, once every item has an outcome; raises Celery's Retry when items have been sent to run again."""
        try:
            outcomes = self.run()
        except WorkerEndsError as error:
            off_loop(self.step_back)
            raise Reject(error, requeue=True) from error
        return str(off_loop(self.finish_or_raise_retry, outcomes))

    def run(self) -> RunOutcomes:
        """Run what is left to do."""
        elsewhere = {position for _, positions in self.children for position in positions}
        plan = RunPlan.decide(self.envelope, self.delivery, self.frames.keys() | elsewhere, settings().run_limit)
        refusal = self.slot.refusal if self.slot is not None else None
        if refusal is None and plan.is_cancelled:
            refusal = CancelledBatchError("cancelled before it ran")
        if refusal is not None:
            return RunOutcomes(errors=dict.fromkeys(plan.begin, refusal))
        envelope = self.envelope
        if not plan.is_recorded:
            is_silent = envelope.stores_report or envelope.pool or self.request.ignore_result
            return run_items(
                envelope, self.func, plan.begin, is_cancelled=self.is_cancelled,
                share=self.share if envelope.shared else None,
                publish_early=None if is_silent else EarlyPublisher(envelope),
            )  # fmt: skip
        for index in plan.poisoned:
            off_loop(self.bury_poisoned, index)
        outcomes = run_items(envelope, self.func, plan.begin, is_cancelled=self.is_cancelled, recorder=self)
        # Their outcomes are in self.frames already, encoded when they were recorded.
        return replace(outcomes, values={}, errors={})

    def step_back(self) -> None:
        """This run ends with its worker: it is no death, and the message goes back."""
        pardon([self.record.name], self.record.client)
        if self.slot is not None:
            self.slot.step_back()

    def is_cancelled(self) -> bool:
        return cancellation.is_cancelled(self.envelope.batch)

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
        if self.envelope.pool is not None:  # Whoever waits for their results in a stream need not wait for ours.
            early_outcomes.publish(self.envelope.id, Report([], [], False, 0.0, 0.0, 0, children=children))
        return True

    # ---- an ItemRecorder --------------------------------------------------------------------------------------------

    def starting(self, index: int) -> None:
        self.record.starting(self.envelope.positions[index])

    def finished(self, index: int, value: Any, error: BaseException | None) -> None:
        position = self.envelope.positions[index]
        frame = error_frame(error, skip_frames=2) if error else value_frame(value, position, settings().item_limit)
        self.frames[position] = frame
        self.record.finished(position, frame)

    # ---- after the run ----------------------------------------------------------------------------------------------

    def finish_or_raise_retry(self, outcomes: RunOutcomes) -> str:
        """Publish the report of *outcomes*, or raise Celery's Retry when some of the items are to run again."""
        envelope = self.envelope
        after = AfterRun.decide(outcomes, envelope.policy, envelope.retries + 1)
        if after.again:
            self.raise_retry(outcomes, after)
        if after.exhausted:
            error = outcomes.errors[after.exhausted[0]]
            self.bury(after.exhausted, error, "retries_exhausted", envelope.retries + 1)
        report = self.report(outcomes)
        with self.record.client.pipeline(transaction=False) as pipe:
            if self.slot is not None:  # First: whoever has the outcome finds it counted.
                report = self._give_slot_back(self.slot, pipe, report, outcomes)
            text = result_text(pipe, envelope.id, report, is_stored=envelope.stores_report)
            publish(pipe, self.request, text)
            acknowledge(pipe, self.request)
            self.record.forget(pipe, payloads.BODY + envelope.id)
            items = len(outcomes.values) + len(outcomes.errors)
            function_stats.add(pipe, envelope.function.name, items, outcomes.busy, len(outcomes.errors))
            if self.slot is None:
                pipe.execute()
            else:
                self.slot.execute(pipe)
        return text

    def _give_slot_back(self, slot: Slot, pipe: Any, report: Report, outcomes: RunOutcomes) -> Report:
        positions = self.envelope.positions
        seconds = {positions[index]: each for index, each in outcomes.seconds.items()}
        is_cut_short = any(isinstance(error, CancelledBatchError) for error in outcomes.errors.values())
        return slot.finish_on(pipe, report, seconds, is_cut_short=is_cut_short)

    def raise_retry(self, outcomes: RunOutcomes, after: AfterRun) -> NoReturn:
        """Send what is to run again back to the queue, with the outcomes of the rest."""
        envelope = self.envelope
        rest = replace(
            self.part(after.again),
            retries=envelope.retries + 1,
            reruns=envelope.reruns + after.retried,
            carried={**self.frames, **self.encode(outcomes.without(after.waits))},
            children=self.children,
        )
        with self.record.client.pipeline(transaction=False) as pipe:
            self.record.forget(pipe)
            items = len(outcomes.values) + after.failed
            function_stats.add(pipe, envelope.function.name, items, outcomes.busy, after.failed, after.retried)
            pipe.execute()
        self.task.raise_retry(
            args=(payloads.store(rest.id, rest.sealed()),),
            argsrepr=f"({envelope.function.name}, {len(rest.items)} items from {rest.positions[0]})",
            countdown=max(after.waits.values(), default=0.0),
            exc=next(iter(outcomes.errors.values()), None),
        )

    def bury_poisoned(self, index: int) -> None:
        """The item at *index* has used up its runs: its dead letter first, then its outcome."""
        position = self.envelope.positions[index]
        kills = max(self.delivery.kills(position), 1)
        times = "a worker process" if kills == 1 else f"{kills} worker processes"
        error = PoisonedError(
            f"item {position} of {self.envelope.function.name} was running when {times} died; it is not run again, and "
            f"is kept as dead letter {self.envelope.id}:{position}"
        )
        self.bury([index], error, "poisoned", kills, suffix=f":{position}")
        self.record.mark_poisoned()
        frame = error_frame(error)
        self.frames[position] = frame
        self.record.finished(position, frame)

    def bury(
        self, indexes: Sequence[int], error: BaseException, reason: dead_letters.Reason, runs: int, suffix: str = ""
    ) -> None:
        """Keep the items at *indexes* as a dead letter."""
        envelope = self.envelope
        dead_letters.bury(
            dead_letters.DeadLetter.make(
                id=envelope.id + suffix,
                task=RUN_ENVELOPE,
                queue=(self.request.delivery_info or {}).get("routing_key", ""),
                reason=reason,
                function=envelope.function.name,
                error=error,
                traceback="".join(traceback.format_exception(error)),
                runs=runs,
                items=len(indexes),
                envelope=replace(self.part(indexes), carried={}).seal(),
            )
        )

    def part(self, indexes: Sequence[int]) -> Envelope:
        """The envelope with the items at *indexes* only."""
        envelope = self.envelope
        return replace(
            envelope,
            positions=[envelope.positions[index] for index in indexes],
            items=[envelope.items[index] for index in indexes],
        )

    def encode(self, outcomes: RunOutcomes) -> Frames:
        positions, limit = self.envelope.positions, settings().item_limit
        frames = {
            positions[index]: value_frame(value, positions[index], limit) for index, value in outcomes.values.items()
        }
        # Two frames are ours: the loop over the items, and the call itself.
        frames.update((positions[index], error_frame(error, skip_frames=1)) for index, error in outcomes.errors.items())
        return frames

    def report(self, outcomes: RunOutcomes) -> Report:
        """The outcome of each item that no child answers for, in the order of the items."""
        envelope = self.envelope
        cost = outcomes.busy, outcomes.elapsed, envelope.reruns, outcomes.awaited, self.children
        if not self.frames and not outcomes.errors and len(outcomes.values) == len(envelope.items):
            values = [outcomes.values[index] for index in range(len(envelope.items))]
            plain = codec.plain_size(values, codec.CONTAINERS)
            if plain is not None and plain <= settings().item_limit:
                return Report(envelope.positions, values, False, *cost)
        frames = dict(sorted({**self.frames, **self.encode(outcomes)}.items()))
        return Report(list(frames), list(frames.values()), True, *cost)
