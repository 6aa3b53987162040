"""How each run of an envelope or task ended: one bounded stream in Redis.

    envelope with errors ── add, in the round trip that ends the run ──────┐
    others ── note ── what ended within a second, in one round trip ───────┴─► graft:attempts ──► celery -A … track ID

A stream takes about 180 bytes for a run, a fraction of what a key for each would. How long it may be follows from the
bytes that it may take and the size of what each process notes; a look every five minutes at what it does take corrects
that. Finding one call's runs means searching it inside Redis, a page at a time; that is done when somebody asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import redis
from celery.exceptions import Ignore, Reject, Retry

from graft.config import keys, lua
from graft.config.deployment import part, settings
from graft.config.each_second import each_second
from graft.config.redis_client import shared

logger = logging.getLogger(__name__)

STREAM: Final = keys.ATTEMPTS
PAGE: Final = 2000
LONGEST_ERROR: Final = 200
LONGEST_QUEUE: Final = 100
SEARCH: Final = lua.load(__file__, "attempts")
FIELDS: Final = ("id", "run", "worker", "seconds", "outcome", "name", "batch", "error", "queue", "age")
MOST: Final = 10_000  # Noted runs that wait for Redis; the oldest go first.
# Bytes that Redis takes for a run beside its texts, and for each byte of those: measured with 6.2, and a little more.
BESIDE, FOR_EACH = 38.0, 1.15
REMEMBERED: Final = 256  # Runs over which their size is averaged.


@dataclass(frozen=True)
class Attempt:
    """One run of an envelope or task. ``ended`` is Redis's time, in seconds since the epoch; runs count from 1.

    ``queue`` is the one it was sent to, or the routing key where an exchange chose the queue: its first 100 characters,
    "" where that is not known.
    """

    id: str
    run: int
    worker: str
    seconds: float
    outcome: str
    name: str
    batch: str
    error: str
    queue: str
    ended: float

    @property
    def began(self) -> float:
        return self.ended - self.seconds


def add(
    pipe: Any, request: Any, *, run: int, seconds: float, outcome: str, name: str, error: BaseException | None = None
) -> None:
    """Note the end of a run of *request*, on the caller's pipeline."""
    _write(pipe, [(_values(request, run, seconds, outcome, name, error), time.monotonic())])


def note(request: Any, answer: str | BaseException | None, *, run: int, seconds: float, name: str) -> None:
    """Note the end of a run, which raised *answer* or nothing, or of which *answer* says what came of it.

    Returns at once; Redis has it in a second.
    """
    if settings().attempts_bytes:
        outcome, error = (answer, None) if isinstance(answer, str) else told(answer)
        part(_Noted).add(_values(request, run, seconds, outcome, name, error))


def told(answer: BaseException | None) -> tuple[str, BaseException | None]:
    """The outcome for people, and the error."""
    match answer:
        case None:
            return "succeeded", None
        case Retry():
            return "runs again", answer.exc
        case Reject():
            return "given back", None
        case Ignore():
            return "ignored", None
        case error:
            return "failed", error


def error_text(error: BaseException | None) -> str:
    """The class and the beginning of the text of *error*; "" for none."""
    return "" if error is None else f"{type(error).__name__}: {error}"[:LONGEST_ERROR]


def _values(
    request: Any, run: int, seconds: float, outcome: str, name: str, error: BaseException | None
) -> tuple[Any, ...]:
    queue = str((getattr(request, "delivery_info", None) or {}).get("routing_key") or "")[:LONGEST_QUEUE]
    return (
        request.id, run, getattr(request, "hostname", None) or "", round(seconds, 6), outcome, name,
        getattr(request, "group", None) or "", error_text(error), queue,
    )  # fmt: skip


def _write(pipe: Any, ended: Iterable[tuple[tuple[Any, ...], float]]) -> None:
    """Put on *pipe* what ended at these moments of this process's clock."""
    most, now, sizes = settings().attempts_bytes, time.monotonic(), part(_Sizes)
    for values, at in ended if most else ():
        fields = dict(zip(FIELDS, (*values, round(now - at, 3)), strict=True))
        pipe.xadd(STREAM, fields, maxlen=max(1, int(most / sizes.mean_with(fields.values()))), approximate=True)


