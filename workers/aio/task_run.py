"""One run of one task in the io lane: on the loop, in a greenlet; or, for a plain function, on a thread.

queued ── start ──► running ──► ended           its result goes to the worker's main thread
                      │  ├ soft limit: raised in the coroutine where it waits, which may catch it
                      │  └ hard limit, revoked, given back: cancelled; its result no longer counts
                      └ does not end within GRACE: closed where it stands, never stepped again

A thread cannot be stopped: a plain function over its hard limit fails, and keeps its thread until it returns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded

from graft.workers import own_tasks, task_context
from graft.workers.aio.greenlet_bridge import Steps
from graft.workers.aio.loop_thread import LoopThread
from graft.workers.task_context import Ended, Owner

logger = logging.getLogger(__name__)

GRACE: Final = 2.0  # Seconds in which a cancelled coroutine is to end.


class TaskRun:
    """One run. Celery's request keeps a weak reference to it, as to the result of ``apply_async``, to terminate it."""

    __slots__ = (
        "__weakref__", "_began", "_cancelled_for", "_limit_handle", "_soft", "_state", "asyncio_task", "call",
        "callback", "context", "error_callback", "hard", "is_async", "loop_thread", "on_accept", "on_timeout", "owner",
        "soft", "target",
    )  # fmt: skip

    def __init__(
        self,
        loop_thread: LoopThread,
        target: Callable[..., Any],
        call: tuple[Any, ...],
        *,
        is_async: bool,
        callback: Callable[[Any], None],
        error_callback: Callable[[Any], None],
        on_accept: Callable[[int, float], None],
        on_timeout: Callable[[bool, float], None],
        soft: float | None,
        hard: float | None,
    ) -> None:
        self.loop_thread = loop_thread
        self.target = target
        self.call = call
        self.is_async = is_async
        self.callback = callback
        self.error_callback = error_callback
        self.on_accept = on_accept
        self.on_timeout = on_timeout
        self.soft = soft
        self.hard = hard
        self.owner = Owner(str(call[0]), str(call[1]), self)
        self.context: Context | None = None
        self.asyncio_task: asyncio.Task[Any] | None = None
        self._began = 0.0
        self._soft = False  # A soft limit is to be raised at the next step.
        self._cancelled_for = ""
        self._limit_handle: asyncio.TimerHandle | None = None
        self._state = "queued"

    def __repr__(self) -> str:
        return f"<TaskRun {self.owner}, {self._state}>"

    # ---- for Celery's request, on the main thread --------------------------------------------------------------------

    def terminate(self, signum: Any = None) -> None:
        """End the run; its request has stored a result already."""
        self.loop_thread.call(self.cancel, "terminated")

    # ---- on the loop's thread ----------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing that still happens in this run counts."""
        return self._state in ("ended", "abandoned")

    def start(self) -> None:
        """Begin the run."""
        self._state = "running"
        self._began = time.monotonic()
        self.context = self.loop_thread.context()
        task_context.own(self.context, self.owner)
        if self.is_async:
            self.accepted()
            self.asyncio_task = own_tasks.make(
                self.loop_thread.loop, self._run(), name=str(self.owner), context=self.context
            )
        else:
            self.loop_thread.in_thread(self, self._run_in_thread)
        if self.soft is not None or self.hard is not None:
            seconds = self.hard if self.soft is None else self.soft
            assert seconds is not None
            self._call_later(seconds, self._hard_limit if self.soft is None else self._soft_limit)

    def accepted(self) -> None:
        self.loop_thread.post(self.on_accept, os.getpid(), time.monotonic())

    async def _run(self) -> None:
        assert self.context is not None
        try:
            await Steps(self._trace, self.context, self._translate, self._entered)
        except BaseException as error:
            if not self.is_over:
                self._end(error=error)
            if not isinstance(error, asyncio.CancelledError):
                logger.error("the run of %s ended outside of its task: %r", self.owner, error)

    def _trace(self) -> None:
        """Celery's tracer, in the greenlet."""
        try:
            result = self.target(*self.call)
        except Ended:
            self._end()
        except BaseException as error:
            self._end(error=error)
        else:
            self._end(result)

    def _run_in_thread(self) -> None:
        assert self.context is not None
        self.accepted()
        if self._cancelled_for:
            self.loop_thread.call(self._end)
            return
        try:
            result = self.context.run(self.target, *self.call)
        except BaseException as error:
            self.loop_thread.call(self._end_with, error, ExceptionInfo())
        else:
            self.loop_thread.call(self._end, result)

    def _end_with(self, error: BaseException, einfo: Any) -> None:
        self._end(error=error, einfo=einfo)

    def _end(self, result: Any = None, *, error: BaseException | None = None, einfo: Any = None) -> None:
        if self.is_over:
            return
        self._state = "ended"
        self.owner.run = None
        self.disarm()
        if not self._cancelled_for:
            if error is None:
                self.loop_thread.post(self.callback, result)
            else:
                self.loop_thread.post(self.error_callback, einfo or _info(error))
        elif self._cancelled_for == "hard limit":
            self.loop_thread.post(self.on_timeout, False, self.hard)
        self.loop_thread.ended(self)

    def _entered(self, inside: bool) -> None:
        self.loop_thread.current = self.owner if inside else None
        self.loop_thread.steps += inside

    def _translate(self, error: BaseException) -> BaseException:
        """The error that the task sees for one that the loop throws into it."""
        if not isinstance(error, asyncio.CancelledError):
            return Ended() if isinstance(error, GeneratorExit) else error
        if self._state == "abandoned":
            return Ended()
        if self._soft and not self._cancelled_for:
            self._soft = False
            assert self.asyncio_task is not None
            self.asyncio_task.uncancel()
            limit: BaseException = SoftTimeLimitExceeded(self.soft)
            return limit
        return error

    # ---- limits ------------------------------------------------------------------------------------------------------

    def _soft_limit(self) -> None:
        assert self.soft is not None
        self._limit_handle = None
        if self.hard is not None:
            self._call_later(max(0.0, self.hard - self.soft), self._hard_limit)
        if self.asyncio_task is None:
            return  # A thread cannot be interrupted.
        self.loop_thread.post(self.on_timeout, True, self.soft)
        self._soft = True
        self.asyncio_task.cancel()

    def _call_later(self, seconds: float, func: Callable[[], None]) -> None:
        # As itself: this may be called by another run, which must not cancel this one. A copy, since a plain function
        # stays in the context for as long as it runs.
        assert self.context is not None
        self._limit_handle = self.loop_thread.loop.call_later(seconds, func, context=self.context.copy())

    def _hard_limit(self) -> None:
        self._limit_handle = None
        self.cancel("hard limit")

    def cancel(self, reason: str) -> None:
        """End the run for *reason*; its result no longer counts."""
        if self.is_over or self._cancelled_for:
            return
        self._cancelled_for = reason
        if self._state == "queued":
            self.loop_thread.drop(self)
            self._end()
            return
        self.disarm()
        if self.asyncio_task is not None:
            self.asyncio_task.cancel()
            self._call_later(GRACE, self._abandon)
        else:
            logger.error(
                "%s: %s, but its thread cannot be stopped and stays busy; send plain functions to the cpu lane",
                self.owner, reason,
            )  # fmt: skip
            self._end()

    def withdraw(self) -> None:
        """The run never begins; its message goes back."""
        self._state = "ended"
        self.owner.run = None
        self.disarm()

    def end_from_outside(self) -> bool:
        """On another thread: whether the run is over its hard limit, and so to be ended while it blocks the loop."""
        if self.hard is None or time.monotonic() - self._began < self.hard:
            return False
        self._cancelled_for = self._cancelled_for or "hard limit"
        return True

    def _abandon(self) -> None:
        """Close a coroutine where it stands that refuses to be cancelled."""
        assert self.asyncio_task is not None
        logger.error(
            "%s ignored its cancellation (%s) for %g s: its coroutine is closed",
            self.owner, self._cancelled_for, GRACE,
        )  # fmt: skip
        self._end()
        self._state = "abandoned"
        self.asyncio_task.cancel()

    def disarm(self) -> None:
        """Lift the limits."""
        if self._limit_handle is not None:
            self._limit_handle.cancel()
            self._limit_handle = None

    @property
    def is_cancelled(self) -> bool:
        """Whether the result of this run no longer counts."""
        return bool(self._cancelled_for)


def _info(error: BaseException) -> Any:
    if not isinstance(error, Exception):
        shown = RuntimeError(f"the run ended in {error!r}")
        shown.__cause__ = error
        error = shown.with_traceback(error.__traceback__)
    return ExceptionInfo((type(error), error, error.__traceback__ or sys.exc_info()[2]))
