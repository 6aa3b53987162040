"""Has the process pools of this program made on workers: the classes stay, their contexts are ours."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from graft.compat.guests import thread_pools
from graft.compat.guests.context import GuestContext
from graft.compat.guests.leases import Leases
from graft.compat.guests.program import Start
from graft.config.deployment import part

_before: Final[list[tuple[Any, str, Any]]] = []
_lock = threading.Lock()
_default_int_handler: Final = signal.default_int_handler


KINDS: Final = ("processes", "single", "threads")


def kinds_of(asked: str) -> frozenset[str]:
    """The kinds of pools in *asked*, such as ``processes,threads``; ``single`` is process pools of one process.

    Raises:
        ValueError: it names something else.
    """
    kinds = frozenset(each.strip() for each in asked.split(","))
    if unknown := kinds - frozenset(KINDS):
        raise ValueError(
            f"there are no pools called {min(unknown)!r}; choose processes, threads, single, or several, such as "
            "processes,threads"
        )
    return kinds | {"processes"} if "single" in kinds else kinds


def install(seed: str | None = None, kinds: frozenset[str] = frozenset({"processes"})) -> None:
    """Have every pool of *kinds* that is made from here on ask whether it moves.

    *seed* is that of this process's hashes. A second call changes nothing.
    """
    with _lock:
        if _before:
            return
        executors, pools = import_module("concurrent.futures.process"), import_module("multiprocessing.pool")
        start = part(Start)
        start.seed, start.moves_single = seed, "single" in kinds
        if "processes" in kinds:
            _patch(executors.ProcessPoolExecutor, "__init__", _executor_init)
            _patch(pools.Pool, "__init__", functools.partial(_pool_init, "multiprocessing"))
        if "threads" in kinds:
            _patch(import_module("concurrent.futures.thread").ThreadPoolExecutor, "__init__", thread_pools.wrap)
        _after_import.start(kinds)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
            # asyncio and others put a handler of theirs in the place of this one alone.
            _before.append((signal, "default_int_handler", signal.default_int_handler))
            signal.default_int_handler = _interrupt  # type: ignore[assignment]


def uninstall() -> None:
    """Undo :func:`install`; pools that have moved stay where they are."""
    with _lock:
        if _before:
            _after_import.stop()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, _default_int_handler)
        while _before:
            owner, name, value = _before.pop()
            setattr(owner, name, value)


def _patch(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    before = getattr(owner, name)
    _before.append((owner, name, before))
    setattr(owner, name, wrap(before))


def _executor_init(before: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(before)
    def init(self: Any, max_workers: Any = None, mp_context: Any = None, *args: Any, **options: Any) -> None:
        if mp_context is None:
            is_fresh = options.get("max_tasks_per_child") is not None
            mp_context = multiprocessing.get_context("spawn" if is_fresh else None)
        if not isinstance(mp_context, GuestContext):
            mp_context = GuestContext(mp_context, "multiprocessing", "executor")
        before(self, max_workers, mp_context.belongs_to(self), *args, **options)

    return init


def _pool_init(package: str, before: Callable[..., None]) -> Callable[..., None]:
    pools = import_module(f"{package}.pool")
    threads, make_process = pools.ThreadPool, pools.Pool.Process

    @functools.wraps(before)
    def init(self: Any, processes: Any = None, initializer: Any = None, initargs: Any = (),
             maxtasksperchild: Any = None, context: Any = None) -> None:  # fmt: skip
        if not isinstance(self, threads):
            base = context or import_module(f"{package}.context")._default_context.get_context()
            is_usual = type(self).Process is make_process
            stays = "" if is_usual else f"its class {type(self).__name__} has a method Process of its own"
            context = GuestContext(base, package, "pool", stays=stays).belongs_to(self)
        before(self, processes, initializer, initargs, maxtasksperchild, context)

    return init


def _patch_joblib(module: ModuleType) -> None:
    from graft.compat.guests import joblib_pools

    _before.append((module, "get_memmapping_executor", module.get_memmapping_executor))
    joblib_pools.patch(module)


def _patch_asyncio(module: ModuleType) -> None:
    def wrap(before: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(before)
        def on_interrupt(*args: Any, **options: Any) -> None:
            _interrupt_all()
            before(*args, **options)

        return on_interrupt

    _patch(module.Runner, "_on_sigint", wrap)


def _patch_multiprocess(module: ModuleType) -> None:
    _patch(module.Pool, "__init__", functools.partial(_pool_init, "multiprocess"))


class _AfterImport(MetaPathFinder):
    """First on the path: patches the modules of other packages as soon as the program has imported them."""

    patches: dict[str, Callable[[ModuleType], None]]

    def start(self, kinds: frozenset[str]) -> None:
        processes = {"joblib.executor": _patch_joblib, "multiprocess.pool": _patch_multiprocess}
        self.patches = {"asyncio.runners": _patch_asyncio, **(processes if "processes" in kinds else {})}
        sys.meta_path.insert(0, self)
        for name, patch in self.patches.items():
            if name in sys.modules:
                patch(sys.modules[name])

    def stop(self) -> None:
        sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = self.patches.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if patch is not None else None
        if spec is None or spec.loader is None or patch is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_after_import = _AfterImport()


def _interrupt(signum: int, frame: Any) -> None:
    """Ctrl-C: the processes of a pool would have heard it too."""
    _interrupt_all()
    _default_int_handler(signum, frame)


def _interrupt_all() -> None:
    """End the calls that run, on a thread: this may be the handler of a signal."""
    part(Leases).interrupts += 1

    def end(leases: Leases) -> None:
        for pool in leases.owners():
            pool.interrupt()

    threading.Thread(target=end, args=(part(Leases),), name="graft-interrupt", daemon=True).start()
