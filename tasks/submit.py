"""The way in: ``submit(func, items)`` cuts items into envelopes, sends them, and gives a Batch to hold on to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from graft.config.queues import broker_priority
from graft.config.transport.unique import IfRunning, Terms
from graft.config.validation import seconds, weight
from graft.tasks.batch import Batch
from graft.tasks.callables.argument_check import ArgumentCheck
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.durable.record import checked_name
from graft.tasks.durable_batch import BatchSummary, DurableBatch
from graft.tasks.feeding.checkpoint import Invalidate, Key
from graft.tasks.feeding.packer import BadItems
from graft.tasks.feeding.plan import Event, Plan
from graft.tasks.feeding.spool import IfExists, Resume, spool
from graft.tasks.local_run import LocalRun
from graft.tasks.policy import RetryPolicy, as_policy
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.chords import ReducingSender
from graft.tasks.sending.publisher import publisher
from graft.tasks.sending.sizing import UNKNOWN_ITEMS
from graft.tasks.sending.sources import IterSource, ListSource
from graft.tasks.sending.unique_sender import UniqueSender
from graft.tasks.shared.turns import turns_of
from graft.tasks.submit_arguments import (
    OnError,
    at_least_one_or_none,
    checked_callable,
    due_at,
    followers,
    importable,
    is_local,
    iterable,
    key_rule,
    one_of,
    queue_for,
    refuse_several,
    refuse_to_resume,
    refuse_what_ends_with_the_caller,
    source_for,
)

ASYNC_CONCURRENCY = 100


def submit(
    func: Callable[..., Any],
    items: Iterable[Any],
    *,
    reduce: Callable[[list[Any]], Any] | None = None,
    on_error: OnError = "raise",
    batch_size: int | None = None,
    in_flight: int | None = None,
    concurrency: int | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: float | None = None,
    priority: float = 0,
    share: float = 1,
    queue: str | None = None,
    by_value: bool = False,
    unpack: bool = False,
    validate: bool = False,
    durable: bool = False,
    name: str | None = None,
    if_exists: IfExists = "attach",
    bad_items: BadItems = "keep",
    resume: Resume | None = None,
    key: Key | None = None,
    invalidate: Invalidate | None = None,
    then: Mapping[Event, Callable[[BatchSummary], Any]] | None = None,
    unique: str | None = None,
    if_running: IfRunning = "attach",
    unique_for: float = 0,
    countdown: float | None = None,
    eta: datetime | None = None,
) -> Batch:
    """Apply *func* to every item on the workers. Return the batch at once, without a round trip to Redis.

    With ``GRAFT_MODE=local`` everything runs in this process, on copies as in the cluster: no Redis, no worker.

    Args:
        func: a function, sync or async. Workers import it by name. A lambda, a nested function or a function of
            ``__main__`` is sent as a copy, if it captures nothing that can change.
        items: any iterable, also an endless one. A sequence is sent as it is now; a list is copied first. Any other
            iterable is read by a thread, a bounded number of items ahead.
        reduce: a function of the list of all values, in the order of the items. It runs on a worker, and its result
            is the value of the batch. Needs at least one item.
        on_error: what becomes of *reduce* where an item fails: ``raise`` makes that error the outcome of the batch;
            ``keep`` calls *reduce* with the list of all Outcomes instead of values, errors among them.
        batch_size: items in one envelope, at least 1. Default: learnt from how long *func* takes.
        in_flight: envelopes that are sent and not yet answered, at least 1. Default: enough to keep all workers busy.
        concurrency: items of one envelope that run at the same time if *func* is async, at least 1. Default: 100. A
            plain function runs one item at a time in each pool process.
        retry: a policy, or a number of retries, for items that raise. A number, and a policy that names no errors,
            retry connections, timeouts and other errors of the operating system; a TypeError is no outage. Default: no
            retry.
        timeout: seconds that one item may run; then it fails with ItemTimeoutError. Default: no limit for an item;
            ``GRAFT_SOFT_TIME_LIMIT`` still limits the envelope.
        priority: a larger number runs first; 0 is the middle.
        share: batches of the same priority share the workers of a queue evenly, from the moment in which each begins;
            one with a share of 3 gets three times as much of their time as one with 1. From 0.001 to 1000.
        queue: the name of a queue; docs/configuration.md lists them. Default: ``batch``, ``io`` if
            *func* is async, or the app's default queue if it does not declare these.
        by_value: send a copy of *func*, whatever it captures. Changes to what it captured stay on the worker.
        unpack: items are ``(args, kwargs)`` pairs, such as ``((2, 3), {})``, and ``func(*args, **kwargs)`` is called.
        validate: check each item against the type hints of *func* before it is sent, as pydantic does, and send what it
            makes of it: "3" becomes 3 where an int is wanted.
        durable: the batch outlives this process: its items are kept in Redis before this returns, which blocks for a
            round trip for each megabyte of them, and one of the workers sends them. Needs items that can be read again
            from the beginning, and takes no *reduce*. A ``range``, JsonLines and Pages are not kept, but read when
            their turn comes.
        name: a durable batch by a name of 1 to 200 characters, which ``graft.batch(name)`` finds. The name makes it
            one: submitting the same again goes on with the batch that is there.
        if_exists: where the name has a batch already: ``attach`` returns it, if callable and items are the same;
            ``restart`` forgets it and begins anew; ``error`` refuses.
        bad_items: what becomes of the items of a durable batch that cannot be pickled: ``keep`` makes the error their
            outcome and goes on; ``raise`` raises it here, and nothing is submitted.
        resume: where the name has a batch already, ``failed`` runs its failed items again, with the options given here,
            if it has ended; ``force`` also if the code of *func* has been changed since. Values that are there stay.
        key: for a named batch: a function that gives what an item is known by, such as ``itemgetter("id")``, or
            ``"item"`` for the whole of it. Submitting other items under the name then runs those alone that are new or
            have failed, and keeps the values of the others, once the batch that has the name has ended.
        invalidate: with *key*: keys that run again whatever is known of them, or a function that says so of a key.
        then: what a worker calls when a durable batch has ended, with its BatchSummary: ``{"success": func}`` where
            every item has a value, ``{"complete": func}`` in any case. It is a durable batch of one item, submitted
            once for each end, so it has retries, errors and letters like any other.
        unique: for one item: what the call is about, 1 to 500 characters. While a call of *func* under this key waits,
            runs, or waits to be run again, in whatever process it was submitted, no second one is made.
        if_running: what becomes of that one: ``attach`` gives it the outcome of the first; ``drop`` ends it in
            CancelledBatchError; ``replace`` takes the place of one that has not begun, and is attached otherwise.
        unique_for: seconds for which that goes on after the call has ended, at most ``GRAFT_BATCH_TTL``.
        countdown: seconds after which the batch begins, by Redis's clock: six days at most, a year for a durable one.
        eta: when it begins, with a timezone, instead of *countdown*. Until then it waits in Redis; a name or a unique
            key is taken at once.

    Returns:
        The batch, a DurableBatch if *durable* or named. A broker that is down is reported there, as BrokerUnavailable.

    Raises:
        UnreferenceableError: a worker can neither import *func* (or *reduce*) nor receive a copy of it.
        TypeError: an argument has the wrong type, or *func* takes another number of arguments than an item gives.
            Nothing has been sent.
        ValidationError: pydantic's; with *validate*, an item of a sequence does not fit. Nothing has been sent. An item
            that an iterator gives ends its own batch instead.
        ValueError: an argument is out of range, the queue does not exist, or *reduce* has no items. Nothing has been
            sent.
        BatchExistsError: the name belongs to a batch of another callable, or with other items.
        PayloadTooLargeError: the items of a durable batch take more than ``GRAFT_SPOOL_LIMIT`` bytes together.
        BrokerUnavailable: Redis does not take the items of a durable batch, which then has not been submitted.
    """
    ref = refer(checked_callable("func", func), by_value=by_value)
    options = BatchOptions(
        function=ref,
        queue=queue_for(queue, ref),
        priority=broker_priority(priority),
        batch_size=at_least_one_or_none("batch_size", batch_size),
        in_flight=at_least_one_or_none("in_flight", in_flight),
        concurrency=at_least_one_or_none("concurrency", concurrency) or (ASYNC_CONCURRENCY if ref.is_async else 1),
        timeout=None if timeout is None else seconds("timeout", timeout),
        policy=importable(as_policy(retry)),
        unpack=unpack,
        share=weight("share", share),
        due=due_at(countdown, eta, is_durable=durable or name is not None),
    )
    check = ArgumentCheck(func, unpack=unpack, validate=validate)
    one_of("on_error", on_error, OnError)
    if on_error == "keep" and reduce is None:
        raise ValueError(
            'on_error="keep" is for reduce=; without it, as_completed() gives the outcomes, errors among them'
        )
    if unique is not None:
        refuse_several(items, durable or name is not None or reduce is not None)
        terms = Terms.checked(unique, if_running, unique_for).of_callable(ref.name)
        (item,) = check.items(items)
        return _started(UniqueSender(item, replace(options, batch_size=1), publisher().wake, terms))
    if if_running != "attach" or unique_for:
        raise ValueError("if_running= and unique_for= say how a call with a key is unique: give its unique=")
    if durable or name is not None:
        refuse_what_ends_with_the_caller(items, reduce)
        one_of("if_exists", if_exists, IfExists)
        one_of("bad_items", bad_items, BadItems)
        known = "" if name is None else checked_name(name)
        if resume is not None:
            one_of("resume", resume, Resume)
            refuse_to_resume(known, if_exists)
        plan = Plan(options, followers(then or {}))
        keys = key_rule(key, invalidate, known)
        return DurableBatch(spool(
            plan, func, lambda: check.items(items), name=known, if_exists=if_exists, bad_items=bad_items,
            resume=resume, keys=keys, source=source_for(items, checks_items=unpack or validate),
        ))  # fmt: skip
    if then is not None or resume is not None or key is not None or invalidate is not None:
        raise ValueError("then=, resume=, key= and invalidate= are for durable batches: add durable=True or a name=")
    items = check.items(iterable(items))
    if reduce is not None:
        ArgumentCheck(checked_callable("reduce", reduce)).items(())
        if turns_of(reduce) is not None:
            raise ValueError("reduce= is called once, and may have no limits (@limit); give it a function without them")
        reducer = refer(checked_callable("reduce", reduce), by_value=by_value)
        return _reduced(options, items, reducer, keeps_errors=on_error == "keep")
    if isinstance(items, Sequence):
        # A list may change under us while it is being sent.
        items = list(items) if isinstance(items, list) else items
        return _here(Outcomes(len(items)), options, items) if is_local() else send(options, ListSource(items))
    return _here(Outcomes(None), options, items) if is_local() else stream(options, items)


def _here(
    outcomes: Outcomes, options: BatchOptions, items: Iterable[Any], reducer: FunctionRef | None = None, *,
    keeps_errors: bool = False,
) -> Batch:  # fmt: skip
    run = LocalRun(outcomes, options, items, reducer, keeps_errors=keeps_errors)
    run.start()
    return Batch(outcomes, run.cancel)


def send(options: BatchOptions, source: ListSource) -> Batch:
    """Send a sequence whose end is known."""
    outcomes = Outcomes(source.remaining)
    if not source.remaining:
        return Batch(outcomes)
    return _started(BatchSender(outcomes, source, options, publisher().wake))


def stream(options: BatchOptions, items: Iterable[Any]) -> Batch:
    """Send what an iterator gives, for as long as it gives."""
    outcomes = Outcomes(None)

    def wake() -> None:
        publisher().wake(sender)

    source = IterSource(items, wake, UNKNOWN_ITEMS)
    sender = BatchSender(outcomes, source, options, publisher().wake)
    outcomes.on_read = wake
    source.start()
    return _started(sender)


def _reduced(options: BatchOptions, items: Iterable[Any], reducer: FunctionRef, *, keeps_errors: bool) -> Batch:
    values = list(iterable(items))
    if not values:
        # Nothing to map, and the reducer still decides what an empty input comes to.
        raise ValueError("reduce needs at least one item; an empty batch has no value to reduce")
    outcomes = Outcomes(len(values), is_reduced=True)
    if is_local():
        return _here(outcomes, options, values, reducer, keeps_errors=keeps_errors)
    source = ListSource(values)
    return _started(ReducingSender(outcomes, source, options, publisher().wake, reducer, keeps_errors=keeps_errors))


def _started(sender: BatchSender[Outcomes]) -> Batch:
    publisher().start(sender)
    return Batch(sender.receiver, sender.cancel)
