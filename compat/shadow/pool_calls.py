"""The calls of one pool of the standard library under a plan: its own processes answer, and guests run a share too.

    begin ── chosen as shadow ──► the arguments are kept        end ──► the guests run it as well, and both are compared
        └── chosen as canary ──► the guests run it ──► answer, or the pool's own processes after all

The guests are those of a second pool, the twin, which is as the first would be under ``--pools`` alone. There is one
for each purpose: what shadowed calls write is dropped.
"""

from __future__ import annotations

import functools
import pickle
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from graft.compat.shadow.compare import Run, error_of
from graft.compat.shadow.plan import Purpose
from graft.compat.shadow.record import Record
from graft.compat.shadow.sender import AT_END, NOT_ITS_OWN, Sender, Shadowed
from graft.compat.shadow.switch import Switch
from graft.config.deployment import settings
from graft.tasks import codec

TICK: Final = 0.25

Dumps = Callable[[Any], Any]


class Live(Protocol):
    """The plan that is carried out (live.py)."""

    is_here: bool
    sender: Sender
    switch: Switch

    def pool_record(self, shown: Callable[..., Any], why: str) -> Record: ...

    def chosen(self, record: Record, number: int) -> Purpose | None: ...

    def note_canary(self, record: Record, error: BaseException | None, *, is_taken_back: bool) -> None: ...


@dataclass(slots=True)
class _Kept:
    """A call that is to be compared: its arguments before it ran."""

    record: Record
    number: int
    frame: bytes
    began: float
    twin: ProcessPoolExecutor


@dataclass(slots=True, eq=False)
class _Canary:
    """A call that the guests are to answer until *deadline*."""

    record: Record
    deadline: float
    answer: Callable[[Any, BaseException | None], None]
    take_back: Callable[[], None]


