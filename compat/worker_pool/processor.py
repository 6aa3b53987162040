"""TaskProcessor: a function from a task to its output, or to a whole Result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graft.compat.worker_pool.data import Result, Task


class TaskProcessor:
    """Applies ``fn(task)``; what *fn* raises becomes the result's error.

    A pool that was built with ``processor=`` applies it to every task, on workers where *fn* can travel.
    """

    def __init__(self, fn: Callable[[Task], Any]) -> None:
        if not callable(fn):
            raise TypeError(f"{fn!r} is not callable")
        self.fn = fn

    def process(self, task: Task) -> Result:
        """The result of *task*, here and now. A Result that *fn* returns has its id and its duration filled in."""
        began = time.perf_counter()
        try:
            output = self.fn(task)
        except Exception as error:
            return Result(task.id, error=error, duration=time.perf_counter() - began)
        return as_result(output, Result(task.id, duration=time.perf_counter() - began))


def as_result(output: Any, measured: Result) -> Result:
    """*measured*, with *output* set; an output that is a Result is taken over, what it leaves open filled in."""
    if not isinstance(output, Result):
        measured.output = output
        return measured
    return replace(
        output,
        task_id=measured.task_id if output.task_id is None else output.task_id,
        duration=measured.duration if output.duration is None else output.duration,
        worker_id=measured.worker_id if output.worker_id == -1 else output.worker_id,
        worker=output.worker or measured.worker,
    )
