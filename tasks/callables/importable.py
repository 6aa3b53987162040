"""Whether a worker that imports a name gets the object that the caller has under it."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any, Final

HERE: Final = frozenset({"__main__", "__mp_main__"})  # Every process has another module under these names.


def name_of(func: Callable[..., Any]) -> str:
    """``module:qualname`` of *func*, of what a partial is over, or ``module:Class()`` for a callable object."""
    func = func.func if isinstance(func, functools.partial) else func
    module, qualname = claimed(func)
    if qualname is None:
        return f"{type(func).__module__}:{type(func).__qualname__}()"
    return f"{module or '?'}:{qualname}"


def claimed(func: Any) -> tuple[str | None, str | None]:
    """The module and the qualified name that *func* says it has."""
    if type(func) is FunctionType:
        return func.__module__, func.__qualname__
    try:
        owner = getattr(func, "__self__", None)
        name = getattr(func, "__name__", None)
        if isinstance(owner, type) and isinstance(name, str):
            # A class method goes by the class it is bound to, not by the one it was written in.
            return owner.__module__, f"{owner.__qualname__}.{name}"
        # str.upper and [].append have no module of their own.
        home = type(owner) if isinstance(func, BuiltinMethodType) else getattr(func, "__objclass__", func)
        module = getattr(func, "__module__", None) or getattr(home, "__module__", None)
        qualname = getattr(func, "__qualname__", None)
    except Exception:  # A lazy proxy without its object raises whatever it likes.
        return None, None
    return module if isinstance(module, str) else None, qualname if isinstance(qualname, str) else None


def import_name(func: Any) -> str | None:
    """``module:qualname`` if a worker that imports it gets the same object."""
    module_name, qualname = claimed(func)
    module = sys.modules.get(module_name or "")
    if module is None or module_name is None or qualname is None:
        return None
    try:
        found = operator.attrgetter(qualname)(module)
    except AttributeError:
        return None
    if found is not func and not (isinstance(func, MethodType | BuiltinMethodType) and found == func):
        return None  # A class method is a new object at each look.
    return f"{module_name}:{qualname}" if is_installed(module_name, module) else None


_installed: dict[str, ModuleSpec] = {}


def is_installed(name: str, module: ModuleType) -> bool:
    """Whether the import system finds *module* under *name*, so that it exists in more than this process."""
    spec = getattr(module, "__spec__", None)
    if spec is None or name in HERE:
        return False
    if _installed.get(name) is spec:
        return True
    if spec.name != name:  # An alias that its package makes, such as collections.abc.
        package = name.rpartition(".")[0]
        if package not in sys.modules or not is_installed(package, sys.modules[package]):
            return False
    parent = sys.modules.get(spec.name.rpartition(".")[0])
    path = None if parent is None else getattr(parent, "__path__", None)
    for finder in sys.meta_path:
        found = finder.find_spec(spec.name, path) if hasattr(finder, "find_spec") else None
        if found is not None:
            if found.origin == spec.origin:
                _installed[name] = spec  # Looking for it took some 50 µs.
            return bool(found.origin == spec.origin)
    return False
