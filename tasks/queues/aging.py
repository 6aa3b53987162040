"""No message waits for ever behind more urgent ones: the oldest of each step are moved to the front in time."""

from __future__ import annotations

import json
from typing import Final

from graft.config import lua, redis_clock
from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import broker
from graft.tasks.messages.message_format import SENT_AT, SEPARATOR
from graft.tasks.queues import existing

LIFT: Final = lua.load(__file__, "aging")
LOOKED_AT: Final = 1000  # Messages of a step, from the next one on; each costs Redis a copy.
AT_ONCE: Final = 100  # That are moved in one tick; the next one goes on.
MARK: Final = f"{json.dumps(SENT_AT)}:"  # Of the header. Inside a text its quotes would be escaped.


@own_task("graft.maintenance.lift_waiting_messages", ignore_result=True)
def lift_waiting_messages() -> int:
    """Move messages that have waited longer than ``max_waiting`` to the front of their queue; how many.

    Those that had a due time keep their places, and those of others, which do not say when they were sent.
    """
    before = redis_clock.now() - settings().max_waiting
    with broker() as client:
        waiting = existing.lengths(existing.filled(existing.names(client), client), client)
        return sum(
            int(LIFT([key, key.partition(SEPARATOR)[0]], [f"{before:.6f}", LOOKED_AT, AT_ONCE, MARK], client))
            for key in waiting
            if SEPARATOR in key  # Else it is the one that is taken from first.
        )
