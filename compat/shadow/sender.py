"""Sends shadowed calls to the cluster and compares what comes back, on a thread of its own: no caller waits for it.

What is outstanding is bounded in calls and bytes. Where the cluster is down or slow, further calls are dropped and
counted; a call that has no answer in its time is given up, and workers are asked to skip it.
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any, Final

from graft.compat.routes import batch_options
from graft.compat.shadow import on_worker
from graft.compat.shadow.compare import Comparison, Run, arguments_shown, error_of
from graft.compat.shadow.folders import Folder
from graft.compat.shadow.plan import Plan
from graft.compat.shadow.record import Example, Record
from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, EnvelopeError, UnreferenceableError
from graft.tasks.sending.call_future import Call

logger = logging.getLogger("graft.compat.shadow")

MOST_BYTES: Final = 64 << 20  # Of pickles that are outstanding.
LAST: Final = -4  # Priority: shadowed calls wait for all others.
TICK: Final = 0.25
NOT_ITS_OWN: Final = (BrokerUnavailable, CancelledBatchError, EnvelopeError, BrokenProcessPool)  # Of the cluster.
LAST_WORDS: Final = 5.0
AT_END: Final = 10.0  # Seconds that the end of a program waits for what is outstanding.


@dataclass(slots=True, eq=False)
class Shadowed:
    """A call that the old way has answered, and that the cluster is to run too. *frame* holds its arguments before.

    A worker gets the function *ref*; a pool has *run* instead, which has its guests make the call.
    """

    record: Record
    number: int
    ref: FunctionRef | None
    frame: bytes
    old: Run
    folders: Sequence[Folder] = ()
    run: Callable[[], Future[Any]] | None = None
    size: int = 0
    sent: float = 0.0
    future: Call = field(default_factory=Call)


class Sender:
    """Takes shadowed calls. *compared* is told the record after each."""

    def __init__(self, plan: Plan, compared: Callable[[Record], None]) -> None:
        self._comparison = Comparison(plan)
        self._timeout, self._most = plan.timeout, plan.outstanding
        self._compared = compared
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._outstanding = self._bytes = 0
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[Shadowed, float] = {}  # Sent, with the moment at which each is given up.
        self._thread = threading.Thread(target=self._run, name="graft-shadow", daemon=True)
        self._thread.start()

    def take(self, call: Shadowed) -> bool:
        """Compare *call* some time; False where too much is outstanding. Returns at once."""
        call.size = len(call.frame) + len(call.old.value or b"") + len(call.old.changed or b"")
        with self._lock:
            if self._outstanding >= self._most or self._bytes + call.size > MOST_BYTES:
                return False
            self._outstanding += 1
            self._bytes += call.size
        if call.run is None:
            self._todo.put(functools.partial(self._send, call))
            return True
        call.sent = time.monotonic()
        self._todo.put(functools.partial(self._await, call))
        try:
            # Now: at the end of the program the guests take nothing more.
            future = call.run()
        except Exception as error:
            self._todo.put(functools.partial(self._end, call, f"it could not be sent: {error}"))
        else:
            future.add_done_callback(lambda ended: self._todo.put(functools.partial(self._ran, call, ended)))
        return True

    def ask(self, ref: FunctionRef, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The future of a call that the cluster answers: the caller waits for this one.

        Raises:
            UnpicklableError, PayloadTooLargeError: an argument cannot travel.
        """
        from graft.tasks.sending.coalescing import call

        return call(_options(ref, priority=0), args, kwargs)

    def patience(self, record: Record) -> float:
        """Seconds that the cluster has for a call."""
        return max(self._timeout, 3 * record.slowest)

    def wait(self, seconds: float) -> bool:
        """Wait up to *seconds* for what is outstanding; whether nothing is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._outstanding, seconds)

    def finish(self, within: float) -> None:
        """Wait up to *within* seconds for what is outstanding; the rest is given up, and named."""
        self.wait(within)
        given_up = threading.Event()

        def give_up() -> None:
            self._give_up(math.inf, "the program ended before the cluster had answered")
            given_up.set()

        self._todo.put(give_up)
        given_up.wait(LAST_WORDS)

    def stop(self) -> None:
        """End the thread, once it has done what was given to it before."""
        self._todo.put(None)
        self._thread.join(LAST_WORDS)

    def _run(self) -> None:
        look_at = 0.0
        while True:
            try:
                job = self._todo.get(timeout=TICK)
            except queue.Empty:
                job = _nothing
            if job is None:
                return
            try:
                job()
                if (now := time.monotonic()) >= look_at:
                    look_at = now + TICK
                    self._give_up(now, "the cluster had no answer in time")
            except Exception:  # A fault of ours ends no comparison but this one, and never a caller.
                logger.exception("a call could not be compared")

    def _send(self, call: Shadowed) -> None:
        from graft.tasks.sending.coalescing import call as send

        assert call.ref is not None
        call.sent = time.monotonic()
        self._await(call)
        try:
            ref = refer(on_worker.run_async if call.ref.is_async else on_worker.run)
            send(_options(ref, priority=LAST), (call.ref, call.frame, tuple(call.folders)), {}, call.future)
        except Exception as error:
            self._end(call, f"it could not be sent: {error}")
            return
        call.future.add_done_callback(lambda _: self._todo.put(functools.partial(self._answered, call)))

    def _await(self, call: Shadowed) -> None:
        self._waiting[call] = call.sent + self.patience(call.record)

    def _ran(self, call: Shadowed, future: Future[Any]) -> None:
        """The guests of a pool have made the call, or not."""
        if call not in self._waiting:
            return
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, NOT_ITS_OWN):
            self._end(call, f"the cluster did not answer: {error or 'the program ended'}")
            return
        try:
            value = None if error else codec.dump_item(future.result(), settings().guest_value_limit, "the value")
        except Exception as refusal:
            self._end(call, f"what it did could not be recorded: {refusal}")
            return
        seconds = time.monotonic() - call.sent
        self._compare(call, Run(seconds, value, error_of(error) if error else None))

    def _answered(self, call: Shadowed) -> None:
        if call not in self._waiting or call.future.cancelled():
            return
        error = call.future.exception()
        if isinstance(error, BrokerUnavailable | CancelledBatchError) or (
            isinstance(error, EnvelopeError) and not isinstance(error, UnreferenceableError)
        ):
            self._end(call, f"the cluster did not answer: {error}")
        elif error is not None:
            self._compare(call, Run(0.0, error=error_of(error)))
        else:
            answer: on_worker.Answer = call.future.result()
            if answer.cannot:
                self._end(call, answer.cannot)
            else:
                self._compare(call, _as_run(answer, call.folders))

    def _compare(self, call: Shadowed, new: Run) -> None:
        try:
            found = self._comparison.differences(call.frame, call.old, new)
            example = None
            if found:
                text = arguments_shown(*pickle.loads(call.frame))
                example = Example(found[0], text, call.number, len(call.frame))
        except Exception as error:
            self._end(call, f"the comparison raised {type(error).__name__}: {error}")
            return
        trip = time.monotonic() - call.sent
        call.record.note_compared(found, example, call.old.seconds, new.seconds, trip)
        self._end(call)

    def _give_up(self, now: float, why: str) -> None:
        for call, deadline in list(self._waiting.items()):
            if deadline <= now:
                call.future.cancel()
                self._end(call, why)

    def _end(self, call: Shadowed, cannot: str = "") -> None:
        self._waiting.pop(call, None)
        if cannot:
            call.record.note_cannot(cannot)
        for folder in call.folders:
            folder.remove()
        with self._changed:
            self._outstanding -= 1
            self._bytes -= call.size
            self._changed.notify_all()
        self._compared(call.record)


def _nothing() -> None:
    """The time has come to look for calls without an answer."""


def _options(ref: FunctionRef, priority: float) -> Any:
    return replace(batch_options(ref, {"priority": priority}), unpack=True, concurrency=100 if ref.is_async else 1)


def _as_run(answer: on_worker.Answer, folders: Sequence[Folder]) -> Run:
    if answer.error is None:
        return Run(answer.seconds, answer.value, None, answer.changed, answer.files)
    kind, text = error_of(codec.load_error(answer.error))
    for folder in folders:
        text = text.replace(folder.copy, folder.real)
    return Run(answer.seconds, None, (kind, text), answer.changed, answer.files)
