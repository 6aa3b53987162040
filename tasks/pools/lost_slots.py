"""Slots of a pool whose message got lost: somebody died between giving a slot away and publishing its message.

Such a message is on no queue and with no worker, and the pool has it still: it is published again. Where its envelope
has a result, whoever ended it could not give the slot back, such as a hard time limit: the slot is free then.
"""

from __future__ import annotations

import logging

from graft.config.redis_client import broker, shared
from graft.tasks.pools import due_messages
from graft.tasks.pools.state import RedisPool, redis_or_error
from graft.tasks.queues import locate
from graft.tasks.results.backend import results_backend

logger = logging.getLogger(__name__)


class LostSlots:
    """Finds them, for one client of *pool*. What two searches in a row do not find is lost."""

    def __init__(self, pool: RedisPool) -> None:
        self.pool = pool
        self._missing: set[str] = set()

    def recover(self) -> int:
        """Publish what is lost, or free its slot; how many slots that were."""
        kept = self.pool.kept_messages()
        if not kept:
            return 0
        by_id = {member[16:]: member for member in kept}
        with redis_or_error(), broker() as queue_side:
            missing = {by_id[envelope_id] for envelope_id in locate.missing(by_id, queue_side)}
        lost, self._missing = missing & self._missing, missing - self._missing
        if lost:
            lost &= self.pool.kept_messages().keys()  # One that ended during the search is not lost.
        for member in lost:
            ended = shared().exists(results_backend().get_key_for_task(member[16:]))
            logger.warning("a slot of pool %s was given to %s, whose message is lost", self.pool.name, member[16:])
            due = self.pool.finish(member, "", 1, 1, 0.0) if ended else [kept[member]]
            due_messages.publish(due)
        return len(lost)
