"""The io lane: a pool that is one event loop, for ``async def`` tasks by the thousand in one process.

    CELERY_CUSTOM_WORKER_POOL=graft.workers.aio_pool:TaskPool celery -A graft worker -P custom -c 1000

Celery's consumer keeps the main thread, so that remote control, leases and heartbeats go on whatever a task does to the
loop. Plain functions run on a bounded number of threads.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from celery import signals
from celery.concurrency.base import BasePool
from kombu.asynchronous import get_event_loop

from graft.config.deployment import settings
from graft.config.transport.channel import Channel
from graft.tasks import worker_runtime
from graft.workers import async_tasks
from graft.workers.aio import backend_patch
from graft.workers.aio.loop_monitor import LoopMonitor
from graft.workers.aio.loop_thread import LoopThread
from graft.workers.aio.task_run import GRACE, TaskRun

logger = logging.getLogger(__name__)

FETCH: Final = 50  # Messages taken, and acknowledged, in one round trip.
OUTAGE_PATIENCE: Final = 120.0
LOOP_PATIENCE: Final = 1.0  # Seconds for the loop to say what runs there, when the worker stops.
# Thousands of tasks that wait are no garbage, and Python would search all of them again and again: with its own
# thresholds each of 10,000 tasks cost 0.57 ms of processor time, with these 0.41 ms.
GC_THRESHOLD: Final = (10_000, 20, 50)
SWITCH_INTERVAL: Final = 0.001  # Seconds that a thread keeps the interpreter: two threads hand tasks to each other.


class TaskPool(BasePool):
    """One loop, at most ``limit`` tasks at once."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop_thread: LoopThread | None = None
        self.monitor: LoopMonitor | None = None
        self._is_async: dict[str, bool] = {}

    def on_start(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.set_threshold(*GC_THRESHOLD)
        Channel.fetch_limit, Channel.collects_acks = FETCH, True
        async_tasks.prepare(self.app)
        signals.worker_process_init.send(sender=None)  # This is the process that runs tasks.
        self.loop_thread = loop_thread = LoopThread(self.limit, settings().io_threads, self._wake)
        self.loop_thread.start()
        worker_runtime.use_runner(lambda: loop_thread, off_loop=loop_thread.off_loop)
        ready = threading.Event()

        def attach() -> None:
            try:
                backend_patch.attach(self.app, loop_thread, OUTAGE_PATIENCE)
            finally:
                ready.set()

        loop_thread.call(attach)
        ready.wait()
        self.monitor = LoopMonitor(loop_thread, settings().loop_lag)
        self.monitor.start()

    def _wake(self, func: Callable[[], None]) -> None:
        hub = get_event_loop()
        if hub is None:
            func()
        else:
            hub.call_soon(func)

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        error_callback: Any = None,
        timeout_callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> TaskRun:
        assert self.loop_thread is not None
        name = args[0]
        is_async = self._is_async.get(name)
        if is_async is None:
            is_async = self._is_async[name] = async_tasks.is_async(self.app.tasks[name])
        run = TaskRun(
            self.loop_thread,
            target,
            args,
            is_async=is_async,
            callback=callback,
            error_callback=error_callback,
            on_accept=accept_callback,
            on_timeout=timeout_callback,
            soft=soft_timeout if soft_timeout is not None else self.options.get("soft_timeout"),
            hard=timeout if timeout is not None else self.options.get("timeout"),
        )
        self.loop_thread.call(self.loop_thread.admit, run)
        return run

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Do nothing: *pid* is this process. The request also terminates its :class:`TaskRun`, which is meant."""

    # ---- size --------------------------------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        self._resize(self.limit + n)

    def shrink(self, n: int = 1) -> None:
        if n >= self.limit:
            raise ValueError(f"cannot take {n} from a pool that runs {self.limit} tasks at once")
        self._resize(self.limit - n)

    def _resize(self, limit: int) -> None:
        self.limit = limit
        if self.loop_thread is not None:
            self.loop_thread.call(self.loop_thread.resize, limit)

    @property
    def num_processes(self) -> int:
        return int(self.limit)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if self.loop_thread is not None and self.monitor is not None:
            info.update(
                {
                    "loop": f"{type(self.loop_thread.loop).__module__}.{type(self.loop_thread.loop).__name__}",
                    "running": self.loop_thread.running,
                    "waiting": self.loop_thread.waiting,
                    "strays": self.loop_thread.strays,
                    "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
                    **self.monitor.report(),
                }
            )
        return info

    # ---- stop --------------------------------------------------------------------------------------------------------

    def stop_beginning(self) -> set[str]:
        """Begin nothing more from now on; the ids of what runs."""
        loop_thread = self.loop_thread
        if loop_thread is None:
            return set()
        answer: Future[set[str]] = Future()
        loop_thread.call(lambda: answer.set_result(loop_thread.stop_beginning()))
        try:
            return answer.result(LOOP_PATIENCE)
        except TimeoutError:  # A task keeps the loop for itself. What has not begun goes back in the end.
            return {run.owner.id for run in tuple(loop_thread.runs)}

    def on_stop(self) -> None:
        """Finish what runs. A cold shutdown may come meanwhile: it cancels what runs, and calls this once more."""
        loop_thread = self.loop_thread
        if loop_thread is None:
            return
        while loop_thread.runs:
            self._run_main_loop()
        self._stop_loop(loop_thread)

    def on_terminate(self) -> None:
        """Cancel what runs; the messages go back as the consumer closes."""
        loop_thread = self.loop_thread
        if loop_thread is None:
            return
        for run in tuple(loop_thread.runs):
            loop_thread.call(run.cancel, "the worker ends")
        deadline = time.monotonic() + GRACE + 1
        while loop_thread.runs and time.monotonic() < deadline:
            self._run_main_loop()
        self._stop_loop(loop_thread)

    def _run_main_loop(self) -> None:
        """Do the work of the main loop while it waits: ends of tasks are processed, timers fire."""
        time.sleep(0.01)
        hub = get_event_loop()
        if hub is None or self.loop_thread is None:
            return
        for ready in hub._pop_ready():
            ready()
        hub.fire_timers()

    def _stop_loop(self, loop_thread: LoopThread) -> None:
        if self.monitor is not None:
            self.monitor.stop()
        loop_thread.stop()
        self._run_main_loop()
        self.loop_thread = None
