"""How many messages wait, by queue, and how many are with a worker: read from the lists that the transport keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from graft.config.queues import PRIORITY_STEPS, QUEUES
from graft.config.redis_client import connect
from graft.config.settings import settings
from graft.tasks.cleanup.periodic import SEPARATOR

UNACKED: Final = "unacked"


def lists(queue: str) -> list[str]:
    """The lists of *queue*, one for each priority; that of priority 0 has the queue's own name."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]


def waiting() -> dict[str, int]:
    """Messages in each queue that no worker has fetched, all priorities together."""
    with _broker() as client, client.pipeline(transaction=False) as pipe:
        for queue in QUEUES:
            for name in lists(queue.name):
                pipe.llen(name)
        lengths = iter(pipe.execute())
    return {queue.name: sum(next(lengths) for _ in PRIORITY_STEPS) for queue in QUEUES}


def unacked() -> int:
    """Messages of all queues that workers have fetched and not yet settled."""
    with _broker() as client:
        return int(client.hlen(UNACKED))


@contextmanager
def _broker() -> Iterator[Any]:
    # The broker may be another Redis than the result backend, which redis_client's clients talk to.
    client = connect(settings().model_copy(update={"result_backend": settings().broker_url}))
    try:
        yield client
    finally:
        client.close()
