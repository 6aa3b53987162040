"""What the processes of a worker's pool may take themselves: nothing where its main process has to see each message."""

from __future__ import annotations

import time
from typing import Any, Final

from celery import Task, signals
from celery.worker import state

from graft.config.transport.channel import STOCK_POLL, Channel
from graft.workers.direct.direct_pool import TaskPool
from graft.workers.direct.plain_run import is_short

ORDINARY: Final = (Task.Strategy, Task.Request)
OTHERS_EVERY: Final = 1.0  # Seconds between two looks at all tasks; a project may have thousands.
MOST_POLL: Final = 0.2  # Seconds between two looks of one process while stock producers, which wake nobody, were seen.


class Orders:
    """What the processes of *pool*, that of *consumer*, were told last."""

    def __init__(self, pool: TaskPool, consumer: Any) -> None:
        self._pool, self._consumer = pool, consumer
        self._given: dict[str, Any] = {}
        self._others_known: list[str] = []
        self._others_until = 0.0

    def give(self, channel: Channel | None, *, is_held: bool) -> None:
        """Tell them what they may take for *channel*, where that has changed; nothing if it *is_held* by a stop."""
        orders: dict[str, Any] = {"takes": False}
        if channel is not None:
            source = channel.source()
            is_ordinary = self._is_ordinary()
            # Where processes may not, the main process fetches, as it does for prefork.
            channel.leaves_fetching = is_ordinary
            orders = {
                "takes": bool(source[0]) and is_ordinary and not is_held and channel.qos.can_consume(),
                "source": source,
                "poll": min(MOST_POLL, STOCK_POLL * self._pool.num_processes),
                "limit": channel.message_limit,
                "others": self._others(),
                "events": self._has_listeners(),
            }
        if orders == self._given:
            return
        slept = not self._given.get("takes")
        self._given = orders
        self._pool.shared.write_orders(orders)
        for child in self._pool.children.values() if slept and orders["takes"] else ():
            child.link.wake()

    def _is_ordinary(self) -> bool:
        """Whether nobody has to see each message in the main process."""
        hears = len(signals.task_received.receivers) > 1  # One is ours, which is told the counts.
        return not state.revoked_stamps and not hears

    def _has_listeners(self) -> bool:
        """Whether task events are sent."""
        dispatcher = self._consumer.event_dispatcher
        return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))

    def _others(self) -> list[str]:
        """The tasks whose messages the main process has to see; a rate limit set later counts within a second."""
        if time.monotonic() < self._others_until:
            return self._others_known
        buckets = {} if self._consumer.disable_rate_limits else self._consumer.task_buckets
        self._others_until = time.monotonic() + OTHERS_EVERY
        self._others_known = sorted(
            name for name, task in self._consumer.app.tasks.items()
            if not task.acks_late or buckets.get(name) or (task.Strategy, task.Request) != ORDINARY
            or is_short(task.soft_time_limit, task.time_limit, *self._pool.limits)
        )  # fmt: skip
        return self._others_known
