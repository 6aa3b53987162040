"""The way in: ``submit(func, items)`` cuts items into envelopes, sends them, and gives a Batch to hold on to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graft.config.queues import broker_priority, names
from graft.tasks.batch import Batch
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.ids import new_id
from graft.tasks.policy import RetryPolicy, as_policy
from graft.tasks.sending.batch_sender import Feeder, Order
from graft.tasks.sending.chords import ReducingFeeder
from graft.tasks.sending.publisher import publisher
from graft.tasks.sending.sizing import UNKNOWN_ITEMS
from graft.tasks.sending.sources import IterSource, ListSource

ASYNC_CONCURRENCY = 100


def submit(
    func: Callable[..., Any],
    items: Iterable[Any],
    *,
    reduce: Callable[[list[Any]], Any] | None = None,
    batch_size: int | None = None,
    in_flight: int | None = None,
    concurrency: int | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: float | None = None,
    priority: float = 0,
    queue: str | None = None,
    by_value: bool = False,
    unpack: bool = False,
) -> Batch:
    """Apply *func* to every item on the workers. Returns at once; nothing here waits for the network.

    Args:
        func: sync or async; importable on the workers, or capturing nothing mutable.
        items: any iterable, endless ones included: a sequence is cut where it stands, anything else is read ahead by a
            bounded amount.
        reduce: called on a worker with the list of all values; the batch's value is then its result.
        batch_size: items in one envelope; learnt from the callable's own pace unless given.
        in_flight: envelopes sent and not yet answered; unless given, enough to keep every worker busy.
        concurrency: items of one envelope that run at once where *func* is async.
        retry: a policy, or a number of retries, for items that raise; none unless given.
        timeout: seconds one item may run; it ends in ItemTimeoutError.
        priority: larger goes first; 0 is the middle.
        queue: one of the queues in config/queues.py; by default ``batch``, and ``io`` for async callables.
        by_value: send a copy of *func* whatever it captures. Changes to what it captured stay on the worker.
        unpack: items are ``(args, kwargs)`` pairs, and ``func(*args, **kwargs)`` is called.

    Raises:
        UnreferenceableError: a worker can neither import nor receive *func* (or *reduce*).
        TypeError, ValueError: for values that cannot work; nothing has been sent then.
    """
    ref = refer(func, by_value=by_value)
    order = Order(
        function=ref,
        queue=_queue(queue, ref),
        priority=broker_priority(priority),
        batch_size=_at_least_one("batch_size", batch_size),
        in_flight=_at_least_one("in_flight", in_flight),
        concurrency=_at_least_one("concurrency", concurrency) or (ASYNC_CONCURRENCY if ref.is_async else 1),
        timeout=_seconds(timeout),
        policy=as_policy(retry),
        unpack=unpack,
    )
    if reduce is not None:
        return _reduced(order, items, refer(reduce, by_value=by_value))
    if isinstance(items, Sequence):
        # A list may change under us while it is being sent.
        return send(order, ListSource(list(items) if isinstance(items, list) else items))
    return stream(order, _iterable(items))


def send(order: Order, source: ListSource) -> Batch:
    """Send a sequence whose end is known."""
    batch = Batch(new_id(), source.remaining)
    if source.remaining:
        feeder = Feeder(batch, source, order, publisher().wake)
        batch.attach(feeder.cancel, lambda: None)
        publisher().wake(feeder)
    return batch


def stream(order: Order, items: Iterable[Any]) -> Batch:
    """Send what an iterator gives, for as long as it gives."""
    batch = Batch(new_id(), None)
    source = IterSource(items, lambda: publisher().wake(feeder), UNKNOWN_ITEMS)
    feeder = Feeder(batch, source, order, publisher().wake)
    batch.attach(feeder.cancel, lambda: publisher().wake(feeder))
    source.start()
    publisher().wake(feeder)
    return batch


def _reduced(order: Order, items: Iterable[Any], reducer: FunctionRef) -> Batch:
    values = list(_iterable(items))
    batch = Batch(new_id(), len(values), reduced=True)
    if not values:
        # Nothing to map, and the reducer still decides what an empty input comes to.
        raise ValueError("reduce needs at least one item; an empty batch has no value to reduce")
    feeder = ReducingFeeder(batch, ListSource(values), order, publisher().wake, reducer)
    batch.attach(feeder.cancel, lambda: None)
    publisher().wake(feeder)
    return batch


def _iterable(items: Iterable[Any]) -> Iterable[Any]:
    try:
        iter(items)
    except TypeError:
        raise TypeError(f"items must be iterable, not {type(items).__name__}") from None
    return items


def _at_least_one(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    return value


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r} must be more than 0 seconds; None means no limit")
    return timeout


def _queue(queue: str | None, ref: FunctionRef) -> str:
    if queue is None:
        return "io" if ref.is_async else "batch"
    if queue not in names():
        raise ValueError(f"there is no queue {queue!r}; there are {', '.join(names())}")
    return queue
