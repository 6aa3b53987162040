"""Batches in the calling process (``GRAFT_MODE=local``): no Redis and no worker, and the same results and errors.

Functions, items and results go through a pickle, as they do in the cluster, so a function that changes what it shares
with its caller, or takes what cannot travel, fails on a laptop already. One thread for each batch runs its items: plain
ones one after the other, coroutines as many at once as an envelope would.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from graft.config.deployment import part, settings
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, resolve
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.envelope import RUN_ENVELOPE, Outcome, Report, error_frame, value_frame
from graft.tasks.errors import CancelledBatchError, ItemTimeoutError, ProcessExitError, TaskQueueError
from graft.tasks.policy import FailedRun
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.sending.batch_sender import BatchOptions

AHEAD: Final = 1000  # Outcomes of a stream that wait for their reader.
POLL: Final = 0.01  # Seconds between two looks at whether the reader has come closer.
LETTERS: Final = 1000

Frame = tuple[bool, bytes]


class _Letters:
    """The dead letters of this process's local batches."""

    def __init__(self) -> None:
        self.kept: deque[DeadLetter] = deque(maxlen=LETTERS)


def local_letters() -> list[DeadLetter]:
    """Return the dead letters that batches have left in this process with ``GRAFT_MODE=local``, the newest first."""
    return list(part(_Letters).kept)[::-1]


