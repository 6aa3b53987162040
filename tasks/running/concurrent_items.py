"""The items of an envelope that are awaited, many at once on the event loop."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from graft.tasks import blocking_threads
from graft.tasks.errors import CancelledBatchError, ItemTimeoutError
from graft.tasks.running.run_state import RunState, refused_exit
from graft.tasks.running.work_stealing import TELL_EVERY
from graft.tasks.worker_runtime import Item, current_item

LAST_WORDS = 5.0  # Seconds that an item has to end once its envelope has been stopped.


class ConcurrentItems:
    """The items of one run on the event loop, as many at once as the envelope says: where one ends, the next begins.

    Each has an asyncio task of its own: what an item does to its context or to its task stays with the item.
    """

    def __init__(self, run: RunState) -> None:
        self._run = run
        self._waiting: Iterator[int] = iter(())
        self._running: dict[asyncio.Task[None], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = self._stopping = False

    async def all(self, indexes: Sequence[int]) -> None:
        """Run the items at *indexes*."""
        self._waiting = iter(indexes)
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        publishing = None if self._run.publish_early is None else asyncio.ensure_future(self._publish())
        try:
            for _ in range(min(self._run.envelope.concurrency, len(indexes))):
                self._begin_next()
            if self._running:
                await self._over
        except BaseException:  # A limit, or the end of the worker.
            self._stopping = True
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=LAST_WORDS)
            raise
        finally:
            if publishing is not None:
                publishing.cancel()

    def cancel(self) -> None:
        """Cancel the items that run. From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop was closed: nothing runs.
                self._loop.call_soon_threadsafe(self._cancel_running)

    def _cancel_running(self) -> None:
        self._ending = True
        for item in self._running:
            if not item.cancelling():
                item.cancel()

    def _begin_next(self) -> None:
        for index in self._waiting:
            if self._run.is_unwanted(index):
                continue
            mark, context = Item(), copy_context()
            context.run(current_item.set, mark)
            item = asyncio.get_running_loop().create_task(self.one(index), context=context)
            self._running[item] = index
            item.add_done_callback(partial(self._ended, mark))
            return

    def _ended(self, mark: Item, item: asyncio.Task[None]) -> None:
        mark.is_over = True
        index, outcomes = self._running.pop(item), self._run.outcomes
        if self._ending and index not in outcomes.values and index not in outcomes.errors:  # Before its first step.
            outcomes.errors[index] = CancelledBatchError(f"item {self._run.envelope.positions[index]} was cancelled")
        if not self._stopping:
            self._begin_next()
        if self._over.done():
            return
        if not item.cancelled() and (error := item.exception()) is not None:
            self._over.set_exception(error)  # Only what ends this process: anything else is an item's outcome.
        elif not self._running:
            self._over.set_result(None)

    async def one(self, index: int) -> None:
        """Run the item at *index*, and note its outcome."""
        envelope, func, outcomes = self._run.envelope, self._run.func, self._run.outcomes
        limits, began = self._run.limits, time.perf_counter()
        try:
            value = pickle.loads(envelope.items[index]) if envelope.packed else envelope.items[index]
            if limits is not None:
                await limits.enter_on_loop(index, value)
                began = time.perf_counter()
            call = func(*value[0], **value[1]) if envelope.unpack else func(value)
            outcomes.values[index] = await (call if envelope.timeout is None else _limited(call, envelope.timeout))
        except BaseException as error:
            if self._stopping and isinstance(error, asyncio.CancelledError):
                raise  # It did not end by itself, and has no outcome.
            if self._ending and isinstance(error, asyncio.CancelledError):
                error = CancelledBatchError(f"item {envelope.positions[index]} was cancelled while it ran")
            outcomes.errors[index] = refused_exit(error)
        elapsed = time.perf_counter() - began
        outcomes.busy += elapsed
        if envelope.pool is not None:
            outcomes.seconds[index] = elapsed
        self._run.unpublished.append(index)
        if limits is not None:
            await limits.leave_on_loop(index, outcomes.errors.get(index))

    async def _publish(self) -> None:
        """Now and then publish early outcomes."""
        run = self._run
        assert run.publish_early is not None
        while True:
            await asyncio.sleep(TELL_EVERY)
            if run.unpublished:
                await blocking_threads.ask(run.tell)


async def _limited(call: Awaitable[Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ItemTimeoutError(f"the item ran longer than its limit of {seconds:g} s") from error
