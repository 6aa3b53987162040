"""The hardened consumer: an outage neither ends the worker nor doubles what it runs.

Celery gives every unsettled message back when the connection is lost, also those that are running, and forgets the
rest. Here everything stays where it is, running or waiting, and the next connection's channel adopts the messages::

    connection lost ─ messages kept ─ reconnect ─ leases renewed ─ first sweep ─ messages adopted ─ fetching goes on
                           pool processes go on all the while; what they finish is acknowledged after adoption
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
from celery import signals
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.common import ignore_errors
from kombu.utils.json import dumps

from graft.config.transport.channel import Channel
from graft.config.transport.task_validation import forgery, refusal
from graft.tasks import worker_runtime
from graft.workers import active_runs, due_times, shutdown
from graft.workers.prefork_patch import finish_writing, hand_over, read_replies, settle, skip_leaving_processes
from graft.workers.refused_tasks import publish_refusal
from graft.workers.shutdown import between_turns, pardon_active

logger = logging.getLogger(__name__)

SLOWEST_RECONNECT: Final = 3.0  # Celery waits up to 30 s between two attempts.
REFUSED_PAUSE: Final = 1.0  # Seconds before the next attempt where Redis is there, and refuses.

# Celery announces on every loss of a connection that a later version will cancel running tasks; ours are kept.
warnings.filterwarnings("ignore", message="\nIn Celery 5.1 we introduced", category=CPendingDeprecationWarning)


class HardenedConsumer(Consumer):
    """Celery's consumer, except when the connection is lost or a message makes no sense."""

    loop: Callable[..., None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.kept: dict[str, Any] = {}
        self._extra_prefetch = 0
        self._is_reconnecting = False
        self.promotion: Any = None  # Of a pool whose processes take their messages themselves.
        self.paused_queues: set[str] = set()  # By bootsteps/queue_pause.py, which reads them again after the pause.
        super().__init__(*args, **kwargs)
        if self.hub:
            self.loop = between_turns(self.loop, self.hub, lambda: settle(self.pool, self.hub))
        # Adopted messages count against the prefetch as it is; Celery's reduction would count them twice.
        self.app.conf.worker_enable_prefetch_count_reduction = False

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        channel = self.task_consumer.channel if self.task_consumer else None
        if channel is not None and not isinstance(channel, Channel):
            super().on_connection_error_after_connected(exc)
            return
        # Closed, or not there yet, where this connection was lost as soon as it was made: nothing came with it.
        lost = channel if channel is not None and not channel.closed else None
        if lost is not None:
            lost.keep_messages()
            # Every message that waits for its time has raised the prefetch by one and will lower it again.
            self._extra_prefetch += self.qos.value - self.initial_prefetch_count
        super().on_connection_error_after_connected(exc)
        if isinstance(exc.__cause__, redis.ResponseError):  # It would refuse the next attempt, too, and at once.
            logger.warning("%s; trying again in %g s", exc, REFUSED_PAUSE)
            time.sleep(REFUSED_PAUSE)
        if lost is not None:
            # After closing, which may have delivered the reply to a last BRPOP.
            self.kept.update(lost.qos.outstanding())
        self._is_reconnecting = True

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        self._is_reconnecting = True

    def on_close(self) -> None:
        """Drop what waits here, as Celery does, unless it is only the connection that closed."""
        if not self._is_reconnecting:
            self.give_back_waiting()
            return
        self._is_reconnecting = False
        finish_writing(self.pool)

    def give_back_waiting(self) -> None:
        """Take nothing more, and give back what has not begun; what runs goes on.

        Celery gives it back when the last task has ended: others would wait for a drain of minutes.
        """
        channel = self.task_consumer.channel if self.task_consumer else None
        if not isinstance(channel, Channel):
            settle(self.pool, self.hub)
            super().on_close()
            return
        if self.promotion is not None:
            self.promotion.stop_taking()
            pardon_active()  # Also what has begun since the signal.
        ignore_errors(self, self.task_consumer.cancel)
        channel.finish_fetching()
        settle(self.pool, self.hub)
        super().on_close()
        stop_beginning = getattr(self.pool, "stop_beginning", None)
        runs = {request.id for request in state.active_requests} if stop_beginning is None else stop_beginning()
        if self.hub:
            self._call_ready()  # What has ended meanwhile is acknowledged.
        for tag, message in channel.qos.outstanding().items():
            if message.properties.get("correlation_id") not in runs:
                channel.qos.reject(tag, requeue=True)

    def take_turn(self, seconds: float) -> None:
        """Process what has ended, and whatever else is due, for up to *seconds*; nothing begins."""
        if self.promotion is not None:
            self.pool.take_turn(seconds)
        elif not self.hub or not read_replies(self.pool, self.hub, seconds):
            time.sleep(seconds)
        if self.hub:
            self._call_ready()
            self.hub.fire_timers()

    def _call_ready(self) -> None:
        for _ in range(3):  # The end of a task asks for its acknowledgement.
            for call in self.hub._pop_ready():
                call()

    def connect(self) -> Any:
        connection = self.connection_for_read(heartbeat=self.amqheartbeat)
        held = {**(self.promotion.held() if self.promotion is not None else {}), **self.kept}
        if held:
            # Registering sweeps for abandoned messages, and ours may look it.
            connection.default_channel.renew(held)
        if self.hub:
            connection.transport.register_with_event_loop(connection.connection, self.hub)
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(
            conn.ensure_connection, interval_start=1, interval_step=1, interval_max=SLOWEST_RECONNECT
        )
        return super().ensure_connected(conn)

    def on_ready(self) -> None:
        skip_leaving_processes(self.pool)
        if self.kept:
            channel = self.task_consumer.channel
            channel.adopt(self.kept)
            self.kept.clear()
            self.qos.increment_eventually(self._extra_prefetch)
            self._extra_prefetch = 0
            logger.info("went on with %d messages after reconnecting", len(channel.qos.outstanding()))
        super().on_ready()

    def cancel_active_requests(self) -> None:
        worker_runtime.end()
        active_runs.reveal()
        pardon_active()
        super().cancel_active_requests()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            if shutdown.has_begun():
                return  # It goes back with what waits here.
            refused = forgery(message) or refusal(message)
            if refused is None:
                due_times.to_local_clock(message)
                handle(message)
                if self.hub:
                    self.hub.call_soon(hand_over, self.pool, self.hub)
            else:
                _keep(message, *refused)
                publish_refusal(message, refused)
                message.reject_log_error(logger, self.connection_errors)
                signals.task_rejected.send(sender=self, message=message, exc=None)

        return on_task_received

    def cancel_task_queue(self, queue: str) -> None:
        """Read *queue* no more, also after a pause: this is what the command ``cancel_consumer`` calls."""
        self.paused_queues.discard(queue)
        super().cancel_task_queue(queue)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        _keep(message, "unknown_task", f"no task is registered as {message.headers['task']!r:.200}")
        super().on_unknown_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        _keep(message, "malformed_body", repr(exc))
        super().on_decode_error(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        _keep(message, "malformed_headers", repr(exc))
        super().on_invalid_task(body, message, exc)


def _keep(message: Any, reason: str, detail: str) -> None:
    if isinstance(message.channel, Channel):
        queue = str(message.delivery_info.get("routing_key"))
        message.channel.quarantine(dumps(message._raw).encode(), queue, reason, detail)
