"""Beat notes what it sends, and deals with the times that it missed as the entry asks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.beat import Scheduler
from celery.schedules import crontab, schedule
from kombu import Queue

from graft.config.celery_app import app
from graft.scripts.commands.schedule import lines
from graft.tasks.health import beat_schedules
from graft.tasks.health.beat_schedules import SentEntry, due_times, runs_for, words
from graft.tasks.messages.message_format import lists

NOW = datetime(2026, 3, 4, 12, 30, 10, tzinfo=UTC)
HOURLY = crontab(minute=0)
MINUTELY = schedule(60.0)


def ago(**time: float) -> datetime:
    return NOW - timedelta(**time)


@pytest.mark.parametrize(
    ("when", "last", "times"),
    [
        (HOURLY, ago(hours=3), {"once": 1, "skip": 0, "all": 3}),
        (HOURLY, NOW.replace(minute=0, second=0) - timedelta(seconds=5), {"once": 1, "skip": 0, "all": 1}),
        (MINUTELY, ago(minutes=10), {"once": 1, "skip": 1, "all": 10}),
        (MINUTELY, ago(seconds=60.5), {"once": 1, "skip": 1, "all": 1}),
        (schedule(3600.0), ago(hours=5, minutes=20), {"once": 1, "skip": 0, "all": 5}),
        (MINUTELY, ago(days=30), {"once": 1, "skip": 1, "all": 100}),
        (HOURLY, None, {"once": 1, "skip": 1, "all": 1}),
    ],
)
def test_missed_times_are_made_up_for_as_the_entry_says(when, last, times):
    assert {policy: runs_for(policy, when, last, NOW) for policy in times} == times  # type: ignore[misc]


def test_the_times_of_a_crontab_are_those_of_the_clock():
    assert list(due_times(crontab(minute="0,30", hour=12), ago(days=1, minutes=20), NOW)) == [
        datetime(2026, 3, 3, 12, 30, tzinfo=UTC), datetime(2026, 3, 4, 12, 0, tzinfo=UTC),
        datetime(2026, 3, 4, 12, 30, tzinfo=UTC),
    ]  # fmt: skip


def test_schedules_are_told_in_words_and_a_wrong_policy_by_name():
    assert [words(30.0), words(crontab(hour=2, minute=0))] == ["every 30 s", "0 2 * * *"]
    with pytest.raises(ValueError, match="missed='never' must be one of once, skip, all"):
        runs_for("never", MINUTELY, None, NOW)  # type: ignore[arg-type]


def test_entries_are_listed_by_their_next_run_with_those_that_went():
    entries = {
        "daily": {"task": "a", "schedule": crontab(hour=2, minute=0), "options": {"overlap": "skip", "missed": "all"}},
        "often": {"task": "b", "schedule": 60.0},
    }
    now = NOW.timestamp()
    found = lines(entries, {"often": SentEntry(now - 70, "b", "here/1"), "gone": SentEntry(now, "c", "here/1")}, now)
    assert [line.name for line in found] == ["often", "daily", "gone"]
    often, daily, gone = found
    assert (often.last, often.next) == (now - 70, now - 10)
    assert (daily.last, daily.overlap, daily.missed) == (None, "skip", "all")
    assert gone.remark


@pytest.fixture
def scheduler(redis: Any) -> Any:
    """A scheduler with one entry, last sent ten minutes ago, whose queue is of this test alone."""
    made = Scheduler(app, lazy=True)
    made.data = {}
    redis.delete(beat_schedules.SENT, beat_schedules.SCHEDULES, "missed")
    yield made
    redis.delete(beat_schedules.SENT, beat_schedules.SCHEDULES, "missed")


@pytest.mark.parametrize(("policy", "sent"), [("all", 10), ("once", 1), ("skip", 0)])
def test_a_scheduler_sends_what_the_policy_says_and_notes_it(scheduler, redis, policy, sent):
    options = {"missed": policy, "queue": Queue("missed"), "expires": 60}
    every = 60.0 if policy != "skip" else 400.0
    scheduler.update_from_dict({"mine": {"task": "process_item", "args": [{}], "schedule": every, "options": options}})
    entry = scheduler.data["mine"]
    entry.last_run_at = app.now() - timedelta(seconds=605)
    scheduler.apply_async = beat_schedules.sending(scheduler)
    scheduler.apply_async(entry, advance=True)
    assert sum(redis.llen(key) for key in lists("missed")) == sent
    assert entry.options["missed"] == policy  # Celery's entry stays as it is.
    assert set(beat_schedules.sent(redis)) == ({"mine"} if sent else set())
    (known,) = beat_schedules.schedules(redis)
    assert known.entries == beat_schedules.entries_of(app.conf.beat_schedule)
    redis.delete(*redis.keys("missed*") or ["missed"])
