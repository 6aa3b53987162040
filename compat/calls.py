"""Calls and maps for plain threads: the part of the bridge that executors and pools stand on.

A Switchboard connects each call to the line of its callable (tasks/calls.py) or, where rule R2 keeps it with the
caller, to a thread of its own small pool. It knows what is open, so it can be waited for, cancelled and closed.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from graft.compat.bridge import Account, Place, Placement, place_function
from graft.compat.futures import CallFuture, MapCall, executor_error
from graft.config.queues import broker_priority, names
from graft.config.settings import settings
from graft.tasks import codec
from graft.tasks.envelope import Outcome
from graft.tasks.errors import CancelledBatchError, ItemTimeoutError, PayloadTooLargeError, UnpicklableError
from graft.tasks.importable import name_of
from graft.tasks.policy import RetryPolicy, as_policy

if TYPE_CHECKING:
    from graft.tasks.callables import FunctionRef
    from graft.tasks.feeder import Order

logger = logging.getLogger(__name__)

WINDOW: Final = 1_000  # Calls that a stream makes ahead of its reader.
TOGETHER: Final = 100  # Items of one envelope that an async callable runs at once.
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class Route:
    """How calls of one callable are made, for as long as what it captures is as it was: *order* says how on workers."""

    call: str
    func: Callable[..., Any]
    shown: Callable[..., Any]
    placement: Placement
    is_map: bool
    order: Order | None = None


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
        _boards.add(self)

    def _renew(self) -> None:
        """Nothing is open; after a fork what was open is the parent's."""
        self._changed = threading.Condition()
        self._open: dict[Future[Any], CallFuture | MapCall] = {}
        self._waiting: deque[tuple[CallFuture, Route, Arguments, Account]] = deque()
        self._made = 0
        self._is_making = False
        self._threads: ThreadPoolExecutor | None = None
        self._retired: ThreadPoolExecutor | None = None

    # ---- for executors and pools ------------------------------------------------------------------------------------

    is_closed = False

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
        placement = place_function(func, self.place)
        shown = shown or func
        logger.debug("%s runs in the %s: %s", name_of(shown), placement.where, placement.reason)
        if placement.function is None:
            return Route(call, func, shown, placement, is_map)
        return Route(call, func, shown, placement, is_map, self._order(placement.function, batch_size, is_map))

    def _order(self, ref: FunctionRef, batch_size: int | None, is_map: bool) -> Order:
        from graft.tasks.feeder import Order

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
        future = CallFuture()
        account = self._opened(future, future, route, 1)
        arguments = (tuple(args), kwargs)
        if self.max_workers is None or route.is_map:
            self._make(future, route, arguments, account)
        else:
            self._waiting.append((future, route, arguments, account))
            self._make_waiting(self.max_workers)
        return future

    def map(self, route: Route, items: Sequence[Any], *, unpack: bool) -> MapCall:
        """Call for every item, or for every ``(args, kwargs)`` pair if *unpack*; returns at once."""
        frames: Sequence[bytes] | None = None
        if route.order is not None and (unpack or not codec.all_atoms(items)):
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
        if route.order is None:
            self._map_here(route.func, batch, items, unpack)
        else:
            self._send(replace(route.order, unpack=unpack), batch, items, frames)
        return batch

    def close(self) -> None:
        """Take no more calls; the owner asks :attr:`is_closed`, so that streams may go on."""
        with self._changed:
            self.is_closed = True
            if not self._open:
                self._retire_threads()

    def cancel(self) -> None:
        """Keep what has not begun from running."""
        for one in list(self._open.values()):
            one.cancel()

    def abandon(self, error: Exception) -> None:
        """Cancel, and let whoever waits for what has begun have *error*; it runs to its end unobserved."""
        self.cancel()
        for one in list(self._open.values()):
            one.fail(error)

    def wait(self) -> None:
        """Until everything that was begun has ended, local threads included."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open)
            self._retire_threads()
        if self._retired is not None:
            self._retired.shutdown()

    # ---- on the cluster ---------------------------------------------------------------------------------------------

    def _make(self, future: CallFuture, route: Route, arguments: Arguments, account: Account) -> None:
        try:
            if route.order is not None:
                from graft.tasks.calls import call

                try:
                    future.follow(call(route.order, *arguments))
                    return
                except UnpicklableError as error:
                    if self.place == "cluster":
                        raise
                    account.placement = Placement("caller", str(error))
            args, kwargs = arguments
            future.follow(self._here(run_here, route.func, args, kwargs, self._policy, self._timeout))
        except Exception as error:
            future.fail(executor_error(error))

    def _make_waiting(self, most: int) -> None:
        """Make as many of the waiting calls as may be under way at once.

        A call that fails at once brings us back here from its own callback: the flag makes that a loop.
        """
        with self._changed:
            if self._is_making:
                return
            self._is_making = True
        try:
            while True:
                with self._changed:
                    if self._made >= most or not self._waiting:
                        self._is_making = False
                        return
                    future, route, arguments, account = self._waiting.popleft()
                    self._made += 1
                if not future.begin():
                    self._answered(most)
                    continue
                self._make(future, route, arguments, account)
                future.add_done_callback(lambda _: self._answered(most))
        except BaseException:
            self._is_making = False
            raise

    def _answered(self, most: int) -> None:
        with self._changed:
            self._made -= 1
        self._make_waiting(most)

    def _send(self, order: Order, batch: MapCall, items: Sequence[Any], frames: Sequence[bytes] | None) -> None:
        from graft.tasks.feeder import Feeder
        from graft.tasks.publisher import publisher
        from graft.tasks.source import ListSource

        source = ListSource(items) if frames is None else ListSource(frames, encoded=True)
        feeder = Feeder(batch, source, order, publisher().wake)
        batch.attach(feeder.cancel, lambda: None)
        publisher().wake(feeder)

    # ---- in the caller ----------------------------------------------------------------------------------------------

    def _here(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        with self._changed:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.max_workers, "graft-here")
            return self._threads.submit(func, *args)

    def _map_here(self, func: Callable[..., Any], batch: MapCall, items: Sequence[Any], unpack: bool) -> None:
        is_cancelled = threading.Event()
        batch.attach(is_cancelled.set, lambda: None)

        def run(position: int, item: Any) -> None:
            try:
                if is_cancelled.is_set():
                    raise CancelledBatchError(f"item {position} was cancelled before it ran")
                args, kwargs = item if unpack else ((item,), {})
                outcome = Outcome(position, run_here(func, args, kwargs, self._policy, self._timeout))
            except BaseException as error:
                outcome = Outcome(position, error=error)
            batch.note_outcomes([outcome])

        for position, item in enumerate(items):
            self._here(run, position, item)
        batch.note_sent(len(items), envelopes=0)

    def _retire_threads(self) -> None:
        """They end once they are idle; a stream that goes on after the end gets others."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._retired, self._threads = self._threads, None

    # ---- what is open -----------------------------------------------------------------------------------------------

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
                    self._retire_threads()
                self._changed.notify_all()
        if not future.cancelled():  # What was cancelled was not made, and is not counted.
            failed = account.batch.progress().failed > 0 if account.batch else future.exception() is not None
            account.failed = failed
            account.close()
        account.batch = None  # Which holds the future that holds us.


