"""Calls and maps for plain threads: the part of the bridge that executors and pools stand on.

    CeleryExecutor ─┐               ┌─ sending/coalescing     the line of the callable: calls that come together share
    Pool           ─┼─ Switchboard ─┼─ sending/batch_sender   a map                                         [messages
    joblib backend ─┘               └─ local_threads          threads of this process, where rule R2 keeps the call

A Switchboard knows what is open, so it can be waited for, cancelled and closed.
"""

from __future__ import annotations

import atexit
import functools
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakSet

from graft.compat.bounded_starter import Turns
from graft.compat.bridge import Account, Place, Placement, place_function
from graft.compat.futures import CallFuture, executor_error
from graft.compat.local_threads import Here
from graft.compat.map_call import MapCall
from graft.config.deployment import part, settings
from graft.config.queues import broker_priority, names
from graft.tasks import codec
from graft.tasks.callables.importable import name_of
from graft.tasks.errors import CancelledBatchError, PayloadTooLargeError, UnpicklableError
from graft.tasks.policy import RetryPolicy, as_policy

if TYPE_CHECKING:
    from graft.tasks.callables.references import FunctionRef
    from graft.tasks.sending.batch_sender import Order

logger = logging.getLogger(__name__)

KNOWN: Final = 256  # Routes of importable functions that are kept for their next call.
TOGETHER: Final = 100  # Items of one envelope that an async callable runs at once.


@dataclass(frozen=True)
class Route:
    """How calls of one callable are made, for as long as what it captures is as it was: *order* says how on workers."""

    call: str
    func: Callable[..., Any]
    shown: Callable[..., Any]
    placement: Placement
    is_map: bool
    order: Order | None = None


class Stream(Protocol):
    """What goes on making calls after it was asked for."""

    def wait_fed(self) -> None:
        """Until it makes no more calls, or none before its reader goes on."""

    def end(self, error: BaseException) -> None:
        """Make no more calls; whoever waits for them has *error*."""


