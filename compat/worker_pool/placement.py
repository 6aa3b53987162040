"""Where a task of a pool runs, decided before it is accepted: sealed on a worker, or in a thread of this process.

Rule R2 of the contract; the asynchronous calls also send closures over mutable values, as copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from graft.compat.call_report import CallReportEntry, calls
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.callables import function_store
from graft.tasks.callables.importable import name_of
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.envelope import WireFunction
from graft.tasks.errors import UnpicklableError, UnreferenceableError
from graft.tasks.pools.worker import Job


@dataclass(frozen=True, slots=True)
class Work:
    """Call ``func`` for each of ``items``, with ``*args, **kwargs`` where ``unpack`` says that items are pairs."""

    key: Any
    func: Callable[..., Any]
    items: Sequence[Any]
    unpack: bool = False
    single: bool = True
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Work on its way: ``content`` is the sealed job, empty for what runs here."""

    work: Work
    content: str = ""

    @property
    def is_local(self) -> bool:
        return not self.content


class Placing:
    """Decides for one pool; ``only_here`` is the reason why nothing of it leaves this process, if there is one."""

    def __init__(self, pool: str, only_here: str = "", place: Literal["cluster", "local"] | None = None) -> None:
        if place not in (None, "cluster", "local"):
            raise ValueError(f"place={place!r} must be 'cluster', 'local' or None")
        self.pool = pool
        self.only_here = only_here or ("place='local' was asked for" if place == "local" else "")
        self.is_forced = place == "cluster"

    def place(self, call: str, work: Work, *, by_value: bool = False) -> Placed:
        """*work* with its place; counted in the call report under the pool's name and *call*.

        Blocks for a round trip when a callable is sent by value for the first time in a while.

        Raises:
            PayloadTooLargeError: an item is larger than the deployment allows.
            UnreferenceableError, UnpicklableError: forced to the cluster, and it cannot travel.
        """
        content, reason = "", self.only_here
        if not reason:
            try:
                ref = self._refer(work.func, by_value)
                content, reason = _sealed(work, function_store.store(ref)), _reason(ref)
            except (UnreferenceableError, UnpicklableError) as error:
                if self.is_forced:
                    raise
                reason = str(error)
        where: Literal["cluster", "local"] = "cluster" if content else "local"
        name = name_of(work.func)
        calls().record(CallReportEntry(f"{self.pool}.{call}", name, where, reason, len(work.items)))
        return Placed(work, content)

    def _refer(self, func: Callable[..., Any], by_value: bool) -> FunctionRef:
        try:
            return refer(func)
        except UnreferenceableError:
            if not (by_value or self.is_forced):
                raise
            return refer(func, by_value=True)


def _reason(ref: FunctionRef) -> str:
    return "a worker can import it" if ref.how == "import" else "it travels by value"


def _sealed(work: Work, function: WireFunction) -> str:
    items, packed = work.items, False
    limit, plain = settings().item_limit, codec.plain_size(items)
    if plain is None or plain > limit:
        items = [codec.dump_item(item, limit, f"item {place}") for place, item in enumerate(items)]
        packed = True
    return Job(work.key, function, items, packed, work.unpack, work.single, work.timeout).seal()
