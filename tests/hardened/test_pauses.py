"""A queue that is paused, and what is said about it meanwhile."""

from __future__ import annotations

import pytest

from tests.stack import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

CANCEL = "print(app.control.cancel_consumer('celery', reply=True, timeout=20, limit=1))"
READS = """
(queues,) = app.control.inspect(timeout=20, limit=1).active_queues().values()
print(*(queue["name"] for queue in queues))
"""


def test_a_queue_that_is_cancelled_during_a_pause_is_not_read_after_it(shop):
    """The end of the pause had the worker read it again."""
    shop.worker("-Q", "celery,other")
    log = shop.folder / "worker.log"
    shop.celery("queue", "pause", "celery")
    wait_until(lambda: "queue celery is paused" in log.read_text(), what="the worker to obey")
    assert "no longer consuming from celery" in shop.run(CANCEL)
    shop.celery("queue", "resume", "celery")
    shop.celery("queue", "pause", "other")
    wait_until(lambda: "queue other is paused" in log.read_text(), what="the worker to have looked again")
    assert "celery" not in shop.run(READS).split()
    shop.celery("queue", "resume", "other")
    wait_until(lambda: "queue other is resumed" in log.read_text(), what="the worker to obey")
    assert "other" in shop.run(READS).split()