def run_here(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    policy: RetryPolicy,
    timeout: float | None,
) -> Any:
    """Call *func* in this thread as a worker would: awaitables are awaited, and *policy* says when to run it again."""
    run = 0
    while True:
        run += 1
        try:
            value = func(*args, **kwargs)
            return asyncio.run(_awaited(value, timeout)) if inspect.isawaitable(value) else value
        except Exception as error:
            wait = policy.wait_after(run, error)
            if wait is None:
                raise
        time.sleep(wait)


async def _awaited(value: Awaitable[Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as limit:
            return await value
    except TimeoutError as error:
        if limit.expired():
            raise ItemTimeoutError(f"the call ran longer than its limit of {timeout:g} s") from error
        raise


_boards: WeakSet[Switchboard] = WeakSet()


def _renew_all() -> None:
    for board in list(_boards):
        board._renew()


def _wait_for_all() -> None:
    """The standard executors finish what they have accepted before the interpreter ends; so do we."""
    for board in list(_boards):
        board.wait()


os.register_at_fork(after_in_child=_renew_all)
with suppress(RuntimeError):  # The interpreter is ending already.
    # Like the standard executors: atexit's own time is too late to start the threads that waiting calls need.
    getattr(threading, "_register_atexit", atexit.register)(_wait_for_all)
