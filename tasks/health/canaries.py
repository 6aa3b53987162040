"""Echoes: a tiny task through every queue in use, that notes when it ran. Nobody waits for it.

One echo of a queue is on its way at a time, at the middle priority like anybody's message; its absence is a measure
like its arrival. Times are Redis's, so the machines' clocks have no part in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import lua
from graft.config.own_task import own_task
from graft.config.redis_client import shared
from graft.tasks.messages.message_format import SENT_AT

ECHOES: Final = "graft:health:echoes"
EXPIRES: Final = 600.0  # Seconds after which an echo is given up, by its reader, and another is sent.

ANSWERED: Final = lua.load(__file__, "canaries")


@dataclass(frozen=True)
class Echo:
    """The last echo of a queue. ``seconds`` is what the last answered one took."""

    asked: float
    is_pending: bool = True
    seconds: float | None = None


def read(client: Any) -> dict[str, Echo]:
    """The last echo of every queue."""
    return {queue.decode(): Echo(**json.loads(text)) for queue, text in client.hgetall(ECHOES).items()}


def send(queues: Iterable[str], client: Any, now: float) -> None:
    """Send an echo through each of *queues* whose last one was answered, or given up."""
    known = read(client)
    for queue in queues:
        last = known.get(queue)
        if last and last.is_pending and now - last.asked < EXPIRES:
            continue
        asked = round(now, 6)
        client.hset(ECHOES, queue, json.dumps(asdict(Echo(asked, True, last.seconds if last else None))))
        headers = {SENT_AT: time.time()}  # So that nothing overtakes it for longer than anybody else's message.
        echo.apply_async((queue, f"{asked:.6f}"), queue=queue, expires=EXPIRES, ignore_result=True, headers=headers)


@own_task("graft.health.echo", ignore_result=True)
def echo(queue: str, asked: str) -> None:
    """Note that a worker has come to this."""
    ANSWERED([ECHOES], [queue, asked], shared())
