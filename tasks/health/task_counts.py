"""Totals of ordinary Celery tasks, beside the figures of envelopes: their processes add them up now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PLAIN: Final = "graft:health:plain"
NAMES: Final = ("items", "errors", "retries")


def add(counts: Mapping[str, int], client: Any) -> None:
    """Add what one process has counted since it last did."""
    with client.pipeline(transaction=False) as pipe:
        for name in NAMES:
            if counts.get(name):
                pipe.hincrby(PLAIN, name, counts[name])
        pipe.execute()


def read(client: Any) -> dict[str, int]:
    return {name: int(count or 0) for name, count in zip(NAMES, client.hmget(PLAIN, *NAMES), strict=True)}
