"""Calls of an executor or pool that stay in this process (rule R2) run on its threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from graft.compat.futures import CallFuture
from graft.compat.local import awaited_within
from graft.compat.map_call import MapCall
from graft.tasks.callables.importable import name_of
from graft.tasks.envelope import Outcome
from graft.tasks.errors import CancelledBatchError
from graft.tasks.policy import FailedRun, RetryPolicy


class LocalThreads:
    """The threads of one executor or pool; started when they are first needed.

    Args:
        limit: threads at once. Default: the standard library's number.
        policy: when a call that raises is made again.
        timeout: seconds that an awaitable may take. A plain function cannot be stopped.
    """

    def __init__(self, limit: int | None, policy: RetryPolicy, timeout: float | None) -> None:
        self._limit = limit
        self._policy = policy
        self._timeout = timeout
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._retired: ThreadPoolExecutor | None = None

    def call(
        self, future: CallFuture, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Call *func* for *future*, unless it is cancelled before."""

        def run() -> None:
            if future.begin():
                future.end(self._outcome(0, func, args, kwargs))

        self._submit(run)

    def map(self, func: Callable[..., Any], batch: MapCall, items: Sequence[Any], *, unpack: bool) -> None:
        """Call for every item, or for every ``(args, kwargs)`` pair if *unpack*; the outcomes go to *batch*."""
        is_cancelled = threading.Event()
        batch.on_cancel = is_cancelled.set

        def run(position: int, item: Any) -> None:
            if is_cancelled.is_set():
                error = CancelledBatchError(f"item {position} was cancelled before it ran")
                batch.note_outcomes([Outcome(position, error=error)])
            else:
                args, kwargs = item if unpack else ((item,), {})
                batch.note_outcomes([self._outcome(position, func, args, kwargs)])

        for position, item in enumerate(items):
            self._submit(run, position, item)
        batch.note_sent(len(items), envelopes=0)

    def retire(self) -> None:
        """Let the threads end once they are idle; a later call starts others."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False)
                self._retired, self._threads = self._threads, None

    def wait(self) -> None:
        """Wait until the retired threads have ended."""
        if self._retired is not None:
            self._retired.shutdown()

    def _submit(self, func: Callable[..., Any], *args: Any) -> None:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._limit, "graft-local")
            self._threads.submit(func, *args)

    def _outcome(
        self, position: int, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Outcome:
        try:
            return Outcome(position, self._run(func, args, kwargs))
        except BaseException as error:
            return Outcome(position, error=error)

    def _run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call *func* in this thread as a worker would: awaitables are awaited, the policy says when to call again."""
        run, began = 0, time.monotonic()
        while True:
            run += 1
            try:
                value = func(*args, **kwargs)
                return asyncio.run(awaited_within(self._timeout, value)) if inspect.isawaitable(value) else value
            except Exception as error:
                wait = self._policy.next_wait(run, error, time.monotonic() - began)
                if wait is None:
                    raise
                self._policy.note(FailedRun(name_of(func), run, self._policy.runs, error, wait))
            time.sleep(wait)
