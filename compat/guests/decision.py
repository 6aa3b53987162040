"""Whether a pool's processes are guests on workers or processes of this machine; decided once, before any starts."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import psutil

from graft.compat import worker_admin
from graft.compat.dispatcher import CallDispatcher
from graft.compat.guests import machine_bound, program
from graft.compat.guests.leases import Leases
from graft.compat.guests.staying import StaysHomeError
from graft.compat.placement import is_local
from graft.config.deployment import part
from graft.config.queues import table
from graft.tasks.errors import TaskQueueError
from graft.tasks.guests import guest_program
from graft.tasks.guests.guest_program import Spec
from graft.tasks.guests.host import Answer, run_call
from graft.tasks.guests.mapped_files import MappedFile
from graft.tasks.ids import new_id
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 30.0  # A worker that has not made a guest by then is too busy for this pool …
MOST_PROBE_SECONDS: Final = 300.0  # … unless the program itself has taken longer, as its modules may have.


@dataclass(frozen=True)
class PoolKind:
    """What a pool asks of its processes.

    Attributes:
        package: ``multiprocessing``, or another package that has its modules.
        kind: ``executor`` or ``pool``.
        method: the start method that the program asked for.
        process: the class of its processes.
        shown: its name in the report.
        environ: what its processes have in their environment besides.
        runs_main: whether they run the main module.
        hears_interrupts: whether Ctrl-C ends the calls that run.
        is_silent: whether what they write is dropped.
        files_of: the files that the call of a work id maps.
    """

    package: str
    kind: str
    method: str
    process: Any
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks: int | None
    is_wrapping: bool
    is_daemon: bool
    shown: str
    environ: Mapping[str, str]
    runs_main: bool
    hears_interrupts: bool
    is_silent: bool
    files_of: Callable[[int | None], tuple[MappedFile, ...]]


@dataclass(frozen=True)
class Moved:
    """A pool that moves: its id, what its guests are made of, and the slots of the workers."""

    pool: str
    spec: Spec
    slots: int


def decide(pool: PoolKind, names: Callable[[], list[str]], dispatcher: CallDispatcher) -> Moved:
    """Have the guests of *pool* described, and one of them made.

    Raises:
        StaysHomeError: the pool stays on this machine; the message says why.
    """
    if is_local():
        raise StaysHomeError("GRAFT_MODE is local; unset it")
    if in_worker():
        raise StaysHomeError(
            "it was made inside a task, where waiting for others could block every worker; make it in the program"
        )
    if pool.method == "fork":
        machine_bound.refuse_patched(pool.package)
    with _quiet():
        init = _pickled(pool)
    try:
        slots = worker_admin.slots(table().batch)
        if not slots:
            raise StaysHomeError(f"no live worker reads the queue {table().batch}; start one")
        machine_bound.refuse_manager(pool.package)
        spec = program.describe(pool.package, pool.method, pool.kind)
        spec |= {
            "init": init, "names": names(), "max_tasks": pool.max_tasks, "wrap": pool.is_wrapping,
            "daemon": pool.is_daemon, "env": {**spec["env"], **pool.environ},
        }  # fmt: skip
        if not pool.runs_main:
            spec |= {"main_name": None, "main_path": None, "main_kept": None}
        moved = Moved(new_id(), spec, slots)
        guest_program.store(moved.pool, spec)
        part(Leases).add(moved.pool)
        try:
            report = _asked(moved.pool, "probe", dispatcher).report or {"refused": "the first guest ended at once"}
            if report["refused"]:
                raise StaysHomeError(report["refused"])
            with _quiet():
                gift = program.gift(pool.package, report["differs"], report["missing"])
            guest_program.store(moved.pool, {**spec, "marks": None, "gift": gift})
            if gift:
                _asked(moved.pool, "check", dispatcher)
        except BaseException:
            part(Leases).remove(moved.pool)
            guest_program.end(moved.pool)
            raise
    except (StaysHomeError, TaskQueueError) as error:
        raise StaysHomeError(str(error)) from error
    except Exception as error:  # Whatever it is, the program goes on as it would without us.
        logger.debug("a pool could not be described", exc_info=True)
        raise StaysHomeError(f"the program could not be described for guests: {error!r}") from error
    return moved


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings of what is pickled here and would not be without us: a fork pickles nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pickled(pool: PoolKind) -> bytes:
    """The initializer, its arguments, and a process class of the program's own, where they need not be inherited."""
    pickler = import_module(f"{pool.package}.reduction").ForkingPickler
    initializer, initargs, process = pool.initializer, pool.initargs, pool.process
    if not (isinstance(process, type) and issubclass(process, import_module(f"{pool.package}.process").BaseProcess)):
        raise StaysHomeError(f"its context makes processes that are none of {pool.package}'s")
    if process.__module__ == f"{pool.package}.context":
        process = None
    if getattr(initializer, "__name__", "") == "set_lock" and _home_of(initializer) == "tqdm":
        initializer, initargs = None, ()  # It keeps the lines of processes apart, which come home call by call.
    what = "process class"
    try:
        pickler.dumps(process)
        what = "initializer or initargs"
        return bytes(pickler.dumps((initializer, initargs, process)))
    except Exception as error:
        raise StaysHomeError(
            f"its {what} can only be inherited ({type(error).__name__}: {error}); pass what can be "
            "pickled, or a manager's proxy"
        ) from error


def _home_of(initializer: Any) -> str:
    owner = getattr(initializer, "__self__", None)
    return str(getattr(owner, "__module__", "")).partition(".")[0]


def _asked(pool: str, step: str, dispatcher: CallDispatcher) -> Answer:
    """What a worker says to *step*, which comes before any call."""
    future = dispatcher.call(run_call, (pool, step), {}, call="")
    age = time.time() - psutil.Process().create_time()  # A guest imports what the program has imported meanwhile.
    patience = min(max(PROBE_SECONDS, 3 * age), MOST_PROBE_SECONDS)
    try:
        return Answer.of(future.result(patience))
    except TimeoutError as error:
        future.cancel()
        raise StaysHomeError(
            f"no worker had made a guest after {PROBE_SECONDS:g} s: all are busy; start more"
        ) from error
