"""Undocumented names of other libraries that we lean on: one module for each library, asked for at start.

A new version of a library is judged here: the modules name each private name, where it is used and why. A worker asks
for all of them before it starts, and a producer for those of the transport. One that is missing ends the process with
the versions that do have it, instead of an AttributeError in the middle of a night.
"""

from __future__ import annotations

import dis
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any, Final

import celery
import kombu
import redis

# As in pyproject.toml. `python -m graft.scripts.versions` runs the tests at both ends; docs/versions.md has the rest.
SUPPORTED: Final = ("celery>=5.7,<5.8", "kombu>=5.7,<5.8", "redis>=6.4,<9")

Names = Mapping[str, Sequence[str]]  # "module" or "module:Class" -> what must be there.


class UnknownVersionError(RuntimeError):
    """Celery, kombu or billiard lacks a private name that we lean on."""


def require(*tables: Names) -> None:
    """Refuse to go on where an owner in *tables* lacks one of its names, and does not set it when it is made.

    Raises:
        UnknownVersionError: with the versions that are here and those that are supported.
    """
    for table in tables:
        for place, names in table.items():
            missing = [name for name in names if not _has(_owner(place), name)]
            if missing:
                raise UnknownVersionError(
                    f"{place} has no {', '.join(missing)}: celery {celery.__version__} with kombu {kombu.__version__} "
                    f"and redis-py {redis.__version__} is not known to us. Supported are {', '.join(SUPPORTED)}: "
                    f"pip install {' '.join(map(repr, SUPPORTED))}"
                )


def _owner(place: str) -> Any:
    module, _, name = place.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def _has(owner: Any, name: str) -> bool:
    if hasattr(owner, name):
        return True
    made_by = [vars(base).get("__init__") for base in getattr(owner, "__mro__", ())]
    return any(name in _set_by(maker) for maker in made_by if isinstance(maker, FunctionType))


@cache
def _set_by(maker: FunctionType) -> frozenset[str]:
    return frozenset(step.argval for step in dis.get_instructions(maker) if step.opname == "STORE_ATTR")
