"""Sends items of an envelope that runs here on as envelopes of their own, while somebody is there to run them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from graft.config.celery_app import app
from graft.tasks.cleanup.periodic import SENT_AT
from graft.tasks.envelope import Envelope, Given
from graft.tasks.ids import sibling_of
from graft.tasks.monitoring.worker_registry import slots
from graft.tasks.sending import payloads

MOST: Final = 16  # Envelopes made of one; each can be divided again.


def give(envelope: Envelope, places: Sequence[int], task: str, request: Any) -> tuple[Given, ...]:
    """Send the items at *places* to the queue that *request* came from; nothing while others wait there.

    The envelopes' ids begin like that of *envelope*, so their answers reach the process that waits for it.
    """
    route = request.delivery_info or {}
    queue, priority = str(route.get("routing_key")), route.get("priority")
    lanes = slots(queue)
    if lanes < 2:
        return ()
    with app.producer_pool.acquire(block=True) as producer:
        if producer.channel._size(queue):
            return ()
        size = -(-len(places) // min(lanes, MOST))
        made = [_part(envelope, places[at : at + size]) for at in range(0, len(places), size)]
        with producer.batch() as batch:
            for part in made:
                argument = payloads.store(part.id, part.sealed())
                message = app.amqp.as_task_v2(
                    part.id, task, args=(argument,), kwargs={}, group_id=part.batch, root_id=part.batch,
                    parent_id=envelope.id, kwargsrepr="{}",
                    argsrepr=f"({part.function.name}, {len(part.items)} items from {part.positions[0]})",
                )  # fmt: skip
                app.amqp.send_task_message(
                    producer, task, message, queue=queue, priority=priority, declare=[], retry=False,
                    headers={SENT_AT: time.time()},
                )  # fmt: skip
            batch.flush()
    return tuple((part.id, tuple(part.positions)) for part in made)


def _part(envelope: Envelope, places: Sequence[int]) -> Envelope:
    return replace(
        envelope,
        id=sibling_of(envelope.id),
        positions=[envelope.positions[place] for place in places],
        items=[envelope.items[place] for place in places],
        carried={},
        given=(),
    )
