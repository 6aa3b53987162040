"""Runs code that knows nothing of asyncio on an event loop: where it has to wait, the loop goes on with others.

    asyncio task ── switch ──► greenlet: Celery's tracer ─► task.run ─► wait(coroutine)
         ▲                                                              │ coroutine.send → a future
         └── yields the future to the loop ◄────────── switch ──────────┘

The coroutine of a task is stepped inside its greenlet, under the asyncio task made for it, so ``asyncio.current_task``,
timeouts, task groups and cancellation are what they are elsewhere.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any

from greenlet import getcurrent, greenlet

from graft.workers.task_context import Ended


class Steps:
    """Awaitable: the result of *func*, called in a greenlet that has *context*.

    *translate* is given what the loop throws in (a cancellation) and says what *func* gets to see; *entered* is called
    with True before and False after each step.
    """

    __slots__ = ("_context", "_entered", "_func", "_translate")

    def __init__(
        self,
        func: Callable[[], Any],
        context: Context,
        translate: Callable[[BaseException], BaseException],
        entered: Callable[[bool], None],
    ) -> None:
        self._func = func
        self._context = context
        self._translate = translate
        self._entered = entered

    def __await__(self) -> Generator[Any, Any, Any]:
        runner = _Runner(self._func)
        runner.gr_context = self._context
        entered = self._entered
        step: Callable[..., Any] = runner.switch
        value: tuple[Any, ...] = ()
        while True:
            entered(True)
            try:
                out = step(*value)
            finally:
                entered(False)
            value = ()
            if runner.dead:
                return out
            try:
                value = ((yield out),)
                step = runner.switch
            except BaseException as error:
                value = (self._translate(error),)
                step = runner.throw


class _Runner(greenlet):
    """A greenlet of ours; code that runs in any other must not wait this way."""


def can_wait() -> bool:
    """Whether this is code of a task on the loop, which may :func:`wait`."""
    return isinstance(getcurrent(), _Runner)


def wait(awaitable: Awaitable[Any]) -> Any:
    """The awaitable's value or error; the loop goes on meanwhile. Only where :func:`can_wait`."""
    coroutine: Any = awaitable if inspect.iscoroutine(awaitable) else _as_coroutine(awaitable)
    switch = getcurrent().parent.switch
    value: Any = None
    step: Callable[[Any], Any] = coroutine.send
    while True:
        try:
            future = step(value)
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # A traceback holds this frame.
        try:
            value, step = switch(future), coroutine.send
        except Ended:
            _close(coroutine)
            raise
        except BaseException as error:
            value, step = error, coroutine.throw
        finally:
            future = None


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _close(coroutine: Any) -> None:
    """End *coroutine* where it stands; one that refuses is not stepped again."""
    try:
        coroutine.close()
    except (asyncio.CancelledError, Exception, GeneratorExit):
        return
