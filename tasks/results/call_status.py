"""What has become of a call, by its id: more than Celery's PENDING, which stands for five different things.

    from graft.tasks.results import call_status
    call_status.of(task_id)        # queued, running, succeeded, failed, revoked, dead, expired, lost or unknown

``running``: a worker holds its message; it runs, or waits there for its time. ``dead``: buried, and can be replayed.
``expired``: it ended, and its answer was not fetched in time. ``lost``: it was sent, has not ended, and is nowhere.
``unknown``: nobody here sent it, or its answer expired more than a day ago; what was sent without a record (by Celery's
own ``delay``) is unknown as soon as its result has expired.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from graft.config.deployment import settings
from graft.config.redis_client import broker, shared
from graft.tasks.dead_letters.store import LETTERS
from graft.tasks.queues import locate
from graft.tasks.results import call_records
from graft.tasks.results.call_records import CallRecord

Fate = Literal["queued", "running", "succeeded", "failed", "revoked", "dead", "expired", "lost", "unknown"]

RESULT: Final = "celery-task-meta-"
MOMENT: Final = 0.2  # Seconds between two searches: a message that is given back at the wrong moment is missed by one.
ENDED: Final[dict[str, Fate]] = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "revoked"}


@dataclass(frozen=True)
class Traces:
    """What Redis holds of one call; ``state`` is Celery's, empty without a result. ``is_searched``: all of it."""

    state: str = ""
    is_buried: bool = False
    place: locate.Place | None = None
    is_searched: bool = True
    record: CallRecord = field(default_factory=CallRecord)

    def fate(self, now: float, result_ttl: float) -> Fate:
        """What they come to."""
        if self.state == "SUCCESS":  # Of a replay, where a letter lies beside it.
            return "succeeded"
        if self.is_buried:
            return "dead"
        if self.state in ENDED:
            return ENDED[self.state]
        if self.place is not None:
            return "queued" if self.place == "queued" else "running"
        if not self.is_searched:
            return "running" if self.state else "queued"
        if self.record.completed is not None:
            return "expired"
        if self.record.created is None:
            return "lost" if self.state else "unknown"
        # The end of a task of one's own is not on record: what is older than an answer may be has had one.
        is_old = now - self.record.created > result_ttl
        return "expired" if is_old and not self.record.tells else "lost"


def of(task_id: str) -> Fate:
    """What has become of the call or task *task_id*. Raises RedisError when Redis does not answer."""
    with broker() as queue_side:
        found = _traces(task_id, queue_side)
        if found.place is None and found.fate(time.time(), 0) in ("expired", "lost", "unknown"):
            time.sleep(MOMENT)
            found = _traces(task_id, queue_side)
    return found.fate(time.time(), settings().result_ttl)


def _traces(task_id: str, broker: Any) -> Traces:
    places = locate.where([task_id], broker)
    # After the search: what ends meanwhile has left its result first.
    client = shared()
    raw = client.get(RESULT + task_id)
    return Traces(
        state=str(json.loads(raw)["status"]) if raw else "",
        is_buried=bool(client.hexists(LETTERS, task_id)),
        place=None if places is None else places.get(task_id),
        is_searched=places is not None,
        record=call_records.read(client, task_id),
    )
