"""A multiprocessing context: its processes are members of a group where the pool moves, else the standard library's."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from typing import Any, Final, Self

from graft.compat import old_way
from graft.compat.dispatcher import CallDispatcher
from graft.compat.guests.decision import PoolKind, decide
from graft.compat.guests.group import MOVED, Group
from graft.compat.guests.leases import Leases
from graft.compat.guests.program import Start
from graft.compat.guests.staying import StaysHomeError
from graft.compat.guests.twin import attach
from graft.compat.guests.watched_calls import WatchedCalls
from graft.compat.pool_figures import PoolShape, made_at, maker
from graft.config.deployment import part
from graft.tasks.guests.mapped_files import MappedFile

logger = logging.getLogger(__name__)

ONE_PROCESS: Final = (
    "it has one process, in which a call may use what an earlier one left; give it more, or ask for "
    "--pools=processes,single if no call does"
)
NO_PROCESS: Final = itertools.count(1 << 22)  # Above every pid of this machine: whoever signals it finds nobody.


def _is_cancelled() -> bool:
    """Whether the asyncio task that runs here was cancelled, and has not heard of it yet."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio is not None and bool(asyncio.current_task()._must_cancel)
    except (RuntimeError, AttributeError):  # No loop runs here, or no task of asyncio's own.
        return False


class GuestContext:
    """Stands for the context *base* of one pool, and makes its processes.

    Whether the pool moves is decided when it starts its first process, as a fork would be made then.

    Args:
        package: ``multiprocessing``, or a package that has its modules.
        kind: ``executor`` or ``pool``.
        shown: the name of such pools in the report.
        environ: what its processes have in their environment besides.
        runs_main: whether they run the main module.
        stays: why the pool stays on this machine, where that is known.
        hears_interrupts: whether Ctrl-C ends the calls that run.
        keeps_state: whether a call may use what an earlier one left in its process, where the pool has one alone.
        files_of: the files that the call of a work id maps.
        twin_for: ``shadow`` or ``canary``, if the pool is there for the chosen calls of another.
    """

    def __init__(
        self, base: Any, package: str, kind: str, *, shown: str = "", environ: Mapping[str, str] | None = None,
        runs_main: bool = True, hears_interrupts: bool = True, twin_for: str = "", stays: str = "",
        keeps_state: bool = True, files_of: Callable[[int | None], tuple[MappedFile, ...]] = lambda _: (),
    ) -> None:  # fmt: skip
        self._base, self._package, self._kind, self._stays = base, package, kind, stays
        self._keeps_state = keeps_state
        self._shown = shown or ("ProcessPoolExecutor" if kind == "executor" else f"{package}.Pool")
        self._more: dict[str, Any] = {
            "environ": environ or {}, "runs_main": runs_main, "hears_interrupts": hears_interrupts,
            "files_of": files_of, "is_silent": twin_for == "shadow",  # The old way's run has written it.
        }  # fmt: skip
        self._owner: Any = None
        self._is_twin = bool(twin_for)
        self.reason = ""  # Why it stays at home, once that is decided.
        self._made_at = made_at(maker())
        self._group: Group | None = None
        self.watched: WatchedCalls | None = None  # Once it is decided.
        self._is_decided = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def belongs_to(self, owner: Any) -> Self:
        """*owner* is the pool, which is asked for the number of its processes."""
        self._owner = owner
        return self

    def moves(self, executor: Any) -> bool:
        """Decide now whether *executor* moves."""
        queues = executor._call_queue, executor._result_queue
        self._is_decided, self._owner = True, executor
        self._group = self._decided(*queues, executor._initializer, executor._initargs, None)
        self._owner = None
        return self._group is not None

    def Process(self, *args: Any, **options: Any) -> Any:
        """One more process of the pool."""
        if not self._is_decided:
            self._is_decided = True
            self._group = self._decided(*options["args"])
            self._owner = None
        if self._group is None:
            return self._base.Process(*args, **options)
        member = _member_class(self._base.Process)(*args, **options)
        member._group = self._group
        return member

    def _decided(self, calls_queue: Any, results_queue: Any, *rest: Any) -> Group | None:
        initializer, initargs, max_tasks, *wrap = rest
        kind = PoolKind(
            self._package, self._kind, self._base.get_start_method(), self._base.Process, initializer, tuple(initargs),
            max_tasks, bool(wrap and wrap[0]), self._kind == "pool", self._shown, **self._more,
        )  # fmt: skip
        count = self._owner._max_workers if self._kind == "executor" else self._owner._processes
        if not self._is_twin and (watcher := old_way.watcher()) is not None:
            self.compare(watcher, count, initializer, tuple(initargs))
            return None
        dispatcher = CallDispatcher(count, place="cluster")  # Never here, whoever looks on.
        dispatcher.leave_end_to_owner()
        began, interrupts = time.perf_counter(), part(Leases).interrupts
        try:
            if self._stays:
                raise StaysHomeError(self._stays)
            if count == 1 and max_tasks != 1 and self._keeps_state and not part(Start).moves_single:
                raise StaysHomeError(ONE_PROCESS)
            moved = decide(kind, lambda: self._names(count), dispatcher)
        except StaysHomeError as error:
            self.reason = reason = str(error)
            logger.info("a pool stays on this machine: %s", reason)
            self._watch(WatchedCalls(kind.shown, PoolShape(self._made_at, count), "local", reason))
            return None
        shape = PoolShape(self._made_at, count, moved.slots)
        watched = self._watch(WatchedCalls(kind.shown, shape, "cluster", MOVED, time.perf_counter() - began))
        group = Group(kind, moved, dispatcher, calls_queue, results_queue, watched)
        now = part(Leases).interrupts
        if now != interrupts or (now and _is_cancelled()):  # asyncio raises nothing here.
            group.refuse_calls()
        return group

    def compare(
        self, watcher: old_way.Watcher, count: int, initializer: Any, initargs: tuple[Any, ...],
        dumps: Callable[[Any], Any] | None = None,
    ) -> None:  # fmt: skip
        """Leave the pool at home, with twins that have guests, for shadow and canary; *dumps* pickles its calls."""
        self._watch(WatchedCalls(self._shown, PoolShape(self._made_at, count), "local", old_way.REASON))
        if dumps is None and self._package != "multiprocessing":
            dumps = import_module(f"{self._package}.reduction").ForkingPickler.dumps
        chosen = watcher.watch_pool(functools.partial(self._twin, count, initializer, initargs), dumps)
        attach(self._owner, self._kind, self._package, chosen)

    def _twin(self, count: int, initializer: Any, initargs: Any, purpose: str) -> ProcessPoolExecutor | str:
        more = {name: value for name, value in self._more.items() if name not in ("is_silent", "files_of")}
        shown = f"{self._shown}, for {purpose},"
        context: Any = GuestContext(self._base, self._package, "executor", shown=shown, twin_for=purpose, **more)
        context._made_at = self._made_at
        twin = ProcessPoolExecutor(count, context, initializer, initargs)
        if context.moves(twin):
            return twin
        twin.shutdown()
        reason: str = context.reason
        return reason

    def _watch(self, watched: WatchedCalls) -> WatchedCalls:
        self.watched = watched
        watched.watch(self._owner, self._kind)
        return watched

    def _names(self, count: int) -> list[str]:
        """The names that processes of this machine would have."""
        probe = self._base.Process()
        kind = type(probe).__name__.replace("Process", "PoolWorker") if self._kind == "pool" else type(probe).__name__
        process: Any = import_module(f"{self._package}.process")
        first = probe._identity[-1]
        process._process_counter = itertools.count(first)  # It was not started.
        prefix = ":".join(map(str, probe._identity[:-1]))
        return [f"{kind}-{prefix + ':' if prefix else ''}{first + number}" for number in range(count)]


