"""Keeps the asyncio tasks of one run, and of one item, out of reach of the others on the same event loop.

A home-made pool that ends with "cancel every task but me" means its own tasks; on a loop that many runs share it would
cancel all of theirs. So ``asyncio.all_tasks()`` shows a run what belongs to it, and ``cancel()`` of a stranger's task
does nothing and is logged. What a run or an item has left behind is anybody's.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import logging
from functools import cache
from typing import Any

from graft.tasks import worker_runtime
from graft.tasks.worker_runtime import Item
from graft.workers import task_context
from graft.workers.task_context import Owner

logger = logging.getLogger(__name__)

_all_tasks = asyncio.all_tasks


class MarkedTask(asyncio.Task[Any]):
    """A task of asyncio that knows by the code of which run, and of which item, it was made."""

    mark: Owner | None = None
    item: Item | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Ask the task to end, unless it belongs to another run or item that still goes on."""
        if not _is_strange(self):
            return super().cancel(msg)
        logger.warning(
            "%s tried to cancel the asyncio task %s of %s, which goes on; cancel only the tasks that you have started",
            task_context.owner(), self.get_name(), self.mark or "another item",
        )  # fmt: skip
        return False


def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> MarkedTask:
    """A task factory (``loop.set_task_factory``): the task belongs to the code that makes it."""
    task = MarkedTask(coroutine, loop=loop, **options)
    context = options.get("context")
    if context is None:
        mark, item = task_context.owner(), worker_runtime.current_item.get()
    else:
        mark, item = context.run(task_context.owner), context.run(worker_runtime.current_item.get)
    task.mark = mark if isinstance(mark, Owner) else None
    task.item = item
    return task


@cache
def hide_strangers() -> None:
    """Have ``asyncio.all_tasks()`` leave out the tasks of others in this process."""
    asyncio.all_tasks = asyncio.tasks.all_tasks = _visible_tasks


def _visible_tasks(loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
    return {task for task in _all_tasks(loop) if not _is_strange(task)}


def _is_strange(task: asyncio.Task[Any]) -> bool:
    """Whether *task* belongs to another run or item than the code that asks. The worker's own code may do anything."""
    if not isinstance(task, MarkedTask):
        return False
    asking = task_context.owner()
    if isinstance(asking, Owner) and task.mark is not None and task.mark is not asking:
        return task.mark.run is not None
    item = worker_runtime.current_item.get()
    return item is not None and task.item is not item and not (task.item is not None and task.item.is_over)
