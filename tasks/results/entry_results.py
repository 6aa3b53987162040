"""How the last run of each entry of Beat's schedule ended.

    Beat ── the header names the entry ──► queue ──► worker ── note ──► graft:beats:ended ──► schedule list, Flower

A process that dies with its run cannot note it: the worker does, where it is the run that Beat sent last.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.redis_client import shared
from graft.tasks.queues.overlap import ENTRY
from graft.tasks.results import attempts

ENDED: Final = keys.BEAT_ENDED
KEPT: Final = 7 * 86400  # Seconds.
LONGEST_NAME: Final = 200


@dataclass(frozen=True)
class EntryResult:
    """How a run of an entry ended, and when, since the epoch. ``call`` is the id of its task; ``error`` may be ""."""

    at: float
    call: str
    outcome: str
    error: str


def is_from_beat(request: Any) -> bool:
    """Whether an entry of Beat's schedule sent *request*."""
    return bool(getattr(request, ENTRY, None))


def note(request: Any, answer: BaseException | None) -> None:
    """Note the end of a run of *request*, which an entry sent, and which raised *answer* or nothing."""
    _write(str(getattr(request, ENTRY))[:LONGEST_NAME], request.id, *attempts.told(answer))


def note_killed(task_id: str, error: BaseException) -> None:
    """Note that the run of *task_id* ended with its process, if an entry sent it last."""
    for name, text in shared().hgetall(keys.BEAT_SENT).items():
        if json.loads(text).get("id") == task_id:
            _write(name.decode(), task_id, "ended with its process", error)


def _write(entry: str, task_id: str, outcome: str, error: BaseException | None) -> None:
    result = EntryResult(redis_clock.now(), task_id, outcome, attempts.error_text(error))
    with shared().pipeline(transaction=False) as pipe:
        pipe.hset(ENDED, entry, json.dumps(asdict(result)))
        pipe.expire(ENDED, KEPT)
        pipe.execute()


def read(client: Any) -> dict[str, EntryResult]:
    """How the last run of each entry ended, by name; of the last week."""
    found = {name.decode(): EntryResult(**json.loads(text)) for name, text in client.hgetall(ENDED).items()}
    return {name: one for name, one in found.items() if redis_clock.now() - one.at < KEPT}
