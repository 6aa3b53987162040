"""What limits have done, for hooks, the log, and the figures in Redis that ``top``, ``health`` and the exporter show.

admission ── count, tell ──► this process ── once a second ──► graft:limit:NAME ──► limit_states.py
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

import redis

from graft.config import keys, redis_clock
from graft.config.deployment import part
from graft.config.each_second import each_second
from graft.config.redis_client import shared

logger = logging.getLogger(__name__)

KEPT: Final = 30 * 86400  # Seconds for which a limit that nobody uses is remembered.
KEYS: Final = 1000  # Keys of one limit that are remembered, those that were used last.
LONGEST_ERROR: Final = 200

What = Literal["postponed", "opened", "half_open", "closed"]


@dataclass(frozen=True)
class LimitEvent:
    """Something that a limit did, for ``on_event`` and the log. ``str()`` is the log's line.

    Attributes:
        limit: the limit's name.
        kind: which part of it: "semaphore", "rate" or "breaker".
        what: "postponed", items go back to the queue; of a breaker also "opened", "half_open" (one is tried), "closed".
        key: the value of ``by``, None without it.
        items: how many were postponed.
        wait: seconds until they ask again; of a breaker that opened, until it lets one try.
        error: of a breaker that opened: the failure that did it.
    """

    limit: str
    kind: Literal["semaphore", "rate", "breaker"]
    what: What
    key: str | None = None
    items: int = 0
    wait: float = 0.0
    error: BaseException | None = None

    def __str__(self) -> str:
        name = repr(self.limit) if self.key is None else f"{self.limit!r} of {self.key!r}"
        match self.what:
            case "postponed":
                asks = "an item waits for the" if self.items == 1 else f"{self.items} items wait for the"
                again = "asks" if self.items == 1 else "ask"
                return f"{asks} {self.kind} {name}, and {again} again in {self.wait:.3g} s"
            case "opened":
                return (
                    f"the breaker {name} has opened after {self.error!r:.300}; items wait, and one is tried in "
                    f"{self.wait:.3g} s"
                )
            case "half_open":
                return f"the breaker {name} is half-open: a few items are tried"
            case _:
                return f"the breaker {name} has closed: items run again"


def tell(event: LimitEvent, hook: Callable[[LimitEvent], Any] | None) -> None:
    """Log *event*, count it, and call the hook of its limit."""
    logger.log(logging.INFO if event.what == "postponed" else logging.WARNING, "%s", event)
    counted = part(LimitCounts)
    counted.count(event.limit, event.kind, event.what, max(event.items, 1))
    if event.error is not None:
        counted.note(event.limit, "error", f"{type(event.error).__name__}: {event.error}"[:LONGEST_ERROR])
    if hook is None:
        return
    try:
        hook(event)
    except Exception:
        logger.exception("on_event of the limit %r failed", event.limit)


class LimitCounts:
    """What limits did in this process and Redis does not know yet. Nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}
        self._notes: dict[str, dict[str, str]] = {}
        self._labels: dict[str, set[str]] = {}
        self._is_written = False

    def count(self, name: str, kind: str, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts.setdefault(name, Counter())[f"{kind}:{what}"] += number
            self._start()

    def note(self, name: str, field: str, text: str) -> None:
        """Have *field* of the limit's record say *text*."""
        with self._lock:
            self._notes.setdefault(name, {})[field] = text
            self._start()

    def used(self, name: str, rule: str, kinds: str, labels: Iterable[str]) -> None:
        """The limit *name* was asked, which has these *kinds* of primitives, under these names."""
        with self._lock:
            self._notes.setdefault(name, {}).update(rule=rule, kinds=kinds)
            self._labels.setdefault(name, set()).update(labels)
            self._start()

    def _start(self) -> None:
        if not self._is_written:
            self._is_written = True
            each_second(self.write)

    def write(self) -> None:
        with self._lock:
            counts, notes, used = self._counts, self._notes, self._labels
            self._counts, self._notes, self._labels = {}, {}, {}
        names = {*counts, *notes}
        if not names:
            return
        try:
            now = redis_clock.now()
            with shared().pipeline(transaction=False) as pipe:
                for name in names:
                    key = keys.LIMIT + name
                    for field, number in counts.get(name, {}).items():
                        pipe.hincrby(key, field, number)
                    if name in notes:
                        pipe.hset(key, mapping=notes[name])
                    pipe.expire(key, KEPT)
                    pipe.zadd(keys.LIMITS, {name: now})
                    if name in used:
                        of_keys = keys.LIMIT_KEYS + name
                        pipe.zadd(of_keys, dict.fromkeys(used[name], now))
                        pipe.zremrangebyrank(of_keys, 0, -KEYS - 1)
                        pipe.expire(of_keys, KEPT)
                pipe.zremrangebyscore(keys.LIMITS, "-inf", now - KEPT)
                pipe.expire(keys.LIMITS, KEPT)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            logger.debug("what %d limits did is not counted: %r", len(names), error)
