"""The bridge sends the calls of async facades to the workers, and awaits their results.

Facades call :func:`map_async` and :func:`call_async` and know nothing of Celery. placement.py decides where a call
runs, local.py runs the calls that stay in this process, call_report.py counts them all. Executors and pools, whose
callers are threads, use dispatcher.py instead. No other facade sends items or takes results in (``lint-imports``);
the three ``celery_*`` packages also send Celery tasks by name, as their old modules did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Unpack

from graft.compat import local, old_way
from graft.compat.call_report import ReportedCall
from graft.compat.placement import CallOptions, Placement, place_calls
from graft.compat.routes import batch_options
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.errors import UnpicklableError
from graft.tasks.policy import as_policy

if TYPE_CHECKING:
    from graft.tasks.batch import Batch
    from graft.tasks.callables.references import FunctionRef

THREAD_FROM: Final = 500  # Items from which pickling leaves the event loop's thread.


async def map_async(
    func: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    call: str,
    concurrency: int,
    in_flight: int,
    batch_size: int | None = None,
    **options: Unpack[CallOptions],
) -> list[Any]:
    """Apply *func* to every item; the values in the order of *items*.

    Args:
        call: the old call's name, for the report.
        concurrency: items of one batch; *concurrency* x *in_flight* items run at once at most, in the whole cluster.
        in_flight: batches at once.
        batch_size: items in one envelope. Default: learnt from the callable's own pace.

    Raises:
        Exception: the first failing item's own error; the other items run on, unobserved.
        UnreferenceableError: forced to the cluster, and a worker can neither import nor receive *func*.
        BrokerUnavailable: the broker did not answer.
    """
    return await _Request(func, list(items), options, concurrency, in_flight, batch_size).run(call, func)


async def call_async(
    func: Callable[..., Any],
    *args: Any,
    call: str,
    shown: Callable[..., Any] | None = None,
    **options: Unpack[CallOptions],
) -> Any:
    """``func(*args)``, once, on a worker or here; its value or its error.

    *shown* is the caller's own function, for the report, where *func* only wraps it.
    """
    (value,) = await _Request(func, [(args, {})], options, unpack=True).run(call, shown or func)
    return value


@dataclass(frozen=True)
class _Request:
    """One call of a facade: apply *func* to the items, which are ``(args, kwargs)`` pairs if *unpack*."""

    func: Callable[..., Any]
    items: Sequence[Any]
    options: CallOptions
    concurrency: int = 1
    in_flight: int = 1
    batch_size: int | None = None
    unpack: bool = False

    async def run(self, call: str, shown: Callable[..., Any]) -> list[Any]:
        watcher = old_way.watcher() if self.options.get("place") is None else None
        if watcher is not None:
            rule = place_calls(self.func)
            watched = watcher.watch(self.func, rule.function, rule.reason, shown=shown, on_loop=True)
            return await replace(self, func=watched)._run(call, shown, Placement("local", old_way.REASON), None)
        return await self._run(call, shown, *await self._place())

    async def _run(
        self, call: str, shown: Callable[..., Any], placement: Placement, frames: Sequence[bytes] | None
    ) -> list[Any]:
        report = ReportedCall(call, shown, placement, len(self.items))
        batch, failed = None, True
        try:
            if placement.function is None:
                values = await self._run_here()
            else:
                batch = self._send(placement.function, frames)
                values = await batch
            failed = False
            return values
        finally:
            report.close(failed=failed, progress=batch.progress() if batch else None)

    async def _place(self) -> tuple[Placement, Sequence[bytes] | None]:
        """Placement of the call; with the items' pickles where only pickling shows that they can travel."""
        placement = place_calls(self.func, self.options.get("place"))
        if placement.function is None or codec.plain_size(self.items) is not None:
            return placement, None
        try:
            return placement, await asyncio.to_thread(self._dump) if len(self.items) > THREAD_FROM else self._dump()
        except UnpicklableError as error:
            if self.options.get("place") == "cluster":
                raise
            return Placement("local", str(error)), None

    def _dump(self) -> list[bytes]:
        limit = settings().item_limit
        return [codec.dump_item(item, limit, "item", index) for index, item in enumerate(self.items)]

    def _send(self, function: FunctionRef, frames: Sequence[bytes] | None) -> Batch:
        from graft.tasks.sending.sources import ListSource
        from graft.tasks.submit import send

        options = replace(
            batch_options(function, self.options),
            batch_size=self.batch_size,
            in_flight=self.in_flight,
            plain_in_flight=None if function.is_async else self.in_flight * self.concurrency,
            concurrency=self.concurrency,
            unpack=self.unpack,
        )
        return send(options, ListSource(self.items) if frames is None else ListSource(frames, encoded=True))

    async def _run_here(self) -> list[Any]:
        policy, timeout = as_policy(self.options.get("retry")), self.options.get("timeout")
        if self.unpack:
            return [await local.call(self.func, args, policy, timeout) for args, _ in self.items]
        return await local.map_items(self.func, self.items, self.concurrency, self.in_flight, policy, timeout)
