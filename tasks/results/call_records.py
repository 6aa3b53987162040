"""Records of single calls in Redis: one for each call, and totals by owner and worker.

A record is written before Celery publishes the result, so whoever reads SUCCESS or FAILURE finds it. It is kept for a
day longer than the result: an expired result is not taken for a call that never was (call_status.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.deployment import settings

RECORD: Final = keys.CALL
TOTALS: Final = keys.CALLS
TOTALS_TTL: Final = 30 * 86400
REMEMBERED: Final = 86400.0  # Seconds beyond the life of the result.


@dataclass(frozen=True)
class CallRecord:
    """One call. Times are seconds since the epoch, None before they come; ``error`` is sealed."""

    created: float | None = None
    completed: float | None = None
    seconds: float = 0.0
    worker: str = ""
    error: str = ""
    is_sealed: bool = False
    notes_end: bool = False


@dataclass(frozen=True)
class Totals:
    """The work of one worker for an owner. ``cpu_seconds`` is processor time out of ``seconds``."""

    completed: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def submitted(client: Any, task_id: str, delay: float, *, notes_end: bool = False) -> None:
    """Note a call that is sent now and may not begin for *delay* seconds; *notes_end*: its end will be noted too."""
    ttl = int(settings().result_ttl + delay + REMEMBERED)
    _write(client, task_id, ttl, created=redis_clock.now(), **({"notes_end": 1} if notes_end else {}))


def ended(client: Any, task_id: str, owner: str, worker: str, seconds: float, cpu: float, error: str | None) -> None:
    """Note that a call has come to its end on *worker*; *error* is what it failed with, sealed."""
    outcome = {"is_sealed": 1} if error is None else {"error": error}
    ttl = int(settings().result_ttl + REMEMBERED)
    _write(client, task_id, ttl, notes_end=1, completed=redis_clock.now(), seconds=seconds, worker=worker, **outcome)
    with client.pipeline(transaction=False) as pipe:
        key = TOTALS + owner
        pipe.hincrby(key, f"{'completed' if error is None else 'failed'}:{worker}", 1)
        pipe.hincrbyfloat(key, f"seconds:{worker}", seconds)
        pipe.hincrbyfloat(key, f"cpu_seconds:{worker}", cpu)
        pipe.expire(key, TOTALS_TTL)
        pipe.execute()


def _write(client: Any, task_id: str, ttl: int, **fields: Any) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.hset(RECORD + task_id, mapping=fields)
        pipe.expire(RECORD + task_id, ttl)
        pipe.execute()


def read(client: Any, task_id: str) -> CallRecord:
    """The record of a call; an empty one where nothing is known."""
    found = {name.decode(): value.decode() for name, value in client.hgetall(RECORD + task_id).items()}
    return CallRecord(
        created=float(found["created"]) if "created" in found else None,
        completed=float(found["completed"]) if "completed" in found else None,
        seconds=float(found.get("seconds", 0)),
        worker=found.get("worker", ""),
        error=found.get("error", ""),
        is_sealed="is_sealed" in found,
        notes_end="notes_end" in found,
    )


def totals(client: Any, owner: str) -> dict[str, Totals]:
    """By worker, what was done for *owner* in the last 30 days."""
    workers: dict[str, dict[str, float]] = {}
    for name, value in client.hgetall(TOTALS + owner).items():
        what, _, worker = name.decode().partition(":")
        workers.setdefault(worker, {})[what] = float(value)
    return {
        worker: Totals(
            int(stats.get("completed", 0)),
            int(stats.get("failed", 0)),
            stats.get("seconds", 0.0),
            stats.get("cpu_seconds", 0.0),
        )
        for worker, stats in sorted(workers.items())
    }