class Switchboard:
    """Makes calls, on workers or here, as its owner's settings say; any thread may use it.

    Args:
        max_workers: single calls that are made and not yet answered at once, and likewise for each map; no bound of
            its own unless given. Each of these calls is then an envelope of its own.
        queue: one of config/queues.py; by default ``batch``, and ``io`` for async callables.
        priority: larger goes first.
        retry: a policy, or a number of retries, for calls that raise.
        timeout: seconds one call may run. A plain function that stays with the caller cannot be stopped.
        place: "cluster" or "local" instead of what rule R2 says.
    """

    def __init__(
        self,
        *,
        max_workers: int | None = None,
        queue: str | None = None,
        priority: float = 0,
        retry: RetryPolicy | int | None = None,
        timeout: float | None = None,
        place: Place | None = None,
    ) -> None:
        if queue is not None and queue not in names():
            raise ValueError(f"there is no queue {queue!r}; there are {', '.join(names())}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r} must be more than 0 seconds; None means no limit")
        if place not in (None, "cluster", "local"):
            raise ValueError(f"place={place!r} must be 'cluster', 'local' or None")
        self.max_workers = max_workers
        self._queue = queue
        self._priority = broker_priority(priority)
        self._policy = as_policy(retry)
        self._timeout = timeout
        self.place = place
        self._renew()
        part(_Open).boards.add(self)

    def _renew(self) -> None:
        """Nothing is open; after a fork what was open is the parent's."""
        self._changed = threading.Condition()
        self._open: dict[Future[Any], CallFuture | MapCall] = {}
        self._streams: WeakSet[Stream] = WeakSet()
        self._turns = None if self.max_workers is None else Turns(self.max_workers)
        self._here = Here(self.max_workers, self._policy, self._timeout)
        self._known: dict[tuple[Any, ...], Route] = {}

    # ---- for executors and pools ------------------------------------------------------------------------------------

    is_closed = False
    _given_up: Exception | None = None

    def route(
        self,
        func: Callable[..., Any],
        *,
        call: str,
        batch_size: int | None = None,
        is_map: bool = False,
        shown: Callable[..., Any] | None = None,
    ) -> Route:
        """Decide where calls of *func* run.

        Args:
            call: the old call's name, for the report.
            batch_size: calls in one envelope; learnt from the callable's own pace unless given.
            is_map: for :meth:`map`, or the calls of one stream: each has ``max_workers`` for itself.
            shown: the caller's own function, where *func* only wraps it.

        Raises:
            TypeError: *func* cannot be called.
            UnreferenceableError: forced to the cluster, and a worker can neither import nor receive *func*.
        """
        if not callable(func):
            raise TypeError(f"{func!r} is not callable")
        known = self._known.get((func, call, batch_size, is_map)) if shown is None and _is_module_level(func) else None
        if known is not None:
            return known
        placement = place_function(func, self.place)
        shown = shown or func
        if logger.isEnabledFor(logging.DEBUG):  # Once for each call.
            logger.debug("%s runs in the %s: %s", name_of(shown), placement.where, placement.reason)
        if placement.function is None:
            return Route(call, func, shown, placement, is_map)
        route = Route(call, func, shown, placement, is_map, self._order(placement.function, batch_size, is_map))
        if placement.function.how == "import" and shown is func:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[func, call, batch_size, is_map] = route
        return route

    def _order(self, ref: FunctionRef, batch_size: int | None, is_map: bool) -> Order:
        from graft.tasks.sending.batch_sender import Order

        in_flight, concurrency = None, TOGETHER if ref.is_async else 1
        if self.max_workers is not None and is_map:
            # A plain callable's envelope runs one item at a time; async items share it.
            in_flight = min(self.max_workers, 2) if ref.is_async else self.max_workers
            concurrency = max(1, self.max_workers // in_flight)
        elif self.max_workers is not None:
            batch_size = concurrency = 1
        return Order(
            function=ref,
            queue=self._queue or ("io" if ref.is_async else "batch"),
            priority=self._priority,
            batch_size=batch_size,
            in_flight=in_flight,
            concurrency=concurrency,
            timeout=self._timeout,
            policy=self._policy,
            unpack=True,
        )

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, call: str, **how: Any
    ) -> CallFuture:
        """The future of one call; whatever is wrong with the call is in its future. *how*: see :meth:`route`."""
        try:
            return self.follow(self.route(func, call=call, **how), args, kwargs)
        except Exception as error:
            return self.refused(error)

    def refused(self, error: Exception) -> CallFuture:
        """The future of a call that cannot be made."""
        future = CallFuture()
        future.set_exception(error)
        return future

    def follow(self, route: Route, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallFuture:
        """The future of one more call on *route*."""
        if self._given_up is not None:
            return self.refused(self._given_up)
        future = CallFuture()
        account = self._opened(future, future, route, 1)
        if self._turns is None or route.is_map:
            self._make(future, route, args, kwargs, account)
        else:
            self._turns.add(functools.partial(self._begin, future, route, args, kwargs, account))
        return future

    def map(self, route: Route, items: Sequence[Any], *, unpack: bool) -> MapCall:
        """Call for every item, or for every ``(args, kwargs)`` pair if *unpack*; returns at once."""
        frames: Sequence[bytes] | None = None
        if route.order is not None and (unpack or codec.plain_size(items) is None):
            try:
                limit = settings().item_limit
                frames = [codec.dump_item(item, limit, f"item {index}") for index, item in enumerate(items)]
            except PayloadTooLargeError:
                pass  # The feeder gives each item that is too large an error of its own.
            except UnpicklableError as error:
                if self.place != "cluster":
                    route = replace(route, placement=Placement("caller", str(error)), order=None)
        batch = MapCall(len(items), is_here=route.order is None)
        self._opened(batch.ended, batch, route, len(items)).batch = batch
        if not items:
            return batch
        try:
            if route.order is None:
                self._here.map(route.func, batch, items, unpack=unpack)
            else:
                self._send(replace(route.order, unpack=unpack), batch, items, frames)
        except Exception as error:  # Or it would be open for ever.
            batch.fail(executor_error(error))
        return batch

    def add_stream(self, stream: Stream) -> None:
        """Wait for *stream*, and end it, with the calls; it is forgotten when it is dropped."""
        with self._changed:
            self._streams.add(stream)

    def close(self) -> None:
        """Take no more calls; the owner asks :attr:`is_closed`, so that streams may go on."""
        with self._changed:
            self.is_closed = True
            if not self._open:
                self._here.retire()

    def cancel(self) -> None:
        """Keep what has not begun from running."""
        for one in list(self._open.values()):
            one.cancel()

    def abandon(self, error: Exception) -> None:
        """Cancel, and let whoever waits for what has begun have *error*; it runs to its end unobserved.

        So do streams, and calls that they are about to make.
        """
        self._given_up = error
        for stream in self._streams_now():
            stream.end(error)
        self.cancel()
        for one in list(self._open.values()):
            one.fail(error)

    def wait(self) -> None:
        """Until everything that was begun has ended, local threads included."""
        for stream in self._streams_now():
            stream.wait_fed()
        self._wait_open()

    def finish(self) -> None:
        """Make the calls that are open, and none that streams have yet to make: the interpreter ends."""
        for stream in self._streams_now():
            stream.end(CancelledBatchError("the program ended before the call was made"))
        self._wait_open()

    def _wait_open(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open)
            self._here.retire()
        self._here.wait()

    # ---- on the cluster ---------------------------------------------------------------------------------------------

    def _begin(self, future: CallFuture, *call: Any) -> CallFuture | None:
        if not future.begin():
            return None
        self._make(future, *call)
        return future

    def _make(
        self, future: CallFuture, route: Route, args: Sequence[Any], kwargs: Mapping[str, Any], account: Account
    ) -> None:
        try:
            if route.order is not None:
                from graft.tasks.sending.coalescing import call

                try:
                    if future.running():  # Since it had its turn; the call itself can still be cancelled.
                        future.follow(call(route.order, args, kwargs))
                    else:
                        call(route.order, args, kwargs, future)
                    return
                except UnpicklableError as error:
                    if self.place == "cluster":
                        raise
                    account.placement = Placement("caller", str(error))
            future.follow(self._here.call(route.func, args, kwargs))
        except Exception as error:
            future.fail(error)

    def _send(self, order: Order, batch: MapCall, items: Sequence[Any], frames: Sequence[bytes] | None) -> None:
        from graft.tasks.sending.batch_sender import Feeder
        from graft.tasks.sending.publisher import publisher
        from graft.tasks.sending.sources import ListSource

        source = ListSource(items) if frames is None else ListSource(frames, encoded=True)
        feeder = Feeder(batch, source, order, publisher().wake)
        batch.attach(feeder.cancel, lambda: None)
        publisher().wake(feeder)

    # ---- what is open -----------------------------------------------------------------------------------------------

    def _streams_now(self) -> list[Stream]:
        with self._changed:
            return list(self._streams)

    def _opened(self, future: Future[Any], one: CallFuture | MapCall, route: Route, items: int) -> Account:
        account = Account(route.call, route.func, route.placement, items, route.shown)
        with self._changed:
            self._open[future] = one
        future.add_done_callback(functools.partial(self._ended, account))
        return account

    def _ended(self, account: Account, future: Future[Any]) -> None:
        with self._changed:
            self._open.pop(future, None)
            if not self._open:
                if self.is_closed:
                    self._here.retire()
                self._changed.notify_all()
        if not future.cancelled():  # What was cancelled was not made, and is not counted.
            failed = account.batch.progress().failed > 0 if account.batch else future.exception() is not None
            account.failed = failed
            account.close()
        account.batch = None  # Which holds the future that holds us.


def _is_module_level(func: Callable[..., Any]) -> bool:
    """Whether *func* still is what its module has under its name: then its route cannot have changed."""
    module = sys.modules.get(getattr(func, "__module__", None) or "")
    return module is not None and getattr(module, getattr(func, "__qualname__", ""), None) is func


class _Open:
    """The switchboards of this process."""

    def __init__(self) -> None:
        self.boards: WeakSet[Switchboard] = WeakSet()

    def after_fork(self) -> None:
        """They stay open in a forked child, without what runs in its parent."""
        for board in list(self.boards):
            board._renew()


def _wait_for_all() -> None:
    """The standard executors finish what they have accepted before the interpreter ends; so do we."""
    for board in list(part(_Open).boards):
        board.finish()


with suppress(RuntimeError):  # The interpreter is ending already.
    # Like the standard executors: atexit's own time is too late to start the threads that waiting calls need.
    getattr(threading, "_register_atexit", atexit.register)(_wait_for_all)
