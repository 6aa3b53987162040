"""The tasks on the worker's side of the road: run an envelope; reduce a batch."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import redis
from celery.exceptions import Reject, TaskPredicate, TimeLimitExceeded

from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.tasks import codec, worker_runtime
from graft.tasks.base import ReliableTask
from graft.tasks.callables import function_store
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import cancellation
from graft.tasks.delivery.run_counter import Delivery, Runs
from graft.tasks.envelope import REDUCE, RUN_ENVELOPE, Envelope, Report, error_frame, value_frame
from graft.tasks.errors import (
    CancelledBatchError,
    EnvelopeError,
    EnvelopeLostError,
    NotYet,
    PoisonedError,
    SignatureError,
    UnreferenceableError,
)
from graft.tasks.messages import payloads
from graft.tasks.monitoring import function_stats
from graft.tasks.results import partial
from graft.tasks.results.result_store import CLAIM, OUTCOME, Claim, announce, fetch_claims, settle
from graft.tasks.running import item_runner, work_stealing

logger = logging.getLogger(__name__)


class EnvelopeTask(ReliableTask):
    """Opens the envelope, answers for every item in it, and buries what nobody will answer for."""

    abstract = True
    resultrepr_maxsize = 64  # The result is sealed text; events and logs need no more of it.

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Run the task; what goes wrong with the envelope itself is buried and told to the caller."""
        try:
            with self.among_suspects():
                return str(self.run(*args, **kwargs))
        except TaskPredicate:
            raise
        except (redis.ConnectionError, redis.TimeoutError) as error:
            # Ours: what an item raises is that item's outcome. The envelope has not been answered, so it comes back.
            raise Reject(error, requeue=True) from error
        except EnvelopeLostError:  # What it needs is its caller's to send again.
            raise
        except EnvelopeError as error:
            worker_runtime.off_loop(self.bury, error, _reason(error), self.request.retries + 1)
            raise

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Bury what a hard time limit ended: its process is gone, so the worker itself calls this (Celery 5.7)."""
        if isinstance(exc, TimeLimitExceeded):
            envelope = Envelope.open(payloads.fetch(str(args[-1]), task_id), task_id)
            dead_letters.bury(
                dead_letters.DeadLetter.make(
                    id=task_id,
                    task=self.name,
                    queue="",
                    reason="time_limit",
                    function=envelope.function.name,
                    error=exc,
                    traceback="",
                    runs=envelope.retries + 1,
                    items=len(envelope.items),
                    envelope=envelope.seal(),
                )
            )


def _reason(error: EnvelopeError) -> dead_letters.Reason:
    if isinstance(error, SignatureError):
        return "bad_signature"
    return "unreferenceable" if isinstance(error, UnreferenceableError) else "bad_envelope"


@own_task(RUN_ENVELOPE, base=EnvelopeTask, bind=True, runs_on_loop=True)
def run_envelope(self: EnvelopeTask, wire: str) -> str:
    """Run the envelope in *wire*; the sealed report, or a claim on it.

    In the io lane this runs on the event loop: what waits for Redis runs off the loop (:func:`off_loop`).
    """
    run, func = worker_runtime.off_loop(_begin, self, wire)
    return str(run.answer(func))


def _begin(task: EnvelopeTask, wire: str) -> tuple[_Run, Any]:
    envelope = Envelope.open(payloads.fetch(wire, task.request.id), task.request.id)
    func = function_store.load(envelope.function)
    record = Runs(envelope.id, envelope.retries)
    delivery, kept = record.begin(envelope.batch, envelope.positions)
    frames = {**envelope.carried, **kept}
    return _Run(task, envelope, record, delivery, frames), func


class _Run:
    """One run of one envelope."""

    def __init__(
        self,
        task: EnvelopeTask,
        envelope: Envelope,
        record: Runs,
        delivery: Delivery,
        frames: dict[int, tuple[bool, bytes]],
    ) -> None:
        self.task = task
        self.request = task.request
        self.envelope = envelope
        self.record = record
        self.delivery = delivery
        self.frames = frames
        self.item_limit = settings().item_limit
        self.given = (*envelope.given, *delivery.given)

    def answer(self, func: Any) -> str:
        """The sealed report, once every item has an outcome or has been sent to run again."""
        return str(worker_runtime.off_loop(self.finish, self.run(func)))

    def finish(self, ran: item_runner.Ran) -> str:
        """Send what may run again back, and tell the rest."""
        self.send_back(ran)
        report = self.report(ran)
        with self.record.client.pipeline(transaction=False) as pipe:
            sealed = report.sealed(self.envelope.id)
            if self.envelope.claim or len(sealed) > settings().pubsub_limit:
                # Kept under a key of its own: pub/sub drops a subscriber whose pending output grows too large.
                pipe.set(OUTCOME + self.envelope.id, sealed, ex=int(settings().result_ttl))
                failed = report.packed and sum(not succeeded for succeeded, _ in report.values)
                text = str(Claim(self.envelope.id, int(failed), report.retries, report.busy, report.elapsed))
            else:
                text = codec.as_text(sealed)
            announce(pipe, self.request, text)
            settle(pipe, self.request)
            self.record.forget(pipe, payloads.BODY + self.envelope.id)
            function_stats.add(
                pipe, self.envelope.function.name, len(ran.values) + len(ran.errors), ran.busy, len(ran.errors)
            )
            pipe.execute()
        return text

    def run(self, func: Any) -> item_runner.Ran:
        envelope, delivery = self.envelope, self.delivery
        elsewhere = {position for _, positions in self.given for position in positions}
        places = [
            place
            for place, position in enumerate(envelope.positions)
            if position not in self.frames and position not in elsewhere
        ]
        if delivery.cancelled:
            return item_runner.Ran(errors={place: CancelledBatchError("cancelled before it ran") for place in places})
        if not delivery.is_watched:
            give = self.give if envelope.shared else None
            tell = None if envelope.claim or self.request.ignore_result else partial.Teller(envelope)
            return item_runner.run_items(envelope, func, places, is_cancelled=self.is_cancelled, give=give, tell=tell)
        limit = settings().run_limit
        dead = [place for place in places if delivery.is_dead(envelope.positions[place], limit)]
        for place in dead:
            worker_runtime.off_loop(self.bury_poison, place)
        ran = item_runner.run_items(
            envelope,
            func,
            [place for place in places if place not in dead],
            is_cancelled=self.is_cancelled,
            watch=self,
        )
        # Their outcomes are in self.frames already, encoded when they were kept.
        return replace(ran, values={}, errors={})

    def is_cancelled(self) -> bool:
        return cancellation.is_cancelled(self.envelope.batch)

    def give(self, places: list[int]) -> bool:
        """Have others run the items at *places*; whether they will. Called on another thread, while the run goes on."""
        given = work_stealing.give(self.envelope, places, RUN_ENVELOPE, self.request)
        if not given:
            return False
        self.given += given
        try:
            self.record.gave(self.given)
        except redis.RedisError as error:  # Should this run end with its process, they run here once more.
            logger.warning("what envelope %s gave away could not be recorded: %r", self.envelope.id, error)
        return True

    def starting(self, place: int) -> None:
        self.record.starting(self.envelope.positions[place])

    def finished(self, place: int, value: Any, error: BaseException | None) -> None:
        position = self.envelope.positions[place]
        frame = error_frame(error, skip_frames=2) if error else value_frame(value, position, self.item_limit)
        self.frames[position] = frame
        self.record.finished(position, frame)

    def bury_poison(self, place: int) -> None:
        """The item at *place* has used up its runs: its letter first, then its outcome."""
        position = self.envelope.positions[place]
        kills = max(self.delivery.kills(position), 1)
        times = "a worker process" if kills == 1 else f"{kills} worker processes"
        error = PoisonedError(
            f"item {position} of {self.envelope.function.name} was running when {times} died; it is not run again, and "
            f"is kept as dead letter {self.envelope.id}:{position}"
        )
        self.bury_items([place], error, "poisoned", kills, suffix=f":{position}")
        self.record.mark_poisoned()
        frame = error_frame(error)
        self.frames[position] = frame
        self.record.finished(position, frame)

    def send_back(self, ran: item_runner.Ran) -> None:
        """Send what may run again back to the queue; raises Celery's Retry when there is any."""
        envelope = self.envelope
        run = envelope.retries + 1
        waits = {
            place: wait
            for place, error in ran.errors.items()
            if not isinstance(error, CancelledBatchError)
            and (wait := envelope.policy.wait_after(run, error)) is not None
        }
        # Whoever waits for its turn under a limit (shared/limited_calls.py) has not run: it is no error and no retry.
        failed = {place for place, error in ran.errors.items() if not isinstance(error, NotYet)}
        again = sorted([*waits, *ran.left])
        if not again:
            if envelope.policy.runs > 1 and ran.errors:
                self.bury_exhausted(ran)
            return
        kept = replace(
            ran,
            values={place: value for place, value in ran.values.items() if place not in waits},
            errors={place: error for place, error in ran.errors.items() if place not in waits},
        )
        rest = replace(
            envelope,
            positions=[envelope.positions[place] for place in again],
            items=[envelope.items[place] for place in again],
            retries=run,
            reruns=envelope.reruns + len(failed.intersection(waits)),
            carried={**self.frames, **self.encode(kept)},
            given=self.given,
        )
        with self.record.client.pipeline(transaction=False) as pipe:
            self.record.forget(pipe)
            again_failed = len(failed.intersection(waits))
            items = len(ran.values) + len(failed)
            function_stats.add(pipe, envelope.function.name, items, ran.busy, len(failed), again_failed)
            pipe.execute()
        error = next(iter(ran.errors.values()), None)
        argument = payloads.store(rest.id, rest.sealed())
        label = f"({envelope.function.name}, {len(again)} items from {rest.positions[0]})"
        self.task.again(args=(argument,), argsrepr=label, countdown=max(waits.values(), default=0.0), exc=error)

    def bury_exhausted(self, ran: item_runner.Ran) -> None:
        failed = [place for place, error in ran.errors.items() if not isinstance(error, CancelledBatchError)]
        if failed:
            self.bury_items(failed, ran.errors[failed[0]], "retries_exhausted", self.envelope.retries + 1)

    def bury_items(
        self, places: Sequence[int], error: BaseException, reason: dead_letters.Reason, runs: int, suffix: str = ""
    ) -> None:
        envelope = self.envelope
        left = replace(
            envelope,
            positions=[envelope.positions[place] for place in places],
            items=[envelope.items[place] for place in places],
            carried={},
        )
        dead_letters.bury(
            dead_letters.DeadLetter.make(
                id=envelope.id + suffix,
                task=RUN_ENVELOPE,
                queue=(self.task.request.delivery_info or {}).get("routing_key", ""),
                reason=reason,
                function=envelope.function.name,
                error=error,
                traceback="".join(traceback.format_exception(error)),
                runs=runs,
                items=len(places),
                envelope=left.seal(),
            )
        )

    def encode(self, ran: item_runner.Ran) -> dict[int, tuple[bool, bytes]]:
        """Outcomes as they travel, by position."""
        positions = self.envelope.positions
        frames = {
            positions[place]: value_frame(value, positions[place], self.item_limit)
            for place, value in ran.values.items()
        }
        # Two frames are ours: the loop over the items, and the call itself.
        frames.update((positions[place], error_frame(error, skip_frames=1)) for place, error in ran.errors.items())
        return frames

    def report(self, ran: item_runner.Ran) -> Report:
        envelope = self.envelope
        figures = ran.busy, ran.elapsed, envelope.reruns, ran.awaited, self.given
        if not self.frames and not ran.errors and len(ran.values) == len(envelope.items):
            values = [ran.values[place] for place in range(len(envelope.items))]
            plain = codec.plain_size(values, codec.CONTAINERS)
            if plain is not None and plain <= self.item_limit:
                return Report(envelope.positions, values, False, *figures)
        frames = dict(sorted({**self.frames, **self.encode(ran)}.items()))
        return Report(list(frames), list(frames.values()), True, *figures)


