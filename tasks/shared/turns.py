"""What a call has to ask for before it may begin, told from its function and its arguments."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, Literal, Protocol

from graft.tasks.shared.circuit_breaker import SharedBreaker
from graft.tasks.shared.limit import ATTRIBUTE, Limit, Primitive
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore

LONGEST_KEY: Final = 100  # Characters; of a longer key the digest is used.


@dataclass(frozen=True)
class Turn:
    """What one call asks one primitive for. *limit* is the ``@limit`` that set it, None for a caller's own primitive.

    ``key`` is that of the limit, None without ``by``.
    """

    primitive: Primitive | SharedRateLimiter
    ticket: str
    limit: Limit | None = None
    key: str | None = None

    @property
    def kind(self) -> Literal["breaker", "semaphore", "rate"]:
        """The part of the limit, as LimitEvent names it."""
        match self.primitive:
            case SharedBreaker():
                return "breaker"
            case SharedSemaphore():
                return "semaphore"
        return "rate"

    @property
    def is_held(self) -> bool:
        """Whether something is to be done when the call ends."""
        return isinstance(self.primitive, SharedSemaphore | SharedBreaker)

    def __str__(self) -> str:
        name = self.limit.name if self.limit else self.primitive.name
        return f"the {self.kind} {name!r}" + ("" if self.key is None else f" of {self.key!r}")


class TurnSource(Protocol):
    """Knows what the calls of one function have to ask for."""

    def turns(self, args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str) -> list[Turn]:
        """What a call has to ask for, in this order; *ticket* stands for it.

        Raises:
            Exception: ``by`` is a function and raised, or the call does not fit the function.
        """


def turns_of(func: Callable[..., Any]) -> TurnSource | None:
    """The source for *func*, or for what it is a partial of; None where nothing limits it."""
    if isinstance(func, functools.partial):
        inner = turns_of(func.func)
        if isinstance(inner, OfArgument) and inner.is_bound_to_unlimited(func.args):
            return None
        return None if inner is None else _Bound(inner, func)
    found = getattr(func, ATTRIBUTE, None)
    if found is None and not isinstance(func, FunctionType):  # An object that is called.
        found = getattr(type(func).__call__, ATTRIBUTE, None)
    if isinstance(found, tuple):
        return Limiter(func, found)
    return found


def refuse_limits(func: Callable[..., Any], caller: str) -> None:
    """Refuse *func* if it has limits, which *caller* could not keep to.

    Raises:
        ValueError: it has.
    """
    if turns_of(func) is not None:
        raise ValueError(
            f"{caller} makes several calls of a function in one item, and so cannot keep to its limits (@limit); send "
            "an item for each call: graft.submit, an executor, Pool.map"
        )


@dataclass(frozen=True)
class OfArgument:
    """The source for a function that calls another: its argument at *number*, with the arguments that follow."""

    number: int

    def turns(self, args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str) -> list[Turn]:
        inner = turns_of(args[self.number])
        return [] if inner is None else inner.turns(args[self.number + 1 :], kwargs, ticket)

    def is_bound_to_unlimited(self, args: Sequence[Any]) -> bool:
        """Whether a partial with *args* calls a function that nothing limits."""
        return len(args) > self.number and turns_of(args[self.number]) is None


@dataclass(frozen=True)
class _Bound:
    """The source for a partial."""

    inner: TurnSource
    partial: functools.partial[Any]

    def turns(self, args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str) -> list[Turn]:
        return self.inner.turns((*self.partial.args, *args), {**self.partial.keywords, **kwargs}, ticket)


class Limiter:
    """The limits of one function, which a decorator has written on it."""

    def __init__(self, func: Callable[..., Any], limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self._signature = inspect.signature(func) if any(isinstance(each.by, str) for each in limits) else None

    def turns(self, args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str) -> list[Turn]:
        return [
            Turn(primitive, f"{ticket}:{primitive.prefix}", limit, key)
            for limit, key in self.keys(args, kwargs)
            for primitive in limit.primitives(key)
        ]

    def keys(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Limit, str | None]]:
        """Each limit with its key for this call.

        Raises:
            Exception: *by* is a function and raised; or the function cannot be called so.
        """
        if all(each.by is None for each in self.limits):
            return [(each, None) for each in self.limits]
        return [(each, None if each.by is None else self._key(each.by, args, kwargs)) for each in self.limits]

    def _key(self, by: str | Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        if isinstance(by, str):
            assert self._signature is not None
            call = self._signature.bind(*args, **kwargs)
            call.apply_defaults()
            value = call.arguments[by]
        else:
            value = by(*args, **kwargs)
        text = str(value)
        return text if len(text) <= LONGEST_KEY else hashlib.sha256(text.encode()).hexdigest()
