"""Marks of what modules hold, equal in two processes where their globals are: the guest compares them with its own.

A guest imports the modules that its program has imported, and then differs where the program has *set* something since:
a fork would have inherited that. Runs in guests too, so it imports the standard library alone.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

PARTS = 20_000  # Of one global; beyond, only the number of its parts counts.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range})
SHOWN = frozenset({"datetime", "decimal", "_decimal", "fractions", "uuid", "ipaddress", "pathlib", "zoneinfo"})
NAMED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, types.ModuleType)
DESCRIBES = (staticmethod, classmethod, property, types.MemberDescriptorType, types.GetSetDescriptorType)
DERIVED = frozenset({"__annotations__", "__doc__", "__module__", "__qualname__", "__slots__", "__orig_bases__"})
PATTERN = type(ADDRESS)


class _Marker:
    """Walks through one value; the digest says what it holds."""

    def __init__(self, outer: _Marker | None = None) -> None:
        self.digest = hashlib.blake2b(digest_size=8)
        self.seen: dict[int, int] = dict(outer.seen) if outer else {}
        self.left: list[int] = outer.left if outer else [PARTS]

    def add(self, text: str) -> None:
        self.digest.update(text.encode("utf-8", "surrogatepass"))
        self.digest.update(b"\0")

    def inner(self, value: Any) -> str:
        """The mark of a part whose place is not known."""
        marker = _Marker(self)
        marker.walk(value)
        return marker.digest.hexdigest()

    def walk(self, value: Any) -> None:
        kind: Any = type(value)
        if kind in ATOMS:
            self.add(f"{kind.__name__} {value!r}" if kind is not str else f"str {value}")
            return
        if self.left[0] <= 0:
            return
        self.left[0] -= 1
        if isinstance(value, NAMED):
            self.add(_name(value))
            return
        if id(value) in self.seen:
            self.add(f"again {self.seen[id(value)]}")
            return
        self.seen[id(value)] = len(self.seen)
        self.add(_name(kind))
        if isinstance(value, dict):
            self.add(str(len(value)))
            for key, held in tuple(value.items()):
                self.walk(key)
                self.walk(held)
        elif isinstance(value, (list, tuple)) or kind.__name__ == "deque":
            self.add(str(len(value)))
            for held in tuple(value):
                self.walk(held)
        elif isinstance(value, (set, frozenset)):
            self.add(" ".join(sorted(self.inner(held) for held in tuple(value))))
            return
        elif isinstance(value, (int, float, str, bytes, bytearray)):  # Of a class of its own.
            self.add(ADDRESS.sub("", repr(value)) if kind is bytearray else str(kind.__mro__[1](value)))
        elif kind is PATTERN:
            self.add(f"{value.pattern!r} {value.flags}")
        elif isinstance(value, functools.partial):
            self.walk((value.func, value.args, value.keywords))
        elif kind.__module__ in SHOWN:
            self.add(ADDRESS.sub("", repr(value)))
        elif kind.__module__ == "numpy" and hasattr(value, "tobytes"):
            self.add(f"{value.dtype} {value.shape} {hashlib.blake2b(value.tobytes()).hexdigest()}")
        held = getattr(value, "__dict__", None)
        if type(held) is dict and not kind.__module__.startswith(("threading", "logging", "_thread")):
            self.walk(held)
        for name in _slots(kind):
            self.walk(getattr(value, name, None))


def _slots(kind: Any) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__"):
                yield (
                    name if not name.startswith("__") or name.endswith("__") else f"_{base.__name__.lstrip('_')}{name}"
                )


def _name(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    module = getattr(value, "__module__", None)
    module = "__main__" if module == "__mp_main__" else module
    return f"{module}:{getattr(value, '__qualname__', type(value).__name__)}"


def mark(value: Any) -> str:
    """The mark of one value."""
    marker = _Marker()
    try:
        marker.walk(value)
    except Exception as error:  # The value's own code: a proxy, a lazy object.
        marker.add(f"cannot be read: {type(error).__name__}")
    return marker.digest.hexdigest()


def globals_of(module: types.ModuleType) -> dict[str, Any]:
    """What *module* holds that can have been set: by name, ``Class.name`` for what its own classes hold."""
    found = {}
    for name, value in tuple(vars(module).items()):
        if name.startswith("__") or isinstance(value, types.ModuleType):
            continue
        found[name] = value
        own = getattr(value, "__module__", None) in (module.__name__, "__mp_main__")
        if isinstance(value, type) and own and not hasattr(value, "__members__"):
            for inner, held in tuple(vars(value).items()):
                if inner in DERIVED or inner.startswith(("__", "_abc_")) or isinstance(held, (*NAMED, *DESCRIBES)):
                    continue
                if not hasattr(type(held), "__get__"):
                    found[f"{name}.{inner}"] = held
    return found


def marks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The marks of all that the modules *names* hold, by module and name."""
    found = {}
    for name in names:
        module = sys.modules.get(name)
        if isinstance(module, types.ModuleType):
            found[name] = {key: mark(value) for key, value in globals_of(module).items()}
    return found


def put(module: types.ModuleType, name: str, value: Any) -> None:
    """Set what :func:`globals_of` calls *name* in *module*."""
    owner, _, attribute = name.rpartition(".")
    holder: Any = vars(module)[owner] if owner else module
    before: Any = getattr(holder, attribute, None)
    if type(before) is type(value) and type(value) in (dict, list, set):
        # In place: others hold the same object, under names of their own.
        before.clear()
        before.extend(value) if type(value) is list else before.update(value)
        return
    setattr(holder, attribute, value)
