"""Calls and maps for plain threads: the dispatcher that executors, pools and the joblib backend share.

    CeleryExecutor ─┐                  ┌─ sending/coalescing     single calls of one callable share envelopes
    Pool           ─┼─ CallDispatcher ─┼─ sending/batch_sender   a map
    joblib backend ─┘                  └─ local_threads          calls that rule R2 keeps in this process

A dispatcher knows its open calls, so they can be waited for, cancelled and abandoned.
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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Unpack
from weakref import WeakSet

from graft.compat import old_way
from graft.compat.call_report import ReportedCall
from graft.compat.futures import CallFuture, executor_error
from graft.compat.local_threads import LocalThreads
from graft.compat.map_call import MapCall
from graft.compat.pool_iterators import InputReader
from graft.compat.routes import ExecutorOptions, Route, Routes
from graft.config.deployment import part, settings
from graft.tasks import codec
from graft.tasks.errors import CancelledBatchError, PayloadTooLargeError, UnpicklableError

logger = logging.getLogger(__name__)

INTERRUPTED: Final = "interrupted by Ctrl-C"
SETTLES: Final = 1.5  # Seconds for which an interrupted program waits for what has not begun to be cancelled.

if TYPE_CHECKING:
    from graft.tasks.results.outcomes import Outcomes
    from graft.tasks.sending.batch_sender import BatchOptions


class CallDispatcher:
    """Makes the calls of one executor or pool, on workers or on local threads; any thread may use it.

    Args:
        max_workers: single calls that may run at once on workers, and likewise for each map, and in this process.
            Default: unlimited.
    """

    def __init__(self, max_workers: int | None = None, **options: Unpack[ExecutorOptions]) -> None:
        self.max_workers = max_workers
        self._routes = Routes(max_workers, **options)
        self.route = self._routes.get
        self.place = self._routes.place
        self.is_closed = False
        self._abandoned: Exception | None = None
        self._renew()
        part(_Dispatchers).alive.add(self)

    def leave_end_to_owner(self) -> None:
        """The owner waits for the calls when the program ends, or ends them."""
        part(_Dispatchers).alive.discard(self)

    def _renew(self) -> None:
        """Begin without open calls; after a fork those belong to the parent."""
        self._changed = threading.Condition()
        self._open: dict[Future[Any], CallFuture | MapCall] = {}
        self._readers: WeakSet[InputReader] = WeakSet()
        self._threads = LocalThreads(self.max_workers, self._routes.policy, self._routes.timeout)
        self._routes.forget()

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, call: str, **how: Any
    ) -> CallFuture:
        """The future of one call, with any error of making it. *how*: see :meth:`Routes.get`."""
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
        if self._abandoned is not None:
            return self.refused(self._abandoned)
        route, (item,) = self._watched(route, [(args, kwargs)], unpack=True)
        args, kwargs = item
        future = CallFuture()
        report = self._opened(future, future, route, 1)
        self._make(future, route, args, kwargs, report)
        return future

    def map(self, route: Route, items: Sequence[Any], *, unpack: bool) -> MapCall:
        """Call for every item, or for every ``(args, kwargs)`` pair if *unpack*; returns at once."""
        watched, items = self._watched(route, items, unpack=unpack)
        unpack, route = unpack or watched is not route, watched
        frames: Sequence[bytes] | None = None
        if route.options is not None and (unpack or codec.plain_size(items) is None):
            try:
                limit = settings().item_limit
                frames = [codec.dump_item(item, limit, f"item {index}") for index, item in enumerate(items)]
            except PayloadTooLargeError:
                pass  # The sender gives each item that is too large an error of its own.
            except UnpicklableError as error:
                if self.place != "cluster":
                    route = route.moved_here(str(error))
        batch = MapCall(len(items), is_here=route.options is None)
        self._opened(batch.ended, batch, route, len(items))
        if not items:
            return batch
        try:
            if route.options is None:
                self._threads.map(route.func, batch, items, unpack=unpack)
            else:
                _send(replace(route.options, unpack=unpack), batch, items, frames)
        except Exception as error:  # Or it would be open for ever.
            batch.fail(executor_error(error))
        except BaseException as error:
            batch.fail(error)
            raise
        return batch

    def _watched(self, route: Route, items: Sequence[Any], *, unpack: bool) -> tuple[Route, Sequence[Any]]:
        """*route* and *items* as they are called where the old way answers; as they are where it does not."""
        watcher = old_way.watcher() if self.place is None else None
        if watcher is None:
            return route, items
        watched = watcher.watch(route.func, route.placement.function, route.placement.reason, shown=route.shown)
        func, spread = watched.spread(items, unpack=unpack)
        return replace(route.moved_here(old_way.REASON), func=func), spread

    def add_reader(self, reader: InputReader) -> None:
        """Wait for *reader*, and end it, with the open calls; a reader that is dropped is forgotten."""
        with self._changed:
            self._readers.add(reader)

    def close(self) -> None:
        """Take no more calls. The owner refuses them, by :attr:`is_closed`; input readers go on."""
        with self._changed:
            self.is_closed = True
            if not self._open:
                self._threads.retire()

    def cancel(self) -> None:
        """Cancel every call that has not begun."""
        for each in list(self._open.values()):
            each.cancel()

    def end_running(self) -> None:
        """Cancel every call, and end those that run on workers."""
        self.cancel()
        if self._routes.bound is not None:
            from graft.tasks.sending.coalescing import cancel_bound

            cancel_bound(self._routes.bound)

    def abandon(self, error: Exception) -> None:
        """Cancel, and end every call that has begun, and every reader, in *error*; the calls run on, unobserved."""
        self._abandoned = error
        self._end_readers(error)
        self.cancel()
        for each in list(self._open.values()):
            each.fail(error)

    def interrupt(self) -> None:
        """End after Ctrl-C: cancel what has not begun, say what has, and wait for no more of it."""
        self.close()
        self._end_readers(CancelledBatchError(INTERRUPTED))
        count = len(self._open)
        self.cancel()
        with self._changed:  # Workers say within half a second what they have skipped.
            self._changed.wait_for(lambda: not self._open, SETTLES)
            left = len(self._open)
        if count:
            fate = "Those run on, or wait for a worker, which will skip them." if left else "None runs on."
            logger.warning(
                "interrupted: of %d open calls, %d have ended and %d have not. %s", count, count - left, left, fate
            )
        self.abandon(CancelledBatchError(INTERRUPTED))

    def wait(self) -> None:
        """Wait until every call has ended, those of local threads and of readers included."""
        with self._changed:
            readers = list(self._readers)
        for reader in readers:
            reader.wait_fed()
        self._wait_open()

    def finish(self) -> None:
        """Wait for the open calls, and make no more for readers: the interpreter ends."""
        self._end_readers(CancelledBatchError("the program ended before the call was made"))
        self._wait_open()

    def _end_readers(self, error: Exception) -> None:
        with self._changed:
            readers = list(self._readers)
        for reader in readers:
            reader.end(error)

    def _wait_open(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open)
            self._threads.retire()
        self._threads.wait()

    def _make(
        self, future: CallFuture, route: Route, args: Sequence[Any], kwargs: Mapping[str, Any], report: ReportedCall
    ) -> CallFuture:
        try:
            if route.options is not None:
                from graft.tasks.sending.coalescing import call

                try:
                    call(route.options, args, kwargs, future)
                    return future
                except UnpicklableError as error:
                    if self.place == "cluster":
                        raise
                    report.placement = route.moved_here(str(error)).placement
            self._threads.call(future, route.func, args, kwargs)
        except Exception as error:
            future.fail(error)
        except BaseException as error:
            future.fail(error)
            raise
        return future

    def _opened(self, future: Future[Any], held: CallFuture | MapCall, route: Route, items: int) -> ReportedCall:
        report = ReportedCall(route.call, route.shown, route.placement, items)
        with self._changed:
            self._open[future] = held
        future.add_done_callback(functools.partial(self._ended, report))
        return report

    def _ended(self, report: ReportedCall, future: Future[Any]) -> None:
        with self._changed:
            held = self._open.pop(future, None)
            if not self._open:
                if self.is_closed:
                    self._threads.retire()
                self._changed.notify_all()
        if not report.call:  # The owner reports it.
            return
        if isinstance(held, MapCall):
            progress = held.progress()
            report.close(failed=progress.failed > 0, progress=progress)
        elif not future.cancelled():  # A cancelled call was not made, and is not counted.
            report.close(failed=future.exception() is not None)


def _send(options: BatchOptions, batch: MapCall, items: Sequence[Any], frames: Sequence[bytes] | None) -> None:
    from graft.tasks.sending.batch_sender import BatchSender
    from graft.tasks.sending.publisher import publisher
    from graft.tasks.sending.sources import ListSource

    source = ListSource(items) if frames is None else ListSource(frames, encoded=True)
    sender: BatchSender[Outcomes] = BatchSender(batch, source, options, publisher().wake)
    batch.on_cancel = sender.cancel
    publisher().start(sender)


class _Dispatchers:
    """The dispatchers of this process."""

    def __init__(self) -> None:
        self.alive: WeakSet[CallDispatcher] = WeakSet()

    def after_fork(self) -> None:
        """They stay open in a forked child, without the calls of its parent."""
        for dispatcher in list(self.alive):
            dispatcher._renew()


def _finish_all() -> None:
    """The standard executors finish accepted calls before the interpreter ends; so do ours."""
    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt  # What ends the program, unhandled.
    for dispatcher in list(part(_Dispatchers).alive):
        if is_interrupted:
            dispatcher.interrupt()
        else:
            dispatcher.finish()


with suppress(RuntimeError):  # The interpreter is ending already.
    # Like the standard executors: atexit's own time is too late to start the threads that waiting calls need.
    getattr(threading, "_register_atexit", atexit.register)(_finish_all)
