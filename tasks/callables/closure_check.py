"""Whether a copy of a callable would serve as well as the original: what it captures, read off its bytecode.

A copy serves when nothing it captures can change, and when it assigns to nothing outside itself (rule R2 b).
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from re import Pattern
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from graft.tasks.callables.importable import HERE, import_name, is_installed

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


@dataclass(frozen=True, slots=True)
class UsedNames:
    """Uses that a code object, with those nested in it, makes of names that are not its own."""

    reads: frozenset[str]
    copied: frozenset[str]  # Those of its reads that cloudpickle notices.
    assigns: frozenset[str]
    sets: frozenset[str]  # Attributes it sets on whatever it may be …
    sets_on: frozenset[str]  # … and captured names it visibly sets attributes on.
    imports: frozenset[str]


@functools.lru_cache(512)
def used_names(code: CodeType) -> UsedNames:
    """Reading bytecode takes some 100 µs, and the same code always says the same."""
    found: dict[str, set[str]] = {field: set() for field in UsedNames.__slots__}
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
    return UsedNames(**{field: frozenset(names) for field, names in found.items()})


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


def obstacle(func: Any, copied: dict[int, Any]) -> str | None:
    """How a copy of *func* would differ, as words after "it", or None if it would not; *copied* collects the copies."""
    if type(func) is functools.partial:
        inner = None if import_name(func.func) else obstacle(func.func, copied)
        bound = {f"as argument {number}": value for number, value in enumerate(func.args, 1)}
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
    names = used_names(func.__code__)
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
        if type(value) is FunctionType and not import_name(value):
            touched = names.sets & vars(value).keys()
            if touched or name in names.sets_on:
                what = f"{name}.{min(touched)}" if touched else name
                return f"sets attributes of {what!r}, which is the caller's own state"
    return _captures({repr(name): value for name, value in captured.items()} | _attached(func), copied)


def functions_read(func: FunctionType) -> list[FunctionType]:
    """The functions that *func* reads from its surroundings."""
    return [value for value in _captured(func, used_names(func.__code__)).values() if type(value) is FunctionType]


def changeable(value: Any) -> str | None:
    """Why *value* could be changed by whoever has it, as words after its name; None if nobody can."""
    return _state(value, {})


def _captured(func: FunctionType, names: UsedNames) -> dict[str, Any]:
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
        installed = is_installed(value.__name__, value)
        return None if installed else "(module), which exists in this process only"
    if issubclass(kind, Enum) and import_name(kind):
        return None
    if kind in (tuple, frozenset) or (issubclass(kind, tuple) and hasattr(kind, "_fields") and import_name(kind)):
        within = next((why for element in value if (why := _state(element, copied))), None)
        return within and f"({kind.__name__}), which holds one {within}"
    if _is_frozen(value):
        within = next((why for element in vars(value).values() if (why := _state(element, copied))), None)
        return within and f"({kind.__name__}), which holds one {within}"
    if import_name(value):
        return None
    if issubclass(kind, type):
        return "(class), which a worker cannot import"
    if kind in (FunctionType, functools.partial):
        inner = obstacle(value, copied)
        return inner and f"({kind.__name__}), which {inner}"
    return f"({kind.__name__}), which is the caller's own state"


def _is_frozen(value: Any) -> bool:
    """Whether *value* is a frozen dataclass that a worker can import, with no attribute beside its fields."""
    kind = type(value)
    parameters = kind.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen or not import_name(kind) or not hasattr(value, "__dict__"):
        return False
    return set(vars(value)) == {each.name for each in fields(kind)}