class Member:
    """The Popen of a process that is a member of a group."""

    def __init__(self, process: Any) -> None:
        self.pid = next(NO_PROCESS)
        self.returncode: int | None = None
        self.sentinel, self._write_end = os.pipe()
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._group: Group = process._group
        self._group.join(self)

    def note_end(self, exitcode: int) -> None:
        """It has ended; whoever waits for its sentinel hears of it."""
        with self._lock:
            if self.returncode is not None:
                return
            self.returncode = exitcode
            os.close(self._write_end)
        self._is_over.set()

    def poll(self, flag: int = 0) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._is_over.wait(timeout)
        return self.returncode

    def terminate(self) -> None:
        self._group.terminate(-15)

    def kill(self) -> None:
        self._group.terminate(-9)

    def interrupt(self) -> None:
        self._group.interrupt()

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor

    def close(self) -> None:
        with self._lock:
            if self.sentinel >= 0:
                os.close(self.sentinel)
                self.sentinel = -1


@cache
def _member_class(kind: type) -> type:
    """Processes like those of *kind*, with a Member for a Popen."""

    class MemberProcess(kind):  # type: ignore[misc]
        @staticmethod
        def _Popen(process: Any) -> Member:
            return Member(process)

    MemberProcess.__name__, MemberProcess.__qualname__ = kind.__name__, kind.__qualname__
    MemberProcess.__module__ = kind.__module__
    return MemberProcess
