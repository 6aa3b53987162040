"""Placement: whether a call runs in the cluster or in this process, and why (rule R2 of the contract).

The decision is made before anything is sent. It is logged at debug level and stands in the call report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from graft.compat import old_way
from graft.config.deployment import settings
from graft.tasks.callables.importable import name_of
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.errors import UnreferenceableError
from graft.tasks.policy import RetryPolicy
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger(__name__)

Where = Literal["cluster", "local"]


class RunOptions(TypedDict, total=False):
    """Options that every facade accepts by keyword."""

    place: Where | None
    """Force a placement: "cluster" or "local". Default: rule R2 decides."""
    retry: RetryPolicy | int | None
    """A RetryPolicy, or a number of retries, for calls that raise. A number retries transient errors: connections,
    timeouts, OSError. Default: no retry."""


class CallOptions(RunOptions, total=False):
    """Options of facades that also set limits and priorities."""

    timeout: float | None
    """Time limit of one item in seconds; an item that exceeds it ends in ItemTimeoutError. Default: no limit."""
    priority: float
    """Larger goes first. Default: 0, the middle."""
    share: float
    """Weight among the batches and callables of the same priority, which share workers. Default: 1, as all others."""


@dataclass(frozen=True)
class Placement:
    """Where calls run, and the reason. ``function`` tells a worker how to get the callable; None for local calls."""

    where: Where
    reason: str
    function: FunctionRef | None = None


def is_local() -> bool:
    """Whether this deployment keeps everything in the calling process (``GRAFT_MODE=local``)."""
    return settings().mode == "local"


def shared_name(name: str | None) -> str | None:
    """*name*, of something that processes share in Redis; None in local mode, where nothing is shared."""
    return None if is_local() else name


def check_place(place: object) -> None:
    """Refuse a value of ``place=`` that names no placement."""
    if place not in (None, "cluster", "local"):
        raise ValueError(f"place={place!r} must be 'cluster', 'local' or None")


def reference(func: Callable[..., Any], place: Where | None) -> FunctionRef | None:
    """How *func* reaches a worker; None if it stays in this process whatever its arguments are."""
    if place == "local" or is_local() or (place is None and old_way.watcher() is not None):
        return None
    try:
        return _refer(func, place)
    except UnreferenceableError:
        return None


def place_calls(func: Callable[..., Any], place: Where | None = None) -> Placement:
    """Placement of calls of *func* whose arguments can travel: by rule R2 unless *place* forces it.

    Raises:
        TypeError: *func* cannot be called.
        UnreferenceableError: forced to the cluster, but a worker can neither import nor receive *func*.
        ValueError: *place* names no placement.
    """
    if not callable(func):
        raise TypeError(f"{func!r} is not callable")
    check_place(place)
    placement = _decide(func, place)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s runs %s: %s", name_of(func), _SHOWN[placement.where], placement.reason)
    return placement


_SHOWN = {"cluster": "in the cluster", "local": "in this process"}


def _decide(func: Callable[..., Any], place: Where | None) -> Placement:
    if place == "local":
        return Placement("local", "place='local' was asked for")
    if is_local():
        return Placement("local", "GRAFT_MODE is local")
    if in_worker():
        return Placement("local", "it was called inside a task, where waiting for others could block every worker")
    try:
        ref = _refer(func, place)
    except UnreferenceableError as error:
        if place == "cluster":
            raise
        return Placement("local", str(error))
    return Placement("cluster", "a worker can import it" if ref.how == "import" else "it travels by value", ref)


def _refer(func: Callable[..., Any], place: Where | None) -> FunctionRef:
    try:
        return refer(func)
    except UnreferenceableError:
        if place != "cluster":
            raise
        return refer(func, by_value=True)
