"""Canaries: a tiny task through every queue in use, that notes when it ran. Nothing waits for it.

One canary of a queue is on its way at a time, at the middle priority like most messages; that it has not come back is a
measurement too. Times are Redis's, so differences between the machines' clocks do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import lua, redis_clock
from graft.config.own_task import own_task
from graft.config.redis_client import shared
from graft.tasks.messages.message_format import SENT_AT

CANARIES: Final = "graft:health:echoes"
EXPIRES: Final = 600.0  # Seconds after which a worker drops a canary, and another is sent.

NOTE: Final = lua.load(__file__, "canaries")


@dataclass(frozen=True)
class Canary:
    """The last canary of a queue, sent at ``asked``. ``seconds`` is how long the last that came back took."""

    asked: float
    is_pending: bool = True
    seconds: float | None = None


def read(client: Any) -> dict[str, Canary]:
    """The last canary of every queue."""
    return {queue.decode(): Canary(**json.loads(text)) for queue, text in client.hgetall(CANARIES).items()}


def send(queues: Iterable[str], client: Any, now: float) -> None:
    """Send a canary through each of *queues* whose last one has come back, or has expired."""
    known = read(client)
    for queue in queues:
        last = known.get(queue)
        if last and last.is_pending and now - last.asked < EXPIRES:
            continue
        asked = round(now, 6)
        client.hset(CANARIES, queue, json.dumps(asdict(Canary(asked, True, last.seconds if last else None))))
        headers = {SENT_AT: redis_clock.now()}  # Ages as any message does, so nothing overtakes it for longer.
        echo.apply_async((queue, f"{asked:.6f}"), queue=queue, expires=EXPIRES, ignore_result=True, headers=headers)


@own_task("graft.health.echo", ignore_result=True)
def echo(queue: str, asked: str) -> None:
    """Note that a worker has run this."""
    NOTE([CANARIES], [queue, asked], shared())
