"""A pool process of ``direct``: takes messages from Redis, runs them, and tells how they ended.

    orders say so ─► fetch ─┬─ ordinary ───► run ─► the next round trip stores its result and acknowledges it
                            └─ all others ─► to the main process, which sends them back as jobs when their time has come

The main process promotes a run that lasts (promotion.py), and settles its message from then on. It gives to others what
has not begun behind such a run.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import billiard.pool
import redis
from billiard.common import clear_terminate_handler_fired, reset_signals, terminate_handler_fired
from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT
from celery.app import trace
from celery.concurrency.prefork import process_destructor, process_initializer
from celery.exceptions import Ignore, Retry
from celery.worker.strategy import logger as strategy_logger

from graft.config.transport.fetch import Taken
from graft.tasks.results.stored_later import Ending, store_later
from graft.workers.direct.events import EndedRun
from graft.workers.direct.flusher import Flusher
from graft.workers.direct.link import ProcessEnd
from graft.workers.direct.plain_run import Judge, PlainRun
from graft.workers.direct.shared_state import Entry, SharedState, State
from graft.workers.direct.taking import MOST, PAUSE, WAIT, Source, Taking

logger = logging.getLogger(__name__)

TELL_EVERY: Final = 0.5  # Seconds between two reports of what was taken and run.
MOST_EVENTS: Final = 500  # Runs that wait to be reported.


class PoolProcess:
    """What runs in the process, from its first to its last task."""

    def __init__(
        self, number: int, link: ProcessEnd, shared: SharedState, lock: Any, app: Any, hostname: str,
        most_tasks: int | None, most_memory: int | None,
    ) -> None:  # fmt: skip
        self._number, self._link, self._shared, self._lock = number, link, shared, lock
        self._app, self._hostname = app, hostname
        self._most_tasks, self._most_memory = most_tasks, most_memory
        self._parent = os.getpid()  # It is made there.
        self._taking = Taking()
        self._version = -1
        self._takes = False
        self._bank = 0  # The number of the first entry of the next fetch; those of the one before are kept apart.
        self._asked = {0: 0, MOST: 0}
        self._completed = 0
        self._is_in_run = False
        self._is_stored = False
        self._has_more = False  # Runs wait here behind this one.
        self._counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._unsigned: set[str] = set()
        self._has_listeners = False  # To task events.
        self._ended: list[EndedRun] = []
        self._told_at = time.monotonic()
        self._flusher = Flusher(self._taking)

    def run(self) -> None:
        """Run until the worker has no more use for this process; never returns."""
        code = 0
        try:
            self._begin()
            self._loop()
            self._settle_all()
            self._tell_counts(always=True)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            logger.critical("a pool process ends", exc_info=True)
            code = 1
        finally:
            try:
                process_destructor(os.getpid(), code)
            finally:
                os._exit(code & 0xFF)

    def _begin(self) -> None:
        clear_terminate_handler_fired()
        process_initializer(self._app, self._hostname)
        reset_signals()
        signal.signal(SIG_SOFT_TIMEOUT, self._on_soft_limit)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._judge = Judge(self._app, self._hostname)
        self._trace = trace.fast_trace_task if self._app.use_fast_trace_task else trace.trace_task_ret
        self._logs = strategy_logger.isEnabledFor(logging.INFO)
        store_later(self._store)
        self._link.tell("up")

    def _on_soft_limit(self, number: int, frame: Any) -> None:
        if self._is_in_run:
            raise SoftTimeLimitExceeded

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not (self._shared.is_to_end(self._number) or self._is_worn_out()):
            if os.getppid() != self._parent:
                return
            self._read_orders()
            if self._shared.jobs and self._run_job():
                continue
            if self._takes:
                self._take()
            else:
                self._settle_all()
                self._tell_counts()
                self._link.sleep(WAIT)

    def _read_orders(self) -> None:
        if self._version == self._shared.version:
            return
        self._version, orders = self._shared.read_orders()
        self._takes = bool(orders.get("takes"))
        if "source" in orders:
            self._taking.use(Source.of(orders["source"]), orders["poll"])
            self._judge.limit, self._judge.others = orders["limit"], frozenset(orders["others"])
            self._has_listeners = orders["events"]

    def _is_worn_out(self) -> bool:
        if self._most_tasks and self._completed >= self._most_tasks:
            return True
        used = billiard.pool.mem_rss() if self._most_memory and self._completed else 0
        if self._most_memory and used > self._most_memory:
            logger.warning(billiard.pool.MAXMEM_USED_FMT.format(used, self._most_memory))
            return True
        return False

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        bank, self._bank = self._bank, MOST - self._bank
        tags = self._taking.tags()
        self._asked[bank] = len(tags)
        for place, tag in enumerate(tags):
            self._shared.write(self._number, bank + place, State.ASKED, tag)
        try:
            with self._flusher.lock:
                taken = self._taking.fetch(tags)
        except redis.ConnectionError:
            self._free(bank)
            self._link.tell("back", tags)
            self._bank = bank
            time.sleep(PAUSE)
            return
        self._shared.note_client(self._number, self._taking.client_id)
        self._free(self._bank)  # Redis has been told how those ended.
        self._free(bank, len(taken))
        self._run_all(bank, taken)
        self._tell_counts()

    def _free(self, bank: int, first: int = 0) -> None:
        for place in range(first, self._asked[bank]):
            self._shared.set(self._number, bank + place, State.FREE)

    def _run_all(self, bank: int, taken: Sequence[Taken]) -> None:
        runs: list[tuple[int, PlainRun]] = []
        for number, message in enumerate(taken, bank):
            run = self._judge.plain_run(message)
            name, retries = (run.task_id, run.retries) if run is not None else ("", 0)
            if not self._shared.hold(
                self._number, Entry(number, State.ASKED, message.tag, name, retries, 0.0), self._lock
            ):
                continue
            if run is None:
                self._link.tell("deliver", *message)
                self._shared.set(self._number, number, State.FREE)
            else:
                runs.append((number, run))
        for turn, (entry, run) in enumerate(runs, 1):
            self._has_more = turn < len(runs)
            self._read_orders()
            if not self._may_begin(run):
                self._give_back(entry, run)
            elif self._shared.change(self._number, entry, run.taken.tag, State.HELD, State.RUNNING, self._lock):
                self._run(entry, run)

    def _may_begin(self, run: PlainRun) -> bool:
        is_wanted = self._takes and self._taking.reads(run.taken.queue)
        return is_wanted and not self._shared.is_to_end(self._number) and not self._is_worn_out()

    def _give_back(self, entry: int, run: PlainRun) -> None:
        if self._shared.change(self._number, entry, run.taken.tag, State.HELD, State.FREE, self._lock):
            self._link.tell("back", (run.taken.tag,))

    def _run(self, entry: int, run: PlainRun) -> None:
        queue = run.taken.queue
        self._note(run)
        self._is_stored = False
        at, began = time.time(), time.perf_counter()
        answer, leaves = self._traced(self._trace, run.name, run.task_id, run.request, run.body, None, None)
        seconds = time.perf_counter() - began
        self._taking.note(seconds)
        self._completed += 1
        tag = run.taken.tag
        is_own = self._shared.change(self._number, entry, tag, State.RUNNING, State.ENDED, self._lock)
        if is_own and _is_simple(answer, only_success=self._has_listeners):
            self._counts[1][run.name] += 1
            if self._has_listeners:
                self._ended.append(EndedRun.of(run, at, at + seconds, answer[1]))
            if not self._is_stored:
                self._taking.ack(tag)
        else:
            self._settle_all()
            self._link.tell("ended", tag, answer, None if not is_own else (run.taken.raw, queue), at, at + seconds)
            self._shared.set(self._number, entry, State.FREE)
        if leaves:
            self._settle_all()
            raise SystemExit(1)

    def _traced(self, target: Callable[..., Any], *arguments: Any) -> tuple[tuple[bool, Any], bool]:
        """How the run ended, as billiard tells it, and whether the task has ended this process."""
        try:
            try:
                self._is_in_run = True
                return (True, target(*arguments)), False
            finally:
                self._is_in_run = False
        except BaseException as error:
            if terminate_handler_fired():
                raise  # The worker ends this process: the run has not ended.
            return (False, ExceptionInfo()), isinstance(error, SystemExit | KeyboardInterrupt)

    def _store(self, how: Ending) -> None:
        """Keep a result that also acknowledges its message, for the next round trip."""
        self._is_stored = self._taking.settles
        self._taking.store(how)
        if self._has_more:
            self._flusher.watch()

    def _settle_all(self) -> None:
        while True:
            with self._flusher.lock:
                if self._taking.flush():
                    return
            if os.getppid() != self._parent:
                raise SystemExit(1)
            time.sleep(PAUSE)

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def _run_job(self) -> bool:
        """Run a job of the main process; False where others have them all."""
        self._settle_all()
        self._link.tell("job")
        job = self._link.receive()
        if job is None:
            return False
        number, target, arguments = job
        self._has_more = False
        answer, leaves = self._traced(target, *arguments)
        self._completed += 1
        self._settle_all()
        self._link.tell("done", number, answer)
        if leaves:
            raise SystemExit(1)
        return True

    # ---- the main process --------------------------------------------------------------------------------------------

    def _note(self, run: PlainRun) -> None:
        self._counts[0][run.taken.queue] += 1
        if run.unsigned_by is not None:
            self._unsigned.add(run.unsigned_by)
        if self._logs:
            headers = run.request
            context = {
                "id": run.task_id, "name": headers.get("shadow") or run.name, "args": headers.get("argsrepr", ""),
                "kwargs": headers.get("kwargsrepr", ""), "eta": None,
            }  # fmt: skip
            strategy_logger.info(trace.LOG_RECEIVED, context, extra={"data": context})

    def _tell_counts(self, *, always: bool = False) -> None:
        now = time.monotonic()
        queues, tasks = self._counts
        is_time = always or now - self._told_at > TELL_EVERY or len(self._ended) >= MOST_EVENTS
        if not (is_time and (queues or tasks)):
            return
        self._told_at = now
        if self._ended:
            self._link.tell("events", self._ended)
            self._ended = []
        self._link.tell("counts", dict(queues), dict(tasks), self._unsigned)
        self._counts, self._unsigned = (Counter(), Counter()), set()


def _is_simple(answer: tuple[bool, Any], *, only_success: bool) -> bool:
    """Whether nothing is left to be done but to acknowledge the message. *only_success*: somebody hears of all else."""
    is_answer, result = answer
    if not is_answer:
        return False
    failed, value, _ = result
    if not failed or only_success:
        return not failed
    error = getattr(value, "exception", None)
    return isinstance(getattr(error, "exc", error), Ignore | Retry)
