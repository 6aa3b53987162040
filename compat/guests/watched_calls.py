"""The calls of one pool for the call report: of which function, how many items, how long; at home and on workers.

    executor   its table of calls tells of each call, and the call's future of its end
    pool       its queue of tasks tells of each call; its end comes with the result

A pool's seconds are those in which it had a call under way. Each is counted once, for the call that ends next.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from typing import Any, Final

from graft.compat.call_report import CallReportEntry, calls
from graft.compat.placement import Where
from graft.compat.pool_figures import HomeEstimate, PoolShape
from graft.tasks.callables.importable import name_of

WRAPPED: Final = ("mapstar", "starmapstar")


class WatchedCalls:
    """Counts the calls of the pool *shown*, which run *where* for *reason*.

    Args:
        start: seconds that the decision took; they count for the first call.
    """

    def __init__(self, shown: str, shape: PoolShape, where: Where, reason: str, start: float = 0.0) -> None:
        self._row = shown, shape, where, reason
        self._start = start
        self._home = HomeEstimate(shape.processes)
        self._lock = threading.Lock()
        self._known: dict[Hashable, tuple[str, int]] = {}
        self._work: dict[Hashable, tuple[float, float]] = {}
        self._marked = 0.0
        if where == "local":  # A pool without a call is in the report, too.
            calls().record(CallReportEntry(shown, "-", where, reason, 0, calls=0, pool=shape))

    def watch(self, pool: Any, kind: str) -> None:
        """Hear of the calls of *pool*, an ``executor`` or a ``pool`` that has not begun, or joblib's own executor."""
        if kind == "executor":
            pending = pool._pending_work_items
            if not isinstance(pending, _Pending):  # joblib's own goes on with the next watcher.
                pool._pending_work_items = pool._call_queue.pending_work_items = _Pending(self)
                pool._pending_work_items.watch(pending)
            pool._pending_work_items.watched = self
        else:
            pool._taskqueue, pool._quick_get = TaskQueue(self.begin), self._seen(pool._quick_get)

    def begin(self, key: Hashable, func: Any, args: tuple[Any, ...]) -> None:
        """A call of *func* begins."""
        known = _described(func, args)
        with self._lock:
            if not self._known:
                self._home.begin_period()
                self._marked = time.perf_counter()
            self._known[key] = known

    def note_work(self, key: Hashable, seconds: float, cpu: float) -> None:
        """A worker has run the call for *seconds*, *cpu* of them on a processor; its end follows."""
        with self._lock:
            self._work[key] = seconds, cpu

    def end(self, key: Hashable, *, failed: bool) -> None:
        """The call has ended; a second end is none."""
        shown, shape, where, reason = self._row
        with self._lock:
            name, items = self._known.pop(key, ("", 0))
            busy, cpu = self._work.pop(key, (0.0, 0.0))
            if not name:
                return
            now = time.perf_counter()
            seconds, self._marked, self._start = now - self._marked + self._start, now, 0.0
            home = self._home.add(busy, cpu) if where == "cluster" else 0.0
        calls().record(CallReportEntry(
            shown, name, where, reason, items, seconds, int(where == "cluster"), 0, int(failed), busy=busy, home=home,
            pool=shape,
        ))  # fmt: skip

    def note_future(self, key: Hashable, future: Any) -> None:
        """The future of the call is done; one that was cancelled is no call."""
        if not future.cancelled():
            self.end(key, failed=future.exception() is not None)
            return
        with self._lock:
            self._known.pop(key, None)

    def _seen(self, get: Callable[[], Any]) -> Callable[[], Any]:
        def seen() -> Any:
            result = get()
            if result is not None:
                job, index, (is_well, _) = result
                self.end((job, index), failed=not is_well)
            return result

        return seen


# Neither is on the way of an error: tracebacks are those of the standard library.
class _Pending(dict[int, Any]):
    """An executor's calls that have no result yet."""

    def __init__(self, watched: WatchedCalls) -> None:
        super().__init__()
        self.watched = watched

    def __setitem__(self, number: int, work: Any) -> None:
        super().__setitem__(number, work)
        self.watched.begin(number, work.fn, work.args)
        work.future.add_done_callback(functools.partial(self.watched.note_future, number))

    def watch(self, others: dict[int, Any]) -> None:
        for number, work in others.items():
            self[number] = work


class TaskQueue(queue.SimpleQueue[Any]):
    """A pool's queue of (tasks, function told their number), which tells *begin* of each task that is taken."""

    def __init__(self, begin: Callable[[Hashable, Any, tuple[Any, ...]], None]) -> None:
        super().__init__()
        self.begin = begin

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        taken = super().get(block, timeout)
        return taken if taken is None else (self.told(taken[0]), taken[1])

    def told(self, tasks: Iterable[Any]) -> Iterator[Any]:
        for task in tasks:
            job, index, func, args, _ = task
            self.begin((job, index), func, args)
            del func, args
            yield task
            del task


def _described(func: Any, args: tuple[Any, ...]) -> tuple[str, int]:
    """The name of the caller's own function in a call, and the number of its items."""
    try:
        inner, items = inner_call(func, args)
        return name_of(inner), items
    except Exception:  # An object that answers as it likes.
        return "?", 1


def inner_call(func: Any, args: tuple[Any, ...]) -> tuple[Any, int]:
    """The caller's own function in a call that the standard library or joblib makes of it, and the number of items."""
    if getattr(func, "__name__", "") in WRAPPED and func.__module__.endswith(".pool"):
        return args[0][0], len(args[0][1])
    if isinstance(func, functools.partial) and getattr(func.func, "__name__", "") == "_process_chunk":
        return func.args[0], len(args[0])
    if (wrapped := getattr(func, "_obj", None)) is not None:  # A wrapper for what is pickled.
        func = wrapped
        if isinstance(func, functools.partial) and not args:
            return inner_call(func.func, func.args)
    if isinstance(items := getattr(func, "items", None), list) and isinstance(func, Sized) and items:
        return items[0][0], len(items)  # joblib's batch: (function, args, kwargs) for each.
    return func, 1
