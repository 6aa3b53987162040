"""How many messages wait, by queue, and how many are with a worker: read from the lists that the transport keeps."""

from __future__ import annotations

from graft.config.redis_client import broker
from graft.config.transport import due
from graft.tasks.messages.message_format import UNACKED, lists
from graft.tasks.queues import existing


def waiting() -> dict[str, int]:
    """Messages in each queue that no worker has fetched, all priorities together."""
    with broker() as client, client.pipeline(transaction=False) as pipe:
        queues = {queue: lists(queue) for queue in existing.names(client)}
        for keys in queues.values():
            for key in keys:
                pipe.llen(key)
        lengths = iter(pipe.execute())
    return {queue: sum(next(lengths) for _ in keys) for queue, keys in queues.items()}


def later() -> dict[str, int]:
    """Messages of each queue whose time has not come."""
    with broker() as client:
        return due.counts(client)


def unacked() -> int:
    """Messages of all queues that workers have fetched and not yet settled."""
    with broker() as client:
        return int(client.hlen(UNACKED))
