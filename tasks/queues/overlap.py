"""``overlap="skip"``: a periodic task is not sent again while its message before waits, runs, or will be run again.

An option of an entry in Beat's schedule, or of any ``apply_async``. What counts as the same is task and arguments.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from kombu.utils.json import dumps

from graft.config import keys
from graft.config.redis_client import broker, shared
from graft.tasks.queues import locate

HEADER: Final = "graft_overlap"  # Names the mark that the run removes when it has ended.
TTL: Final = 86400  # Seconds after which a mark is forgotten, whatever became of its message.


def may_send(headers: dict[str, Any], body: Any) -> bool:
    """Whether the message is to be sent; marks it as the one under way if so."""
    what = dumps([headers["task"], *body[:2]])
    key = keys.OVERLAP + hashlib.sha256(str(what).encode()).hexdigest()[:32]
    headers[HEADER] = key
    client, task_id = shared(), headers["id"]
    if client.set(key, task_id, nx=True, ex=TTL):
        return True
    before = (client.get(key) or b"").decode()
    with broker() as queue_side:
        if not before or before not in locate.missing([before], queue_side):
            return False
    client.set(key, task_id, ex=TTL)  # That one was lost, purged or dropped.
    return True


def note_ended(request: Any) -> None:
    """The run of *request* has ended for good: the next message may be sent."""
    key = getattr(request, HEADER, None)
    if key and shared().get(key) == str(request.id).encode():
        shared().delete(key)
