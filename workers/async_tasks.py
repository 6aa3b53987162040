"""Lets Celery's tracer run ``async def`` tasks, whichever pool the worker has, and guards every task (tasks/guard.py).

The tracer calls ``task.run`` and takes what it returns for the result (celery/app/trace.py). So ``run`` is wrapped: an
awaitable is waited for, in the way that the worker's pool has, and its value or error is what the tracer sees. Retries,
links, signals, time limits and acknowledgements are Celery's, and know nothing of it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from billiard.common import terminate_handler_fired
from celery import Celery, Task

from graft.tasks import guard, worker_runtime
from graft.tasks.errors import ProcessExitError, SelfCancelledError, TaskQueueError
from graft.workers import task_context


def is_async(task: Any) -> bool:
    """Whether *task* is made to run on an event loop: it is an ``async def``, or says so (``runs_on_loop``)."""
    return bool(getattr(task, "runs_on_loop", False)) or inspect.iscoroutinefunction(inspect.unwrap(_body(task)))


def prepare(app: Celery) -> None:
    """Wrap the tasks of *app*. Tracers that are built from now on can run all of them."""
    task_context.share_task_stack()
    for task in app.tasks.values():
        task_context.share_stack(task.request_stack)
        if getattr(task, "_graft_prepared", False):
            continue
        task._graft_prepared = True
        if not task.name.startswith("celery."):
            # autoretry_for wraps run once more, and must see the error of the coroutine, not the coroutine.
            name = "_orig_run" if hasattr(task, "_orig_run") else "run"
            setattr(task, name, _awaiting(task, getattr(task, name)))
        if guard.is_guarded(task):
            task.run = guard.guarded(task, task.run)


def _body(task: Any) -> Any:
    return getattr(task, "_orig_run", task.run)


def _awaiting(task: Task, run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def run_and_wait(*args: Any, **kwargs: Any) -> Any:
        value = run(*args, **kwargs)
        if not inspect.isawaitable(value):
            if inspect.isasyncgen(value):
                raise TypeError(f"{task.name} is an async generator; a task returns one value: collect what it yields")
            return value
        request = task.request_stack.top
        if request is None or request.called_directly or getattr(request, "_graft_begun", False):
            return value  # Called by other code, perhaps its own: it has the coroutine to await, as ever.
        request._graft_begun = True
        return _finish(value)

    return run_and_wait


def _finish(value: Any) -> Any:
    """The awaitable's value. What would end the loop or the process becomes an error of the task."""
    try:
        return worker_runtime.wait_for(value)
    except (asyncio.CancelledError, GeneratorExit) as error:
        raise SelfCancelledError(
            f"the coroutine ended in {type(error).__name__} without having been cancelled from outside"
        ) from error
    except (SystemExit, KeyboardInterrupt) as error:
        if terminate_handler_fired():
            raise  # The worker ends this process.
        raise ProcessExitError(f"the coroutine tried to end the worker: {type(error).__name__}({error})") from error
    except BaseException as error:
        if isinstance(error, Exception | task_context.Ended):
            raise
        raise TaskQueueError(f"the coroutine raised {error!r}, which is no Exception") from error
    finally:
        # In the io lane: the limits are for the task, not for storing what came of it.
        run = getattr(task_context.owner(), "run", None)
        if run is not None and run.is_async:
            run.disarm()
