"""Runs the items of one envelope in this process: plain calls here, awaitables on the event loop."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

from billiard.common import terminate_handler_fired
from billiard.exceptions import SoftTimeLimitExceeded

from graft.config.deployment import part, settings
from graft.tasks import blocking_threads
from graft.tasks.delivery.cancellation import NOTHING, Cancelled
from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeError, ItemTimeoutError, NotYet, ProcessExitError
from graft.tasks.monitoring import otel
from graft.tasks.running.cancel_watch import Interruption, cancel_watch
from graft.tasks.running.item_limits import ItemLimits
from graft.tasks.running.run_outcomes import RunOutcomes
from graft.tasks.running.work_stealing import TELL_EVERY, Share, drained, sharer
from graft.tasks.worker_runtime import (
    Item,
    WorkerEndsError,
    WorkerRuntime,
    current_item,
    off_loop,
    resolved,
    run_coroutine,
)

LAST_WORDS = 5.0  # Seconds that an item has to end once its envelope has been stopped.


class ItemRecorder(Protocol):
    """Records each item before it runs and after it has ended, so that an item that kills its process is known."""

    def starting(self, index: int) -> None: ...
    def finished(self, index: int, value: Any, error: BaseException | None) -> None: ...
    def postponed(self, index: int) -> None:
        """It has not begun after all."""


# Called on a helper thread, with the values and errors that there are, and the indexes of those to publish.
PublishEarly = Callable[[Mapping[int, Any], Mapping[int, BaseException], Sequence[int]], None]


class _FirstAwaitable(NamedTuple):
    """The awaitable that a plain function has returned, for one item."""

    item_index: int
    awaitable: Awaitable[Any]


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
    indexes: Sequence[int],
    *,
    recorder: ItemRecorder | None = None,
    share: Share | None = None,
    publish_early: PublishEarly | None = None,
) -> RunOutcomes:
    """Run the items at *indexes*, each by itself: an error is that item's outcome and nobody else's.

    What is cancelled meanwhile does not begin (cancel_watch.py).

    Args:
        recorder: has items run one after the other, and records each.
        share: offered the plain items that have not begun when the run takes long; they may end up elsewhere.
        publish_early: called while a long run goes on, with what has ended.
    """
    limits = ItemLimits.of(envelope, func)
    func = otel.traced(func, envelope.id, envelope.function.name, envelope.function.is_async)
    run = _ItemRun(envelope, func, recorder, publish_early, limits)
    began = time.perf_counter()
    with cancel_watch().watching(envelope, run.cancel), _closing(limits):
        if envelope.function.is_async:
            run.on_loop(indexes)
        elif len(indexes) < 2 or (share is None and publish_early is None):
            run.plain(deque(indexes))
        else:
            todo = deque(indexes)
            with sharer().offered(todo, share, settings().envelope_seconds, run.tell) as offer:
                run.plain(todo)
                while not offer.is_exhausted():  # Nobody took it.
                    run.plain(todo)
    run.outcomes.elapsed = time.perf_counter() - began
    return run.outcomes


@contextmanager
def _closing(limits: ItemLimits | None) -> Iterator[None]:
    try:
        yield
    except BaseException:  # The run is ended from outside: nobody can wait now.
        if limits is not None:
            blocking_threads.soon(limits.close)
        raise
    if limits is not None:
        off_loop(limits.close)


@dataclass
class _ItemRun:
    """One run of items of one envelope, whose outcomes it collects."""

    envelope: Envelope
    func: Callable[..., Any]
    recorder: ItemRecorder | None
    publish_early: PublishEarly | None
    limits: ItemLimits | None
    outcomes: RunOutcomes = field(default_factory=RunOutcomes)
    cancelled: Cancelled = NOTHING
    interruption: Interruption = field(default_factory=Interruption)
    together: _Together | None = None
    unpublished: deque[int] = field(default_factory=deque)  # Indexes of outcomes that were not published early.

    def tell(self) -> None:
        """Publish what has ended since the last time. Called on a helper thread."""
        if self.publish_early is not None and (ended := drained(self.unpublished)):
            self.publish_early(self.outcomes.values, self.outcomes.errors, ended)

    def cancel(self, cancelled: Cancelled) -> None:
        """Begin nothing of *cancelled*, and end what runs if it says so. On the watching thread."""
        self.cancelled = cancelled
        if not cancelled.running:
            return
        if self.together is not None:
            self.together.cancel()
        self.interruption.send(CancelledBatchError("the item was cancelled while it ran"))

    def is_unwanted(self, index: int) -> bool:
        """Whether the item at *index* is cancelled, which is then its outcome."""
        position = self.envelope.positions[index]
        if not self.cancelled.includes(position):
            return False
        self.outcomes.errors[index] = CancelledBatchError(f"item {position} was cancelled before it ran")
        return True

    def plain(self, todo: deque[int]) -> None:
        """Call the function for each item of *todo*; once it returns an awaitable, the others run like async ones."""
        first = off_loop(self._call_each, todo, computes=True)
        if first is not None:
            self.func = _continued(self.func, first.awaitable)
            self.on_loop([first.item_index, *drained(todo)], is_begun=True)

    def _call_each(self, todo: deque[int]) -> _FirstAwaitable | None:
        with self.interruption.possible():
            return self._call_interruptibly(todo)

    # One loop: a call of a function in it is time that every item takes.
    def _call_interruptibly(self, todo: deque[int]) -> _FirstAwaitable | None:  # noqa: PLR0915
        envelope, func, recorder = self.envelope, self.func, self.recorder
        items, packed, unpack = envelope.items, envelope.packed, envelope.unpack
        values, errors, limited = self.outcomes.values, self.outcomes.errors, _limit(envelope.timeout)
        bare, is_timed, is_limited = envelope.timeout is None, envelope.pool is not None, self.limits is not None
        clock, runtime, ended, interruption = (
            time.perf_counter, part(WorkerRuntime), self.unpublished.append, self.interruption
        )  # fmt: skip
        first, now, began = None, 0.0, clock()
        while todo:
            try:
                index = todo.popleft()
            except IndexError:  # Shared in this instant.
                break
            if runtime.is_over:
                raise WorkerEndsError
            if self.cancelled and self.is_unwanted(index):
                continue
            if is_timed:
                now = clock()
            if recorder:
                recorder.starting(index)
            try:
                interruption.is_inside = True
                item = pickle.loads(items[index]) if packed else items[index]
                if is_limited:
                    self._enter(index, item)
                if bare:
                    value = func(*item[0], **item[1]) if unpack else func(item)
                else:
                    with limited():
                        value = func(*item[0], **item[1]) if unpack else func(item)
                interruption.is_inside = False
                if inspect.isawaitable(value):
                    first = _FirstAwaitable(index, value)
                    break
                values[index] = value
            except SoftTimeLimitExceeded as error:
                interruption.is_inside = False
                errors[index] = error
                self.outcomes.left.extend(drained(todo))
                break
            except BaseException as error:
                interruption.is_inside = False
                errors[index] = _refused_exit(error)
            if is_limited and not self._has_run(index):
                continue
            ended(index)
            if is_timed:
                self.outcomes.seconds[index] = clock() - now
            if recorder:
                recorder.finished(index, values.get(index), errors.get(index))
        self.outcomes.busy += clock() - began
        return first

    def _enter(self, index: int, item: Any) -> None:
        """Have the limits admit the item; raises NotYet."""
        assert self.limits is not None
        self.interruption.is_inside = False  # A round trip that is cut short would spoil its connection.
        self.limits.enter(index, item)
        self.interruption.is_inside = True

    def _has_run(self, index: int) -> bool:
        """Tell the limits how the item ended; False where it has not begun."""
        assert self.limits is not None
        error = self.outcomes.errors.get(index)
        if isinstance(error, NotYet):
            if self.recorder is not None:
                self.recorder.postponed(index)
            return False
        self.limits.leave(index, error)
        return True

    def on_loop(self, indexes: Sequence[int], *, is_begun: bool = False) -> None:
        """Run the items at *indexes* on the event loop; *is_begun*: the first of them was recorded as starting."""
        self.outcomes.awaited = True
        if self.recorder is None:
            self._await_all(indexes)
            return
        for number, index in enumerate(indexes):
            if self.is_unwanted(index):
                continue
            if number or not is_begun:
                off_loop(self.recorder.starting, index)
            self._await_all([index])
            value, error = self.outcomes.values.get(index), self.outcomes.errors.get(index)
            if isinstance(error, NotYet):
                off_loop(self.recorder.postponed, index)
            else:
                off_loop(self.recorder.finished, index, value, error)

    def _await_all(self, indexes: Sequence[int]) -> None:
        self.together = _Together(self)
        try:
            run_coroutine(self.together.all(indexes))
        except SoftTimeLimitExceeded as error:
            begun = self.outcomes.values.keys() | self.outcomes.errors.keys()
            self.outcomes.errors.update((index, error) for index in indexes if index not in begun)


def _continued(func: Callable[..., Any], first: Awaitable[Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """*func* as a coroutine function; its first call has been made already and is *first*."""
    made = [first]

    async def call(*args: Any, **kwargs: Any) -> Any:
        return await resolved(made.pop() if made else func(*args, **kwargs))

    return call


class _Together:
    """The items of one run on the event loop, as many at once as the envelope says: where one ends, the next begins.

    Each has an asyncio task of its own: what an item does to its context or to its task stays with the item.
    """

    def __init__(self, run: _ItemRun) -> None:
        self._run = run
        self._waiting: Iterator[int] = iter(())
        self._running: dict[asyncio.Task[None], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = self._stopping = False

    async def all(self, indexes: Sequence[int]) -> None:
        """Run the items at *indexes*."""
        self._waiting = iter(indexes)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        publishing = None if self._run.publish_early is None else asyncio.ensure_future(self._publish())
        try:
            for _ in range(min(self._run.envelope.concurrency, len(indexes))):
                self._begin_next()
            if self._running:
                await self._over
        except BaseException:  # A limit, or the end of the worker.
            self._stopping = True
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=LAST_WORDS)
            raise
        finally:
            if publishing is not None:
                publishing.cancel()

    def cancel(self) -> None:
        """Cancel the items that run. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop was closed: nothing runs.
                self._loop.call_soon_threadsafe(self._cancel_running)

    def _cancel_running(self) -> None:
        self._ending = True
        for item in self._running:
            if not item.cancelling():
                item.cancel()

    def _begin_next(self) -> None:
        for index in self._waiting:
            if self._run.is_unwanted(index):
                continue
            mark, context = Item(), copy_context()
            context.run(current_item.set, mark)
            item = asyncio.get_running_loop().create_task(self.one(index), context=context)
            self._running[item] = index
            item.add_done_callback(partial(self._ended, mark))
            return

    def _ended(self, mark: Item, item: asyncio.Task[None]) -> None:
        mark.is_over = True
        index, outcomes = self._running.pop(item), self._run.outcomes
        if self._ending and index not in outcomes.values and index not in outcomes.errors:  # Before its first step.
            outcomes.errors[index] = CancelledBatchError(f"item {self._run.envelope.positions[index]} was cancelled")
        if not self._stopping:
            self._begin_next()
        if self._over.done():
            return
        if not item.cancelled() and (error := item.exception()) is not None:
            self._over.set_exception(error)  # Only what ends this process: anything else is an item's outcome.
        elif not self._running:
            self._over.set_result(None)

    async def one(self, index: int) -> None:
        """Run the item at *index*, and note its outcome."""
        envelope, func, outcomes = self._run.envelope, self._run.func, self._run.outcomes
        limits, began = self._run.limits, time.perf_counter()
        try:
            value = pickle.loads(envelope.items[index]) if envelope.packed else envelope.items[index]
            if limits is not None:
                await limits.enter_on_loop(index, value)
                began = time.perf_counter()
            call = func(*value[0], **value[1]) if envelope.unpack else func(value)
            outcomes.values[index] = await (call if envelope.timeout is None else _limited(call, envelope.timeout))
        except BaseException as error:
            if self._stopping and isinstance(error, asyncio.CancelledError):
                raise  # It did not end by itself, and has no outcome.
            if self._ending and isinstance(error, asyncio.CancelledError):
                error = CancelledBatchError(f"item {envelope.positions[index]} was cancelled while it ran")
            outcomes.errors[index] = _refused_exit(error)
        elapsed = time.perf_counter() - began
        outcomes.busy += elapsed
        if envelope.pool is not None:
            outcomes.seconds[index] = elapsed
        self._run.unpublished.append(index)
        if limits is not None:
            await limits.leave_on_loop(index, outcomes.errors.get(index))

    async def _publish(self) -> None:
        """Now and then publish early outcomes."""
        run = self._run
        assert run.publish_early is not None
        while True:
            await asyncio.sleep(TELL_EVERY)
            if run.unpublished:
                await blocking_threads.ask(run.tell)


async def _limited(call: Awaitable[Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ItemTimeoutError(f"the item ran longer than its limit of {seconds:g} s") from error