class _Sizes:
    """How many bytes Redis takes for a run that this process notes."""

    def __init__(self) -> None:
        self._mean = 0.0

    def mean_with(self, values: Iterable[Any]) -> float:
        """The average of the last runs, this one with *values* among them."""
        size = BESIDE + FOR_EACH * sum(len(str(value).encode("utf-8", "replace")) for value in values)
        self._mean += (size - self._mean) / (REMEMBERED if self._mean else 1)
        return self._mean


class _Noted:
    """The runs of tasks that ended in this process and are not in Redis yet. A task must not wait for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: deque[tuple[tuple[Any, ...], float]] = deque(maxlen=MOST)
        self._is_written = False

    def add(self, values: tuple[Any, ...]) -> None:
        self._ended.append((values, time.monotonic()))
        if not self._is_written:
            with self._lock:
                if not self._is_written:
                    self._is_written = True
                    each_second(self.write)

    def write(self) -> None:
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        if not ended:
            return
        try:
            with shared().pipeline(transaction=False) as pipe:
                _write(pipe, ended)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            logger.debug("how %d runs ended is not kept: %r", len(ended), error)


def of(name: str, client: Any = None) -> list[Attempt]:
    """The runs that are known of the call, or of the envelopes of the batch, *name*; the first one first."""
    client = client or shared()
    after, attempts = "-", []
    while after:
        last, page = SEARCH([], [STREAM, name, after, PAGE], client)
        after = f"({last.decode()}" if last else ""
        attempts += [_read(entry, fields) for entry, fields in page]
    return attempts


@dataclass(frozen=True)
class Search:
    """The runs that were found, the last that ended first. ``after`` is where a further search goes on; "" at the end.

    ``seen`` counts all that were looked at.
    """

    found: tuple[Attempt, ...]
    seen: int
    after: str


def search(
    holds: Callable[[Attempt], bool], limit: int, client: Any, *, after: str = "", budget: float = 1.5
) -> Search:
    """The last *limit* runs that meet *holds*, searched for about *budget* seconds; *after* goes on with a search."""
    deadline = time.monotonic() + budget
    found: list[Attempt] = []
    seen = 0
    while True:
        page = client.xrevrange(STREAM, f"({after}" if after else "+", "-", count=PAGE)
        for entry, fields in page:
            seen, after = seen + 1, entry.decode()
            attempt = _read(entry, [part for pair in fields.items() for part in pair])
            if holds(attempt):
                found.append(attempt)
                if len(found) == limit:
                    return Search(tuple(found), seen, after)
        if len(page) < PAGE:
            return Search(tuple(found), seen, "")
        if time.monotonic() > deadline:
            return Search(tuple(found), seen, after)


def _read(entry: bytes, fields: list[bytes]) -> Attempt:
    texts = (text.decode("utf-8", "replace") for text in fields)
    found = dict(zip(texts, texts, strict=True))
    # A run that an older worker noted has no queue.
    return Attempt(
        found["id"], int(found["run"]), found["worker"], float(found["seconds"]), found["outcome"], found["name"],
        found["batch"], found["error"], found.get("queue", ""),
        int(entry.partition(b"-")[0]) / 1000 - float(found["age"]),
    )  # fmt: skip


def prune(client: Any, now: float) -> int:
    """Forget the runs that ended longer than ``attempts_ttl`` ago, and the oldest over ``attempts_bytes``; how many."""
    oldest = max(0, int((now - settings().attempts_ttl) * 1000))
    old = int(client.xtrim(STREAM, minid=oldest, approximate=False))
    most, count, size = settings().attempts_bytes, client.xlen(STREAM), client.memory_usage(STREAM) or 0
    if size <= most:
        return old
    return old + int(client.xtrim(STREAM, maxlen=count * most // size, approximate=False))
