"""The thread on which the loop runs, and the way between it and the worker's main thread.

main thread (Celery's consumer: messages, acks, events, remote control)
   │  call(func): one wake-up however many calls have gathered                 ▲ post(func): likewise
   ▼                                                                           │
loop's thread (jobs in greenlets, limits, results)  ── in_thread, aside ──►  other threads

Those are for plain functions (``io_threads``), and for calls that wait for Redis.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from typing import Any, Final

from graft.workers import task_context
from graft.workers.aio import greenlet_bridge
from graft.workers.aio.job import Job
from graft.workers.async_runner import AsyncRunner, new_loop, run_for_ever
from graft.workers.task_context import Owner

logger = logging.getLogger(__name__)

_threads_queues: Any = concurrent.futures.thread._threads_queues

ASIDE_THREADS: Final = 8  # For calls that wait for Redis: publishing, chords, counting runs.
LEAVE: Final = 2.0  # Seconds that what tasks have left behind has to end with the worker.


class Part(asyncio.Task[Any]):
    """A task of asyncio that knows by which run's code it was made."""

    mark: Owner | None = None


class Floor:
    """Where jobs run. *limit* of them at once; the others wait in the order in which they came."""

    def __init__(self, limit: int, threads: int, wake_main: Callable[[Callable[[], None]], None]) -> None:
        self.limit = limit
        self.loop = new_loop()
        self.current: Owner | None = None
        self.strays = 0
        self.steps = 0  # Of all jobs together, so that a busy loop can be told from a blocked one.
        self.jobs: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._posts: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._wake_main = wake_main
        self._is_over = False
        self._runs = 0
        self._base = contextvars.copy_context()
        self._threads = ThreadPoolExecutor(threads, "graft-plain")
        self._aside = ThreadPoolExecutor(ASIDE_THREADS, "graft-aside")
        self.loop.set_task_factory(self._make_task)
        self._runner = AsyncRunner(self.loop)
        self.thread = threading.Thread(
            target=run_for_ever, args=(self.loop, lambda: self._is_over), name="graft-loop", daemon=True
        )

    @property
    def running(self) -> int:
        """Jobs that have begun."""
        return self._runs

    @property
    def waiting(self) -> int:
        """Jobs without a place."""
        return len(self._waiting)

    # ---- from any thread ---------------------------------------------------------------------------------------------

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Have *func* called on the loop's thread."""
        is_first = not self._calls
        self._calls.append((func, args))
        if is_first:
            self.loop.call_soon_threadsafe(self._take_calls)

    def post(self, func: Callable[..., Any], *args: Any) -> None:
        """Have *func* called on the worker's main thread."""
        is_first = not self._posts
        self._posts.append((func, args))
        if is_first:
            self._wake_main(self.take_posts)

    def take_posts(self) -> None:
        """On the main thread: make the calls that were posted to it."""
        posts = self._posts
        while posts:
            func, args = posts[0]
            try:
                func(*args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException:
                logger.exception("the end of a task could not be noted")
            finally:
                posts.popleft()

    def context(self) -> Context:
        """A context for one run: what the process had when it started, and nothing of other runs."""
        return self._base.copy()

    def in_thread(self, func: Callable[[], None]) -> None:
        """Have *func* called on a thread for plain functions."""
        self._threads.submit(func)

    # ---- for tasks.invoke --------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result, for code of a job on the loop, or on any thread but the loop's."""
        if greenlet_bridge.can_wait():
            try:
                return greenlet_bridge.wait(coroutine)
            finally:
                _refuse_answered()
        if threading.current_thread() is self.thread:
            coroutine.close()
            raise RuntimeError("this would wait for a coroutine on the event loop that is to run it: await it instead")
        return self._runner.run(coroutine)

    def aside(self, func: Callable[..., Any], *args: Any, computes: bool = False) -> Any:
        """``func(*args)``, which blocks; a job on the loop leaves the loop to the others meanwhile."""
        if not greenlet_bridge.can_wait():
            return func(*args)
        context = contextvars.copy_context()
        threads = self._threads if computes else self._aside
        return greenlet_bridge.wait(self.loop.run_in_executor(threads, partial(context.run, func, *args)))

    # ---- on the loop's thread ----------------------------------------------------------------------------------------

    def _take_calls(self) -> None:
        calls = self._calls
        while calls:
            func, args = calls[0]
            try:
                func(*args)
            except Exception:
                logger.exception("a call to the event loop failed")
            finally:
                calls.popleft()

    def admit(self, job: Job) -> None:
        """Run *job* as soon as there is a place."""
        self.jobs.add(job)
        self._waiting.append(job)
        self._fill()

    def resize(self, limit: int) -> None:
        """Run *limit* jobs at once from now on; what runs goes on."""
        self.limit = limit
        self._fill()

    def withdraw(self, job: Job) -> None:
        """*job*, which has not begun, will not."""
        self._waiting.remove(job)
        self._runs += 1  # ended() takes it off again.

    def ended(self, job: Job) -> None:
        """*job* gives up its place."""
        self._runs -= 1
        self.jobs.discard(job)
        strays = job.owner.strays
        if strays is not None and (left := [task for task in strays if not task.done()]):
            self.strays += len(left)
            logger.warning(
                "%s has ended and left %d asyncio tasks running, such as %s; await what a task starts, or use "
                "asyncio.TaskGroup",
                job.owner, len(left), left[0].get_name(),
            )  # fmt: skip
        if self._waiting:
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self._runs < self.limit:
            self._runs += 1
            self._waiting.popleft().start()

    def _make_task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Asyncio's own task, noted with the run whose code makes it."""
        task = Part(coroutine, loop=loop, **options)
        mark = task_context.owner()
        if isinstance(mark, Owner):
            if mark.strays is None:
                mark.strays = weakref.WeakSet()
            mark.strays.add(task)
            task.mark = mark
        return task

    # ---- start and stop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.thread.start()

    def stop(self, patience: float = LEAVE) -> None:
        """End the loop, its thread, and whatever still runs there."""
        if self._is_over:
            return

        async def leave() -> None:
            current = asyncio.current_task()
            left = [task for task in asyncio.all_tasks() if task is not current]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=patience)
            self._is_over = True
            self.loop.stop()

        def begin() -> None:
            self._leaving = asyncio.Task(leave(), loop=self.loop)

        self.loop.call_soon_threadsafe(begin)
        self.thread.join(patience + 1)
        self._is_over = True
        for pool in (self._threads, self._aside):
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in pool._threads:  # Or the end of the process would wait for functions that never return.
                _threads_queues.pop(thread, None)


def _refuse_answered() -> None:
    """Unwind a run that somebody else has answered for, whatever its coroutine made of the cancellation."""
    job = getattr(task_context.owner(), "job", None)
    if job is not None and job.is_cancelled:
        raise task_context.Ended
