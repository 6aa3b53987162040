"""How many messages wait, by queue, and how many are with a worker: read from the lists that the transport keeps."""

from __future__ import annotations

from graft.config.queues import PRIORITY_STEPS, QUEUES
from graft.config.redis_client import broker
from graft.tasks.messages.message_format import UNACKED, lists


def waiting() -> dict[str, int]:
    """Messages in each queue that no worker has fetched, all priorities together."""
    with broker() as client, client.pipeline(transaction=False) as pipe:
        for queue in QUEUES:
            for name in lists(queue.name):
                pipe.llen(name)
        lengths = iter(pipe.execute())
    return {queue.name: sum(next(lengths) for _ in PRIORITY_STEPS) for queue in QUEUES}


def unacked() -> int:
    """Messages of all queues that workers have fetched and not yet settled."""
    with broker() as client:
        return int(client.hlen(UNACKED))
