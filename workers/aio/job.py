"""One run of one task in the io lane: on the loop, in a greenlet; or, for a plain function, on a thread.

queued ── start ──► running ──► ended           its result goes to the worker's main thread
                      │  ├ soft limit: raised in the coroutine where it waits, which may answer it
                      │  └ hard limit, revoked, given back: cancelled; its result no longer counts
                      └ does not end within GRACE: closed where it stands, never stepped again

A thread cannot be stopped: a plain function over its hard limit is answered for, and keeps its thread until it returns.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded

from graft.workers import task_context
from graft.workers.aio.greenlet_bridge import Steps
from graft.workers.task_context import Ended, Owner

if TYPE_CHECKING:
    from graft.workers.aio.loop_thread import Floor

logger = logging.getLogger(__name__)

GRACE: Final = 2.0  # Seconds in which a cancelled coroutine is to end.


class Job:
    """What Celery calls the result of ``apply_async``: its request keeps a weak reference, to terminate it."""

    __slots__ = (
        "__weakref__", "_began", "_cancelled_for", "_limit_handle", "_soft", "_state", "asyncio_task", "call",
        "callback", "context", "error_callback", "floor", "hard", "is_async", "on_accept", "on_timeout", "owner",
        "soft", "target",
    )  # fmt: skip

    def __init__(
        self,
        floor: Floor,
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
        self.floor = floor
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
        return f"<Job {self.owner}, {self._state}>"

    # ---- for Celery's request, on the main thread --------------------------------------------------------------------

    def terminate(self, signum: Any = None) -> None:
        """End the run; its request has answered for it already."""
        self.floor.call(self.cancel, "terminated")

    # ---- on the loop's thread ----------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing that still happens in this run counts."""
        return self._state in ("ended", "abandoned")

    def start(self) -> None:
        """Begin the run; the floor has a place for it."""
        self._state = "running"
        self._began = time.monotonic()
        self.context = self.floor.context()
        task_context.own(self.context, self.owner)
        if self.is_async:
            self.accepted()
            self.asyncio_task = asyncio.Task(
                self._run(), loop=self.floor.loop, name=str(self.owner), context=self.context
            )
        else:
            self.floor.in_thread(self._run_in_thread)
        if self.soft is not None or self.hard is not None:
            seconds = self.hard if self.soft is None else self.soft
            assert seconds is not None
            self._limit_handle = self.floor.loop.call_later(
                seconds, self._hard_limit if self.soft is None else self._soft_limit
            )

    def accepted(self) -> None:
        self.floor.post(self.on_accept, os.getpid(), time.monotonic())

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
            self.floor.call(self._end)
            return
        try:
            result = self.context.run(self.target, *self.call)
        except BaseException as error:
            self.floor.call(self._end_with, error, ExceptionInfo())
        else:
            self.floor.call(self._end, result)

    def _end_with(self, error: BaseException, einfo: Any) -> None:
        self._end(error=error, einfo=einfo)

    def _end(self, result: Any = None, *, error: BaseException | None = None, einfo: Any = None) -> None:
        if self.is_over:
            return
        self._state = "ended"
        self.owner.job = None
        self.disarm()
        if not self._cancelled_for:
            if error is None:
                self.floor.post(self.callback, result)
            else:
                self.floor.post(self.error_callback, einfo or _info(error))
        elif self._cancelled_for == "hard limit":
            self.floor.post(self.on_timeout, False, self.hard)
        self.floor.ended(self)

    def _entered(self, inside: bool) -> None:
        self.floor.current = self.owner if inside else None
        self.floor.steps += inside

    def _translate(self, error: BaseException) -> BaseException:
        """What the task gets to see of what the loop throws into it."""
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
            self._limit_handle = self.floor.loop.call_later(max(0.0, self.hard - self.soft), self._hard_limit)
        if self.asyncio_task is None:
            return  # A thread cannot be asked anything.
        self.floor.post(self.on_timeout, True, self.soft)
        self._soft = True
        self.asyncio_task.cancel()

    def _hard_limit(self) -> None:
        self._limit_handle = None
        self.cancel("hard limit")

    def cancel(self, reason: str) -> None:
        """End the run for *reason*; what it comes to no longer counts."""
        if self.is_over or self._cancelled_for:
            return
        self._cancelled_for = reason
        if self._state == "queued":
            self.floor.withdraw(self)
            self._end()
            return
        self.disarm()
        if self.asyncio_task is not None:
            self.asyncio_task.cancel()
            self._limit_handle = self.floor.loop.call_later(GRACE, self._abandon)
        else:
            logger.error(
                "%s: %s, but a thread cannot be stopped; send plain functions to the cpu lane", self.owner, reason
            )
            self._end()

    def end_from_outside(self) -> bool:
        """On another thread: whether the run is over its hard limit, and so to be ended while it blocks the loop."""
        if self.hard is None or time.monotonic() - self._began < self.hard:
            return False
        self._cancelled_for = self._cancelled_for or "hard limit"
        return True

    def _abandon(self) -> None:
        """It refuses to be cancelled: close it where it stands."""
        assert self.asyncio_task is not None
        logger.error(
            "%s ignored its cancellation (%s) for %g s; it is closed and not run any further",
            self.owner, self._cancelled_for, GRACE,
        )  # fmt: skip
        self._end()
        self._state = "abandoned"
        self.asyncio_task.cancel()

    def disarm(self) -> None:
        """The limits do not count any more."""
        if self._limit_handle is not None:
            self._limit_handle.cancel()
            self._limit_handle = None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody else has answered for this run."""
        return bool(self._cancelled_for)


def _info(error: BaseException) -> Any:
    if not isinstance(error, Exception):
        told = RuntimeError(f"the run ended in {error!r}")
        told.__cause__ = error
        error = told.with_traceback(error.__traceback__)
    return ExceptionInfo((type(error), error, error.__traceback__ or sys.exc_info()[2]))
