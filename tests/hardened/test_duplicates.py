"""A message that the broker delivers twice, as RabbitMQ may: what it starts has the same ids both times."""

from __future__ import annotations

import pytest

from tests.stack import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

CHAIN = """
from celery import chain, chord
chain(write.si("first"), chord([write.si("a"), write.si("b")], write.si("body"))).delay()
"""


@pytest.mark.parametrize("stock", [False, True], ids=["hardened", "stock"])
def test_a_chord_behind_a_message_that_came_twice_keeps_its_ids(shop, stock):
    """Celery's own test of it sends no duplicate on Redis: its handler fails, with stock Celery too."""
    shop.run(CHAIN, stock=stock)
    with shop.redis() as client:
        client.lpush("celery", client.lindex("celery", 0))
        shop.worker(stock=stock)
        wait_until(lambda: shop.lines()["first"] == 2 and shop.lines()["body"], what="both to run")

        def is_over() -> bool:
            left = client.exists("celery", "unacked", "graft:unacked")
            return not left and len(client.keys("celery-task-meta-*")) >= 4

        wait_until(is_over, what="the rest to be done")
        # Each under the id that it has for both: a second run replaces the first one's result.
        assert len(client.keys("celery-task-meta-*")) == 4
    assert shop.lines().keys() == {"first", "a", "b", "body"}
