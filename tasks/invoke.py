"""Runs the items of one envelope in this process: plain calls here, awaitables on the event loop.

The loop itself belongs to the worker, which supplies "something that runs a coroutine" at boot (:func:`use_runner`).
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from billiard.common import terminate_handler_fired
from billiard.exceptions import SoftTimeLimitExceeded

from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeError, ItemTimeoutError, ProcessExitError

LOOK_EVERY = 0.5  # Seconds between looks at the batch's cancel flag.


class Runner(Protocol):
    """Something that runs a coroutine to its end while the calling thread waits."""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any: ...


_in_worker = False


def enter_worker() -> None:
    """This process runs tasks from now on."""
    global _in_worker
    _in_worker = True


def in_worker() -> bool:
    """Whether this process runs tasks: waiting here for other tasks could leave no worker to run them."""
    return _in_worker


_make_runner: Callable[[], Runner] | None = None


def use_runner(make: Callable[[], Runner]) -> None:
    """Supply the event loop of this process; *make* is called when the first coroutine arrives."""
    global _make_runner
    _make_runner = make


def _runner() -> Runner:
    if _make_runner is None:
        raise EnvelopeError("this process runs no coroutines: it was not started as a worker (graft.workers.app)")
    return _make_runner()


class Watch(Protocol):
    """What wants to know, from one item to the next."""

    def starting(self, place: int) -> None: ...
    def finished(self, place: int, value: Any, error: BaseException | None) -> None: ...


@dataclass
class Ran:
    """What came of the items, by their place in the envelope. ``left`` names those that were not begun."""

    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    busy: float = 0.0
    elapsed: float = 0.0
    awaited: bool = False


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise ItemTimeoutError in the main thread after *seconds*."""

    def ring(signum: int, frame: object) -> None:
        raise ItemTimeoutError(f"the item ran longer than its limit of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _limit(seconds: float | None) -> Callable[[], Any]:
    if seconds is None:
        return nullcontext
    if threading.current_thread() is not threading.main_thread():
        raise EnvelopeError(
            f"a plain function cannot be stopped after {seconds:g} s in a threads worker; send it to the cpu lane"
        )
    return lambda: _alarm(seconds)


def _refused_exit(error: BaseException) -> BaseException:
    """The error an item leaves behind; one that ends this process on the worker's behalf is let through."""
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        if terminate_handler_fired():
            raise error
        refused = ProcessExitError(f"the callable tried to end the worker's process: {type(error).__name__}({error})")
        return refused.with_traceback(error.__traceback__)
    return error


def run_items(
    envelope: Envelope,
    func: Callable[..., Any],
    places: Sequence[int],
    *,
    is_cancelled: Callable[[], bool],
    watch: Watch | None = None,
) -> Ran:
    """Run the items at *places*, each by itself: an error is that item's outcome and nobody else's."""
    ran = Ran()
    concurrency = 1 if watch else envelope.concurrency
    began = time.perf_counter()
    if envelope.function.is_async:
        _run_async(envelope, func, places, concurrency, ran, is_cancelled, watch)
    else:
        _run_plain(envelope, func, places, concurrency, ran, is_cancelled, watch)
    ran.elapsed = time.perf_counter() - began
    return ran


def _run_plain(
    envelope: Envelope,
    func: Callable[..., Any],
    places: Sequence[int],
    concurrency: int,
    ran: Ran,
    is_cancelled: Callable[[], bool],
    watch: Watch | None,
) -> None:
    items, packed, unpack = envelope.items, envelope.packed, envelope.unpack
    values, errors, limited = ran.values, ran.errors, _limit(envelope.timeout)
    bare = envelope.timeout is None
    clock = time.perf_counter
    began = clock()
    look = began + LOOK_EVERY
    for done, place in enumerate(places):
        if (now := clock()) > look:
            look = now + LOOK_EVERY
            if is_cancelled():
                errors.update((rest, _cancelled(envelope, rest)) for rest in places[done:])
                break
        if watch:
            watch.starting(place)
        try:
            item = pickle.loads(items[place]) if packed else items[place]
            if bare:
                value = func(*item[0], **item[1]) if unpack else func(item)
            else:
                with limited():
                    value = func(*item[0], **item[1]) if unpack else func(item)
            if inspect.isawaitable(value):
                # A plain function that returns an awaitable: its items run together from here on, like async ones.
                ran.busy += clock() - began
                call = _awaiting(func, value)
                _run_async(envelope, call, places[done:], concurrency, ran, is_cancelled, watch, is_begun=True)
                return
            values[place] = value
        except SoftTimeLimitExceeded as error:
            errors[place] = error
            ran.left.extend(places[done + 1 :])
            break
        except BaseException as error:
            errors[place] = _refused_exit(error)
        if watch:
            watch.finished(place, values.get(place), errors.get(place))
    ran.busy += clock() - began


def _awaiting(func: Callable[..., Any], first: Awaitable[Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """*func* as a coroutine function; its first call has been made already and is *first*."""
    made = [first]

    async def call(*args: Any, **kwargs: Any) -> Any:
        value = made.pop() if made else func(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return call


def _cancelled(envelope: Envelope, place: int) -> CancelledBatchError:
    return CancelledBatchError(f"item {envelope.positions[place]} was cancelled before it ran")


def _run_async(
    envelope: Envelope,
    func: Callable[..., Any],
    places: Sequence[int],
    concurrency: int,
    ran: Ran,
    is_cancelled: Callable[[], bool],
    watch: Watch | None,
    is_begun: bool = False,
) -> None:
    async def one(place: int) -> None:
        began = time.perf_counter()
        try:
            item = envelope.items[place]
            if envelope.packed:
                item = pickle.loads(item)
            async with asyncio.timeout(envelope.timeout):
                ran.values[place] = await (func(*item[0], **item[1]) if envelope.unpack else func(item))
        except TimeoutError as error:
            timeout = envelope.timeout
            if timeout is not None and time.perf_counter() - began >= timeout:
                ran.errors[place] = ItemTimeoutError(f"the item ran longer than its limit of {timeout:g} s")
            else:
                ran.errors[place] = error
        except BaseException as error:
            ran.errors[place] = _refused_exit(error)
        ran.busy += time.perf_counter() - began

    ran.awaited = True
    waiting = iter(places)
    cancelled = False

    async def look() -> None:
        nonlocal cancelled
        while not cancelled:
            await asyncio.sleep(LOOK_EVERY)
            cancelled = await asyncio.to_thread(is_cancelled)

    async def line() -> None:
        for place in waiting:
            if cancelled:
                ran.errors[place] = _cancelled(envelope, place)
                continue
            # A task of its own: what an item does to its context or to its task stays with the item.
            await asyncio.wait([asyncio.ensure_future(one(place))])

    async def everything() -> None:
        looking = asyncio.ensure_future(look())
        try:
            await asyncio.gather(*(line() for _ in range(min(concurrency, len(places)))))
        finally:
            looking.cancel()

    if watch is None:
        try:
            _runner().run(everything())
        except SoftTimeLimitExceeded as error:
            begun = ran.values.keys() | ran.errors.keys()
            ran.errors.update((place, error) for place in places if place not in begun)
        return
    for place in places:
        if not (is_begun and place == places[0]):
            watch.starting(place)
        _runner().run(one(place))
        watch.finished(place, ran.values.get(place), ran.errors.get(place))
