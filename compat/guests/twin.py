"""A pool under shadow or canary: its own processes answer, and a twin with guests runs the chosen calls.

What the twin answers comes back through the pool's own queue of results, so that futures, order and shutting down stay
the standard library's.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final, Protocol

from graft.compat.guests.watched_calls import TaskQueue, inner_call

NO_JOB: Final = -1  # Results of jobs that a pool does not know are dropped.


class PoolCalls(Protocol):
    """Whoever chooses calls (compat/shadow/pool_calls.py)."""

    def begin(
        self, key: Hashable, func: Any, args: Any, kwargs: Any, shown: Any, answer: Callable[..., None],
        take_back: Callable[[], None],
    ) -> bool: ...  # fmt: skip

    def end(self, key: Hashable, value: Any, error: BaseException | None) -> None: ...

    def close(self) -> None: ...


def attach(pool: Any, kind: str, package: str, chosen: PoolCalls) -> None:
    """Have *chosen* hear of the calls of *pool*, which has not begun, and answer those it takes."""
    weakref.finalize(pool, chosen.close).atexit = False
    if kind == "executor":
        _attach_executor(pool, chosen)
    else:
        pool._taskqueue = _ChosenTasks(pool, package, chosen)
        pool._quick_get = _heard(pool._quick_get, chosen)


def _attach_executor(executor: Any, chosen: PoolCalls) -> None:
    put, results, pending = executor._call_queue.put, executor._result_queue, executor._pending_work_items
    module: Any = import_module(type(executor._call_queue).__module__)  # The standard library's, or loky's.

    def answer(work_id: int, value: Any, error: BaseException | None) -> None:
        carried: Any = None if error is None else _Carried(module._rebuild_exc, error)
        results.put(module._ResultItem(work_id, exception=carried, result=value))

    def heard(item: Any, *args: Any, **options: Any) -> None:
        work = None if item is None else pending.get(item.work_id)
        if work is not None:
            is_taken = chosen.begin(
                item.work_id, item.fn, item.args, item.kwargs, _shown(item.fn, item.args),
                functools.partial(answer, item.work_id), functools.partial(put, item),
            )  # fmt: skip
            if is_taken:
                return
            work.future.add_done_callback(functools.partial(_note_end, chosen, item.work_id))
        put(item, *args, **options)

    executor._call_queue.put = heard


def _note_end(chosen: PoolCalls, key: Hashable, future: Any) -> None:
    if not future.cancelled():
        error = future.exception()
        chosen.end(key, None if error else future.result(), error)


class _ChosenTasks(TaskQueue):
    """A pool's queue of tasks; those that the cluster answers leave a task without a job in their place."""

    def __init__(self, pool: Any, package: str, chosen: PoolCalls) -> None:
        super().__init__(pool._taskqueue.begin)
        self._chosen, self._results = chosen, pool._outqueue
        self._rebuild = import_module(f"{package}.pool").rebuild_exc

    def told(self, tasks: Iterable[Any]) -> Iterator[Any]:
        if isinstance(tasks, _TakenBack):
            yield from tasks
            return
        for task in super().told(tasks):
            job, index, func, args, kwargs = task
            is_taken = not getattr(func, "__name__", "").startswith("_helper") and self._chosen.begin(
                (job, index), func, args, kwargs, _shown(func, args), functools.partial(self._answer, job, index),
                functools.partial(self.put, (_TakenBack([task]), None)),
            )  # fmt: skip
            yield (NO_JOB, index, bool, (), {}) if is_taken else task

    def _answer(self, job: int, index: int, value: Any, error: BaseException | None) -> None:
        result = (True, value) if error is None else (False, _Carried(self._rebuild, error))
        self._results.put((job, index, result))


class _TakenBack(list[Any]):
    """A task that the cluster was to run, and has not."""


def _heard(get: Callable[[], Any], chosen: PoolCalls) -> Callable[[], Any]:
    def heard() -> Any:
        result = get()
        if result is not None:
            job, index, (is_well, value) = result
            chosen.end((job, index), value if is_well else None, None if is_well else value)
        return result

    return heard


class _Carried:
    """An error whose remote traceback is sent along with it."""

    def __init__(self, rebuild: Callable[..., Any], error: BaseException) -> None:
        self._rebuild, self._error = rebuild, error

    def __reduce__(self) -> tuple[Any, ...]:
        return self._rebuild, (self._error, str(getattr(self._error.__cause__, "tb", "")))


def _shown(func: Any, args: tuple[Any, ...]) -> Any:
    """The caller's own function in a call."""
    try:
        return inner_call(func, args)[0]
    except Exception:  # An object that answers as it likes.
        return SimpleNamespace(__module__="?", __qualname__="?")
