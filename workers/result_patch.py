"""Stores the result of a task in one round trip, in workers, where Celery's Redis backend makes two and a transaction.

Celery asks for an earlier result first, so that nothing takes the place of a success. The script does both in one step,
which also leaves no moment between the two. In that step it asks whether the run's message is still its own, and
acknowledges it (tasks/delivery/lease.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, NamedTuple

from celery import states
from celery.backends.redis import RedisBackend

from graft.config import keys, lua
from graft.config.deployment import part
from graft.config.transport.unique import Terms
from graft.tasks.delivery import lease
from graft.tasks.queues import unique
from graft.tasks.results.celery_backend import Backend

STORE: Final = lua.load(__file__, "store_result")
STORES: Final = (RedisBackend, Backend)  # Celery's own and ours, but no class of a project that derives from them.
STATE: Final = len('{"status": ')


class StoreArguments(NamedTuple):
    """What the script is given: the key, the record, its seconds to live, and how a record of a success begins.

    ``delivery`` is the tag of the message of a run that ends with this result, else "". ``unique`` is the key of a call
    that ends with it, if it has one on the same server, else "".
    """

    key: str
    record: str
    seconds: int
    success: str
    delivery: str
    settles: int
    task_id: str = ""
    keep_ms: int = 0
    unique: str = ""

    @property
    def keys(self) -> list[str]:
        """The keys that the script touches."""
        held = [keys.RETURNED + self.delivery, keys.UNACKED, keys.UNACKED_INDEX]
        return [self.key, *held, *([self.unique] if self.unique else [])]

    @property
    def values(self) -> tuple[str | int, ...]:
        """Its further arguments."""
        return self[1:-1]


def arguments(
    backend: Any, task_id: str, result: Any, state: str, traceback: Any, request: Any
) -> StoreArguments | None:
    """How to store it, or None where Celery must: such as a compressed record, or one that is too large."""
    if backend.serializer != "json":
        return None
    meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)
    record = backend.encode({**meta, "task_id": task_id})
    success = backend.encode({"status": states.SUCCESS})[:-1]
    if not isinstance(record, str) or len(record) > backend._MAX_STR_VALUE_SIZE or record[:STATE] != success[:STATE]:
        return None
    kept = backend.failure_expires if state == states.FAILURE else None
    seconds = int(backend.expires or 0) if kept is None else int(kept)
    delivery = lease.fence_of(request) if state in states.READY_STATES else ""
    settles = int(bool(delivery) and not (request.chord or (request.errbacks and state != states.SUCCESS)))
    terms = Terms.of(request) if state in states.READY_STATES and unique.is_beside_results() else None
    keep_ms, name = (terms.keep_ms, terms.name) if terms is not None else (0, "")
    key = backend.get_key_for_task(task_id)
    return StoreArguments(key, record, seconds, success, delivery, settles, task_id, keep_ms, name)


class _Later:
    """Whoever stores results with what is sent to Redis next; nobody, in most processes."""

    def __init__(self) -> None:
        self.take: Callable[[StoreArguments], None] | None = None


def store_later(take: Callable[[StoreArguments], None]) -> None:
    """Have *take* given each result that also acknowledges its run's message, instead of storing it at once."""
    part(_Later).take = take


def install() -> None:
    """In a worker: change how Celery's own Redis backend stores, and ours."""
    store = RedisBackend._store_result

    @wraps(store)
    def store_in_one_step(
        self: Any, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        how = arguments(self, task_id, result, state, traceback, request) if type(self) in STORES else None
        if how is None:
            stored = store(self, task_id, result, state, traceback, request, **options)
            if state in states.READY_STATES:
                unique.end(request)
            return stored
        later = part(_Later).take if how.settles else None
        if later is not None:
            later(how)
        elif self.ensure(lambda: STORE(how.keys, how.values, self.client), ()) == -1:
            lease.warn_of_loss(task_id)
        return result

    if not hasattr(store, "__wrapped__"):
        RedisBackend._store_result = store_in_one_step
