"""Numbers that callers give, checked where they are given; and names of variables that nothing reads."""

from __future__ import annotations

import math
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


def weight(what: str, value: float) -> float:
    """*value*, a weight among others."""
    if not 0.001 <= number(what, value) <= 1000:
        raise ValueError(f"{what}={value!r} must be from 0.001 to 1000; the share of most is 1")
    return value


def number(what: str, value: float) -> float:
    """*value*, any number but NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what}={value!r} must be a number")
    if math.isnan(value):
        raise ValueError(f"{what}={value!r} must be a number")
    return value
