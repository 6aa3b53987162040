"""How a callable travels: by the name a worker imports it under, or as a copy when it captures nothing of its caller's.

The caller asks :func:`refer` before anything is sent; the worker asks :func:`resolve`. Neither knows Redis or
signatures. Which callables may travel at all is rule R2 of the contract.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import operator
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Final, Literal

from graft.config.deployment import part
from graft.tasks.callables.closure_check import obstacle
from graft.tasks.callables.importable import claimed, import_name, is_installed, name_of
from graft.tasks.errors import UnreferenceableError

PYTHON: Final = b"%d.%d " % sys.version_info[:2]  # Code objects are for one minor version; another may crash on them.
ADVICE: Final = "pass it as an argument, or define it at the top level of an installed module"


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A callable as it travels.

    ``name`` is ``package.module:qualname``, for people and figures, and for the import. ``payload`` is empty for what
    is imported as it stands, the pickled partial for a :class:`functools.partial` over that, and the copy's bytes for
    a callable by value: unsigned, and none but :func:`resolve` looks inside.
    """

    how: Literal["import", "value"]
    name: str
    payload: bytes
    is_async: bool


def refer(func: Callable[..., Any], *, by_value: bool = False) -> FunctionRef:
    """How *func* reaches a worker: by import where one can, else as a copy if that cannot be told from the original.

    A copy holds what is captured as it is now, so ask again for every call.

    Args:
        func: any callable; a partial counts as what it is over.
        by_value: copy *func* whatever it captures, and lose what the copy changes there. What an installed module
            defines still goes by its name, inside the copy.

    Raises:
        TypeError: *func* cannot be called.
        UnreferenceableError: neither is possible; the message says what is in the way and what to do.
    """
    if not by_value and type(func) is FunctionType and (name := import_name(func)):
        return FunctionRef("import", name, b"", inspect.iscoroutinefunction(func))
    if not callable(func):
        raise TypeError(f"{func!r} ({type(func).__name__}) is not callable")
    is_async = inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)
    name = name_of(func)
    inner = func.func if type(func) is functools.partial else func
    if by_value:
        return FunctionRef("value", name, _copy(func, name, [inner]), is_async)
    if imported := import_name(func):
        return FunctionRef("import", imported, b"", is_async)
    cannot = f"a worker cannot import {name}"
    if type(func) is functools.partial and (imported := import_name(inner)):
        try:
            return FunctionRef("import", imported, _pickled_partial(func), is_async)
        except Exception as error:
            cannot = f"a worker can import {name}, but not what the partial binds ({error})"
    copied: dict[int, Any] = {}
    if why := obstacle(func, copied):
        raise UnreferenceableError(f"{cannot}, and it {why}; {ADVICE}")
    return FunctionRef("value", name, _copy(func, name, copied.values()), is_async)


def check_importable(what: str, values: Iterable[Any]) -> None:
    """Check that a worker can import *values*, classes and functions of the option *what*.

    Raises:
        UnreferenceableError: it cannot.
    """
    for value in values:
        if not import_name(value):
            raise UnreferenceableError(
                f"{what}: a worker cannot import {name_of(value)}; define it at the top level of an installed module"
            )


def resolve(ref: FunctionRef) -> Callable[..., Any]:
    """The callable that *ref* names or holds; *ref* must come from a verified source.

    Raises:
        UnreferenceableError: this process cannot import it, or a module its copy needs, or runs another Python.
    """
    if ref.how == "import" and not ref.payload:
        return _imported(ref.name)
    payload = ref.payload
    if ref.how == "value":
        if not payload.startswith(PYTHON):
            theirs = payload[:8].partition(b" ")[0].decode(errors="replace")
            raise UnreferenceableError(
                f"the copy of {ref.name} was made by Python {theirs} and this worker runs {PYTHON.decode().strip()}; "
                "run the same version on both, or define it at the top level of an installed module"
            )
        payload = payload[len(PYTHON) :]
    try:
        found: Callable[..., Any] = pickle.loads(payload)
    except (Exception, SystemExit) as error:
        raise _not_importable(f"what {ref.name} needs", error) from error
    return found


class _ReferencesOnly(pickle.Pickler):
    """Refuses functions and classes that a worker would not find, such as those of ``__main__``."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ != "builtins" and not import_name(value):
            raise pickle.PicklingError(f"a worker cannot import {name_of(value)}")
        return NotImplemented


def _pickled_partial(func: functools.partial[Any]) -> bytes:
    buffer = io.BytesIO()
    _ReferencesOnly(buffer, pickle.HIGHEST_PROTOCOL).dump(func)
    return buffer.getvalue()


def _imported(name: str) -> Callable[..., Any]:
    module, _, qualname = name.partition(":")
    try:
        found: Callable[..., Any] = operator.attrgetter(qualname)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # A script without a main guard ends itself when it is imported.
        raise _not_importable(name, error) from error
    return found


def _not_importable(name: str, error: BaseException) -> UnreferenceableError:
    reason = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
    return UnreferenceableError(
        f"a worker cannot import {name} ({reason}); install it there, or add its folder to the worker's PYTHONPATH"
    )


class _Registry:
    """Guards cloudpickle's list of modules that are copied, of which a process has one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    """Have cloudpickle copy what *modules* define for once; it takes all of ``sys.modules`` for importable."""
    import cloudpickle

    with part(_Registry).lock:
        added = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def _copy(func: Any, name: str, copied: Iterable[Any]) -> bytes:
    homes = {home for value in copied if (home := claimed(value)[0])} - {"__main__"}
    modules = [
        module for home in homes if (module := sys.modules.get(home)) is not None and not is_installed(home, module)
    ]
    import cloudpickle  # Most functions travel by name.

    try:
        with _by_value(modules):
            return PYTHON + bytes(cloudpickle.dumps(func))
    except Exception as error:
        raise UnreferenceableError(
            f"{name} cannot be copied to a worker ({type(error).__name__}: {error}); {ADVICE}"
        ) from error
