"""No message waits for ever behind more urgent ones: the oldest of each step is moved to the front when it is due."""

from __future__ import annotations

import json
from typing import Final

from graft.config import lua, redis_clock
from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import broker
from graft.tasks.messages.message_format import lists, waits_since
from graft.tasks.queues import existing

LIFT: Final = lua.load(__file__, "aging")


@own_task("graft.maintenance.lift_waiting_messages", ignore_result=True)
def lift_waiting_messages() -> int:
    """Move messages that have waited longer than ``max_waiting`` to the front of their queue; how many."""
    client = broker()
    lifted = 0
    for queue in existing.names(client):
        for key in lists(queue)[1:]:
            for _ in range(100):  # A bound for one tick; the next one goes on.
                message = client.lindex(key, -1)
                if message is None or not _is_old(message):
                    break
                lifted += int(LIFT([key, queue], [message], client))
    client.close()
    return lifted


def _is_old(message: bytes) -> bool:
    try:
        since = waits_since(json.loads(message)["headers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    # What was not sent by this project says nothing; its priority is left as it is.
    return since is not None and redis_clock.now() - since > settings().max_waiting
