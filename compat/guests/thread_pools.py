"""Thread pools of the program on guests, where it is asked for: the threads stay, and wait for calls made elsewhere.

    submit ── decided for each call ──► the work item of the standard library, as ever
                      └───────────────► the same, its function replaced by one that has a guest make the call

Threads share everything with the program and guests nothing, so a call moves only if nobody can tell: its function is
one of the program's or of an installed package, touches nothing that can change, and nor can its arguments.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, Final

from graft.compat.guests import program
from graft.compat.guests.context import GuestContext
from graft.compat.guests.staying import StaysHomeError
from graft.compat.guests.watched_calls import WatchedCalls
from graft.compat.pool_figures import PoolShape, made_at, maker, module_of
from graft.tasks.callables.closure_check import changeable, functions_read, obstacle
from graft.tasks.callables.importable import name_of

NAME: Final = "ThreadPoolExecutor"
ITSELF: Final = frozenset({"graft", "concurrent"})


def wrap(before: Callable[..., None]) -> Callable[..., None]:
    """``ThreadPoolExecutor.__init__`` for *before*: a pool that the program itself makes asks where its calls run."""

    @functools.wraps(before)
    def init(
        self: Any, max_workers: Any = None, thread_name_prefix: str = "", initializer: Any = None, *args: Any,
        **options: Any,
    ) -> None:  # fmt: skip
        before(self, max_workers, thread_name_prefix, initializer, *args, **options)
        if _is_programs(module_of(maker(ITSELF))):  # Not asyncio's own.
            self._work_queue = _WorkQueue(_ThreadPool(self, has_initializer=initializer is not None))

    return init


def _is_programs(module: str) -> bool:
    main = getattr(sys.modules["__main__"], "__spec__", None)
    package = "" if main is None else main.name.partition(".")[0]
    return module == "__main__" or module.partition(".")[0] == package or (
        module.partition(".")[0] not in program.STANDARD and program.is_own(module)
    )  # fmt: skip


def why_shared(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call shares something with the program that a guest has not; None where nobody can tell."""
    for name, value in [*((f"argument {number}", each) for number, each in enumerate(args, 1)), *kwargs.items()]:
        if changeable(value):
            return (
                f"its {name} ({type(value).__name__}) could be changed by the call; pass what cannot change, such as a "
                "tuple, or use a ProcessPoolExecutor"
            )
    why = _obstacle(func, set()) or _cannot_travel(func)
    return (
        why and f"{name_of(func)} {why}; use a ProcessPoolExecutor if the call can do without the program's own state"
    )


def _cannot_travel(func: Any) -> str | None:
    try:
        ForkingPickler.dumps(func)
    except Exception as error:
        return f"cannot be pickled ({type(error).__name__}), as it has no name of its own"
    return None


def _obstacle(func: Any, seen: set[int]) -> str | None:
    if isinstance(func, functools.partial):
        return obstacle(func, {}) or _obstacle(func.func, seen)
    module = getattr(func, "__module__", None) or "?"
    if module.partition(".")[0] in program.STANDARD - {"__main__"} or not isinstance(func, FunctionType):
        return "is no function of the program or of a package"
    if not _is_programs(module):
        return None
    if why := obstacle(func, {}):
        return why
    seen.add(id(func))
    for each in functions_read(func):
        if id(each) not in seen and _is_programs(each.__module__) and (why := _obstacle(each, seen)):
            return f"calls {name_of(each)}, which {why}"
    return None


class _ThreadPool:
    """Where the calls of one pool run."""

    def __init__(self, pool: ThreadPoolExecutor, *, has_initializer: bool) -> None:
        self._shape = PoolShape(made_at(maker()), pool._max_workers)
        self._has_initializer = has_initializer
        fork: Any = multiprocessing.get_context("fork")
        self._context: Any = GuestContext(fork, "multiprocessing", "executor", shown=NAME, hears_interrupts=False,
                                          keeps_state=False)  # fmt: skip
        self._lock = threading.RLock()
        self._guests: ProcessPoolExecutor | None = None
        self._is_decided = self._is_closing = False
        self._open = 0
        self._at_home: dict[str, WatchedCalls] = {}
        self._numbers = itertools.count()
        self._owner = weakref.ref(pool)

    def place(self, work: Any) -> None:
        """Have *work*, a work item of the standard library, call its function here or on a guest."""
        has_task = hasattr(work, "task")  # Python 3.14 has one tuple.
        func, args, kwargs = work.task if has_task else (work.fn, work.args, work.kwargs)
        try:
            if self._has_initializer:
                raise StaysHomeError("its initializer prepares threads of this process; use a ProcessPoolExecutor")
            if why := why_shared(func, args, kwargs):
                raise StaysHomeError(why)
            with self._lock:
                if not self._is_decided:
                    self._is_decided, self._guests = True, self._moved()
                if self._guests is None:
                    raise StaysHomeError("")
                self._open += 1
        except StaysHomeError as error:
            self._count(str(error), work.future, func, args)
            return
        work.future.add_done_callback(self._note_end)
        moved = functools.partial(self._call, self._guests, func)
        if has_task:
            work.task = moved, args, kwargs
        else:
            work.fn = moved

    def close(self) -> None:
        """The pool takes no more calls; its guests end with the last."""
        with self._lock:
            self._is_closing = True
            is_over = not self._open
        if is_over and self._guests is not None:
            self._guests.shutdown(wait=False)

    def _moved(self) -> ProcessPoolExecutor | None:
        guests = ProcessPoolExecutor(self._shape.processes, self._context)
        if self._context.moves(guests):
            return guests
        guests.shutdown()
        return None

    def _count(self, reason: str, future: Any, func: Any, args: tuple[Any, ...]) -> None:
        """Count a call that a thread makes."""
        with self._lock:
            if not reason:
                watched = self._context.watched
            elif reason in self._at_home:
                watched = self._at_home[reason]
            else:
                watched = self._at_home[reason] = WatchedCalls(NAME, self._shape, "local", reason)
        number = next(self._numbers)
        watched.begin(number, func, args)
        future.add_done_callback(functools.partial(watched.note_future, number))

    def _note_end(self, _: Any) -> None:
        with self._lock:
            self._open -= 1
            is_over = self._is_closing and not self._open
        if is_over and self._guests is not None:
            self._guests.shutdown(wait=False)

    @staticmethod
    def _call(guests: ProcessPoolExecutor, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        try:
            future = guests.submit(func, *args, **kwargs)
        except RuntimeError:  # The program ends, and its threads still have calls.
            return func(*args, **kwargs)
        return future.result()


class _WorkQueue(queue.SimpleQueue[Any]):
    """The queue of a thread pool, which places what is put."""

    def __init__(self, placing: _ThreadPool) -> None:
        super().__init__()
        self._placing = placing

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None:
            self._placing.close()
        else:
            self._placing.place(item)
        super().put(item, block, timeout)
