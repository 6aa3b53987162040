"""Tasks by priority: which one is next, and in which order a set of dependent tasks can run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Unpack

from graft.compat import bridge
from graft.compat.async_worker_optimization.schedule_graph import Graph, SkippedTaskError
from graft.compat.async_worker_optimization.shared_schedule import SharedSchedule
from graft.compat.placement import RunOptions, reference, shared_name
from graft.tasks import blocking_threads
from graft.tasks.errors import UnreferenceableError

RUN_SCHEDULE: Final = "AsyncTaskScheduler.run_schedule"

logger = logging.getLogger("graft.compat.async_worker_optimization")


class _Task(NamedTuple):
    priority: float
    number: int
    func: Callable[[], Any]


class AsyncTaskScheduler:
    """Runs one pending task at a time, the highest priority first, equals in the order of scheduling.

    Source: ``async_worker_optimization.AsyncTaskScheduler``. Differences: equals kept no order; a second task of the
    same id replaces the first, which lost one of the two; tasks may be plain functions.

    Args:
        name: keep tasks whose function a worker can import in Redis under this name. They outlive this process, and all
            schedulers of that name share them and one strict order; other tasks stay in this process, within that
            order. Methods that are not ``async`` then block for one round trip. Ignored in local mode.
        options: ``place`` and ``retry`` of each task, see :class:`RunOptions`.
    """

    def __init__(self, *, name: str | None = None, **options: Unpack[RunOptions]) -> None:
        self.options = options
        self._tasks: dict[Hashable, _Task] = {}
        self._heap: list[tuple[float, int, Hashable]] = []  # Entries whose task was replaced or cancelled stay in.
        self._numbers = itertools.count(1)
        self._shared = SharedSchedule(shared) if (shared := shared_name(name)) else None

    async def schedule_task(self, task_id: Hashable, task_func: Callable[[], Any], priority: float = 0) -> None:
        """Add a task; the larger *priority* goes first, negative and fractional ones too.

        Raises:
            TypeError: with a name, an id that is neither str nor int.
            BrokerUnavailable: with a name, Redis does not answer.
        """
        number = next(self._numbers)
        if self._shared is not None:
            ref = reference(task_func, self.options.get("place")) if callable(task_func) else None
            if ref is not None and ref.how == "import":
                self._tasks.pop(task_id, None)
                await blocking_threads.ask(self._shared.add, task_id, ref, priority)
                return
            logger.info("task %r stays in this process: a worker cannot import %r", task_id, task_func)
            await blocking_threads.ask(self._shared.remove, task_id)
            number = await blocking_threads.ask(self._shared.next_number)
        self._tasks.pop(task_id, None)  # The later scheduling counts, also for the order.
        self._tasks[task_id] = _Task(priority, number, task_func)
        heapq.heappush(self._heap, (-priority, number, task_id))

    def cancel_task(self, task_id: Hashable) -> bool:
        """Whether the task was pending and is now gone."""
        is_here = self._tasks.pop(task_id, None) is not None
        is_there = self._shared is not None and self._shared.remove(task_id)
        return is_here or is_there

    def get_pending_tasks(self) -> list[Any]:
        """The ids in the order of scheduling, which is not the order of priority."""
        if self._shared is None:
            return list(self._tasks)
        here = [(task.number, task_id) for task_id, task in self._tasks.items()]
        numbered = sorted([*here, *self._shared.pending()], key=lambda entry: entry[0])
        return [task_id for _, task_id in numbered]

    def has_pending_tasks(self) -> bool:
        return bool(self._tasks) or (self._shared is not None and bool(self._shared.pending()))

    async def execute_next(self) -> Any:
        """Run the next task and return its result; None also when nothing is pending.

        A task that raises is gone, and its error is raised. A task that this process cannot import stays pending, and
        UnreferenceableError is raised.
        """
        taken = await self._take()
        return None if taken is None else await self._run(taken[1])

    async def run_pending(self, max_concurrent: int = 1) -> dict[Hashable, Any]:
        """Run tasks in strict order until none is pending, *max_concurrent* at once; id to result.

        The value of a task that raised is its exception. Tasks scheduled meanwhile run, too. With a name, several
        processes may do this at once: each task runs in one of them.
        """
        if max_concurrent < 1:
            raise ValueError(f"max_concurrent={max_concurrent} must be at least 1")
        results: dict[Hashable, Any] = {}

        async def run_next() -> None:
            while (taken := await self._take()) is not None:
                task_id, task = taken
                try:
                    results[task_id] = await self._run(task)
                except Exception as error:
                    logger.info("task %r failed: %r", task_id, error)
                    results[task_id] = error

        await asyncio.gather(*(run_next() for _ in range(max_concurrent)))
        return results

    async def run_schedule(
        self, tasks: Sequence[Mapping[str, Any]], max_concurrent: int | None = None
    ) -> dict[Hashable, Any]:
        """Run a graph of tasks: each begins when all its ``dependencies`` have returned; id to result.

        Among the tasks that may begin, the larger ``priority`` goes first, then the earlier in *tasks*. The value of a
        task that raised is its exception. A task behind it does not run; its value is a SkippedTaskError that names the
        failed task. Pending tasks of the scheduler are not touched.

        Args:
            tasks: dicts as :meth:`optimize_schedule` takes them, with ``task_func``, called without arguments.
            max_concurrent: tasks that run at once; default: no bound.

        Raises:
            ValueError: an id twice, an unknown dependency, or a cycle, which is named. Nothing has run then.
            KeyError: a task has no ``id`` or no ``task_func``.
        """
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent={max_concurrent} must be at least 1")
        graph = Graph.of(tasks)
        if flaws := [*graph.doubles, *graph.flaws()]:
            raise ValueError(f"the tasks cannot run: {'; '.join(flaws)}")
        numbers = itertools.count(1)
        by_id = {task["id"]: _Task(task.get("priority", 0), next(numbers), task["task_func"]) for task in tasks}
        missing = {task_id: len(needed) for task_id, needed in graph.needs.items()}
        dependents = graph.dependents()
        ready: list[tuple[float, int, Hashable]] = []

        def may_begin(task_id: Hashable) -> None:
            heapq.heappush(ready, (-by_id[task_id].priority, by_id[task_id].number, task_id))

        for task_id, count in missing.items():
            if count == 0:
                may_begin(task_id)
        results: dict[Hashable, Any] = {}
        running: dict[asyncio.Future[Any], Hashable] = {}
        try:
            while ready or running:
                while ready and (max_concurrent is None or len(running) < max_concurrent):
                    task_id = heapq.heappop(ready)[2]
                    running[asyncio.ensure_future(self._run(by_id[task_id], RUN_SCHEDULE))] = task_id
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in ended:
                    task_id = running.pop(each)
                    error = asyncio.CancelledError() if each.cancelled() else each.exception()
                    if error is None:
                        results[task_id] = each.result()
                        for dependent in dependents.get(task_id, ()):
                            missing[dependent] -= 1
                            if missing[dependent] == 0:
                                may_begin(dependent)
                        continue
                    logger.info("task %r failed: %r", task_id, error)
                    results[task_id] = error
                    for behind in graph.behind(task_id):
                        results.setdefault(behind, SkippedTaskError(behind, task_id, error))
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return {task_id: results[task_id] for task_id in graph.needs}

    async def _take(self) -> tuple[Hashable, _Task] | None:
        own = self._first()
        if self._shared is not None:
            before = None if own is None else (own[1].priority, own[1].number)
            taken = await blocking_threads.ask(self._shared.take, before)
            if taken is not None:
                try:
                    return taken.id, _Task(taken.priority, taken.number, taken.func())
                except UnreferenceableError:
                    await blocking_threads.ask(self._shared.put_back, taken)
                    raise
            own = self._first()  # Another coroutine may have taken it meanwhile.
        if own is not None:
            heapq.heappop(self._heap)
            del self._tasks[own[0]]
        return own

    def _first(self) -> tuple[Hashable, _Task] | None:
        """The first task of this process, at the top of the heap."""
        while self._heap:
            _, number, task_id = self._heap[0]
            task = self._tasks.get(task_id)
            if task is not None and task.number == number:
                return task_id, task
            heapq.heappop(self._heap)
        return None

    async def _run(self, task: _Task, call: str = "AsyncTaskScheduler.execute_next") -> Any:
        return await bridge.call_async(task.func, call=call, priority=task.priority, **self.options)

    def optimize_schedule(self, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same dicts in an order that respects ``dependencies`` (ids): those without any first, as given, then each
        when its last dependency has been placed. Tasks in or behind a cycle, or behind an unknown id, are left out.

        ``priority`` and ``duration`` are ignored. Difference: a warning names the tasks that are left out, and the
        cycles. :meth:`run_schedule` also runs the tasks.

        Raises:
            KeyError: a task has no ``id``.
        """
        graph = Graph.of(tasks)
        order = graph.order()
        if len(order) < len(graph.needs):
            left_out = [task_id for task_id in graph.needs if task_id not in set(order)]
            logger.warning("left out of the schedule: %s (%s)", left_out, "; ".join(graph.flaws()))
        by_id = {task["id"]: task for task in tasks}
        return [by_id[task_id] for task_id in order]

    def calculate_total_time(self, schedule: Iterable[Mapping[str, Any]]) -> float:
        """Sum of ``duration`` (0 where there is none), one task after the other; never below 0.0.

        With negative durations the highest running sum.
        """
        running = highest = 0.0
        for task in schedule:
            running += task.get("duration", 0)
            highest = max(highest, running)
        return float(highest)
