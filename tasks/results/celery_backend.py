"""Celery's Redis result backend, which subscribes to the results of many tasks in one command.

Celery subscribes to each task when it is sent, and unsubscribes when its result has come: a third of what a caller
spends on a task of a group. So it is done here as long as few results are outstanding. Once there are many, the others
are subscribed to when somebody waits.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

import redis
from celery.backends import redis as stock
from kombu.utils.encoding import bytes_to_str

PATIENCE: Final = 5.0  # Seconds until a connection counts as broken.
FEW: Final = 16  # Outstanding results, up to which each has commands of its own.
MOST: Final = 500  # Channels to subscribe to in one command.
ENOUGH: Final = 100  # Channels to unsubscribe from in one command.


class ResultConsumer(stock.ResultConsumer):
    """Receives results for the :class:`celery.result.AsyncResult` of one thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unasked: dict[str, None] = {}  # Channels to subscribe to, in their order.

    def on_after_fork(self) -> None:
        super().on_after_fork()
        self._unasked.clear()

    def _consume_from(self, task_id: str) -> None:
        key = self._get_key_for_task(task_id)
        if len(self.subscribed_to) < FEW or key in self.subscribed_to:
            super()._consume_from(task_id)
        else:
            self._pending_unsubscribe.discard(key)
            self.subscribed_to.add(key)
            self._unasked[key] = None

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        self._subscribe()
        super().on_wait_for_pending(result, **kwargs)

    def drain_events(self, timeout: float | None = None) -> None:
        if self._unasked:  # Somebody sends while another waits.
            self._subscribe()
        super().drain_events(timeout)

    def _subscribe(self) -> None:
        """Subscribe to what was sent since the last time, then look which of it is there already."""
        while self._unasked:
            with self._locked():
                keys = list(islice(self._unasked, MOST))
                if not keys:
                    return
                with self.reconnect_on_error():
                    self._pubsub.subscribe(*keys)
                    self._wait_until_subscribed(keys[-1])
                for key in keys:
                    self._unasked.pop(key, None)
            for meta in filter(None, self.backend.mget(keys)):
                self.on_state_change(self._decode_result(meta), None)

    def _wait_until_subscribed(self, key: str) -> None:
        """Wait for Redis's word: until then a result may be stored, and announced to nobody."""
        pubsub = self._pubsub
        pubsub.ignore_subscribe_messages = False
        try:
            while (message := pubsub.get_message(timeout=PATIENCE)) is not None:
                if message["type"] == "message":
                    self.on_state_change(self._decode_result(message["data"]), message)
                elif bytes_to_str(message["channel"]) == bytes_to_str(key):
                    return
        finally:
            pubsub.ignore_subscribe_messages = True
        raise redis.ConnectionError(f"Redis did not confirm a subscription within {PATIENCE:g} s")

    @property
    def _enough(self) -> int:
        outstanding = len(self.subscribed_to)
        return 1 if outstanding <= FEW else min(ENOUGH, outstanding)

    def _flush_pending_unsubscribe(self) -> None:
        """Unsubscribe from many at once; Celery's own does it one by one, and says why only here."""
        pending, depth = self._pending_unsubscribe, self._lock_depth
        if depth.value:  # In the middle of an operation on the connection.
            return
        while len(pending) >= self._enough and self._pubsub_lock.acquire(blocking=False):
            depth.value += 1
            try:
                keys = self.subscribed_to & {pending.pop() for _ in range(len(pending))}
                self.subscribed_to -= keys
                asked = [key for key in keys if self._unasked.pop(key, key) is not None]
                if asked and self._pubsub:
                    with self.reconnect_on_error():
                        self._pubsub.unsubscribe(*asked)
            finally:
                depth.value -= 1
                self._pubsub_lock.release()


class Backend(stock.RedisBackend):
    """Celery's, with that consumer."""

    ResultConsumer = ResultConsumer


class SentinelBackend(stock.SentinelBackend):
    """Celery's, with that consumer."""

    ResultConsumer = ResultConsumer
