"""How a callable travels: by the name a worker imports it under, or as a copy when it captures nothing of its caller's.

The caller asks :func:`refer` before anything is sent; the worker asks :func:`resolve`. Neither knows Redis or
signatures. Which callables may travel at all is rule R2 of the contract.
"""

from __future__ import annotations

import dis
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
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from importlib.machinery import ModuleSpec
from re import Pattern
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import cloudpickle

from graft.tasks.errors import UnreferenceableError

# Their instances never change. Subclasses are left out: they may carry attributes.
IMMUTABLE: Final = frozenset(
    {type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, range}
    | {date, timedelta, timezone, ZoneInfo, Decimal, Fraction, UUID, Pattern}
)
CLOCKS: Final = frozenset({datetime, time})  # Immutable, if their time zone is.
# What reads or writes names that the bytecode does not show.
OPAQUE: Final = frozenset({"eval", "exec", "globals"})
GLOBAL_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
# cloudpickle copies the globals it finds behind these; names read in a class body are none of them.
GLOBAL_COPIES: Final = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
HERE: Final = frozenset({"__main__", "__mp_main__"})  # Every process has another module under these names.
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
    if not by_value and type(func) is FunctionType and (name := _import_name(func)):
        return FunctionRef("import", name, b"", inspect.iscoroutinefunction(func))
    if not callable(func):
        raise TypeError(f"{func!r} ({type(func).__name__}) is not callable")
    is_async = inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)
    name = name_of(func)
    inner = func.func if type(func) is functools.partial else func
    if by_value:
        return FunctionRef("value", name, _copy(func, name, [inner]), is_async)
    if imported := _import_name(func):
        return FunctionRef("import", imported, b"", is_async)
    cannot = f"a worker cannot import {name}"
    if type(func) is functools.partial and (imported := _import_name(inner)):
        try:
            return FunctionRef("import", imported, _pickled_partial(func), is_async)
        except Exception as error:
            cannot = f"a worker can import {name}, but not what the partial binds ({error})"
    copied: dict[int, Any] = {}
    if obstacle := _obstacle(func, copied):
        raise UnreferenceableError(f"{cannot}, and it {obstacle}; {ADVICE}")
    return FunctionRef("value", name, _copy(func, name, copied.values()), is_async)


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


def name_of(func: Callable[..., Any]) -> str:
    """``module:qualname`` of *func*, of what a partial is over, or ``module:Class()`` for a callable object."""
    func = func.func if isinstance(func, functools.partial) else func
    module, qualname = _claimed(func)
    if qualname is None:
        return f"{type(func).__module__}:{type(func).__qualname__}()"
    return f"{module or '?'}:{qualname}"


# By import.


def _claimed(func: Any) -> tuple[str | None, str | None]:
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


def _import_name(func: Any) -> str | None:
    """``module:qualname`` if a worker that imports it gets the same object."""
    module_name, qualname = _claimed(func)
    module = sys.modules.get(module_name or "")
    if module is None or module_name is None or qualname is None:
        return None
    try:
        found = operator.attrgetter(qualname)(module)
    except AttributeError:
        return None
    if found is not func and not (isinstance(func, MethodType | BuiltinMethodType) and found == func):
        return None  # A class method is a new object at each look.
    return f"{module_name}:{qualname}" if _is_installed(module_name, module) else None


_installed: dict[str, ModuleSpec] = {}


def _is_installed(name: str, module: ModuleType) -> bool:
    """Whether the import system finds *module* under *name*, so that it exists in more than this process."""
    spec = getattr(module, "__spec__", None)
    if spec is None or name in HERE:
        return False
    if _installed.get(name) is spec:
        return True
    if spec.name != name:  # An alias that its package makes, such as collections.abc.
        package = name.rpartition(".")[0]
        if package not in sys.modules or not _is_installed(package, sys.modules[package]):
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


