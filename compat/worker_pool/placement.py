"""Where a task of a pool runs, decided before it is accepted: on a worker, or in a thread of this process.

Rule R2 of the contract; the asynchronous calls also send closures over mutable values, as copies.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.compat import old_way
from graft.compat.call_report import CallReportEntry, calls
from graft.compat.placement import Where, check_place
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.callables.importable import import_name, name_of
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.errors import UnpicklableError, UnreferenceableError
from graft.tasks.worker_runtime import resolved

KNOWN: Final = 256  # Importable functions whose place is kept for their next task.


@dataclass(slots=True)
class Work:
    """Call ``func`` for each of ``items``, with ``*args, **kwargs`` where ``unpack`` says that items are pairs."""

    key: Any
    func: Callable[..., Any]
    items: Sequence[Any]
    unpack: bool = False
    timeout: float | None = None

    def run(self) -> list[Any]:
        """The values of all items, here and now."""
        values = []
        for item in self.items:
            value = self.func(*item[0], **item[1]) if self.unpack else self.func(item)
            values.append(asyncio.run(resolved(value)) if inspect.isawaitable(value) else value)
        return values

    @classmethod
    def call(cls, key: Any, func: Callable[..., Any], timeout: float | None = None) -> Work:
        """One call of *func* without arguments. Partials of one function share envelopes: what they bind is data."""
        if type(func) is functools.partial and import_name(func.func):
            return cls(key, func.func, [(func.args, func.keywords)], unpack=True, timeout=timeout)
        return cls(key, func, [((), {})], unpack=True, timeout=timeout)


@dataclass(slots=True)
class Placed:
    """Work with its place: ``function`` and ``frames`` are what travels to a worker; neither for what runs here."""

    work: Work
    function: FunctionRef | None = None
    frames: Sequence[bytes] = ()


class Placing:
    """Decides for one pool; ``only_here`` is the reason why nothing of it leaves this process, if there is one."""

    def __init__(self, pool: str, only_here: str = "", place: Where | None = None) -> None:
        check_place(place)
        self.pool = pool
        self.only_here = only_here or ("place='local' was asked for" if place == "local" else "")
        self.is_forced = place == "cluster"
        self._known: dict[tuple[Callable[..., Any], str], tuple[FunctionRef, CallReportEntry]] = {}

    def place(self, call: str, work: Work, *, by_value: bool = False) -> Placed:
        """*work* with its place; counted in the call report under the pool's name and *call*.

        Raises:
            PayloadTooLargeError: an item is larger than the deployment allows.
            UnreferenceableError, UnpicklableError: forced to the cluster, and it cannot travel.
        """
        if self.only_here == old_way.REASON and (watcher := old_way.watcher()) is not None:
            return self._watched(call, work, watcher, by_value=by_value)
        known = self._known.get((work.func, call)) if len(work.items) == 1 else None
        if known is not None:
            try:
                placed = Placed(work, known[0], _frames(work))
            except UnpicklableError:
                pass  # It is decided anew, and the reason noted.
            else:
                calls().record(known[1])
                return placed
        placed, reason = Placed(work), self.only_here
        if not reason:
            try:
                ref = self._refer(work.func, by_value)
                placed = Placed(work, ref, _frames(work))
                reason = "a worker can import it" if ref.how == "import" else "it travels by value"
            except (UnreferenceableError, UnpicklableError) as error:
                if self.is_forced:
                    raise
                reason = str(error)
        where: Where = "cluster" if placed.function else "local"
        name = name_of(work.func)
        record = CallReportEntry(f"{self.pool}.{call}", name, where, reason, len(work.items))
        calls().record(record)
        if placed.function is not None and placed.function.how == "import" and not placed.function.payload:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[work.func, call] = placed.function, record
        return placed

    def _watched(self, call: str, work: Work, watcher: old_way.Watcher, *, by_value: bool) -> Placed:
        """*work* as the old way runs it."""
        try:
            function, reason = self._refer(work.func, by_value), ""
        except UnreferenceableError as error:
            function, reason = None, str(error)
        func, items = watcher.watch(work.func, function, reason).spread(work.items, unpack=work.unpack)
        name = name_of(work.func)
        calls().record(CallReportEntry(f"{self.pool}.{call}", name, "local", self.only_here, len(work.items)))
        return Placed(Work(work.key, func, items, unpack=True, timeout=work.timeout))

    def _refer(self, func: Callable[..., Any], by_value: bool) -> FunctionRef:
        try:
            return refer(func)
        except UnreferenceableError:
            if not (by_value or self.is_forced):
                raise
            return refer(func, by_value=True)


def _frames(work: Work) -> list[bytes]:
    limit = settings().item_limit
    if type(work.key) not in (int, str):
        codec.dump_item(work.key, limit, "the task's id")
    return [codec.dump_item(item, limit, "item", place) for place, item in enumerate(work.items)]
