"""The two tasks of ours that run batches: run an envelope; reduce a batch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import redis
from celery.exceptions import Reject, TaskPredicate, TimeLimitExceeded

from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import shared
from graft.tasks import guard
from graft.tasks.base import ReliableTask
from graft.tasks.callables import function_store
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import lease
from graft.tasks.delivery.run_counter import Runs, delivery_of, is_redelivered
from graft.tasks.envelope import REDUCE, RUN_ENVELOPE, Envelope, Report, error_frame, value_frame
from graft.tasks.errors import (
    BrokerUnavailable,
    EnvelopeError,
    EnvelopeLostError,
    PoisonedError,
    SignatureError,
    UnreferenceableError,
)
from graft.tasks.messages import payloads
from graft.tasks.results import attempts
from graft.tasks.results.backend import ResultsInRedis
from graft.tasks.results.result_store import result_text, stored_outcomes
from graft.tasks.running.envelope_run import EnvelopeRun
from graft.tasks.running.item_runner import run_items
from graft.tasks.worker_runtime import off_loop


class EnvelopeTask(ResultsInRedis, ReliableTask):
    """Runs one envelope; one that cannot be opened, or that a hard time limit ends, becomes a dead letter."""

    abstract = True
    graft_guard = False  # Its runs are counted by envelope, batch and item (envelope_run.py).
    resultrepr_maxsize = 64  # The result is sealed text; events and logs need no more of it.

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Run the task. An error of the envelope itself is buried, and raised for the caller."""
        try:
            with guard.isolated_if_poisonous(self.request.id):
                text: str = self.run(*args, **kwargs)
                return text
        except TaskPredicate:
            raise
        except (redis.ConnectionError, redis.TimeoutError, BrokerUnavailable) as error:
            # Ours: what an item raises is that item's outcome. The message was not acknowledged, so it comes back.
            raise Reject(error, requeue=True) from error
        except EnvelopeLostError:  # The caller sends it again, with the callable that was missing.
            raise
        except EnvelopeError as error:
            try:
                off_loop(guard.bury, self, self.request, error, _reason(error), self.request.retries + 1)
            except redis.RedisError as outage:  # It goes back rather than fail without its letter.
                raise Reject(outage, requeue=True) from error
            raise

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Bury an envelope that a hard time limit ended. The worker itself calls this (Celery 5.7)."""
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
            attempts.add(
                shared(), SimpleNamespace(id=task_id, group=envelope.batch), run=envelope.retries + 1, seconds=0.0,
                outcome="ended by the hard time limit", name=envelope.function.name, error=exc,
            )  # fmt: skip


def _reason(error: EnvelopeError) -> dead_letters.Reason:
    if isinstance(error, SignatureError):
        return "bad_signature"
    return "unreferenceable" if isinstance(error, UnreferenceableError) else "bad_envelope"


@own_task(RUN_ENVELOPE, base=EnvelopeTask, bind=True, runs_on_loop=True)
def run_envelope(self: EnvelopeTask, wire: str) -> str:
    """Run the envelope in *wire*; its result.

    In the io lane this runs on the event loop: what waits for Redis runs off the loop (:func:`off_loop`).
    """
    run: EnvelopeRun = off_loop(EnvelopeRun.opened, self, wire)
    return run.report_or_raise_retry()


@own_task(REDUCE, base=EnvelopeTask, bind=True)
def reduce_batch(self: EnvelopeTask, parts: list[str], wire: str, *, keeps_errors: bool = False) -> str:
    """The body of a batch's chord: apply the reducer to all values; if an item failed, its error is the outcome.

    With *keeps_errors* the reducer is given the Outcome of each item, whatever became of it.
    """
    envelope = Envelope.open(payloads.fetch(wire, self.request.id), self.request.id)
    lease.hold(self.request, self.acks_late)
    record = Runs(envelope.id, envelope.retries, delivery=delivery_of(self.request))
    limit = settings().run_limit
    delivery, _ = record.begin(envelope.batch, (0,), is_redelivered=is_redelivered(self.request), run_limit=limit)
    if delivery.is_dead(0, limit):
        error = PoisonedError(f"reducing with {envelope.function.name} took {delivery.run - 1} worker processes")
        guard.bury(self, self.request, error, "poisoned", delivery.run)
        return _report_of(error_frame(error)).seal(envelope.id)
    refused = Report(list(envelope.carried), list(envelope.carried.values()), True, 0.0, 0.0, 0)
    outcomes = sorted([*stored_outcomes(parts), *refused.outcomes()], key=lambda outcome: outcome.index)
    if [outcome.index for outcome in outcomes] != list(range(len(envelope.positions))):
        raise EnvelopeError(f"{len(outcomes)} of {len(envelope.positions)} outcomes arrived to be reduced")
    failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
    if keeps_errors:
        frame = _reduced(envelope, outcomes)
    elif failed is None:
        frame = _reduced(envelope, [outcome.value for outcome in outcomes])
    else:
        frame = error_frame(failed)
    with record.client.pipeline(transaction=False) as pipe:
        record.forget(pipe)
        text = result_text(pipe, envelope.id, _report_of(frame))
        pipe.execute()
    return text


def _reduced(envelope: Envelope, values: list[Any]) -> tuple[bool, bytes]:
    """The outcome of the reducer, as it travels."""
    single = replace(envelope, positions=[0], items=[values], packed=False, carried={})
    ran = run_items(single, function_store.load(envelope.function), [0])
    error = ran.errors.get(0)
    # A reduced value may be as large as all that went into it.
    return error_frame(error, skip_frames=1) if error else value_frame(ran.values[0], 0, settings().item_limit * 64)


def _report_of(frame: tuple[bool, bytes]) -> Report:
    return Report([0], [frame], True, 0.0, 0.0, 0)
