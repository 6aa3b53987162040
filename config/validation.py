"""Numbers that callers give, checked where they are given; and names of variables that nothing reads."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real


def at_least_one(what: str, value: int) -> int:
    """*value*, a count that must allow something."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}={value!r} must be a whole number")
    if value < 1:
        raise ValueError(f"{what}={value} must be at least 1")
    return value


def seconds(what: str, value: float) -> float:
    """*value*, a duration that must be positive."""
    if not number(what, value) > 0:
        raise ValueError(f"{what}={value!r} must be more than 0 seconds")
    return value


# Of ours, and no settings of a deployment: the command line's, the benchmark's, the tests' and so on.
OTHER_VARIABLES: tuple[str, ...] = ("APP", "IMAGE", "RAY", "BENCH_", "ECOSYSTEM_", "EXPORTER_", "TEST_")


def misspelt(environ: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """The names in *environ* that look like one of *known* and are none, each with the nearest that there is, or ""."""
    known = set(known)
    found = []
    for name in sorted(set(environ) - known):
        prefix, _, rest = name.upper().partition("_")
        if prefix not in ("GRAFT", "CELERY") or (prefix == "GRAFT" and rest.startswith(OTHER_VARIABLES)):
            continue
        likely = [one.partition("_")[2] for one in known if one.startswith(f"{prefix}_")]
        nearest = next(iter(difflib.get_close_matches(rest, likely, 1, 0.8)), "")
        if nearest or prefix == "GRAFT":  # A project may read names of its own that begin with CELERY_.
            found.append((name, nearest and f"{prefix}_{nearest}"))
    return found


def number(what: str, value: float) -> float:
    """*value*, any number but NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what}={value!r} must be a number")
    if math.isnan(value):
        raise ValueError(f"{what}={value!r} must be a number")
    return value
