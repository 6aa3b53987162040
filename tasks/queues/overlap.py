"""``overlap="skip"`` and ``"queue"``: a task is not sent while its message before waits, runs, or will be run again.

An option of an entry in Beat's schedule, or of any ``apply_async``; ``"allow"`` is Celery's way. What counts as the
same is task and arguments. With ``skip`` the message is dropped. With ``queue`` it is kept, and the worker that ends
the run before sends it: one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from kombu.utils.json import dumps, loads

from graft.config import keys
from graft.config.deployment import app
from graft.config.redis_client import broker, shared
from graft.tasks.queues import locate

HEADER: Final = "graft_overlap"  # Names the mark that the run removes when it has ended.
ENTRY: Final = "graft_entry"  # The header that names the entry of Beat's schedule that sent the message.
SKIPPED: Final = f"{keys.OVERLAP}skipped"  # How many messages of each entry were dropped.
SKIPPED_TTL: Final = 7 * 86400  # Seconds without another one after which the counts are forgotten.
QUEUED: Final = ":queued"  # Ends the name of the list of messages that wait for the one under way.
MODES: Final = ("allow", "skip", "queue")
MOST: Final = 1000  # Messages that wait for one task; further ones are dropped.
TTL: Final = 86400  # Seconds after which a mark is forgotten, whatever became of its message.


def may_send(headers: dict[str, Any], body: Any, mode: str, options: Mapping[str, Any]) -> bool:
    """Whether the message is to be sent now; marks it as the one under way if so. *options* are those of its sending.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"overlap={mode!r} must be one of {', '.join(MODES)}")
    what = dumps([headers["task"], *body[:2]])
    key = keys.OVERLAP + hashlib.sha256(str(what).encode()).hexdigest()[:32]
    headers[HEADER] = key
    client, task_id = shared(), headers["id"]
    if client.set(key, task_id, nx=True, ex=TTL):
        return True
    before = (client.get(key) or b"").decode()
    with broker() as queue_side:
        if not before or before not in locate.missing([before], queue_side):
            if mode == "queue":
                _wait(client, key, headers, body, options)
            elif entry := _entry(options):
                _count_skipped(client, entry)
            return False
    client.set(key, task_id, ex=TTL)  # That one was lost, purged or dropped.
    return True


def _entry(options: Mapping[str, Any]) -> str:
    return str((options.get("headers") or {}).get(ENTRY) or "")


def _count_skipped(client: Any, entry: str) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.hincrby(SKIPPED, entry, 1)
        pipe.expire(SKIPPED, SKIPPED_TTL)
        pipe.execute()


def skipped(client: Any) -> dict[str, int]:
    """How many messages of each of Beat's entries were dropped, by name, since a week passed without any."""
    return {name.decode(): int(count) for name, count in client.hgetall(SKIPPED).items()}


def _wait(client: Any, key: str, headers: Mapping[str, Any], body: Any, options: Mapping[str, Any]) -> None:
    """Keep the message until the one under way has ended."""
    queue = getattr(options.get("queue"), "name", options.get("queue")) or options.get("routing_key")
    kept = {
        "id": headers["id"], "task": headers["task"], "args": body[0], "kwargs": body[1], "queue": queue,
        "priority": options.get("priority"), "ignore_result": headers.get("ignore_result"),
        "headers": {ENTRY: entry} if (entry := _entry(options)) else None,
    }  # fmt: skip
    with client.pipeline() as pipe:
        pipe.rpush(key + QUEUED, str(dumps(kept)))
        pipe.ltrim(key + QUEUED, 0, MOST - 1)
        pipe.expire(key + QUEUED, TTL)
        pipe.execute()


def note_ended(request: Any) -> None:
    """The run of *request* has ended for good: the next message may be sent, and is where one waits."""
    key = getattr(request, HEADER, None)
    if not key or shared().get(key) != str(request.id).encode():
        return
    shared().delete(key)
    if text := shared().lpop(key + QUEUED):
        kept = loads(text)
        app().send_task(
            kept.pop("task"), kept.pop("args"), kept.pop("kwargs"), task_id=kept.pop("id"), overlap="queue",
            **{name: value for name, value in kept.items() if value is not None},
        )  # fmt: skip
