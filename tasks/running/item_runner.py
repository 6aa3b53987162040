"""Runs the items of one envelope in this process: plain calls here, awaitables on the event loop."""

from __future__ import annotations

import inspect
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from billiard.exceptions import SoftTimeLimitExceeded

from graft.config.deployment import part, settings
from graft.tasks import blocking_threads
from graft.tasks.delivery.cancellation import Cancelled
from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeError, ItemTimeoutError, NotYet
from graft.tasks.monitoring import otel
from graft.tasks.running.cancel_watch import cancel_watch
from graft.tasks.running.concurrent_items import ConcurrentItems
from graft.tasks.running.item_limits import ItemLimits
from graft.tasks.running.run_outcomes import RunOutcomes
from graft.tasks.running.run_state import ItemRecorder, PublishEarly, RunState, refused_exit
from graft.tasks.running.work_stealing import Share, drained, sharer
from graft.tasks.worker_runtime import (
    WorkerEndsError,
    WorkerRuntime,
    off_loop,
    resolved,
    run_coroutine,
)


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
class _ItemRun(RunState):
    """One run of items of one envelope."""

    together: ConcurrentItems | None = None

    def cancel(self, cancelled: Cancelled) -> None:
        """Begin nothing of *cancelled*, and end what runs if it says so. On the watching thread."""
        self.cancelled = cancelled
        if not cancelled.running:
            return
        if self.together is not None:
            self.together.cancel()
        self.interruption.send(CancelledBatchError("the item was cancelled while it ran"))

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
                errors[index] = refused_exit(error)
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
        self.together = ConcurrentItems(self)
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
