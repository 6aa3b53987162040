"""Ray is imported in this module only, and only when it is switched on."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, Final

from graft.compat.local import awaited

logger = logging.getLogger(__name__)

SWITCH: Final = "GRAFT_RAY"
MISSING: Final = "Ray is not installed: pip install celery-graft[ray]"
CHUNKS_PER_CPU: Final = 4  # Enough that all processors finish together; each costs a millisecond.


def start(use_ray: bool | None) -> bool:
    """Whether Ray is to be used; it is running here when it is.

    Args:
        use_ray: True, False, or None for what ``GRAFT_RAY`` says.

    Raises:
        ImportError: True, and Ray is not installed. Switched on by the environment, that is a warning in the log.
    """
    wanted = os.environ.get(SWITCH, "").lower() in ("1", "true", "yes", "on") if use_ray is None else use_ray
    if not wanted:
        return False
    if find_spec("ray") is None:
        if use_ray:
            raise ImportError(MISSING, name="ray")
        logger.warning("%s is set, but the bulk engine runs instead: %s", SWITCH, MISSING)
        return False
    ray = _ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    return True


def _ray() -> Any:
    return import_module("ray")  # Not importable where types are checked.


async def map_async(func: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``func(item)`` for every item, in Ray's processes; in the order of *items*.

    Raises:
        Exception: the first failing item's own error.
    """
    ray = _ray()
    size = max(1, math.ceil(len(items) / (CHUNKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1))))))
    run = ray.remote(_run_chunk)
    refs = [run.remote(func, items[start : start + size]) for start in range(0, len(items), size)]
    values = []
    for succeeded, value in chain.from_iterable(await asyncio.gather(*refs)):
        if not succeeded:
            raise value
        values.append(value)
    return values


def _run_chunk(func: Callable[[Any], Any], items: Sequence[Any]) -> list[tuple[bool, Any]]:
    """Run in a process of Ray's. Errors travel as values: Ray would wrap them in a class of its own."""
    outcomes: list[tuple[bool, Any]] = []
    for item in items:
        try:
            value = func(item)
            outcomes.append((True, asyncio.run(awaited(value)) if inspect.isawaitable(value) else value))
        except Exception as error:
            outcomes.append((False, error))
    return outcomes


def actor(cls: type, *args: Any) -> Any:
    return _ray().remote(cls).remote(*args)


def get(ref: Any) -> Any:
    """The value behind *ref*. Blocks."""
    return _ray().get(ref)
