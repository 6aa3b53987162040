"""Celery's Redis result backend, with fewer commands for each result.

Celery subscribes to each task when it is sent, and unsubscribes when its result has come: a third of what a caller
spends on a task of a group. Our workers announce a result also on a channel of the thread that has sent the task, so
one subscription does for all (replies.py). Until one has, and beside workers that do not, many results are subscribed
to in one command when somebody waits, once many are outstanding, and several are unsubscribed from at once.

Celery also looks by key when somebody begins to wait. A result that is announced needs no look; so here it comes a
moment later, for what was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import redis
from celery._state import task_join_will_block
from celery.backends import asynchronous
from celery.backends import redis as stock
from celery.states import READY_STATES
from kombu.utils.compat import detect_environment
from kombu.utils.encoding import bytes_to_str

from graft.tasks.results.replies import LARGE, Replies, channel_of

PATIENCE: Final = 5.0  # Seconds until a connection counts as broken.
FEW: Final = 16  # Outstanding results, up to which each is subscribed to when it is sent.
MOST: Final = 500  # Channels to subscribe to in one command.
ENOUGH: Final = 100  # Channels to unsubscribe from in one command, where many results are outstanding; else FEW.
LOOK_AFTER: Final = 0.05  # Seconds until a result that was not announced is looked for; four times that the next time.
LOOK_AT_LEAST: Final = 5.0  # Seconds between two looks for a result on a thread's channel.


@dataclass
class Look:
    """When *result*, which somebody waits for, is looked for next, and how much later again."""

    result: Any
    at: float
    pause: float = LOOK_AFTER


def _let_others_run(seconds: float) -> None:
    """What Celery does after each result: greenlets run only then. Threads need it not, and it costs a caller 60 us."""
    if detect_environment() != "default":
        time.sleep(seconds)


asynchronous.sleep = _let_others_run


class ResultConsumer(stock.ResultConsumer):
    """Receives results for the :class:`celery.result.AsyncResult` of one thread."""

    _pubsub: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unasked: dict[str, None] = {}  # Channels to subscribe to, in their order.
        self._announced: set[str] = set()  # Tasks whose result is waited for since before they were sent.
        self._replies = Replies()
        self._is_reading = True  # Somebody has waited since too many answers had come.
        self._looks: dict[str, Look] = {}
        self._states_seen = 0

    def on_after_fork(self) -> None:
        super().on_after_fork()
        self._unasked.clear()
        self._announced.clear()
        self._replies = Replies()
        self._looks.clear()

    def will_send(self, task_id: str) -> None:
        """The task is sent next: whatever comes of it is announced, if its channel is subscribed to by now."""
        replies, thread = self._replies, self.app.thread_oid
        if replies.is_flooded:
            self._do_without_replies()
            self._is_reading = False
        elif thread not in replies.channels and self._is_reading:
            self._listen(thread)
        if replies.are_heard:
            replies.expected.add(task_id)
        else:
            self.consume_from(task_id)
            if self._get_key_for_task(task_id) in self._unasked:
                return
        self._announced.add(task_id)

    def _listen(self, thread: str) -> None:
        with self._locked():
            if self._pubsub is None:
                self._pubsub = self.backend.client.pubsub(ignore_subscribe_messages=True)
            channel = channel_of(self.backend, thread)
            with self.reconnect_on_error():
                self._pubsub.subscribe(channel)
            self._replies.channels[thread] = channel

    def _do_without_replies(self) -> None:
        """Leave the threads' channels, and subscribe to each result that was expected there."""
        keys = map(self._get_key_for_task, self._replies.leave())
        with self._locked():
            for key in keys:
                self._pending_unsubscribe.discard(key)
                self.subscribed_to.add(key)
                self._unasked[key] = None
            if self._pubsub is not None and self._replies.channels:
                with self.reconnect_on_error():
                    self._pubsub.unsubscribe(*self._replies.channels.values())
            self._replies.channels.clear()

    def _reconnect_pubsub(self) -> None:
        self.subscribed_to |= {self._get_key_for_task(task_id) for task_id in self._replies.expected}
        self._replies = Replies()
        super()._reconnect_pubsub()

    def consume_from(self, task_id: str) -> None:
        if self._replies.expects(task_id):
            self._announced.add(task_id)
        else:
            super().consume_from(task_id)

    def _consume_from(self, task_id: str) -> None:
        key = self._get_key_for_task(task_id)
        if self._outstanding < FEW or key in self.subscribed_to:
            super()._consume_from(task_id)
        else:
            self._pending_unsubscribe.discard(key)
            self.subscribed_to.add(key)
            self._unasked[key] = None

    def _wait_for_pending(self, result: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from super()._wait_for_pending(result, **kwargs)
        finally:
            self._looks.pop(getattr(result, "id", ""), None)

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        self._subscribe()
        patience = kwargs.get("timeout")
        if (patience is None or patience > 2 * LOOK_AFTER) and all(
            each.id in self._announced or getattr(each, "_cache", None) for each in _parts(result)
        ):
            self._looks[result.id] = Look(result, time.monotonic() + LOOK_AFTER)
        else:
            super().on_wait_for_pending(result, **kwargs)

    def drain_events(self, timeout: float | None = None) -> None:
        if self._unasked:  # Somebody sends while another waits.
            self._subscribe()
        self._is_reading = True
        now, seen = time.monotonic(), self._states_seen
        until = now + (PATIENCE if timeout is None else timeout)
        # Celery looks after each message whether all is there, and lets other threads run: here after each state.
        while self._states_seen == seen and now < until:
            wake = min((look.at for look in self._looks.values()), default=until)
            super().drain_events(max(0.0, min(until, wake) - now))
            now = time.monotonic()
            self._look(now)

    def _look(self, now: float) -> None:
        for name, look in tuple(self._looks.items()):
            if now < look.at:
                continue
            waiting = [each.id for each in _parts(look.result) if each.id in self._announced]
            if self._replies.expected.isdisjoint(waiting):
                self._looks.pop(name, None)
            look.pause = min(4 * look.pause, LOOK_AT_LEAST)
            look.at = now + look.pause
            if self._replies.have_failed():
                self._do_without_replies()
                self._subscribe()
            for at in range(0, len(waiting), MOST):
                keys = [self._get_key_for_task(task_id) for task_id in waiting[at : at + MOST]]
                for record in filter(None, self.backend.mget(keys)):
                    meta = self._decode_result(record)
                    if meta["status"] in READY_STATES:
                        self._replies.note_found(meta["task_id"])
                    self.on_state_change(meta, None)

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
                self._take(message)
        return True

    def _take(self, message: Mapping[str, Any]) -> None:
        data = message["data"]
        is_reply = bytes_to_str(message["channel"]) in self._replies.channels.values()
        if is_reply and data.startswith(LARGE):
            data = self.backend.get(data[len(LARGE) :])
            if data is None:  # Forgotten since.
                return
        meta = self._decode_result(data)
        if not is_reply or self._replies.take(meta["task_id"]):
            self.on_state_change(meta, message)

    def cancel_for(self, task_id: str) -> None:
        self._announced.discard(task_id)
        self._looks.pop(task_id, None)
        if not self._replies.give_up(task_id) and self._get_key_for_task(task_id) in self.subscribed_to:
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
                    self._take(message)
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


def _parts(result: Any) -> Sequence[Any]:
    """The results that *result*, perhaps that of a group, consists of."""
    found: Sequence[Any] = getattr(result, "results", None) or (result,)
    return found


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
