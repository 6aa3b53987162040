"""Checks the arguments of ``submit``, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, get_args

from graft.config import redis_clock
from graft.config.deployment import settings
from graft.config.queues import table
from graft.config.validation import at_least_one, number
from graft.tasks.callables.argument_check import ArgumentCheck
from graft.tasks.callables.references import FunctionRef, check_importable, refer
from graft.tasks.durable.sources import Source, source_of
from graft.tasks.feeding.checkpoint import Invalidate, Key, KeyRule
from graft.tasks.feeding.plan import Event
from graft.tasks.feeding.spool import IfExists
from graft.tasks.policy import RetryPolicy

OnError = Literal["raise", "keep"]
LONGEST_WAIT: Final = 6 * 86400.0  # What is kept beside a message lives for seven days.
LONGEST_DURABLE: Final = 366 * 86400.0


def is_local() -> bool:
    """Whether everything runs in the calling process (``GRAFT_MODE=local``)."""
    return settings().mode == "local"


def iterable(items: Iterable[Any]) -> Iterable[Any]:
    try:
        iter(items)
    except TypeError:
        raise TypeError(f"items must be iterable, not {type(items).__name__}") from None
    return items


def refuse_what_ends_with_the_caller(items: Iterable[Any], reduce: Callable[..., Any] | None) -> None:
    if is_local():
        raise ValueError("a durable batch needs Redis and workers, and GRAFT_MODE=local has neither; submit without it")
    if reduce is not None:
        raise ValueError("a durable batch takes no reduce=; submit it without, and reduce what graft.batch(…) gives")
    if iter(iterable(items)) is items:
        raise TypeError(
            f"items is an iterator ({type(items).__name__}), which ends with this process: a durable batch needs items "
            "that can be read again from the beginning, such as a list, a range, or an object with __iter__; "
            "list(items) makes one"
        )


def source_for(items: Iterable[Any], *, checks_items: bool) -> Source | None:
    """Where the items of a durable batch are read, None where they are kept in Redis."""
    source = source_of(items)
    if source is not None and checks_items:
        if isinstance(items, range):
            return None
        raise ValueError(f"unpack= and validate= look at each item, and {type(items).__name__} is read by the workers")
    return source


def key_rule(key: Key | None, invalidate: Invalidate | None, name: str) -> KeyRule | None:
    if key is None:
        if invalidate is not None:
            raise ValueError("invalidate= names keys that run again: say by key= what the key of an item is")
        return None
    if not name:
        raise ValueError("key= keeps values for the next batch of the same name: give its name=")
    if key != "item" and not callable(key):
        raise TypeError(f'key={key!r} must be a function of an item, or "item"')
    if invalidate is not None and (isinstance(invalidate, str) or not hasattr(invalidate, "__contains__")):
        checked_callable("invalidate", invalidate)  # type: ignore[arg-type]
    return KeyRule(key, invalidate)


def due_at(countdown: float | None, eta: datetime | None, *, is_durable: bool) -> float | None:
    """When a batch begins, in seconds since the epoch by Redis's clock; None for at once."""
    if countdown is None and eta is None:
        return None
    if countdown is not None and eta is not None:
        raise ValueError("countdown= and eta= both say when the batch begins: give one of them")
    if eta is not None and (not isinstance(eta, datetime) or eta.tzinfo is None):
        raise ValueError(
            f"eta={eta!r} must be a datetime with a timezone, such as datetime.now(UTC) + timedelta(hours=1)"
        )
    if is_local():
        raise ValueError("countdown= and eta= need Redis and workers, and GRAFT_MODE=local has neither")
    wait = 0.0 if countdown is None else number("countdown", countdown)
    if eta is not None:
        wait = max(0.0, eta.timestamp() - redis_clock.now())
    longest = LONGEST_DURABLE if is_durable else LONGEST_WAIT
    if not 0 <= wait <= longest:
        raise ValueError(
            f"the batch would begin in {wait:g} s, which must be 0 to {longest:g} (a durable one: {LONGEST_DURABLE:g})"
        )
    return redis_clock.now() + wait if wait > 0 else None


def refuse_several(items: Iterable[Any], is_more_than_a_call: bool) -> None:
    if is_local():
        raise ValueError("unique= needs Redis, and GRAFT_MODE=local has none; submit without it")
    if is_more_than_a_call:
        raise ValueError(
            "unique= is for a single call: it takes no durable=, name= or reduce=; a name= runs once itself"
        )
    if not isinstance(items, Sequence) or isinstance(items, str) or len(items) != 1:
        raise ValueError(
            "unique= is for a single call: pass a list of one item, such as submit(func, [item], unique=key); a batch "
            "of several items runs once under a name="
        )


def followers(then: Mapping[Event, Callable[..., Any]]) -> tuple[tuple[Event, FunctionRef], ...]:
    for event, func in then.items():
        one_of("the event of then", event, Event)
        ArgumentCheck(checked_callable(f"then[{event!r}]", func)).items(())
    return tuple((event, refer(func)) for event, func in then.items())


def refuse_to_resume(name: str, if_exists: IfExists) -> None:
    if not name:
        raise ValueError("resume= goes on with a batch that is there: give its name=")
    if if_exists != "attach":
        raise ValueError(f'resume= goes on with a batch that is there, and if_exists="{if_exists}" does not')


def one_of(name: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, get_args(known)))}")


def importable(policy: RetryPolicy) -> RetryPolicy:
    check_importable("retry", policy.names())
    return policy


def checked_callable(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    if not callable(func):
        raise TypeError(f"{name}={func!r} is not callable")
    return func


def at_least_one_or_none(name: str, value: int | None) -> int | None:
    return None if value is None else at_least_one(name, value)


def queue_for(queue: str | None, ref: FunctionRef) -> str:
    if queue is None:
        return table().io if ref.is_async else table().batch
    return table().checked(queue)
