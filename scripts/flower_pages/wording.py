"""Values as text for the pages: counts, times, sizes. Pure. What ends in HTML is escaped here.

Everything that comes from a task goes through :func:`cleaned`: no control character, half a surrogate or mark that
turns text round reaches a page, and no line of a megabyte.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from graft.config.words import several
from graft.scripts.commands.health.report import amount as health_amount
from graft.scripts.console import duration, lasting

LONGEST: Final = 20_000  # Characters of one text.

__all__ = [
    "age", "ago", "amount", "cleaned", "cut", "duration", "first_line", "lasting", "moment", "number", "query", "rate",
    "several", "size",
]  # fmt: skip


def cleaned(value: Any) -> Any:
    """*value* with every text in it fit to be shown; the same types, whatever they hold."""
    if isinstance(value, str):
        return _clean(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{one.name: cleaned(getattr(value, one.name)) for one in fields(value) if one.init})
    if isinstance(value, dict):
        return {cleaned(name): cleaned(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(cleaned(one) for one in value)
    if isinstance(value, bytes):
        return _clean(value.decode("utf-8", "replace"))
    return value


def _clean(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def cut(text: str, most: int = 160) -> str:
    """The first line of *text*, no longer than *most*."""
    line = first_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def number(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """A number each second: ``0.2``, ``31``, ``1,250``."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value else "0"


def size(count: float) -> str:
    """Bytes for people: ``312 B``, ``1.5 KiB``, ``48 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.3g} {unit}" if count < 100 else f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def amount(value: float | None, unit: str) -> str:
    """A measured value with its unit, as ``health`` shows it."""
    if value is None:
        return "—"
    if value == 1 and len(unit) > 1:
        unit = unit.removesuffix("s")
    return health_amount(round(value, 2) if unit != "share" else value, unit)


def age(seconds: float | None) -> str:
    return "—" if seconds is None else lasting(seconds)


def iso(at: float) -> str:
    """*at* as an ISO time; a message may say that it was sent in the year 30,000."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "never"


def ago(at: float | None) -> str:
    """HTML: how long ago *at* was; its title says when, in the viewer's zone (graft.js)."""
    if not at:
        return "—"
    left = time.time() - at
    text = f"{lasting(left)} ago" if left >= 0 else f"in {lasting(-left)}"
    return f'<time datetime="{iso(at)}" title="{iso(at)}">{text}</time>'


def moment(at: float | None) -> str:
    """HTML: when *at* was, as an ISO time; the viewer's zone where scripts run."""
    return f'<time class="graft-moment" datetime="{iso(at)}" title="{iso(at)}">{iso(at)}</time>' if at else "—"


def query(known: Mapping[str, Any], **changed: Any) -> str:
    """The query of an address: *known* with what is *changed*; "" where nothing is asked."""
    asked = {name: value for name, value in {**known, **changed}.items() if value not in ("", None, 0)}
    return f"?{urlencode(asked)}" if asked else ""
