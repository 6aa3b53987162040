"""Redirects imports of the old modules to the facades: ``import libs.async_worker_optimization`` gives ours.

:func:`install` puts two finders on ``sys.meta_path``: the first answers for the old names, the last stands in for a
parent package of an old module that nobody else has. Existing packages keep all their other modules. The module under
an old name is the facade itself, so its classes are the same and are pickled under their own module's name.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

FACADES: Final = (
    "async_worker_optimization",
    "worker_pool",
    "async_patterns",
    "celery_migration_poc",
    "celery_ray_hybrid_poc",
    "celery_integration_framework",
    "executor",
    "pool",
)
# The old names of the contract's import table; old programs also import these modules by their bare names.
OLD_MODULES: Final = (
    "libs.async_worker_optimization",
    "libs.celery_migration_poc",
    "libs.celery_ray_hybrid_poc",
    "libs.celery_integration_framework",
)
MISSING: Final = object()

_lock = threading.RLock()
_new_names: dict[str, str] = {}
_used: set[str] = set()
_before: dict[str, tuple[Any, Any]] = {}  # What sys.modules and the parent held under an old name, or MISSING.


def install(*replace: str, pools: bool | str = False) -> None:
    """Redirect the old module names to the facades, and those in *replace* as well.

    A second call adds to the first. A module that has been imported already is replaced in ``sys.modules``, with a
    warning.

    Args:
        replace: ``OLD``, whose last part is the name of a facade, or ``OLD=FACADE``.
        pools: also run the process pools of the standard library, and joblib's, on workers. Hashes of strings must be
            the same there: start the program with a ``PYTHONHASHSEED``, or its pools stay here. ``processes,threads``:
            its ThreadPoolExecutors, too, as far as their calls share nothing with it.

    Raises:
        ValueError: not of this form, or no facade of that name; or *pools* names no kind of pools.
    """
    if pools:
        from graft.compat.guests import install as guests

        guests.install(kinds=guests.kinds_of("processes" if pools is True else pools))
    asked = dict(parse(item) for item in replace)
    wanted = dict(parse(old) for name in OLD_MODULES for old in (name, name.rpartition(".")[2]))
    with _lock:
        for old, facade in (wanted | asked).items():
            if _new_names.get(old) != facade:
                _redirect(old, facade)
        if _names not in sys.meta_path:
            sys.meta_path.insert(0, _names)
        if _parents not in sys.meta_path:
            sys.meta_path.append(_parents)


def uninstall() -> None:
    """Undo every redirection: ``sys.modules`` and parent packages are as they were before :func:`install`."""
    if (guests := sys.modules.get("graft.compat.guests.install")) is not None:
        guests.uninstall()
    with _lock:
        for finder in (_names, _parents):
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        for old, facade in _new_names.items():
            ours = sys.modules.get(facade)
            if ours is not None:
                _give_back(old, ours)
        for stand_in in _stand_ins:
            module = sys.modules.get(stand_in.name)
            if module is not None and module.__spec__ is stand_in:
                _give_back(stand_in.name, module)
        for forgotten in (_new_names, _before, _used, _stand_ins):
            forgotten.clear()


def installed() -> dict[str, str]:
    """Old name -> name of the facade that is imported instead."""
    with _lock:
        return dict(_new_names)


def used() -> set[str]:
    """The old names that have been imported since :func:`install`, or were when it was called."""
    return set(_used)


def parse(item: str) -> tuple[str, str]:
    """``OLD`` or ``OLD=FACADE`` as old name and full name of the facade; errors as for :func:`install`."""
    old, equals, new = (part.strip() for part in item.partition("="))
    facade = new.removeprefix("graft.compat.") if equals else old.rpartition(".")[2]
    if not all(part.isidentifier() for part in old.split(".")):
        raise ValueError(f"{item!r} does not name a module; write package.module, not a path")
    if old.partition(".")[0] == "graft":
        raise ValueError(f"{old} is one of ours and cannot be replaced")
    if facade not in FACADES:
        remedy = "choose one of" if equals else f"write {old}=FACADE with one of"
        raise ValueError(f"there is no facade named {facade!r}; {remedy}: {', '.join(FACADES)}")
    return old, f"graft.compat.{facade}"


def _redirect(old: str, facade: str) -> None:
    _before.setdefault(old, (sys.modules.get(old, MISSING), _on_parent(old)))
    _new_names[old] = facade
    if old not in sys.modules:
        return
    if sys.modules[old] is not sys.modules.get(facade):
        warnings.warn(
            f"{old} had been imported before graft.compat.redirect.install(): names taken from it earlier stay the old "
            "ones; install first",
            stacklevel=3,
        )
    sys.modules[old] = importlib.import_module(facade)
    _put_on_parent(old, sys.modules[old])
    _used.add(old)


def _on_parent(name: str) -> Any:
    package, _, child = name.rpartition(".")
    return vars(sys.modules[package]).get(child, MISSING) if package in sys.modules else MISSING


def _put_on_parent(name: str, value: Any) -> None:
    package, _, child = name.rpartition(".")
    if package in sys.modules:
        _put(vars(sys.modules[package]), child, value)


def _put(space: dict[str, Any], name: str, value: Any) -> None:
    if value is MISSING:
        space.pop(name, None)
    else:
        space[name] = value


def _give_back(name: str, ours: ModuleType) -> None:
    """Restore what was under *name* before *ours*; what others have put there since then stays."""
    module, attribute = _before.get(name, (MISSING, MISSING))
    if _on_parent(name) is ours:
        _put_on_parent(name, attribute)
    if sys.modules.get(name) is ours:
        _put(sys.modules, name, module)


class _Facade(Loader):
    def __init__(self, facade: str) -> None:
        self.facade = facade

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what it finds in sys.modules afterwards, here and on the parent package. Returning
        # the facade from create_module() instead would give it a second __spec__.
        sys.modules[module.__name__] = importlib.import_module(self.facade)
        _used.add(module.__name__)


class _Names(MetaPathFinder):
    """First on the path: answers for old names only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        facade = _new_names.get(fullname)
        return ModuleSpec(fullname, _Facade(facade), origin=facade) if facade else None


class _Parents(MetaPathFinder):
    """Last on the path: an empty package for the parent of an old name that nobody else has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Without the lock: install() imports while it holds it, and another thread may be importing right now.
        if not any(old.startswith(f"{fullname}.") for old in tuple(_new_names)):
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        _stand_ins.append(spec)
        return spec


_names, _parents = _Names(), _Parents()
_stand_ins: list[ModuleSpec] = []
