"""A message without a priority is neither urgent nor last, whoever sends it by whatever name."""

from __future__ import annotations

import pytest

from graft.config.celery_app import app
from graft.tasks.messages.message_format import lists
from tests.people import held


@pytest.mark.parametrize(
    ("options", "place"),
    [({}, "heavy\x06\x165"), ({"priority": 0}, "heavy"), ({"priority": 9}, "heavy\x06\x169")],
    ids=["unset", "most urgent", "least urgent"],
)
def test_unset_is_the_middle(redis_stack, redis, options, place):
    redis.delete(*lists("heavy"))
    with held("heavy"):
        app.send_task("a.task.nobody.knows", queue="heavy", ignore_result=True, **options)
        found = {key: redis.llen(key) for key in lists("heavy") if redis.exists(key)}
        redis.delete(*lists("heavy"))
    assert found == {place: 1}