class PoolCalls:
    """The calls of one pool.

    Args:
        make_twin: the pool of guests for a purpose, or why there is none.
        dumps: how its calls are pickled, where that is not pickle's way: joblib and pathos send lambdas.
    """

    def __init__(
        self, live: Live, make_twin: Callable[[str], ProcessPoolExecutor | str], dumps: Dumps | None = None
    ) -> None:
        self._live, self._make_twin, self._own_dumps = live, make_twin, dumps
        self._twins: dict[str, ProcessPoolExecutor | str] = {}
        self._making = threading.Lock()
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        self._kept: dict[Hashable, _Kept] = {}
        self._canaries: set[_Canary] = set()
        self._looks: threading.Thread | None = None
        with suppress(RuntimeError):  # The interpreter is ending already.
            register: Any = threading._register_atexit  # type: ignore[attr-defined]
            register(self.finish)
        for purpose in ("shadow", "canary"):  # As a fork would be made now; a share can be raised later.
            if live.is_here and getattr(live.switch.own, purpose):
                self._twin(purpose)

    def begin(
        self, key: Hashable, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any],
        shown: Callable[..., Any], answer: Callable[[Any, BaseException | None], None], take_back: Callable[[], None],
    ) -> bool:  # fmt: skip
        """A call begins; whether the cluster answers it: then *answer* is told its value or error, or *take_back*."""
        why = next((twin for twin in self._twins.values() if isinstance(twin, str)), "")
        record = self._live.pool_record(shown, why)
        number = record.numbered()
        purpose = None if why or record.left_out else self._live.chosen(record, number)
        if purpose is None or purpose in self._lost or isinstance(twin := self._twin(purpose), str):
            return False
        try:
            frame = self._dumps((func, tuple(args), dict(kwargs)))
        except Exception as error:
            record.note_cannot(f"its arguments could not be recorded: {error}")
            return False
        if purpose == "shadow":
            with self._lock:
                self._kept[key] = _Kept(record, number, frame, time.perf_counter(), twin)
            return False
        patience = self._live.sender.patience(record)
        call = _Canary(record, time.monotonic() + patience, answer, take_back)
        try:
            future = self._run(twin, frame)
        except Exception as error:
            self._note(call, error, is_taken_back=True)
            return False
        with self._lock:
            self._canaries.add(call)
            if self._looks is None:
                self._looks = threading.Thread(target=self._look, name="graft-canaries", daemon=True)
                self._looks.start()
        future.add_done_callback(functools.partial(self._answered, call))
        return True

    def end(self, key: Hashable, value: Any, error: BaseException | None) -> None:
        """The pool's own processes have answered a call."""
        with self._lock:
            kept = self._kept.pop(key, None)
        if kept is None:
            return
        seconds = time.perf_counter() - kept.began
        kept.record.note_old(seconds, failed=error is not None)
        try:
            limit = settings().guest_value_limit
            _, args, kwargs = pickle.loads(kept.frame)
            old = Run(
                seconds,
                codec.dump_item(value, limit, "the value") if error is None else None,
                None if error is None else error_of(error),
            )
            frame = self._dumps((args, kwargs))
            run = functools.partial(self._run, kept.twin, kept.frame)
            if not self._live.sender.take(Shadowed(kept.record, kept.number, None, frame, old, run=run)):
                kept.record.note_dropped()
        except Exception as refusal:
            kept.record.note_cannot(f"what it did could not be recorded: {refusal}")

    def finish(self) -> None:
        """The program ends: give what is outstanding its time, then end the guests, whatever the cluster does."""
        twins = [twin for twin in self._twins.values() if not isinstance(twin, str)]
        if not twins or not self._live.is_here:
            return
        self._live.sender.wait(AT_END if self._live.switch.shares() else 0.0)
        for twin in twins:
            _terminate(twin)

    def close(self) -> None:
        """The pool has ended: its guests end once they have run what they were given."""
        for twin in list(self._twins.values()):
            if not isinstance(twin, str):
                twin.shutdown(wait=False)

    def _lose(self, purpose: str) -> None:
        """Its guests have not answered: end them, and with them what they run; the old way answers further calls."""
        if purpose not in self._lost:
            self._lost.add(purpose)
            if not isinstance(twin := self._twin(purpose), str):
                _terminate(twin)

    def _twin(self, purpose: str) -> ProcessPoolExecutor | str:
        with self._making:
            if purpose not in self._twins:
                self._twins[purpose] = self._make_twin(purpose)
            return self._twins[purpose]

    def _answered(self, call: _Canary, future: Future[Any]) -> None:
        if not self._settle(call):
            return
        error = None if future.cancelled() else future.exception()
        was_ended = "canary" in self._lost and isinstance(error, KeyboardInterrupt)  # With the guests of another call.
        if future.cancelled() or was_ended or isinstance(error, NOT_ITS_OWN):
            self._note(call, error or RuntimeError("it was cancelled"), is_taken_back=True)
            call.take_back()
            return
        self._note(call, error, is_taken_back=False)
        call.answer(None if error else future.result(), error)

    def _look(self) -> None:
        """Take back what has no answer in time."""
        while True:
            time.sleep(TICK)
            now, is_down = time.monotonic(), self._live.switch.shares() is None
            for call in list(self._canaries):
                if (is_down or call.deadline <= now) and self._settle(call):
                    self._lose("canary")
                    why = "Redis does not answer" if is_down else "the cluster had no answer in time"
                    self._note(call, TimeoutError(why), is_taken_back=True)
                    call.take_back()

    def _settle(self, call: _Canary) -> bool:
        with self._lock:
            if call not in self._canaries:
                return False
            self._canaries.remove(call)
            return True

    def _dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, codec.PROTOCOL) if self._own_dumps is None else bytes(self._own_dumps(value))

    def _run(self, twin: ProcessPoolExecutor, frame: bytes) -> Future[Any]:
        func, args, kwargs = pickle.loads(frame)
        if self._own_dumps is None:
            return twin.submit(func, *args, **kwargs)
        call: Any = _Pickled(functools.partial(func, *args, **kwargs), self._dumps)
        return twin.submit(call)

    def _note(self, call: _Canary, error: BaseException | None, *, is_taken_back: bool) -> None:
        self._live.note_canary(call.record, error, is_taken_back=is_taken_back)


class _Pickled:
    """A call for a twin, pickled as its pool would have done it."""

    def __init__(self, call: functools.partial[Any], dumps: Callable[[Any], bytes]) -> None:
        self._obj, self._dumps = call, dumps

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._dumps(self._obj),)


def _terminate(twin: ProcessPoolExecutor) -> None:
    for process in list((twin._processes or {}).values()) if twin._pending_work_items else ():
        process.terminate()
    twin.shutdown(wait=False, cancel_futures=True)