class _ReferencesOnly(pickle.Pickler):
    """Refuses functions and classes that a worker would not find, such as those of ``__main__``."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ != "builtins" and not _import_name(value):
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
        f"a worker cannot import {name} ({reason}); install it there or start the worker with --pythonpath"
    )


# By value.


@dataclass(frozen=True, slots=True)
class _Names:
    """What a code object, with those nested in it, does to names that are not its own."""

    reads: frozenset[str]
    copied: frozenset[str]  # Those of its reads that cloudpickle notices.
    assigns: frozenset[str]
    sets: frozenset[str]  # Attributes it sets on whatever it may be …
    sets_on: frozenset[str]  # … and captured names it visibly sets attributes on.
    imports: frozenset[str]


@functools.lru_cache(512)
def _names(code: CodeType) -> _Names:
    """Reading bytecode takes some 100 µs, and the same code always says the same."""
    found: dict[str, set[str]] = {field: set() for field in _Names.__slots__}
    for instruction, before, captured in _instructions(code, frozenset(code.co_freevars)):
        opname, name = instruction.opname, instruction.argval
        if opname in GLOBAL_READS:
            found["reads"].add(name)
        if opname in GLOBAL_COPIES:
            found["copied"].add(name)
        if opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            opname in ("STORE_DEREF", "DELETE_DEREF") and name in captured
        ):
            found["assigns"].add(name)
        elif opname in ("STORE_ATTR", "DELETE_ATTR"):
            found["sets"].add(name)
            if before and before.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
                found["sets_on"].add(before.argval)
        elif opname == "IMPORT_NAME":
            found["imports"].add(name)
    return _Names(**{field: frozenset(names) for field, names in found.items()})


def _instructions(
    code: CodeType, captured: frozenset[str]
) -> Iterator[tuple[dis.Instruction, dis.Instruction | None, frozenset[str]]]:
    """Every instruction, the one before it, and which names are free variables of the outermost code there."""
    before = None
    for instruction in dis.get_instructions(code):
        yield instruction, before, captured
        before = instruction
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant, captured & frozenset(constant.co_freevars) - frozenset(code.co_cellvars))


def _obstacle(func: Any, copied: dict[int, Any]) -> str | None:
    """What would tell a copy of *func* from *func*, as words after "it", or None; *copied* collects what is copied."""
    if type(func) is functools.partial:
        inner = None if _import_name(func.func) else _obstacle(func.func, copied)
        bound = {f"as argument {place}": value for place, value in enumerate(func.args, 1)}
        bound |= {repr(name): value for name, value in (func.keywords | vars(func)).items()}
        return inner or _captures(bound, copied)
    if isinstance(func, MethodType | BuiltinMethodType):
        return f"is bound to an object ({type(func.__self__).__name__}), which is the caller's own state"
    if isinstance(func, type):
        return "is a class of this process only"
    if type(func) is not FunctionType:
        return f"is an object ({type(func).__name__}), which is the caller's own state"
    if id(func) in copied:
        return None
    copied[id(func)] = func
    names = _names(func.__code__)
    if names.assigns:
        return f"assigns to {min(names.assigns)!r}, which is the caller's own state"
    if names.imports & HERE:
        return f"imports {min(names.imports & HERE)}, which is the caller's own state"
    if lost := names.reads & func.__globals__.keys() - names.copied - {"__name__"}:
        return f"reads {min(lost)!r} in a class body, where a copy does not find it"
    if hidden := names.reads & OPAQUE - func.__globals__.keys():
        return f"calls {min(hidden)}(), which reaches all of the caller's own state"
    captured = _captured(func, names)
    for name, value in captured.items():
        if type(value) is FunctionType and not _import_name(value):
            touched = names.sets & vars(value).keys()
            if touched or name in names.sets_on:
                what = f"{name}.{min(touched)}" if touched else name
                return f"sets attributes of {what!r}, which is the caller's own state"
    return _captures({repr(name): value for name, value in captured.items()} | _attached(func), copied)


def _captured(func: FunctionType, names: _Names) -> dict[str, Any]:
    """The variables of its surroundings that *func* reads. Builtins, and names found nowhere, are the worker's own."""
    captured: dict[str, Any] = {}
    for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
        try:
            captured[name] = cell.cell_contents
        except ValueError:  # Not assigned yet.
            continue
    return captured | {name: func.__globals__[name] for name in sorted(names.reads & func.__globals__.keys())}


def _attached(func: FunctionType) -> dict[str, Any]:
    """The defaults and attributes of *func*, under words for people."""
    positional = zip(
        reversed(func.__code__.co_varnames[: func.__code__.co_argcount]),
        reversed(func.__defaults__ or ()),
        strict=False,
    )
    defaults = dict(positional) | (func.__kwdefaults__ or {})
    return {f"the default of {name!r}": value for name, value in defaults.items()} | {
        f"its attribute {name!r}": value for name, value in vars(func).items()
    }


def _captures(values: dict[str, Any], copied: dict[int, Any]) -> str | None:
    for name, value in values.items():
        if why := _state(value, copied):
            return f"captures {name} {why}"
    return None


def _state(value: Any, copied: dict[int, Any]) -> str | None:
    """Why *value* is state of the caller's, as words after its name, or None if a copy serves as well."""
    kind = type(value)
    if kind in IMMUTABLE or (kind in CLOCKS and type(value.tzinfo) in IMMUTABLE):
        return None
    # Asked of the class: a lazy proxy without its object has no isinstance().
    if issubclass(kind, ModuleType):
        installed = _is_installed(value.__name__, value)
        return None if installed else "(module), which exists in this process only"
    if issubclass(kind, Enum) and _import_name(kind):
        return None
    if kind in (tuple, frozenset) or (issubclass(kind, tuple) and hasattr(kind, "_fields") and _import_name(kind)):
        within = next((why for element in value if (why := _state(element, copied))), None)
        return within and f"({kind.__name__}), which holds one {within}"
    if _import_name(value):
        return None
    if issubclass(kind, type):
        return "(class), which a worker cannot import"
    if kind in (FunctionType, functools.partial):
        inner = _obstacle(value, copied)
        return inner and f"({kind.__name__}), which {inner}"
    return f"({kind.__name__}), which is the caller's own state"


_registry = threading.Lock()


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    """Have cloudpickle copy what *modules* define for once; it takes all of ``sys.modules`` for importable."""
    with _registry:
        added = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def _copy(func: Any, name: str, copied: Iterable[Any]) -> bytes:
    homes = {home for value in copied if (home := _claimed(value)[0])} - {"__main__"}
    modules = [
        module for home in homes if (module := sys.modules.get(home)) is not None and not _is_installed(home, module)
    ]
    try:
        with _by_value(modules):
            return PYTHON + bytes(cloudpickle.dumps(func))
    except Exception as error:
        raise UnreferenceableError(
            f"{name} cannot be copied to a worker ({type(error).__name__}: {error}); {ADVICE}"
        ) from error
