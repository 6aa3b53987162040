"""Celery's Redis result backend, with fewer commands for each result.

Celery subscribes to each task when it is sent, and unsubscribes when its result has come: a third of what a caller
spends on a task of a group. Here many results are subscribed to in one command when somebody waits, once many are
outstanding, and several are unsubscribed from at once.

Celery also looks by key when somebody begins to wait. A result that was subscribed to before its task was sent is
announced; so here that look comes a moment later, for what was not.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any, Final

import redis
from celery._state import task_join_will_block
from celery.backends import redis as stock
from kombu.utils.encoding import bytes_to_str

PATIENCE: Final = 5.0  # Seconds until a connection counts as broken.
FEW: Final = 16  # Outstanding results, up to which each is subscribed to when it is sent.
MOST: Final = 500  # Channels to subscribe to in one command.
ENOUGH: Final = 100  # Channels to unsubscribe from in one command, where many results are outstanding; else FEW.
LOOK_AFTER: Final = 0.05  # Seconds until a result that was not announced is looked for.


class ResultConsumer(stock.ResultConsumer):
    """Receives results for the :class:`celery.result.AsyncResult` of one thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unasked: dict[str, None] = {}  # Channels to subscribe to, in their order.
        self._announced: set[str] = set()  # Those subscribed to before their task was sent.
        self._looks: dict[str, tuple[float, Any]] = {}  # Results to look for, and when.
        self._states_seen = 0

    def on_after_fork(self) -> None:
        super().on_after_fork()
        self._unasked.clear()
        self._announced.clear()
        self._looks.clear()

    def will_send(self, task_id: str) -> None:
        """The task is sent next: whatever comes of it is announced, if its channel is subscribed to by now."""
        self.consume_from(task_id)
        if self._get_key_for_task(task_id) not in self._unasked:
            self._announced.add(task_id)

    def _consume_from(self, task_id: str) -> None:
        key = self._get_key_for_task(task_id)
        if self._outstanding < FEW or key in self.subscribed_to:
            super()._consume_from(task_id)
        else:
            self._pending_unsubscribe.discard(key)
            self.subscribed_to.add(key)
            self._unasked[key] = None

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        self._subscribe()
        patience = kwargs.get("timeout")
        if getattr(result, "id", None) in self._announced and (patience is None or patience > 2 * LOOK_AFTER):
            self._looks[result.id] = (time.monotonic() + LOOK_AFTER, result)
        else:
            super().on_wait_for_pending(result, **kwargs)

    def drain_events(self, timeout: float | None = None) -> None:
        if self._unasked:  # Somebody sends while another waits.
            self._subscribe()
        now, seen = time.monotonic(), self._states_seen
        until = now + (PATIENCE if timeout is None else timeout)
        # Celery looks after each message whether all is there, and lets other threads run: here after each state.
        while self._states_seen == seen and now < until:
            super().drain_events(min(until - now, LOOK_AFTER) if self._looks else until - now)
            now = time.monotonic()
            self._look(now)

    def _look(self, now: float) -> None:
        for task_id, (at, result) in tuple(self._looks.items()):
            if now >= at:
                self._looks.pop(task_id, None)
                super().on_wait_for_pending(result)

    def on_state_change(self, meta: Any, message: Any) -> None:
        self._states_seen += 1
        super().on_state_change(meta, message)

    def _drain_one(self, pubsub: Any, timeout: float | None) -> bool:
        """Read a message, if there is one. Celery's asks the socket once more before it does."""
        with self.reconnect_on_error():
            connection = pubsub.connection
            if not (pubsub.subscribed and connection is not None and connection.can_read(timeout=0)):
                return False
            response = pubsub.parse_response(block=True)
            message = pubsub.handle_message(response, ignore_subscribe_messages=True) if response is not None else None
            if message and message["type"] == "message":
                self.on_state_change(self._decode_result(message["data"]), message)
        return True

    def cancel_for(self, task_id: str) -> None:
        self._announced.discard(task_id)
        self._looks.pop(task_id, None)
        super().cancel_for(task_id)

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
    def _outstanding(self) -> int:
        return len(self.subscribed_to) - len(self._pending_unsubscribe)

    @property
    def _enough(self) -> int:
        return max(FEW, min(ENOUGH, self._outstanding))

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


class _Announcing:
    """A backend with that consumer."""

    ResultConsumer = ResultConsumer
    result_consumer: Any

    def on_task_call(self, producer: Any, task_id: str) -> None:
        if not task_join_will_block():
            self.result_consumer.will_send(task_id)


class Backend(_Announcing, stock.RedisBackend):
    """Celery's own."""


class SentinelBackend(_Announcing, stock.SentinelBackend):
    """Celery's own, where Sentinel says who the master is."""
