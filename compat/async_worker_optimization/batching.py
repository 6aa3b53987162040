"""Collects items into batches for one handler: when a batch is full, or its first item has waited long enough."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Unpack

from graft.compat import bridge
from graft.compat.async_worker_optimization.durable_items import DurableItems
from graft.compat.async_worker_optimization.handler_results import Handler, HandlerResults, run_async, run_plain
from graft.compat.placement import RunOptions, shared_name
from graft.tasks.errors import BrokerUnavailable

logger = logging.getLogger("graft.compat.async_worker_optimization")


class Waiting(NamedTuple):
    """An item, the future of its result, and the item's field in Redis, if it has one."""

    item: Any
    future: asyncio.Future[Any]
    field: str | None


class AsyncBatchProcessor:
    """Gathers single items into batches for a handler, and answers each item.

    A handler that can travel runs on the workers, one task for each batch.

    Source: ``async_worker_optimization.AsyncBatchProcessor``. Differences: the handler may be a plain function; each
    batch has a timer of its own, also one that waits when :meth:`set_handler` comes; items without a result get an
    error; futures that are done are skipped; a cancelled handler cancels its futures.

    Args:
        batch_size: items that start the handler at once; 1 or less is every item.
        timeout: seconds that the first item of a batch waits at most.
        name: keep items in Redis under this name until they are answered, for :meth:`recover` in a later process.
            Ignored in local mode.
        options: ``place`` and ``retry`` of each batch, see :class:`RunOptions`.
    """

    def __init__(
        self,
        batch_size: int = 10,
        timeout: float = 1.0,
        *,
        name: str | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        self.batch_size = batch_size
        self.timeout = timeout
        self.options = options
        self._handler: Handler | None = None
        self._waiting: list[Waiting] = []
        self._unanswered: set[asyncio.Future[Any]] = set()
        self._timer: asyncio.Task[None] | None = None
        self._flushes: set[asyncio.Task[None]] = set()  # The event loop keeps only weak references.
        self._batches = 0
        self._items = 0
        self._is_closed = False
        self._durable = DurableItems(shared) if (shared := shared_name(name)) else None
        # One thread: items reach Redis, and their batch, in the order in which they were added.
        self._writer = ThreadPoolExecutor(1, "graft-batch-items") if self._durable else None

    def set_handler(self, handler: Handler) -> None:
        """Use *handler*: ``handler(items)`` gets a fresh list and returns the results in its order.

        Items that wait for a handler form one batch, which runs after the timeout, or with the item that fills it.
        """
        self._handler = handler
        if not self._waiting:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = self._waiting[0].future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._arm)

    async def add_item(self, item: Any) -> asyncio.Future[Any]:
        """The future of the result of *item*. With the item that fills a batch, the handler runs before this returns.

        The handler's error goes to every future of its batch and is not raised here.

        Raises:
            RuntimeError: the processor was closed.
            UnpicklableError, PayloadTooLargeError, BrokerUnavailable: with a name, the item could not be kept.
        """
        if self._is_closed:
            raise RuntimeError("this batch processor is closed")
        field = await self._in_thread(self._durable.put, item) if self._durable else None
        return await self._join(item, field)

    async def _join(self, item: Any, field: str | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(item, future, field))
        if len(self._waiting) >= self.batch_size:
            await self._process_batch()
        self._arm()
        return future

    async def recover(self) -> list[asyncio.Future[Any]]:
        """Add the items that earlier processes of this name left unanswered; their futures in the order of adding.

        Call it when those processes have ended: items of one that still runs are answered twice, once in each.
        Futures of the earlier processes are lost.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        if self._durable is None:
            return []
        return [await self._join(item, field) for field, item in await self._in_thread(self._durable.take_over)]

    async def flush(self) -> None:
        """Handle the waiting items; returns when every item added so far is answered, or at once without a handler."""
        await self._process_batch()
        loop = asyncio.get_running_loop()
        if unanswered := [future for future in self._unanswered if future.get_loop() is loop]:
            await asyncio.wait(unanswered)

    async def close(self) -> None:
        """Flush, and refuse new items. Without a handler the items are cancelled; with a name they stay in Redis."""
        self._is_closed = True
        await self.flush()
        for waiting in self._take():
            _settle(waiting.future, waiting.future.cancel)

    def get_statistics(self) -> dict[str, float]:
        """``total_batches``, ``total_items`` and ``average_batch_size`` (0 before the first) of the answered batches.

        Batches that failed or were answered in part are not counted.
        """
        return {
            "total_batches": self._batches,
            "total_items": self._items,
            "average_batch_size": self._items / self._batches if self._batches else 0,
        }

    def _arm(self) -> None:
        """Start a timer for items that wait and can be handled."""
        if self._handler is None or not self._waiting:
            return
        timer = self._timer
        if timer is None or timer.done() or timer.get_loop().is_closed():
            self._timer = asyncio.get_running_loop().create_task(self._flush_later())

    async def _flush_later(self) -> None:
        await asyncio.sleep(self.timeout)
        task = asyncio.current_task()
        if task is not None:
            self._flushes.add(task)
            task.add_done_callback(self._flushes.discard)
        self._timer = None  # Later items belong to the next batch, with a timer of its own.
        await self._process_batch()

    def _take(self) -> list[Waiting]:
        taken, self._waiting = self._waiting, []
        if self._timer is not None and self._timer.get_loop() is asyncio.get_running_loop():
            self._timer.cancel()  # One of another loop fires early at most, which does no harm.
        self._timer = None
        return taken

    async def _process_batch(self) -> None:
        """Handle the waiting items as one batch; does nothing without items or handler."""
        handler = self._handler
        if handler is None or not self._waiting:
            return
        batch = self._take()
        futures = {waiting.future for waiting in batch}
        self._unanswered |= futures
        try:
            results = await self._call(handler, [waiting.item for waiting in batch])
        except asyncio.CancelledError:
            for future in futures:
                _settle(future, future.cancel)
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return  # The handler cancelled itself; whoever added the last item goes on.
        finally:
            self._unanswered -= futures
        self._answer(batch, results)
        await self._forget(batch)

    async def _call(self, handler: Handler, items: list[Any]) -> HandlerResults:
        run = functools.partial(run_async if inspect.iscoroutinefunction(handler) else run_plain, handler)
        try:
            results: HandlerResults = await bridge.call_async(
                run, items, call="AsyncBatchProcessor.add_item", shown=handler, **self.options
            )
            return results
        except Exception as error:
            return HandlerResults([], error)

    def _answer(self, batch: list[Waiting], results: HandlerResults) -> None:
        for waiting, value in zip(batch, results.values, strict=False):
            _settle(waiting.future, waiting.future.set_result, value)
        unanswered = batch[len(results.values) :]
        if not unanswered:
            self._batches += 1
            self._items += len(batch)
            return
        error = results.error or ValueError(
            f"the handler gave {len(results.values)} results for {len(batch)} items; it must give one each, in order"
        )
        for waiting in unanswered:
            _settle(waiting.future, waiting.future.set_exception, error)

    async def _forget(self, batch: list[Waiting]) -> None:
        fields = [waiting.field for waiting in batch if waiting.field is not None]
        if not fields or self._durable is None:
            return
        try:
            await self._in_thread(self._durable.drop, fields)
        except BrokerUnavailable as error:
            key = self._durable.key
            logger.warning("%d answered items stay in %s and may be recovered: %s", len(fields), key, error)

    async def _in_thread(self, func: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, func, *args)


def _settle(future: asyncio.Future[Any], answer: Callable[..., Any], *args: Any) -> None:
    """Settle *future* in its own loop, unless it is done or its loop is closed."""
    loop = future.get_loop()
    if loop is asyncio.get_running_loop():
        _settle_here(future, answer, *args)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(_settle_here, future, answer, *args)


def _settle_here(future: asyncio.Future[Any], answer: Callable[..., Any], *args: Any) -> None:
    if not future.done():
        answer(*args)
