"""What is asked for: shares, patterns, how values are compared. Which call is chosen follows from it. Pure."""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, Final, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
Purpose = Literal["shadow", "canary"]
Kind = Literal["value", "order", "error", "arguments", "files"]

KINDS: Final[tuple[Kind, ...]] = ("value", "order", "error", "arguments", "files")
MARK: Final = "graft_never_shadow"
DEEPEST: Final = 20  # Wrappers around a marked function.
RANGE: Final = float(1 << 64)


@dataclass(frozen=True)
class Plan:
    """What ``python -m graft.compat --shadow … --canary …`` and :func:`graft.compat.shadow.install` are told.

    Attributes:
        shadow: share of the calls, 0 to 1, that also run in the cluster; the old way answers them.
        canary: share of the calls that the cluster answers.
        program: the name under which ``celery -A graft shadow`` finds this program.
        seed: another seed chooses other calls.
        only: patterns of ``module:function`` or ``function``; other callables are answered the old way. ``*`` and ``?``
            are wildcards.
        leave_out: patterns of callables that are answered the old way.
        equal: ``==``, ``pickle``, or ``module:function``, which is called with both values and says whether they are
            equal.
        tolerance: relative difference that floats may have.
        ignore: kinds of difference that do not count.
        files: folders in which calls write.
        limit: share of differences, or of errors beyond the old way's, above which a callable goes back to the old way.
        timeout: seconds that the cluster has for a call, or three times the old way's longest where that is more.
        outstanding: shadowed calls that may wait for the cluster or their comparison; of further ones none is compared.
    """

    shadow: float = 0.0
    canary: float = 0.0
    program: str = "program"
    seed: str = "0"
    only: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    equal: str = "=="
    tolerance: float = 0.0
    ignore: frozenset[Kind] = frozenset()
    files: tuple[str, ...] = ()
    limit: float = 0.02
    timeout: float = 30.0
    outstanding: int = 1000

    def __post_init__(self) -> None:
        for name in ("shadow", "canary", "limit"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value:g} must be a share from 0 to 1, such as 0.05 for every twentieth call")
        if self.tolerance < 0:
            raise ValueError(f"tolerance={self.tolerance:g} must not be negative")
        if self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout:g} must be above 0 seconds")
        if self.outstanding < 1:
            raise ValueError(f"outstanding={self.outstanding} must be at least 1, or no call would ever be compared")
        if unknown := self.ignore - set(KINDS):
            raise ValueError(f"ignore={', '.join(sorted(unknown))} is no kind of difference; choose {', '.join(KINDS)}")
        if not self.program or " " in self.program:
            raise ValueError(f"program={self.program!r} must be a name without spaces")
        self.equality()

    def equality(self) -> Callable[[Any, Any], object] | None:
        """The function that says whether two values are equal; None for ``==`` and ``pickle``.

        Raises:
            ValueError: it cannot be imported.
        """
        if self.equal in ("==", "pickle"):
            return None
        module, _, qualname = self.equal.partition(":")
        try:
            found: Callable[[Any, Any], object] = operator.attrgetter(qualname)(importlib.import_module(module))
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"equal={self.equal!r} must be ==, pickle, or module:function that can be imported: {error}"
            ) from error
        return found

    def why_not(self, func: Callable[..., Any], name: str) -> str:
        """Why calls of *func*, whose full name is *name*, are all answered the old way; empty where they are not."""
        if is_never_shadowed(func):
            return f"it is marked: {MARK}"
        if self.only and not _matches(name, self.only):
            return "--only names others"
        return "--except names it" if _matches(name, self.leave_out) else ""


def draw(seed: str, purpose: Purpose, name: str, number: int) -> float:
    """A number from 0 up to 1 that depends on nothing else; a call is chosen where it is below the share.

    So a larger share chooses the same calls and more, and a second run of a program chooses the same ones.
    """
    digest = blake2b(f"{seed}\0{purpose}\0{name}\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / RANGE


def never_shadow(func: F) -> F:
    """Mark *func*, as a decorator: it must not run twice, so its calls are never shadowed, nor canaries.

    The mark is ``func.graft_never_shadow = True``, which an old program can set without importing anything.
    """
    setattr(func, MARK, True)
    return func


def is_never_shadowed(func: Any) -> bool:
    """Whether *func* bears the mark, or what it wraps or is bound to."""
    for _ in range(DEEPEST):
        if getattr(func, MARK, False) is True:
            return True
        func = func.func if isinstance(func, functools.partial) else getattr(func, "__wrapped__", None)
    return False


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    short = name.partition(":")[2]
    return any(fnmatchcase(name, pattern) or fnmatchcase(short, pattern) for pattern in patterns)
