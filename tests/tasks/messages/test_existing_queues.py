"""Which queues have messages, asked for in groups: of thousands, a few."""

from __future__ import annotations

import pytest

from graft.config.redis_client import broker
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import existing

pytestmark = [pytest.mark.redis, pytest.mark.acl_role("admin")]


@pytest.mark.parametrize("count", [1, existing.GROUP, 3 * existing.GROUP + 1])
def test_queues_with_messages_are_found_among_any_number(redis, count):
    names = [f"test:existing:{number}" for number in range(count)]
    wanted = {names[0]: lists(names[0])[0], names[-1]: lists(names[-1])[-1]}
    for key in wanted.values():
        redis.lpush(key, "taken first", "taken second")
    try:
        with broker() as client:
            assert existing.filled(names, client) == list(wanted)
            assert existing.heads(names, client) == {name: {key: (2, b"taken first")} for name, key in wanted.items()}
            assert existing.heads([], client) == {}
    finally:
        redis.delete(*wanted.values())
