"""Which entries each Beat sends, when it last sent each, and how it deals with times that it missed.

    "options": {"missed": "skip"}     "once" (Celery's way), "skip" or "all": what is sent for times while Beat was away
    "options": {"overlap": "queue"}   "allow" (Celery's way), "skip" or "queue": tasks/queues/overlap.py

Beat's scheduler is told at its start to ask here before it sends, whichever class it is (Celery 5.7, ``apply_async``).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import redis
from celery.schedules import crontab, maybe_schedule
from celery.schedules import schedule as interval

from graft.config import keys, redis_clock
from graft.config.redis_client import shared
from graft.tasks.queues import overlap

logger = logging.getLogger(__name__)

SCHEDULES: Final = keys.BEAT_SCHEDULES
SENT: Final = keys.BEAT_SENT
KEPT: Final = 7 * 86400  # Seconds.
NOTED_EVERY: Final = 300.0
MISSED: Final = 60.0  # Seconds after its time from which a run counts as missed.
MOST: Final = 100  # Runs that are sent for missed times of one entry.

MissedPolicy = Literal["once", "skip", "all"]
POLICIES: Final = ("once", "skip", "all")


@dataclass(frozen=True)
class BeatSchedule:
    """The entries of one Beat: name -> task and schedule in words. ``at`` is when it said so, since the epoch."""

    beat: str
    scheduler: str
    at: float
    entries: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SentEntry:
    """When an entry was last sent, since the epoch, its task and the Beat that sent it; ``id`` is the task's."""

    at: float
    task: str
    beat: str
    id: str = ""


def words(when: Any) -> str:
    """A schedule for people: ``every 30 s``, ``0 2 * * *``."""
    when = maybe_schedule(when)
    if isinstance(when, crontab):
        return " ".join(
            str(part)
            for part in (
                when._orig_minute, when._orig_hour, when._orig_day_of_month, when._orig_month_of_year,
                when._orig_day_of_week,
            )
        )  # fmt: skip
    if isinstance(when, interval):
        return f"every {when.run_every.total_seconds():g} s"
    return repr(when)


def entries_of(beat_schedule: Mapping[str, Any]) -> dict[str, str]:
    """The entries of Celery's ``beat_schedule``, as a BeatSchedule has them."""
    return {name: f"{spec['task']} {words(spec['schedule'])}" for name, spec in beat_schedule.items()}


def due_after(when: Any, last: datetime) -> datetime:
    """The first time at or after *last* at which the schedule *when* is due."""
    when = maybe_schedule(when)
    if isinstance(when, interval):
        every: timedelta = when.run_every
        return last + every
    # The remaining time counts from now, which has passed on meanwhile.
    due: datetime = when.now() + when.remaining_estimate(last) + timedelta(seconds=0.5)
    return due.replace(microsecond=0)


def due_times(when: Any, last: datetime, now: datetime) -> Iterator[datetime]:
    """The times after *last*, and until *now*, at which the schedule *when* was due."""
    due = due_after(when, last)
    while due <= now:
        yield due
        due, before = due_after(when, due), due
        if due <= before:  # A schedule that counts from now alone.
            return


def runs_for(policy: MissedPolicy, when: Any, last: datetime | None, now: datetime) -> int:
    """How often to send an entry that is due now and was last sent at *last*.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"missed={policy!r} must be one of {', '.join(POLICIES)}")
    if policy == "once" or last is None:
        return 1
    if isinstance(when, interval):
        count = int((now - last) / when.run_every) if when.run_every else 1
        latest = last + count * when.run_every
    else:
        times = [due for due, _ in zip(due_times(when, last, now), range(10_000), strict=False)]
        count, latest = len(times), times[-1] if times else now
    if policy == "all":
        return max(1, min(count, MOST))
    return 0 if (now - latest).total_seconds() > MISSED else 1


def stand_beside(service: Any) -> None:
    """Have the scheduler of this Beat, a ``celery.beat.Service``, send through here."""
    scheduler = service.scheduler
    if not hasattr(scheduler.apply_async, "__wrapped__"):
        scheduler.apply_async = sending(scheduler)


def sending(scheduler: Any) -> Callable[..., Any]:
    """``apply_async`` of *scheduler*, which obeys ``missed`` and notes what was sent."""
    send = scheduler.apply_async
    noted_at = float("-inf")

    def apply_async(entry: Any, producer: Any = None, advance: bool = True, **rest: Any) -> Any:
        nonlocal noted_at
        options = dict(entry.options or {})
        policy = options.pop("missed", "once")
        runs = runs_for(policy, entry.schedule, entry.last_run_at, scheduler.app.now())
        if advance:
            entry = scheduler.reserve(entry)
        named = {**options, "headers": {**(options.get("headers") or {}), overlap.ENTRY: entry.name}}
        if not runs:
            logger.warning("%s was due while Beat was away, and is not sent now (missed=skip)", entry.name)
        result = None
        for _ in range(runs):
            result = send(_with_options(entry, named), producer=producer, advance=False, **rest)
        is_due = time.monotonic() - noted_at > NOTED_EVERY
        _note(scheduler, entry if runs else None, getattr(result, "id", ""), with_schedule=is_due)
        noted_at = time.monotonic() if is_due else noted_at
        return result

    apply_async.__wrapped__ = send  # type: ignore[attr-defined]
    return apply_async


def _with_options(entry: Any, options: Mapping[str, Any]) -> Any:
    """A copy of *entry* that has *options*. ``copy.copy`` would call its class as Celery's; Django's differs."""
    made = object.__new__(type(entry))
    made.__dict__.update(entry.__dict__, options=options)
    return made


def _note(scheduler: Any, entry: Any, task_id: str, *, with_schedule: bool) -> None:
    beat = f"{platform.node()}/{os.getpid()}"
    try:
        with shared().pipeline(transaction=False) as pipe:
            if entry is not None:
                pipe.hset(SENT, entry.name, json.dumps(asdict(SentEntry(redis_clock.now(), entry.task, beat, task_id))))
                pipe.expire(SENT, KEPT)
            if with_schedule:
                entries = entries_of(scheduler.app.conf.beat_schedule or {})
                known = BeatSchedule(beat, type(scheduler).__name__, redis_clock.now(), entries)
                pipe.hset(SCHEDULES, beat, json.dumps(asdict(known)))
                pipe.expire(SCHEDULES, KEPT)
            pipe.execute()
    except (redis.RedisError, OSError) as error:
        logger.warning("Redis did not take the note of what Beat sends: %s", error)


def schedules(client: Any) -> list[BeatSchedule]:
    """What each Beat of the last week sends, the latest first."""
    found = (BeatSchedule(**json.loads(text)) for text in client.hvals(SCHEDULES))
    return sorted((one for one in found if redis_clock.now() - one.at < KEPT), key=lambda one: -one.at)


def sent(client: Any) -> dict[str, SentEntry]:
    """When each entry of the last week was last sent, by name."""
    found = {name.decode(): SentEntry(**json.loads(text)) for name, text in client.hgetall(SENT).items()}
    return {name: one for name, one in found.items() if redis_clock.now() - one.at < KEPT}
