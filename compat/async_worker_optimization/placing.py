"""Whether a callable can leave for the cluster at all: what two facades have to know beside the road."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graft.compat import bridge
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.errors import UnreferenceableError


def reference(func: Callable[..., Any], place: bridge.Place | None) -> FunctionRef | None:
    """How *func* travels, or None when it stays with the caller whatever its items are."""
    if place == "local" or bridge.is_local():
        return None
    try:
        return refer(func)
    except UnreferenceableError:
        return refer(func, by_value=True) if place == "cluster" else None