class LocalRun:
    """Runs one batch on a thread of this process."""

    def __init__(
        self, outcomes: Outcomes, options: BatchOptions, items: Iterable[Any], reducer: FunctionRef | None = None, *,
        keeps_errors: bool = False,
    ) -> None:  # fmt: skip
        self._outcomes, self._options, self._items = outcomes, options, items
        self._func = resolve(options.function)
        self._reduce = resolve(reducer) if reducer is not None else None
        self._keeps_errors = keeps_errors
        self._frames: dict[int, Frame] = {}  # Of a batch that is reduced.
        self._is_cancelled = self._ends_running = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        threading.Thread(target=self._run, name="graft-local-batch", daemon=True).start()

    def cancel(self, *, running: bool = False) -> None:
        """Begin no more items; coroutines that run are cancelled where *running* ones are to end."""
        self._is_cancelled = True
        if running and self._loop is not None:
            with suppress(RuntimeError):  # It was closed: nothing runs.
                self._loop.call_soon_threadsafe(self._end_running)

    def _run(self) -> None:
        try:
            if self._options.function.is_async:
                asyncio.run(self._run_together())
            else:
                for position, item in self._numbered():
                    self._note(position, self._outcome_of(position, item))
            if self._reduce is not None:
                self._outcomes.note_reduced(self._reduced())
        except BaseException as error:  # Of the caller's iterator, mostly.
            self._outcomes.fail(error)

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """The items to run, each when its reader is near enough; those that are cancelled have their outcome."""
        position = -1
        for position, item in enumerate(self._items):
            while self._outcomes.unread > AHEAD and not self._is_cancelled:
                time.sleep(POLL)
            if self._is_cancelled:
                error = CancelledBatchError(f"item {position} was cancelled before it ran")
                self._note(position, (error_frame(error), 0))
                if self._outcomes.is_stream:
                    break
            else:
                self._outcomes.note_sent(1, envelopes=0)
                yield position, item
        if self._outcomes.is_stream:
            self._outcomes.note_total(position + 1)

    # ---- plain functions --------------------------------------------------------------------------------------------

    def _outcome_of(self, position: int, item: Any) -> tuple[Frame, int]:
        """The outcome of one item, as it would travel, and how often it was run again."""
        try:
            packed = self._packed(position, item)
        except TaskQueueError as error:
            return error_frame(error), 0
        run, began = 0, time.monotonic()
        while True:
            run += 1
            try:
                return self._frame_of(position, packed), run - 1
            except BaseException as error:
                wait = self._wait_after(position, run, error, time.monotonic() - began)
                if wait is None:
                    return error_frame(_as_on_a_worker(error), skip_frames=2), run - 1
            time.sleep(wait)

    def _frame_of(self, position: int, packed: bytes) -> Frame:
        began, limit = time.monotonic(), self._options.timeout
        value = self._call(packed)
        if inspect.isawaitable(value):
            value = asyncio.run(_limited(value, limit))
        elif limit is not None and time.monotonic() - began > limit:  # A thread cannot be stopped in the middle.
            raise ItemTimeoutError(f"the item ran longer than its limit of {limit:g} s")
        return value_frame(value, position, settings().item_limit)

    def _packed(self, position: int, item: Any) -> bytes:
        return codec.dump_item(item, settings().item_limit, "item", position)

    def _call(self, packed: bytes) -> Any:
        """Call the function with a copy of the item, as a worker would."""
        copy = pickle.loads(packed)
        return self._func(*copy[0], **copy[1]) if self._options.unpack else self._func(copy)

    def _wait_after(self, position: int, run: int, error: BaseException, elapsed: float) -> float | None:
        """Seconds until the item runs again, noted; None where it does not, and its letter is kept."""
        policy, name = self._options.policy, self._options.function.name
        wait = None if self._is_cancelled else policy.next_wait(run, error, elapsed)
        if wait is not None:
            policy.note(FailedRun(name, run, policy.runs, error, wait, self._outcomes.id, position))
        elif policy.runs > 1 and not isinstance(error, CancelledBatchError):
            part(_Letters).kept.append(
                DeadLetter.make(
                    id=f"{self._outcomes.id}:{position}", task=RUN_ENVELOPE, queue=self._options.queue,
                    reason="retries_exhausted", function=name, error=error,
                    traceback="".join(traceback.format_exception(error)), runs=run, items=1, envelope="",
                )
            )  # fmt: skip
        return wait

    # ---- coroutines -------------------------------------------------------------------------------------------------

    async def _run_together(self) -> None:
        self._loop = asyncio.get_running_loop()
        items = self._numbered()
        runners = [asyncio.ensure_future(self._run_some(items)) for _ in range(self._options.concurrency)]
        await asyncio.gather(*runners)

    async def _run_some(self, items: Iterator[tuple[int, Any]]) -> None:
        for position, item in items:
            running = asyncio.ensure_future(self._run_one(position, item))
            self._running.add(running)
            await asyncio.wait([running])
            self._running.discard(running)
            if running.cancelled():
                error = CancelledBatchError(f"item {position} was cancelled while it ran")
                self._note(position, (error_frame(error), 0))
            else:
                running.result()

    async def _run_one(self, position: int, item: Any) -> None:
        try:
            packed = self._packed(position, item)
        except TaskQueueError as error:
            self._note(position, (error_frame(error), 0))
            return
        run, began = 0, time.monotonic()
        while True:
            run += 1
            try:
                value = await _limited(self._call(packed), self._options.timeout)
                frame = value_frame(value, position, settings().item_limit)
                break
            except BaseException as error:
                if self._ends_running and isinstance(error, asyncio.CancelledError):
                    raise
                wait = self._wait_after(position, run, error, time.monotonic() - began)
                if wait is None:
                    frame = error_frame(_as_on_a_worker(error), skip_frames=1)
                    break
            await asyncio.sleep(wait)
        self._note(position, (frame, run - 1))

    def _end_running(self) -> None:
        self._ends_running = True
        for running in self._running:
            running.cancel()

    # ---- outcomes ---------------------------------------------------------------------------------------------------

    def _note(self, position: int, ended: tuple[Frame, int]) -> None:
        frame, retries = ended
        if self._reduce is not None:
            self._frames[position] = frame
            self._outcomes.note_counted(1, int(not frame[0]), retries)
        else:
            self._outcomes.note_outcomes([_opened(position, frame)], retries)

    def _reduced(self) -> Outcome:
        """The outcome of the reducer; if an item failed, its error."""
        found = [_opened(position, frame) for position, frame in sorted(self._frames.items())]
        failed = next((outcome for outcome in found if outcome.error is not None), None)
        if failed is not None and not self._keeps_errors:
            return Outcome(0, error=failed.error)
        assert self._reduce is not None
        try:
            value = self._reduce(found if self._keeps_errors else [outcome.value for outcome in found])
            if inspect.isawaitable(value):
                value = asyncio.run(_limited(value, None))
            return _opened(0, value_frame(value, 0, settings().item_limit * 64))
        except BaseException as error:
            return _opened(0, error_frame(_as_on_a_worker(error), skip_frames=1))


def _opened(position: int, frame: Frame) -> Outcome:
    return next(Report([position], [frame], True, 0.0, 0.0, 0).outcomes())


async def _limited(call: Any, seconds: float | None) -> Any:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await call
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ItemTimeoutError(f"the item ran longer than its limit of {seconds:g} s") from error


def _as_on_a_worker(error: BaseException) -> BaseException:
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        refused = ProcessExitError(f"the callable tried to end the worker's process: {type(error).__name__}({error})")
        return refused.with_traceback(error.__traceback__)
    return error
