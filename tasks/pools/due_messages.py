"""The message of an envelope that waits for a slot, as the pool keeps it, and its way to the queue when it is due."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from graft.config import redis_clock
from graft.config.deployment import app
from graft.config.queues import broker_priority, table
from graft.tasks.envelope import RUN_ENVELOPE
from graft.tasks.messages.message_format import SENT_AT

logger = logging.getLogger(__name__)


def kept(envelope_id: str, batch: str, argument: str, label: str) -> str:
    """The message of an envelope, whose wire form is *argument*; *label* is what people are shown of it."""
    return json.dumps([envelope_id, batch, argument, label])


def publish(due: Iterable[bytes]) -> None:
    """Send *due* messages to their queue. One that does not get out is missed by its caller, and sent again."""
    due = list(due)
    if not due:
        return
    try:
        with app().producer_pool.acquire(block=True) as producer, producer.batch() as batch:
            for text in due:
                envelope_id, group, argument, label = json.loads(text)
                message = app().amqp.as_task_v2(
                    envelope_id, RUN_ENVELOPE, args=(argument,), kwargs={}, group_id=group, root_id=group,
                    argsrepr=label, kwargsrepr="{}",
                )  # fmt: skip
                app().amqp.send_task_message(
                    producer, RUN_ENVELOPE, message, queue=table().batch, priority=broker_priority(0), declare=[],
                    retry=False, headers={SENT_AT: redis_clock.now()},
                )  # fmt: skip
            batch.flush()
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("%d tasks of a pool could not be sent, and will be again: %s", len(due), error)
