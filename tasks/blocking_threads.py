"""Blocking calls to Redis for coroutines: a few threads, and so a few connections, for all loops of a process.

    any loop, any handler ── ask(func) ──► one queue ──► 4 threads ──► shared(): at most 4 connections
                                           ▲
    anybody, a finalizer too ── soon(func) ┘

A connection set for each loop would be as fast, and would have to be closed with its loop, which nothing tells of.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, ParamSpec, TypeVar

from graft.config.deployment import existing, part

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger(__name__)

THREADS: Final = 4
LAST_CALLS: Final = 5.0  # Seconds that calls have which are waiting when the process ends.

Call = Callable[[], None]


class HelperThreads:
    """At most *most* threads, started when they are needed, that make calls in the order in which they came."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        # The only queue that may be used in a finalizer, which can interrupt its own user.
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._is_closed = False

    def add(self, call: Call) -> None:
        """Have *call* made.

        Raises:
            RuntimeError: the interpreter ends, and the threads have ended.
        """
        if self._is_closed:
            raise RuntimeError("the interpreter is ending: nothing more is asked of Redis")
        self._calls.put(call)
        if len(self._threads) < self._most and self._starting.acquire(blocking=False):
            try:
                thread = threading.Thread(target=self._run, name="graft-helper", daemon=True)
                thread.start()
                self._threads.append(thread)
            finally:
                self._starting.release()

    def close(self) -> None:
        """Make the calls that wait, for a few seconds at most, and end."""
        self._is_closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(LAST_CALLS)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException:
                logger.exception("a call on a helper thread failed")
            del call  # Nothing shall live on because this thread waits.


async def ask(func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``func(*args, **kwargs)``, which blocks for a round trip, without holding up the loop."""
    answer: Future[T] = Future()
    context = contextvars.copy_context()

    def call() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(context.run(func, *args, **kwargs))
            except BaseException as error:
                answer.set_exception(error)

    part(HelperThreads).add(call)
    return await asyncio.wrap_future(answer)


def soon(func: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Have a helper thread call *func*, unless the interpreter ends; nobody waits for it. Finalizers may call this."""

    def call() -> None:
        func(*args, **kwargs)

    with suppress(RuntimeError):
        part(HelperThreads).add(call)


def _close() -> None:
    if (helpers := existing(HelperThreads)) is not None:
        helpers.close()


with suppress(RuntimeError):  # The interpreter is ending already.
    # atexit's own time is too late: what is told last may need to start a thread.
    getattr(threading, "_register_atexit", atexit.register)(_close)
