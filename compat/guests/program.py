"""What this program is: all that a process forked or spawned by it would have had, for guests elsewhere."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import warnings
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, Final

from graft.compat.guests import main_module
from graft.compat.guests.staying import StaysHomeError
from graft.config.deployment import part
from graft.tasks.guests import state_marks
from graft.tasks.guests.guest_program import Spec

STANDARD: Final = frozenset(sys.stdlib_module_names) | {"__main__", "__mp_main__"}
INHERITED_LIMIT: Final = 1 << 20  # Bytes of one global of an installed module, such as a cache, that is sent along.


class Start:
    """How this program began, noted when pools were installed."""

    def __init__(self) -> None:
        self.modules = frozenset(sys.modules)  # Ours, and what we import: no guest needs them.
        self.seed: str | None = None  # Of its hashes, where the environment does not say it.
        self.moves_single = False  # Pools of one process move as well.

    def after_fork(self) -> None:
        """A forked child is the same program."""


def hash_seed() -> str | None:
    """The value of ``PYTHONHASHSEED`` with which another process has this one's hashes.

    Raises:
        StaysHomeError: the seed is random, and known to nobody.
    """
    known = part(Start).seed or os.environ.get("PYTHONHASHSEED")
    if not sys.flags.hash_randomization:
        return "0"
    if known is None or known == "random" or sys.flags.ignore_environment:
        raise StaysHomeError(
            "the hash seed of this process is random, so other processes have other hashes; set PYTHONHASHSEED to a "
            "number, or start the program with: python -m graft.compat --pools"
        )
    return known


def modules() -> list[str]:
    """The modules that the program has imported and the standard library does not have, in their order."""
    known = part(Start).modules
    return [
        name for name, module in list(sys.modules.items())
        if name not in known and name.partition(".")[0] not in STANDARD
        and isinstance(module, ModuleType) and getattr(module, "__spec__", None) is not None
        and module.__spec__ is not None and module.__spec__.name == name
        and (module.__spec__.loader is not None or module.__spec__.submodule_search_locations)
        and not name.startswith("graft.")
    ]  # fmt: skip


def is_own(name: str) -> bool:
    """Whether the module *name* belongs to the program: it is not installed among the packages of an environment."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and not {"site-packages", "dist-packages"} & set(file.split(os.sep))


def describe(package: str, method: str, kind: str) -> Spec:
    """What guests of a pool of *kind* are made of, started by *method*, ``fork`` or another.

    Raises:
        StaysHomeError: something that guests need cannot be had.
    """
    context = import_module(f"{package}.context")._default_context
    process = import_module(f"{package}.process")
    names = modules() if method == "fork" else []
    for name in names:
        if getattr(sys.modules[name].__spec__, "_initializing", False):
            raise StaysHomeError(
                f"it is made while {name} is imported, and each guest would import that again; make it in a function"
            )
    main = main_module.for_guests(method, package)
    compared = [*names, *(["__main__"] if method == "fork" and main["main_path"] else [])]
    return {
        **main,
        "version": tuple(sys.version_info[:2]),
        "executable": sys.executable,
        "flags": subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
        "seed": hash_seed(),
        "cwd": _folder(),
        "env": dict(os.environ),
        "umask": _umask(),
        "recursion": sys.getrecursionlimit(),
        "sys_path": [path if path else process.ORIGINAL_DIR or os.getcwd() for path in sys.path],
        "sys_argv": list(sys.argv),
        "orig_dir": process.ORIGINAL_DIR,
        "package": package,
        "kind": kind,
        "method": method,
        "default_method": context.get_start_method(),
        "authkey": bytes(process.current_process().authkey),
        "parent_pid": os.getpid(),
        "parent_name": process.current_process().name,
        "modules": names,
        "own": [name for name in names if is_own(name)],
        "marks": state_marks.marks(compared) if compared else None,
        "gift": b"",
        "state": pickle.dumps(_state()) if method == "fork" else b"",
        "logging": _logging() if method == "fork" else None,
    }


def gift(package: str, differs: dict[str, list[str]], missing: dict[str, str]) -> bytes:
    """What the program has set in its modules, pickled: *differs* names it, by module.

    Raises:
        StaysHomeError: something of that cannot be sent.
    """
    pickler = import_module(f"{package}.reduction").ForkingPickler
    for name, why in missing.items():
        if is_own(name):
            raise StaysHomeError(f"a worker cannot import the program's module {name} ({why}); install it there")
    chosen: dict[tuple[str, str], Any] = {}
    for module, names in differs.items():
        held = state_marks.globals_of(sys.modules[module])
        for name in names:
            value = held.get(name)
            try:
                if isinstance(value, type | FunctionType) and _defined_as(value) == (module, name):
                    raise TypeError("a worker does not define it")  # Its name alone would be sent.
                size = len(pickler.dumps(value))
            except Exception as error:
                if _matters(module, name):
                    raise StaysHomeError(
                        f"{module}.{name} was set before the pool was made, and cannot be pickled "
                        f"({type(value).__name__}: {error}); set it in the pool's initializer"
                    ) from error
                continue
            if size <= INHERITED_LIMIT or module == "__main__" or is_own(module):
                chosen[module, name] = value
    if not chosen:
        return b""
    try:
        return bytes(pickler.dumps(chosen))  # Together: they may share what they hold.
    except Exception as error:
        raise StaysHomeError(f"what the program set before the pool was made cannot be pickled: {error}") from error


def _defined_as(value: Any) -> tuple[str, str]:
    module = value.__module__
    return "__main__" if module == "__mp_main__" else module, value.__qualname__


# Of installed modules these are caches and handles: whoever forks does not share them on purpose.
def _matters(module: str, name: str) -> bool:
    """Whether calls may read the global *name*, which cannot be sent."""
    if module == "__main__":
        return main_module.is_read(name.partition(".")[0])
    return is_own(module)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise StaysHomeError(f"the folder that the program runs in is gone: {error}") from error


def _umask() -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration):
        mask = os.umask(0o022)
        os.umask(mask)
        return mask


def _state() -> dict[str, Any]:
    """State of the standard library, and of numpy, that a forked process would have had."""
    state: dict[str, Any] = {}
    if "numpy.random" in sys.modules:
        state["numpy"] = sys.modules["numpy.random"].get_state()
    if "locale" in sys.modules:
        locale = sys.modules["locale"]
        state["locale"] = locale.setlocale(locale.LC_ALL)
    try:
        pickle.dumps(warnings.filters)
        state["warnings"] = list(warnings.filters)
    except Exception:  # A class of __main__ among them.
        return state
    return state


def _logging() -> tuple[dict[str, tuple[int, bool]], int, bool]:
    root = logging.root
    levels = {
        name: (each.level, each.disabled) for name, each in list(root.manager.loggerDict.items())
        if isinstance(each, logging.Logger) and (each.level or each.disabled)
    }  # fmt: skip
    captures = getattr(logging, "_warnings_showwarning", None) is not None
    return {"root": (root.level, root.disabled), **levels}, root.manager.disable, captures
