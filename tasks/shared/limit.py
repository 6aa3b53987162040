"""``@limit``: what a function may do at once, how often, and whether at all; for the whole cluster, by name.

The decorator leaves the function as it is and writes its limits on it. Workers read them there, so the code that a
worker has decides; admission.py obeys them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from graft.config.validation import at_least_one
from graft.tasks.shared.circuit_breaker import BreakerRules, SharedBreaker
from graft.tasks.shared.rate_window import Rate, SharedRate
from graft.tasks.shared.semaphore import SharedSemaphore

if TYPE_CHECKING:
    from graft.tasks.shared.limit_events import LimitEvent

ATTRIBUTE: Final = "__graft_limits__"
TRIAL: Final = {"success_threshold": 1, "half_open_limit": 1}  # With breaker=5, one trial at a time decides.

F = TypeVar("F", bound=Callable[..., Any])
Primitive = SharedBreaker | SharedSemaphore | SharedRate


@dataclass(frozen=True)
class Limit:
    """The limits that one ``@limit`` sets, checked. *name* is that of all its keys in Redis."""

    name: str
    semaphore: int | None = None
    rate: Rate | None = None
    breaker: BreakerRules | None = None
    by: str | Callable[..., Any] | None = None
    on_event: Callable[[LimitEvent], Any] | None = None

    def __str__(self) -> str:
        """What it allows, for people."""
        parts = [
            "" if self.semaphore is None else f"{self.semaphore} at once",
            "" if self.rate is None else str(self.rate),
            "" if self.breaker is None else f"breaker after {self.breaker.failure_threshold} failures",
        ]
        by = "" if self.by is None else f" by {self.by if isinstance(self.by, str) else 'a function'}"
        return ", ".join(part for part in parts if part) + by

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its parts, as parameters of ``limit``."""
        return tuple(kind for kind in ("breaker", "semaphore", "rate") if getattr(self, kind) is not None)

    def primitives(self, key: str | None) -> tuple[Primitive, ...]:
        """Those behind *key*, in the order in which they are to be asked: what cannot be given back comes last."""
        name = self.name if key is None else f"{self.name}[{key}]"
        return (
            *([] if self.breaker is None else [SharedBreaker(name, self.breaker)]),
            *([] if self.semaphore is None else [SharedSemaphore(name, self.semaphore)]),
            *([] if self.rate is None else [SharedRate(name, self.rate)]),
        )


def limit(
    *,
    name: str | None = None,
    semaphore: int | None = None,
    rate: str | int | None = None,
    breaker: BreakerRules | int | None = None,
    by: str | Callable[..., Any] | None = None,
    on_event: Callable[[LimitEvent], Any] | None = None,
) -> Callable[[F], F]:
    """Limit a function, or a task, in the whole cluster. An item that may not begin goes back to the queue for later.

    It occupies no pool process while it waits, uses up no retry, and counts as no death. The limit holds on workers:
    for ``graft.submit``, executors, pools and hardened tasks (write it below ``@app.task``). A direct call of the
    function is not limited, nor is anything with ``GRAFT_MODE=local``. Several may stand above one function.

    Args:
        name: functions that give one name share the limit, and so do ``compat`` semaphores of that name and size.
            Default: the function's module and name.
        semaphore: how many items run at once, at least 1.
        rate: how many items begin in any such time: ``"10/minute"``, ``"100/hour"``, second, minute, hour or day. A
            whole number is for each second. At least 1, at most 10,000.
        breaker: stop after so many failures in a row, for 30 s, then try one item; or :class:`BreakerRules`. Every
            error but a PermanentError counts. An item that failed has failed, or runs again as its own policy says;
            those that come while the breaker is open wait.
        by: a parameter's name, or a function of the same arguments. Each of its values has limits of its own.
        on_event: called on the worker with a :class:`LimitEvent`, beside the line in the log. What it raises is logged.

    Raises:
        TypeError: an argument has the wrong type, or what is decorated is no plain function.
        ValueError: an argument is out of range, *by* names no parameter, a function without a name of its own (a
            lambda) has no *name*, or another function in this process gives the name other limits.
    """
    rules = {
        "semaphore": None if semaphore is None else at_least_one("semaphore", semaphore),
        "rate": None if rate is None else Rate.of(rate),
        "breaker": None if breaker is None else _rules(breaker),
    }
    if not any(rules.values()):
        raise ValueError("limit() needs at least one of semaphore=, rate= and breaker=")
    if name is not None and (not isinstance(name, str) or not name):
        raise ValueError(f"name={name!r} must be a text that is not empty")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event={on_event!r} is not callable")
    if by is not None and not isinstance(by, str) and not callable(by):
        raise TypeError(f"by={by!r} must be a parameter's name or a function")

    def decorate(func: F) -> F:
        _check(func, name, by)
        found = Limit(name or f"{func.__module__}:{func.__qualname__}", **rules, by=by, on_event=on_event)  # type: ignore[arg-type]
        _claim(found, f"{func.__module__}:{func.__qualname__}", getattr(func, ATTRIBUTE, ()))
        setattr(func, ATTRIBUTE, (found, *getattr(func, ATTRIBUTE, ())))
        return func

    return decorate


def _rules(breaker: Any) -> BreakerRules:
    if isinstance(breaker, BreakerRules):
        return breaker
    if isinstance(breaker, bool) or not isinstance(breaker, int):
        raise TypeError(f"breaker={breaker!r} must be a whole number of failures in a row, or BreakerRules")
    return BreakerRules(at_least_one("breaker", breaker), **TRIAL)


def _check(func: Any, name: str | None, by: str | Callable[..., Any] | None) -> None:
    if type(func) is not FunctionType:  # Celery's proxies would make the task to be asked for its class.
        remedy = "write @limit below @app.task" if hasattr(func, "apply_async") else "write @limit right above its def"
        raise TypeError(f"@limit takes a plain function, not {func!r:.100}; {remedy}")
    if name is None and "<" in func.__qualname__:
        raise ValueError(
            f"{func.__module__}:{func.__qualname__} has no name that workers could share; give the limit a name="
        )
    if isinstance(by, str):
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [each.name for each in inspect.signature(func).parameters.values() if each.kind not in kinds]
        if by not in names:
            has = f"its parameters are {', '.join(names)}" if names else "it has no parameters"
            raise ValueError(f"by={by!r} names no parameter of {func.__name__}; {has}")


_claimed: dict[str, tuple[str, Limit]] = {}  # By name: the function that gave the limit first, and the limit.


def _claim(found: Limit, owner: str, above: Sequence[Limit]) -> None:
    """Refuse a second limit of one name that would be another one."""
    theirs, known = _claimed.get(found.name, (owner, found))
    for kind in ("semaphore", "rate", "breaker"):
        mine, their = getattr(found, kind), getattr(known, kind)
        if owner != theirs and mine and their and mine != their:
            raise ValueError(
                f"the limit {found.name!r} of {owner} has {kind}={mine}, and that of {theirs} has {their}; give both "
                "the same, or another name"
            )
        if mine and any(each.name == found.name and getattr(each, kind) for each in above):
            raise ValueError(f"{owner} has two limits {kind}= named {found.name!r}; give one of them another name=")
    _claimed[found.name] = theirs, found if theirs == owner else known
