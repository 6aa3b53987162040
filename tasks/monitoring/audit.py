"""What people did to the deployment through Flower's pages: one bounded stream in Redis, which nothing else writes.

An act is noted before it is done, with its count as the person saw it; how it ended is a second entry of the same act.
Whoever may not write here may not act either.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config import keys

LENGTH: Final = 10_000  # Acts that are kept, about 3 MB.
LONGEST: Final = 500


@dataclass(frozen=True)
class Act:
    """One act. ``at`` is seconds since the epoch on Redis's clock; ``result`` is "" until it has ended."""

    id: str
    at: float
    who: str
    address: str
    what: str
    result: str = ""


def may_write(client: Any) -> bool:
    """Whether this Redis user may note acts, and so may act."""
    try:
        client.xtrim(keys.AUDIT, maxlen=LENGTH, approximate=True)
    except NoPermissionError:
        return False
    return True


def begin(who: str, address: str, what: str, client: Any) -> str:
    """Note that *who* does *what* now; the act's id."""
    act = secrets.token_hex(8)
    _write(client, act=act, who=who, address=address, what=what)
    return act


def end(act: str, result: str, client: Any) -> None:
    """Note how an act has ended."""
    _write(client, act=act, result=result)


def _write(client: Any, **fields: str) -> None:
    short = {name: text[:LONGEST] for name, text in fields.items()}
    client.xadd(keys.AUDIT, short, maxlen=2 * LENGTH, approximate=True)


def read(client: Any, limit: int = 200) -> list[Act]:
    """The last *limit* acts, the latest first."""
    acts: dict[str, Act] = {}
    results: dict[str, str] = {}
    for entry, raw in client.xrevrange(keys.AUDIT, count=2 * limit):
        fields = {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}
        if "result" in fields:
            results.setdefault(fields["act"], fields["result"])
        else:
            at = int(entry.partition(b"-")[0]) / 1000
            acts[fields["act"]] = Act(fields["act"], at, fields["who"], fields["address"], fields["what"])
    return [replace(act, result=results.get(act.id, "")) for act in list(acts.values())[:limit]]
