"""Routes: how the calls of one callable are made, on workers or on local threads.

The route of an importable function cannot change, so it is kept for the next call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Unpack

from graft.compat.placement import CallOptions, Placement, check_place, place_calls
from graft.config.queues import broker_priority, table
from graft.config.validation import seconds, weight
from graft.tasks.callables.references import check_importable
from graft.tasks.policy import as_policy

if TYPE_CHECKING:
    from graft.tasks.callables.references import FunctionRef
    from graft.tasks.sending.batch_sender import BatchOptions

KEPT: Final = 256  # Routes of importable functions.
TOGETHER: Final = 100  # Items of one envelope that an async callable runs at once.


class ExecutorOptions(CallOptions, total=False):
    """Options of executors and pools."""

    queue: str | None
    """One of the queues in config/queues.py. Default: ``batch``, and ``io`` for async callables."""


@dataclass(frozen=True)
class Route:
    """How calls of one callable are made, while what it captures stays the same. *options* is None for local calls.

    Attributes:
        call: the old call's name, for the report.
        shown: the caller's own function, where *func* only wraps it.
        is_map: each map or stream of calls has ``max_workers`` for itself.
    """

    call: str
    func: Callable[..., Any]
    shown: Callable[..., Any]
    placement: Placement
    is_map: bool
    options: BatchOptions | None = None

    def moved_here(self, reason: str) -> Route:
        """The same calls, made in this process."""
        return replace(self, placement=Placement("local", reason), options=None)


class Routes:
    """The routes of one executor or pool, by its own options."""

    def __init__(self, max_workers: int | None, **options: Unpack[ExecutorOptions]) -> None:
        queue, timeout = options.get("queue"), options.get("timeout")
        if queue is not None:
            table().checked(queue)
        if timeout is not None:
            seconds("timeout", timeout)
        check_place(options.get("place"))
        broker_priority(options.get("priority", 0))
        weight("share", options.get("share", 1))
        self.place = options.get("place")
        self.policy = as_policy(options.get("retry"))
        self.timeout = timeout
        self._max_workers = max_workers
        self._options = options
        self._kept: dict[tuple[Any, ...], Route] = {}

    def forget(self) -> None:
        """Decide anew from here on: a forked child may be a worker, and what is under way belongs to its parent."""
        from graft.tasks.sending.envelope_bound import EnvelopeBound

        self._kept.clear()
        self.bound = None if self._max_workers is None else EnvelopeBound(self._max_workers)

    def get(
        self,
        func: Callable[..., Any],
        *,
        call: str,
        batch_size: int | None = None,
        is_map: bool = False,
        shown: Callable[..., Any] | None = None,
    ) -> Route:
        """The route of *func*. For *call*, *is_map* and *shown* see :class:`Route`.

        Args:
            batch_size: calls in one envelope. Default: learnt from the callable's own pace.

        Raises:
            TypeError: *func* cannot be called.
            UnreferenceableError: forced to the cluster, but a worker can neither import nor receive *func*.
        """
        key = (func, call, batch_size, is_map) if shown is None and _is_module_level(func) else None
        if key is not None and (kept := self._kept.get(key)):
            return kept
        placement = place_calls(func, self.place)
        ref = placement.function
        sent = None if ref is None else self._batch_options(ref, batch_size, is_map)
        route = Route(call, func, shown or func, placement, is_map, sent)
        if key is not None and ref is not None and ref.how == "import":
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = route
        return route

    def _batch_options(self, ref: FunctionRef, batch_size: int | None, is_map: bool) -> BatchOptions:
        in_flight, concurrency = None, TOGETHER if ref.is_async else 1
        if self._max_workers is not None and is_map:
            # The envelope of a plain callable runs one item at a time; async items share one.
            in_flight = min(self._max_workers, 2) if ref.is_async else self._max_workers
            concurrency = max(1, self._max_workers // in_flight)
        elif self._max_workers is not None:
            concurrency = 1
        options = batch_options(ref, self._options, self._options.get("queue"))
        return replace(
            options, batch_size=batch_size, in_flight=in_flight, concurrency=concurrency, unpack=True,
            bound=None if is_map else self.bound,
        )  # fmt: skip


def batch_options(ref: FunctionRef, options: CallOptions, queue: str | None = None) -> BatchOptions:
    """How items of one callable are sent, by the facade's options."""
    from graft.tasks.sending.batch_sender import BatchOptions

    policy = as_policy(options.get("retry"))
    check_importable("retry", policy.names())
    return BatchOptions(
        function=ref,
        queue=queue or (table().io if ref.is_async else table().batch),
        priority=broker_priority(options.get("priority", 0)),
        share=weight("share", options.get("share", 1)),
        timeout=options.get("timeout"),
        policy=policy,
    )


def _is_module_level(func: Callable[..., Any]) -> bool:
    """Whether *func* still is what its module has under its name: then its route cannot have changed."""
    module = sys.modules.get(getattr(func, "__module__", None) or "")
    return module is not None and getattr(module, getattr(func, "__qualname__", ""), None) is func
