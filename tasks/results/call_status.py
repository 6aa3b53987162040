"""The status of a call, by its id: Celery's PENDING stands for five different states, which are told apart here.

    graft.status_of(task_id)  # scheduled, queued, running, succeeded, failed, revoked, dead, expired, lost or unknown

``scheduled``: its time (``eta``, ``countdown``, the wait before a retry) has not come. ``running``: a worker holds its
message. ``dead``: buried, and can be replayed.
``expired``: it ended, and its result was not fetched in time. ``lost``: it was sent, has not ended, and is nowhere.
``unknown``: nobody here sent it, or its result expired more than a day ago; a task that was sent without a record (by
Celery's own ``delay``) is unknown as soon as its result has expired.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from graft.config import keys, redis_clock
from graft.config.deployment import settings
from graft.config.redis_client import broker, shared
from graft.tasks.dead_letters.store import LETTERS
from graft.tasks.queues import locate
from graft.tasks.results import call_records
from graft.tasks.results.call_records import CallRecord

CallStatus = Literal[
    "scheduled", "queued", "running", "succeeded", "failed", "revoked", "dead", "expired", "lost", "unknown"
]

RESULT: Final = keys.RESULT
MOMENT: Final = 0.2  # Seconds between two searches: a message that is given back at the wrong moment is missed by one.
ENDED: Final[dict[str, CallStatus]] = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "revoked"}


@dataclass(frozen=True)
class Traces:
    """The traces of one call in Redis; ``state`` is Celery's, empty without a result.

    ``location`` says where its message is, None where it is nowhere, or where not everything was searched
    (``is_searched``).
    """

    state: str = ""
    is_buried: bool = False
    location: locate.Location | None = None
    is_searched: bool = True
    record: CallRecord = field(default_factory=CallRecord)

    def status(self, now: float, result_ttl: float) -> CallStatus:
        """The status that these traces show."""
        if self.state == "SUCCESS":  # Of a replay, where a letter lies beside it.
            return "succeeded"
        if self.is_buried:
            return "dead"
        if self.state in ENDED:
            return ENDED[self.state]
        if self.location is not None:
            if self.location.eta is not None and self.location.eta > now:
                return "scheduled"
            return "running" if self.location.place == "held" else "queued"
        if not self.is_searched:
            return "running" if self.state else "queued"
        if self.record.completed is not None:
            return "expired"
        if self.record.created is None:
            return "lost" if self.state else "unknown"
        # The end of a task of one's own is not on record: a result that old would have expired.
        is_old = now - self.record.created > result_ttl
        return "expired" if is_old and not self.record.notes_end else "lost"


def status_of(task_id: str) -> CallStatus:
    """Return the status of the call, envelope or task *task_id*, where Celery says PENDING for five different things.

    ``scheduled``: its time has not come; ``queued``; ``running``: a worker holds its message; ``succeeded``;
    ``failed``; ``revoked``; ``dead``: it is a dead letter; ``expired``: it ended, and its result was not fetched in
    time; ``lost``: it was sent, has not ended, and is nowhere; ``unknown``: nobody here sent it, or its result expired
    more than a day ago.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    return traces(task_id).status(redis_clock.now(), settings().result_ttl)


def traces(task_id: str) -> Traces:
    """The traces of the call or task *task_id*."""
    with broker() as queue_side:
        found = _traces(task_id, queue_side)
        if found.location is None and found.status(redis_clock.now(), 0) in ("expired", "lost", "unknown"):
            time.sleep(MOMENT)
            found = _traces(task_id, queue_side)
    return found


def _traces(task_id: str, broker: Any) -> Traces:
    locations = locate.find([task_id], broker)
    # After the search: what ends meanwhile has left its result first.
    client = shared()
    raw = client.get(RESULT + task_id)
    return Traces(
        state=str(json.loads(raw)["status"]) if raw else "",
        is_buried=bool(client.hexists(LETTERS, task_id)),
        location=None if locations is None else locations.get(task_id),
        is_searched=locations is not None,
        record=call_records.read(client, task_id),
    )
