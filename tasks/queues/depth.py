"""How many messages wait, by queue, and how many are with a worker: read from the lists that the transport keeps."""

from __future__ import annotations

from graft.config.redis_client import broker
from graft.config.transport import due
from graft.tasks.messages.message_format import UNACKED, lists
from graft.tasks.queues import existing


def waiting() -> dict[str, int]:
    """Messages in each queue that no worker has fetched, all priorities together."""
    with broker() as client:
        queues = existing.names(client)
        keys = [(queue, key) for queue in existing.filled(queues, client) for key in lists(queue)]
        with client.pipeline(transaction=False) as pipe:
            for _, key in keys:
                pipe.llen(key)
            lengths = pipe.execute()
    found = dict.fromkeys(queues, 0)
    for (queue, _), length in zip(keys, lengths, strict=True):
        found[queue] += length
    return found


def later() -> dict[str, int]:
    """Messages of each queue whose time has not come."""
    with broker() as client:
        return due.counts(client)


def unacked() -> int:
    """Messages of all queues that workers have fetched and not yet settled."""
    with broker() as client:
        return int(client.hlen(UNACKED))
