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
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from billiard.common import terminate_handler_fired
from billiard.exceptions import SoftTimeLimitExceeded

from graft.config.settings import settings
from graft.tasks import tracing
from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeError, ItemTimeoutError, ProcessExitError
from graft.tasks.sharing import Give, drained, sharer

LAST_WORDS = 5.0  # Seconds that an item has to end once its envelope has been stopped.
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
_aside: Callable[..., Any] | None = None


def use_runner(make: Callable[[], Runner], aside: Callable[..., Any] | None = None) -> None:
    """Supply the event loop of this process; *make* is called when the first coroutine arrives.

    *aside* is what :func:`aside` does here, where tasks themselves run on that loop.
    """
    global _make_runner, _aside
    _make_runner, _aside = make, aside


def _runner() -> Runner:
    if _make_runner is None:
        raise EnvelopeError("this process runs no coroutines: it was not started as a worker (graft.workers.app)")
    return _make_runner()


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """The value or error of *awaitable*, in the way in which this process runs coroutines."""
    return _runner().run(awaitable if inspect.iscoroutine(awaitable) else _as_coroutine(awaitable))


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def aside(func: Callable[..., Any], *args: Any, computes: bool = False) -> Any:
    """``func(*args)``, which waits for the network, without holding up an event loop that this may be running on.

    *computes*: it is somebody's plain function and may take as long as it likes.
    """
    return func(*args) if _aside is None else _aside(func, *args, computes=computes)


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
            f"a plain function cannot be stopped after {seconds:g} s on a thread; send it to the cpu lane"
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
    give: Give | None = None,
) -> Ran:
    """Run the items at *places*, each by itself: an error is that item's outcome and nobody else's.

    With *give*, plain items that have not begun when the run takes long are offered to it, and may end up elsewhere.
    """
    ran = Ran()
    func = tracing.traced(func, envelope.id, envelope.function.name, envelope.function.is_async)
    concurrency = 1 if watch else envelope.concurrency
    began = time.perf_counter()
    if envelope.function.is_async:
        _run_async(envelope, func, places, concurrency, ran, is_cancelled, watch)
    else:
        todo = deque(places)
        run = partial(_run_plain, envelope, func, todo, concurrency, ran, is_cancelled, watch)
        if give is None or len(places) < 2:
            aside(run, computes=True)
        else:
            with sharer().offered(todo, give, 2 * settings().envelope_seconds) as offer:
                aside(run, computes=True)
                while not offer.is_exhausted():  # Nobody took it.
                    aside(run, computes=True)
    ran.elapsed = time.perf_counter() - began
    return ran


def _run_plain(
    envelope: Envelope,
    func: Callable[..., Any],
    todo: deque[int],
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
    while todo:
        try:
            place = todo.popleft()
        except IndexError:  # Given away in this instant.
            break
        if (now := clock()) > look:
            look = now + LOOK_EVERY
            if is_cancelled():
                errors.update((each, _cancelled(envelope, each)) for each in (place, *drained(todo)))
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
                _run_async(
                    envelope, call, [place, *drained(todo)], concurrency, ran, is_cancelled, watch, is_begun=True
                )
                return
            values[place] = value
        except SoftTimeLimitExceeded as error:
            errors[place] = error
            ran.left.extend(drained(todo))
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


class _Together:
    """The items of one envelope on the event loop, *concurrency* of them at once."""

    def __init__(
        self,
        envelope: Envelope,
        func: Callable[..., Any],
        places: Sequence[int],
        ran: Ran,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.envelope = envelope
        self.func = func
        self.ran = ran
        self.is_cancelled = is_cancelled
        self._waiting = iter(places)
        self._cancelled = self._stopping = False

    async def all(self, concurrency: int) -> None:
        looking = asyncio.ensure_future(self._look())
        try:
            await asyncio.gather(*(self._line() for _ in range(concurrency)))
        finally:
            looking.cancel()

    async def one(self, place: int) -> None:
        """Run the item at *place*, whose outcome is noted."""
        envelope, func, ran = self.envelope, self.func, self.ran
        began = time.perf_counter()
        limit = asyncio.timeout(envelope.timeout)
        try:
            item = pickle.loads(envelope.items[place]) if envelope.packed else envelope.items[place]
            async with limit:
                ran.values[place] = await (func(*item[0], **item[1]) if envelope.unpack else func(item))
        except TimeoutError as error:
            ran.errors[place] = (
                ItemTimeoutError(f"the item ran longer than its limit of {envelope.timeout:g} s")
                if limit.expired()
                else error
            )
        except BaseException as error:
            if self._stopping and isinstance(error, asyncio.CancelledError):
                raise  # It did not end by itself, and has no outcome.
            ran.errors[place] = _refused_exit(error)
        ran.busy += time.perf_counter() - began

    async def _line(self) -> None:
        for place in self._waiting:
            if self._cancelled:
                self.ran.errors[place] = _cancelled(self.envelope, place)
                continue
            # A task of its own: what an item does to its context or to its task stays with the item.
            item = asyncio.ensure_future(self.one(place))
            try:
                await item
            except asyncio.CancelledError:  # Not the item's own, which is its outcome.
                self._stopping = True
                item.cancel()
                await asyncio.wait([item], timeout=LAST_WORDS)
                raise

    async def _look(self) -> None:
        while not self._cancelled:
            await asyncio.sleep(LOOK_EVERY)
            self._cancelled = await asyncio.to_thread(self.is_cancelled)


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
    ran.awaited = True
    together = _Together(envelope, func, places, ran, is_cancelled)
    if watch is None:
        try:
            _runner().run(together.all(min(concurrency, len(places))))
        except SoftTimeLimitExceeded as error:
            begun = ran.values.keys() | ran.errors.keys()
            ran.errors.update((place, error) for place in places if place not in begun)
        return
    for place in places:
        if not (is_begun and place == places[0]):
            aside(watch.starting, place)
        _runner().run(together.one(place))
        aside(watch.finished, place, ran.values.get(place), ran.errors.get(place))
