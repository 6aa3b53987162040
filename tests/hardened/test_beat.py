"""Beat in a project: a plain one that its probe believes, and RedBeat with one that stands by."""

from __future__ import annotations

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
