"""One event loop on one thread in each pool process, for as long as the process lives.

Coroutines of all items run on it, so what they cache per loop (connections, sessions) is found again by the next item.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded

from graft.config.deployment import existing, part
from graft.workers import own_tasks, task_context

logger = logging.getLogger(__name__)

CANCEL_PATIENCE: Final = 5.0  # Seconds that a thread waits for a coroutine that it has cancelled.


class Interruptible:
    """Awaitable: the coroutine's result. It can be made to raise an error of our choice where it waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._pending: BaseException | None = None

    def interrupt(self, task: asyncio.Task[Any], error: BaseException) -> None:
        """Have *error* raised in the coroutine, which runs as *task*. On the loop's thread."""
        self._pending = error
        task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                future = step(value)
            except StopIteration as stop:
                return stop.value
            try:
                value = yield future
                step = self._coroutine.send
            except BaseException as error:
                value, step = self._translated(error), self._coroutine.throw

    def _translated(self, error: BaseException) -> BaseException:
        pending, self._pending = self._pending, None
        if pending is None or not isinstance(error, asyncio.CancelledError):
            return error
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return pending


class AsyncRunner:
    """Runs coroutines on its own loop while the calling thread waits; several threads may call at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or new_loop()
        if loop is None:
            own_tasks.hide_strangers()
            self._loop.set_task_factory(own_tasks.make)
            self._thread = threading.Thread(target=run_for_ever, args=(self._loop,), name="graft-loop", daemon=True)
            self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result or error.

        A soft time limit that interrupts this thread is raised in the coroutine, which may catch it; anything else
        cancels it.
        """
        call = Interruptible(coroutine)
        done: Future[Any] = Future()
        tasks: list[asyncio.Task[Any]] = []
        context = task_context.for_coroutine()
        self._loop.call_soon_threadsafe(self._start, call, done, tasks, context=context)
        try:
            return done.result()
        except BaseException as error:
            if done.done():
                raise
            return self._interrupt(call, done, tasks, error)

    def _start(self, call: Interruptible, done: Future[Any], tasks: list[asyncio.Task[Any]]) -> None:
        async def run() -> None:
            try:
                value = await call
            except (SystemExit, KeyboardInterrupt) as error:  # asyncio would end the loop.
                done.set_exception(error)
            except asyncio.CancelledError as error:
                done.set_exception(error)
                raise
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(value)

        tasks.append(self._loop.create_task(run()))

    def _interrupt(
        self, call: Interruptible, done: Future[Any], tasks: list[asyncio.Task[Any]], error: BaseException
    ) -> Any:
        is_soft = isinstance(error, SoftTimeLimitExceeded)

        def interrupt() -> None:
            if tasks and not done.done():
                call.interrupt(tasks[0], error if is_soft else asyncio.CancelledError())

        self._loop.call_soon_threadsafe(interrupt)
        if is_soft:
            return done.result()  # The hard limit ends a coroutine that will not.
        try:
            done.result(CANCEL_PATIENCE)
        except BaseException as last:
            logger.debug("a coroutine ended after its thread was interrupted: %r", last)
        raise error


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop, the faster kind where it is installed (extra ``io``)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run_for_ever(loop: asyncio.AbstractEventLoop, is_over: Callable[[], bool] = lambda: False) -> None:
    """Run *loop* whatever its coroutines do: a ``sys.exit`` or ``loop.stop`` among them does not end it."""
    while not is_over():
        try:
            loop.run_forever()
            if not is_over():
                logger.error("a coroutine stopped the event loop, which all coroutines share; it is started again")
        except (SystemExit, KeyboardInterrupt) as error:
            logger.error("a coroutine tried to end the worker (%r); the event loop goes on", error)
        except task_context.Ended:  # Meant for a run that had just ended.
            continue


def runner() -> AsyncRunner:
    """This process's runner, made when the first coroutine arrives."""
    return part(AsyncRunner)


def current() -> asyncio.AbstractEventLoop | None:
    """The loop of this process's runner, if any coroutine has arrived yet."""
    made = existing(AsyncRunner)
    return made._loop if made is not None else None
