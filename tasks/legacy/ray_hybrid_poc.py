"""The tasks of the hybrid proof of concept: a small item, and a job that spreads its items over the workers.

orchestrate_hybrid_job ── replaced by ──► one message for each item, or for each chunk from the threshold on
                                             └─ all done ──► finish_hybrid_job, whose result is the job's
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final
from uuid import uuid4

import psutil
from celery import chord

from graft.config.own_task import own_task
from graft.tasks.legacy.migration_poc import LIMITS, PocTask, both_names, now, worker_name

OLD_MODULE: Final = "celery_ray_hybrid_poc"
THRESHOLD: Final = 100
CHUNKS: Final = 16  # At most that many messages for a large job, so that many processes share it …
CHUNK: Final = 1000  # … and none of them grows without bounds.


def stamp(item: Any) -> dict[str, Any]:
    """The stamp of a small item: its id (itself, where it is no mapping), the worker, and the time."""
    identity = item.get("id") if isinstance(item, Mapping) else item
    return {"id": identity, "processed_by": worker_name(), "timestamp": now()}


def figures(items: int, seconds: float) -> dict[str, Any]:
    """The ``metrics`` of a hybrid job; ``memory_usage`` is of this process, in MB."""
    return {
        "items_count": items,
        "avg_time_per_item": seconds / items if items else 0.0,
        "memory_usage": psutil.Process().memory_info().rss / 1e6,
    }


def new_job_id() -> str:
    return f"hybrid_{uuid4().hex}"


@both_names(OLD_MODULE)
def process_small_batch(item: Any) -> dict[str, Any]:
    """``id``, ``processed_by`` (the worker) and ``timestamp`` of one item."""
    return stamp(item)


@own_task(f"{OLD_MODULE}.process_chunk", base=PocTask, **LIMITS)
def process_chunk(items: Sequence[Any]) -> list[dict[str, Any]]:
    """The results of ``process_small_batch`` for each of *items*."""
    return [stamp(item) for item in items]


@both_names(OLD_MODULE, bind=True)
def orchestrate_hybrid_job(self: PocTask, job_config: Mapping[str, Any]) -> Any:
    """Process ``job_config["items"]``: ``job_id``, ``method``, ``processing_time`` (s), ``metrics`` and ``result``.

    Below ``job_config["threshold"]`` (100) items each is a task; from there on chunks are. Nothing waits inside a task.
    Difference: the proof of concept dropped the result. ``method`` is "celery" on both sides: that is what runs.
    """
    items = list(job_config.get("items", ()))
    job: dict[str, Any] = {"job_id": new_job_id(), "items": len(items), "began": time.time()}
    if not items:
        return _report(job, [])
    if len(items) < job_config.get("threshold", THRESHOLD):
        return self.hand_over(chord([process_small_batch.s(item) for item in items], finish_hybrid_job.s(job, False)))
    size = min(CHUNK, math.ceil(len(items) / CHUNKS))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    return self.hand_over(chord([process_chunk.s(chunk) for chunk in chunks], finish_hybrid_job.s(job, True)))


@own_task(f"{OLD_MODULE}.finish_hybrid_job", base=PocTask, **LIMITS)
def finish_hybrid_job(results: list[Any], job: Mapping[str, Any], chunked: bool) -> dict[str, Any]:
    """The job's result, once all its parts are done."""
    return _report(job, list(chain.from_iterable(results)) if chunked else results)


def _report(job: Mapping[str, Any], result: list[Any]) -> dict[str, Any]:
    seconds = max(0.0, time.time() - job["began"])  # Two machines' clocks.
    return {
        "job_id": job["job_id"],
        "method": "celery",
        "processing_time": seconds,
        "metrics": figures(job["items"], seconds),
        "result": result,
    }