@own_task(REDUCE, base=EnvelopeTask, bind=True)
def reduce_batch(self: EnvelopeTask, claims: list[str], wire: str) -> str:
    """The body of a batch's chord: apply the reducer to all its values; the first failed item is the answer instead."""
    envelope = Envelope.open(payloads.fetch(wire, self.request.id), self.request.id)
    record = Runs(envelope.id, envelope.retries)
    delivery, _ = record.begin(envelope.batch, (0,))
    if delivery.is_dead(0, settings().run_limit):
        error = PoisonedError(f"reducing with {envelope.function.name} took {delivery.run - 1} worker processes")
        self.bury(error, "poisoned", delivery.run)
        return Report([0], [error_frame(error)], True, 0.0, 0.0, 0).seal(envelope.id)
    outcomes = sorted(fetch_claims(claims), key=lambda outcome: outcome.index)
    if [outcome.index for outcome in outcomes] != list(range(len(envelope.positions))):
        raise EnvelopeError(f"{len(outcomes)} of {len(envelope.positions)} outcomes arrived to be reduced")
    failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
    if failed is not None:
        frame = error_frame(failed)
    else:
        values = [outcome.value for outcome in outcomes]
        single = replace(envelope, positions=[0], items=[values], packed=False, claim=False)
        ran = item_runner.run_items(single, function_store.load(envelope.function), [0], is_cancelled=lambda: False)
        error_ = ran.errors.get(0)
        # A reduced value may be as large as all that went into it.
        limit = settings().item_limit * 64
        frame = error_frame(error_, skip_frames=1) if error_ else value_frame(ran.values[0], 0, limit)
    sealed = Report([0], [frame], True, 0.0, 0.0, 0).sealed(envelope.id)
    text = str(Claim(envelope.id)) if len(sealed) > settings().pubsub_limit else codec.as_text(sealed)
    with record.client.pipeline(transaction=False) as pipe:
        record.forget(pipe)
        if text.startswith(CLAIM):
            pipe.set(OUTCOME + envelope.id, sealed, ex=int(settings().result_ttl))
        pipe.execute()
    return text
