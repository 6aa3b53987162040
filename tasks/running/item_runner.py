"""Runs the items of one envelope in this process: plain calls here, awaitables on the event loop."""

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

from graft.config.deployment import settings
from graft.tasks import blocking_threads
from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeError, ItemTimeoutError, ProcessExitError
from graft.tasks.monitoring import otel
from graft.tasks.running.work_stealing import Give, drained, sharer
from graft.tasks.worker_runtime import off_loop, run_coroutine

LAST_WORDS = 5.0  # Seconds that an item has to end once its envelope has been stopped.
LOOK_EVERY = 0.5  # Seconds between looks at the batch's cancel flag.
TELL_EVERY = 0.25  # Seconds after which an envelope that takes longer tells what has come of its items so far.


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


Tell = Callable[[Ran, Sequence[int]], None]  # Called on a helper thread, with places that have an outcome.


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
    tell: Tell | None = None,
) -> Ran:
    """Run the items at *places*, each by itself: an error is that item's outcome and nobody else's.

    With *give*, plain items that have not begun when the run takes long are offered to it, and may end up elsewhere.
    With *tell*, a run on the event loop that takes long tells of outcomes while it goes on.
    """
    ran = Ran()
    func = otel.traced(func, envelope.id, envelope.function.name, envelope.function.is_async)
    concurrency = 1 if watch else envelope.concurrency
    began = time.perf_counter()
    if envelope.function.is_async:
        _run_async(envelope, func, places, concurrency, ran, is_cancelled, watch, tell=tell)
    else:
        todo = deque(places)
        run = partial(_run_plain, envelope, func, todo, concurrency, ran, is_cancelled, watch)
        if give is None or len(places) < 2:
            off_loop(run, computes=True)
        else:
            with sharer().offered(todo, give, 2 * settings().envelope_seconds) as offer:
                off_loop(run, computes=True)
                while not offer.is_exhausted():  # Nobody took it.
                    off_loop(run, computes=True)
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
    """The items of one envelope on the event loop, *concurrency* of them at once: where one ends, the next begins.

    Each has an asyncio task of its own: what an item does to its context or to its task stays with the item.
    """

    def __init__(
        self,
        envelope: Envelope,
        func: Callable[..., Any],
        places: Sequence[int],
        ran: Ran,
        is_cancelled: Callable[[], bool],
        tell: Tell | None = None,
    ) -> None:
        self.envelope = envelope
        self.func = func
        self.ran = ran
        self.is_cancelled = is_cancelled
        self.tell = tell
        self._waiting = iter(places)
        self._running: set[asyncio.Task[None]] = set()
        self._news: list[int] = []  # Places whose outcomes have not been told.
        self._cancelled = self._stopping = False

    async def all(self, concurrency: int) -> None:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        looking = asyncio.ensure_future(self._look())
        try:
            for _ in range(concurrency):
                self._begin_next()
            if self._running:
                await self._over
        except BaseException:  # A limit, or the end of the worker.
            self._stopping = True
            for item in self._running:
                item.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=LAST_WORDS)
            raise
        finally:
            looking.cancel()

    def _begin_next(self) -> None:
        for place in self._waiting:
            if self._cancelled:
                self.ran.errors[place] = _cancelled(self.envelope, place)
                continue
            item = asyncio.ensure_future(self.one(place))
            self._running.add(item)
            item.add_done_callback(self._ended)
            return

    def _ended(self, item: asyncio.Task[None]) -> None:
        self._running.discard(item)
        if not self._stopping:
            self._begin_next()
        if self._over.done():
            return
        if not item.cancelled() and (error := item.exception()) is not None:
            self._over.set_exception(error)  # Only what ends this process: anything else is an item's outcome.
        elif not self._running:
            self._over.set_result(None)

    async def one(self, place: int) -> None:
        """Run the item at *place*, whose outcome is noted."""
        envelope, func, ran = self.envelope, self.func, self.ran
        began = time.perf_counter()
        try:
            item = pickle.loads(envelope.items[place]) if envelope.packed else envelope.items[place]
            call = func(*item[0], **item[1]) if envelope.unpack else func(item)
            ran.values[place] = await (call if envelope.timeout is None else _limited(call, envelope.timeout))
        except BaseException as error:
            if self._stopping and isinstance(error, asyncio.CancelledError):
                raise  # It did not end by itself, and has no outcome.
            ran.errors[place] = _refused_exit(error)
        ran.busy += time.perf_counter() - began
        self._news.append(place)

    async def _look(self) -> None:
        """Now and then: tell what has come of items, and see whether the others are still wanted."""
        due = time.monotonic() + LOOK_EVERY
        while True:
            await asyncio.sleep(TELL_EVERY)
            news, self._news = self._news, []
            if self.tell is not None and news:
                await blocking_threads.ask(self.tell, self.ran, news)
            if not self._cancelled and time.monotonic() >= due:
                due = time.monotonic() + LOOK_EVERY
                self._cancelled = await blocking_threads.ask(self.is_cancelled)


async def _limited(call: Awaitable[Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ItemTimeoutError(f"the item ran longer than its limit of {seconds:g} s") from error


def _run_async(
    envelope: Envelope,
    func: Callable[..., Any],
    places: Sequence[int],
    concurrency: int,
    ran: Ran,
    is_cancelled: Callable[[], bool],
    watch: Watch | None,
    is_begun: bool = False,
    tell: Tell | None = None,
) -> None:
    ran.awaited = True
    together = _Together(envelope, func, places, ran, is_cancelled, tell)
    if watch is None:
        try:
            run_coroutine(together.all(min(concurrency, len(places))))
        except SoftTimeLimitExceeded as error:
            begun = ran.values.keys() | ran.errors.keys()
            ran.errors.update((place, error) for place in places if place not in begun)
        return
    for place in places:
        if not (is_begun and place == places[0]):
            off_loop(watch.starting, place)
        run_coroutine(together.one(place))
        off_loop(watch.finished, place, ran.values.get(place), ran.errors.get(place))
