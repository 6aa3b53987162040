"""The thread on which the loop runs, and the way between it and the worker's main thread.

main thread (Celery's consumer: messages, acks, events, remote control)
   │  call(func): one wake-up however many calls have gathered                 ▲ post(func): likewise
   ▼                                                                           │
loop thread (runs in greenlets, limits, results)  ── in_thread, off_loop ──►  other threads

Other threads are for plain functions (``io_threads``), and for calls that wait for Redis.
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
from typing import Any, Final, Protocol

from graft.tasks import worker_runtime
from graft.workers import own_tasks, task_context
from graft.workers.aio import greenlet_bridge
from graft.workers.async_runner import AsyncRunner, new_loop, run_for_ever
from graft.workers.task_context import Owner

logger = logging.getLogger(__name__)

_threads_queues: Any = concurrent.futures.thread._threads_queues

BLOCKING_THREADS: Final = 8  # For calls that wait for Redis: publishing, chords, counting runs.
STOP_PATIENCE: Final = 2.0  # Seconds that what tasks have left behind has to end with the worker.


class Run(Protocol):
    """What the loop thread needs of a run (task_run.py)."""

    owner: Owner

    def start(self) -> None: ...

    def withdraw(self) -> None: ...

    def cancel(self, reason: str) -> None: ...


class LoopThread:
    """Runs tasks: *limit* of them at once; the others wait in the order in which they came."""

    def __init__(self, limit: int, threads: int, wake_main: Callable[[Callable[[], None]], None]) -> None:
        self.limit = limit
        self.loop = new_loop()
        self.current: Owner | None = None
        self.strays = 0
        self.steps = 0  # Of all runs together, so that a busy loop can be told from a blocked one.
        self.runs: set[Run] = set()
        self._waiting: deque[Run] = deque()
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._posts: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._wake_main = wake_main
        self._is_over = self._is_stopping = False
        self._running = 0
        self._on_threads: set[Run] = set()  # Plain functions that wait for a thread.
        self._beginning = threading.Lock()
        self._base = contextvars.copy_context()
        self._threads = ThreadPoolExecutor(threads, "graft-plain")
        self._blocking = ThreadPoolExecutor(BLOCKING_THREADS, "graft-blocking")
        self.loop.set_task_factory(self._make_task)
        self._runner = AsyncRunner(self.loop)
        self.thread = threading.Thread(
            target=run_for_ever, args=(self.loop, lambda: self._is_over), name="graft-loop", daemon=True
        )

    @property
    def running(self) -> int:
        """Runs that have begun and not ended."""
        return self._running

    @property
    def waiting(self) -> int:
        """Runs that have not begun."""
        return len(self._waiting)

    # ---- from any thread ---------------------------------------------------------------------------------------------

    def call(self, func: Callable[..., Any], *args: Any) -> None:
        """Have *func* called on the loop's thread."""
        is_first = not self._calls
        self._calls.append((func, args))
        if is_first:
            self.loop.call_soon_threadsafe(self._take_calls, context=self._base)  # The worker's own, whoever calls.

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
                logger.exception("the end of a task could not be processed; its message is delivered again")
            finally:
                posts.popleft()

    def context(self) -> Context:
        """A context for one run: what the process had when it started, and nothing of other runs."""
        return self._base.copy()

    def in_thread(self, run: Run, func: Callable[[], None]) -> None:
        """Have *func* called for *run* on a thread for plain functions."""
        self._on_threads.add(run)
        self._threads.submit(self._begin, run, func)

    def _begin(self, run: Run, func: Callable[[], None]) -> None:
        with self._beginning:
            if run not in self._on_threads:
                return  # It was withdrawn.
            self._on_threads.remove(run)
        func()

    # ---- for tasks.running -------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result, for the code of a run on the loop, or on any thread but the loop's."""
        if greenlet_bridge.can_wait():
            try:
                return greenlet_bridge.wait(coroutine)
            finally:
                _unwind_if_cancelled()
        if threading.current_thread() is self.thread:
            coroutine.close()
            raise RuntimeError("a coroutine cannot be waited for on the event loop that is to run it: await it instead")
        return self._runner.run(coroutine)

    def off_loop(self, func: Callable[..., Any], *args: Any, computes: bool = False) -> Any:
        """``func(*args)``, which blocks; a run on the loop leaves the loop to the others meanwhile."""
        if not greenlet_bridge.can_wait():
            return func(*args)
        context = contextvars.copy_context()
        call = partial(context.run, func, *args)
        if not computes:
            return greenlet_bridge.wait(self.loop.run_in_executor(self._blocking, call))
        return greenlet_bridge.wait(self.loop.run_in_executor(self._threads, self._unless_stopping, call))

    def _unless_stopping(self, call: Callable[[], Any]) -> Any:
        if self._is_stopping:
            raise worker_runtime.WorkerEndsError("the worker stops before this has begun")
        return call()

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

    def admit(self, run: Run) -> None:
        """Start *run* as soon as fewer than *limit* run."""
        if self._is_stopping:
            return
        self.runs.add(run)
        self._waiting.append(run)
        self._fill()

    def resize(self, limit: int) -> None:
        """Run *limit* runs at once from now on; what runs goes on."""
        self.limit = limit
        self._fill()

    def stop_beginning(self) -> set[str]:
        """Begin nothing more: what waits for its turn or for a thread is withdrawn; the ids of the runs that go on."""
        with self._beginning:
            self._is_stopping = True
            withdrawn = [*self._waiting, *self._on_threads]
            self._running -= len(self._on_threads)
            self._on_threads.clear()
        self._waiting.clear()
        for run in withdrawn:
            self.runs.discard(run)
            run.withdraw()
        return {run.owner.id for run in self.runs}

    def drop(self, run: Run) -> None:
        """Have *run*, which has not begun, never begin."""
        self._waiting.remove(run)
        self._running += 1  # ended() takes it off again.

    def ended(self, run: Run) -> None:
        """Count *run* no more, and start the next one."""
        self._running -= 1
        self.runs.discard(run)
        strays = run.owner.strays
        if strays is not None and (left := [task for task in strays if not task.done()]):
            self.strays += len(left)
            logger.warning(
                "%s has ended and left %d asyncio tasks running, such as %s; await each task that you start, or use "
                "asyncio.TaskGroup",
                run.owner, len(left), left[0].get_name(),
            )  # fmt: skip
        if self._waiting:
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self._running < self.limit:
            self._running += 1
            self._waiting.popleft().start()

    def _make_task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Asyncio's own task, noted with the run whose code makes it."""
        task = own_tasks.make(loop, coroutine, **options)
        mark = task.mark
        if mark is not None:
            if mark.strays is None:
                mark.strays = weakref.WeakSet()
            mark.strays.add(task)
        return task

    # ---- start and stop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        own_tasks.hide_strangers()
        self.thread.start()

    def stop(self, patience: float = STOP_PATIENCE) -> None:
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
        for pool in (self._threads, self._blocking):
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in pool._threads:  # Or the end of the process would wait for functions that never return.
                _threads_queues.pop(thread, None)


def _unwind_if_cancelled() -> None:
    """Unwind a cancelled run, even if its coroutine has caught the cancellation."""
    run = getattr(task_context.owner(), "run", None)
    if run is not None and run.is_cancelled:
        raise task_context.Ended
