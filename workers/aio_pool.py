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
from typing import Any, Final

from celery import signals
from celery.concurrency.base import BasePool
from kombu.asynchronous import get_event_loop

from graft.config.deployment import settings
from graft.config.transport.channel import Channel
from graft.tasks import worker_runtime
from graft.workers import async_tasks
from graft.workers.aio import backend_patch
from graft.workers.aio.job import GRACE, Job
from graft.workers.aio.loop_monitor import Watch
from graft.workers.aio.loop_thread import Floor

logger = logging.getLogger(__name__)

FETCH: Final = 50  # Messages taken, and acknowledged, in one round trip.
OUTAGE_PATIENCE: Final = 120.0
# Thousands of tasks that wait are no garbage, and Python would look through all of them again and again: with its own
# figures each of 10,000 tasks cost 0.57 ms of processor time, with these 0.41 ms.
COLLECT: Final = (10_000, 20, 50)
TURN: Final = 0.001  # Seconds for which a thread keeps the interpreter: two of them hand tasks to each other.


class TaskPool(BasePool):
    """One loop, at most ``limit`` tasks at once."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.floor: Floor | None = None
        self.watch: Watch | None = None
        self._is_async: dict[str, bool] = {}

    def on_start(self) -> None:
        sys.setswitchinterval(TURN)
        gc.set_threshold(*COLLECT)
        Channel.most_at_once = FETCH
        async_tasks.prepare(self.app)
        signals.worker_process_init.send(sender=None)  # This is the process that runs tasks.
        self.floor = floor = Floor(self.limit, settings().io_threads, self._wake)
        self.floor.start()
        worker_runtime.use_runner(lambda: floor, off_loop=floor.aside)
        ready = threading.Event()

        def attach() -> None:
            try:
                backend_patch.attach(self.app, floor, OUTAGE_PATIENCE)
            finally:
                ready.set()

        floor.call(attach)
        ready.wait()
        self.watch = Watch(floor, settings().loop_lag)
        self.watch.start()

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
    ) -> Job:
        assert self.floor is not None
        name = args[0]
        is_async = self._is_async.get(name)
        if is_async is None:
            is_async = self._is_async[name] = async_tasks.is_async(self.app.tasks[name])
        job = Job(
            self.floor,
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
        self.floor.call(self.floor.admit, job)
        return job

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Nothing: *pid* is this process. The request terminates its :class:`Job` as well, which is the one meant."""

    # ---- size --------------------------------------------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        self._resize(self.limit + n)

    def shrink(self, n: int = 1) -> None:
        if n >= self.limit:
            raise ValueError(f"cannot take {n} from a pool that runs {self.limit} tasks at once")
        self._resize(self.limit - n)

    def _resize(self, limit: int) -> None:
        self.limit = limit
        if self.floor is not None:
            self.floor.call(self.floor.resize, limit)

    @property
    def num_processes(self) -> int:
        return int(self.limit)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        if self.floor is not None and self.watch is not None:
            info.update(
                {
                    "loop": f"{type(self.floor.loop).__module__}.{type(self.floor.loop).__name__}",
                    "running": self.floor.running,
                    "waiting": self.floor.waiting,
                    "strays": self.floor.strays,
                    "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
                    **self.watch.report(),
                }
            )
        return info

    # ---- the end -----------------------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Finish what runs. A cold shutdown may come meanwhile: it cancels what runs, and calls this once more."""
        floor = self.floor
        if floor is None:
            return
        while floor.jobs:
            self._turn()
        self._leave(floor)

    def on_terminate(self) -> None:
        """Cancel what runs; the messages go back as the consumer closes."""
        floor = self.floor
        if floor is None:
            return
        for job in tuple(floor.jobs):
            floor.call(job.cancel, "the worker ends")
        deadline = time.monotonic() + GRACE + 1
        while floor.jobs and time.monotonic() < deadline:
            self._turn()
        self._leave(floor)

    def _turn(self) -> None:
        """What the main loop would do, while it waits: ends of tasks are noted, timers fire."""
        time.sleep(0.01)
        hub = get_event_loop()
        if hub is None or self.floor is None:
            return
        for ready in hub._pop_ready():
            ready()
        hub.fire_timers()

    def _leave(self, floor: Floor) -> None:
        if self.watch is not None:
            self.watch.stop()
        floor.stop()
        self._turn()
        self.floor = None
