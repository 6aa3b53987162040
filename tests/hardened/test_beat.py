"""Beat in a project: a plain one that its probe believes, and RedBeat with one that stands by."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.stack import ROOT, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

REDBEAT = ("beat", "-S", "redbeat.RedBeatScheduler", "-l", "INFO")


def probe(shop) -> tuple[int, str]:
    env = {**shop.env, "CELERY_BROKER_URL": shop.url}
    argv = [sys.executable, "-m", "graft.scripts.probe", "beat"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def test_the_probe_believes_a_plain_beat(shop):
    code, said = probe(shop)
    assert code == 1
    assert "none has sent anything for a day" in said
    shop.start("beat", "-s", os.fspath(shop.folder / "schedule"), name="beat")
    with shop.redis() as client:
        wait_until(lambda: client.llen("celery"), what="Beat to send")
    assert probe(shop) == (0, "")
    assert "Traceback" not in (shop.folder / "beat.log").read_text()  # RedBeat's receiver is for RedBeat alone.


def test_redbeat_writes_its_schedule_again_when_redis_has_lost_it(shop):
    """It ends, or sends nothing until it is started again."""
    pytest.importorskip("redbeat")
    beat = shop.start(*REDBEAT, name="beat")
    with shop.redis() as client:
        wait_until(lambda: client.llen("celery"), what="Beat to send")
        client.flushdb()
        wait_until(lambda: client.llen("celery") >= 2, what="Beat to send again")
    assert beat.poll() is None


def test_a_beat_that_stands_by_changes_nothing_and_says_where_its_schedule_differs(shop):
    """It removed the leader's entries."""
    pytest.importorskip("redbeat")
    shop.start(*REDBEAT, name="leader")
    with shop.redis() as client:
        wait_until(lambda: client.llen("celery"), what="the leader to send")
        shop.start(*REDBEAT, name="standby", SHOP_ENTRY="another")
        wait_until(
            lambda: "two Beats with different schedules" in (shop.folder / "standby.log").read_text(),
            what="the difference to be said",
        )
        log = (shop.folder / "standby.log").read_text()
        assert "(another, every-second)" in log
        client.delete("celery")
        wait_until(lambda: client.llen("celery") >= 2, what="the leader to go on")


SENDS = """
from celery.beat import Scheduler
from graft.tasks.health import beat_schedules
app.loader.import_default_modules()
scheduler = Scheduler(app, lazy=True)
scheduler.data = {}
scheduler.update_from_dict({
    'fails': {'task': fail.name, 'args': ['no stock'], 'schedule': 60},
    'hangs': {'task': hang.name, 'schedule': 60},
    'queued': {'task': slow.name, 'args': [0.1], 'schedule': 60, 'options': {'overlap': 'queue'}},
    'skips': {'task': slow.name, 'args': [0.2], 'schedule': 60, 'options': {'overlap': 'skip'}},
})
scheduler.apply_async = beat_schedules.sending(scheduler)
for name in ('fails', 'hangs', 'queued', 'queued', 'skips', 'skips', 'skips'):
    scheduler.apply_async(scheduler.data[name])
print(beat_schedules.sent(beat_schedules.shared())['queued'].id)
"""


def test_the_last_result_of_each_entry_and_its_skips_are_listed_also_of_a_run_that_was_killed(shop):
    last = shop.run(SENDS).splitlines()[-1]
    shop.worker()

    def results() -> dict[str, dict[str, str]]:
        with shop.redis() as client:
            return {name.decode(): json.loads(text) for name, text in client.hgetall("graft:beats:ended").items()}

    # The one that waited for the one before it was sent by the worker, and is still the entry's.
    wait_until(lambda: "hangs" in results() and results().get("queued", {}).get("call") == last, 60, "the results")
    listed = [json.loads(line) for line in shop.celery("schedule", "list", "--json").splitlines() if line[:1] == "{"]
    found = {line["name"]: line["result"] for line in listed}
    assert (found["fails"]["outcome"], found["fails"]["error"]) == ("failed", "LookupError: no stock")
    assert found["hangs"]["outcome"] == "ended with its process"
    assert found["hangs"]["error"].startswith("TimeLimitExceeded")
    assert (found["queued"]["outcome"], found["queued"]["error"]) == ("succeeded", "")
    assert {line["name"]: line["skipped"] for line in listed if line["skipped"]} == {"skips": 2}
    told = shop.celery("schedule", "list")
    assert "LookupError: no stock" in told
    assert "2 skipped" in told
    with shop.redis() as client:
        assert min(client.ttl(key) for key in ("graft:beats:ended", "graft:overlap:skipped")) > 0
