"""Mends how Celery's prefork pool writes tasks to its processes and reads their replies.

read_replies              what processes have said, where the event loop does not run
settle, finish_writing    when the event loop stops: no task is forgotten that was written to a process.
                          Celery 5.7 forgets it. The process runs it all the same, its message goes back and runs
                          again, and a stop waits 30 s for a process that waits for its result to be read.
hand_over                 an idle process gets its task at once, not a turn of the loop later
skip_leaving_processes    no task is written to a process that has done its last and ends
replace_at_once           the process that takes its place is there in milliseconds
"""

from __future__ import annotations

import time
from inspect import isgenerator
from typing import Any, Final

import billiard.pool
import celery.concurrency.asynpool

asynpool: Any = celery.concurrency.asynpool

PATIENCE: Final = 5.0  # Seconds for idle processes to say that they have begun.
READ_CHECK: Final = 0.002  # Seconds between two checks of a leaving process whether its last result was read.
REAP_CHECK: Final = 0.002  # Seconds between two checks whether a process can be reaped that has closed its pipe.
REAP_TRIES: Final = 100


def settle(pool: Any, hub: Any) -> None:
    """Read the pipes until Celery knows of every task written to a process that it runs, or has ended."""
    finish_writing(pool)
    inner = getattr(pool, "_pool", None)
    if not isinstance(inner, asynpool.AsynPool):
        return
    deadline = time.monotonic() + PATIENCE
    while (pipes := _unacknowledged(inner) & hub.readers.keys()) and time.monotonic() < deadline:
        _read(pipes, hub, 0.1)


def read_replies(pool: Any, hub: Any, timeout: float) -> bool:
    """Read what the processes of *pool* have said, or say within *timeout* seconds; False where it has none."""
    inner = getattr(pool, "_pool", None)
    if not isinstance(inner, asynpool.AsynPool):
        return False
    pipes = inner._fileno_to_outq.keys() & hub.readers.keys()
    if pipes:
        _read(pipes, hub, timeout)
    return bool(pipes)


def _read(pipes: set[int], hub: Any, timeout: float) -> None:
    readable, _, _ = asynpool._select(pipes, timeout=timeout)
    for pipe in readable & hub.readers.keys():
        read, arguments = hub.readers[pipe]
        if not isgenerator(read):
            read(*arguments)
            continue
        try:
            next(read, None)  # The rest of a message.
        except (OSError, EOFError):
            hub.remove_reader(pipe)


def finish_writing(pool: Any) -> None:
    """Send the rest of the tasks that were half way down a pipe when the event loop forgot about it."""
    inner = getattr(pool, "_pool", None)
    if not isinstance(inner, asynpool.AsynPool):
        return
    for job in tuple(inner._cache.values()):
        writer = asynpool._get_job_writer(job)
        if writer is not None and writer in inner._active_writers:
            inner._flush_writer(job._write_to, writer)


def hand_over(pool: Any, hub: Any) -> None:
    """Write the tasks that wait here to idle processes.

    Celery does so too, a turn of its loop later: after the next message has been asked for, and every pipe polled.
    """
    inner = getattr(pool, "_pool", None)
    if isinstance(inner, asynpool.AsynPool) and inner.outbound_buffer:
        idle = inner._all_inqueues - inner._busy_workers - inner._active_writes
        if idle:
            hub.consolidate_callback(list(idle))


def skip_leaving_processes(pool: Any) -> None:
    """Have no task written to a process that has done its last and ends: the task would wait until Celery notices.

    Celery takes such a process for idle. One call in a thousand took 0.1 to 0.6 s for it (``max_tasks_per_child``).
    """
    inner = getattr(pool, "_pool", None)
    if not isinstance(inner, asynpool.AsynPool) or not inner._maxtasksperchild:
        return

    def free(pipe: int) -> None:
        process = inner._fileno_to_inq.get(pipe)
        counter = inner._on_ready_counters.get(process.pid) if process else None
        # This result is not counted yet. Its process counts alike, so a process skipped here does end.
        if counter is None or counter.value + 1 < inner._maxtasksperchild:
            inner._busy_workers.discard(pipe)

    inner._mark_worker_as_available = free


def replace_at_once() -> None:
    """Have a pool process that has done its last task replaced as soon as it ends.

    Celery's waits a tenth of a second for its result to be read. Its end is told by a pipe, a moment before the kernel
    lets it be reaped: it was taken for alive then, and found half a second later. Two processes with one task each made
    11 calls a second.
    """
    tries, pause = billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT, READ_CHECK
    before = billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    if before > pause:
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = int(tries * before / pause)
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL = pause
    asynpool.AsynPool._event_process_exit = _replace_ended


def _replace_ended(self: Any, hub: Any, process: Any) -> None:
    self._untrack_child_process(process, hub)
    _replace_once_ended(self, hub, process, REAP_TRIES)


def _replace_once_ended(self: Any, hub: Any, process: Any, tries: int) -> None:
    if tries and process._is_alive():
        hub.call_later(REAP_CHECK, _replace_once_ended, self, hub, process, tries - 1)
    else:
        self.maintain_pool()


def _unacknowledged(inner: Any) -> set[int]:
    """The pipes of living processes that were sent a task and have not acknowledged it."""
    sent = [job._write_to for job in tuple(inner._cache.values()) if job._write_to and not job._accepted]
    return {process.outqR_fd for process in sent if process._is_alive()}
