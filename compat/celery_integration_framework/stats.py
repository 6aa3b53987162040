"""A framework's figures: what the workers have counted in Redis, beside the heartbeats of those that are alive."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from graft.compat.celery_integration_framework.data import WorkerMetrics, WorkerStatus
from graft.tasks.monitoring.worker_registry import WorkerBeat, workers
from graft.tasks.results.call_records import Totals, totals


def of(app_name: str, client: Any) -> dict[str, Any]:
    """See ``CeleryIntegrationFramework.get_worker_stats``."""
    done = totals(client, app_name)
    alive = {worker.name: worker for worker in workers(client)}
    rows = {name: _row(name, done.get(name, Totals()), alive.get(name)) for name in sorted({*alive, *done} - {""})}
    successful = sum(each.completed for each in done.values())
    ended = successful + sum(each.failed for each in done.values())
    return {
        "active_workers": len(alive),
        "total_tasks": ended,
        "successful_tasks": successful,
        "failed_tasks": ended - successful,
        "success_rate": 100 * successful / ended if ended else 0.0,
        "average_execution_time": sum(each.seconds for each in done.values()) / ended if ended else 0.0,
        "workers": {name: asdict(row) for name, row in rows.items()},
    }


def _row(name: str, done: Totals, beat: WorkerBeat | None) -> WorkerMetrics:
    return WorkerMetrics(
        worker_name=name,
        active_tasks=beat.busy if beat else 0,
        completed_tasks=done.completed,
        failed_tasks=done.failed,
        total_execution_time=done.seconds,
        memory_usage=beat.memory if beat else 0,
        cpu_usage=min(1.0, done.cpu_seconds / done.seconds) if done.seconds else 0.0,
        last_heartbeat=datetime.fromtimestamp(beat.at, UTC) if beat else None,
    )


def status_of(worker_name: str, client: Any) -> WorkerStatus:
    """OFFLINE without a heartbeat, else BUSY or IDLE."""
    beats = {worker.name: worker for worker in workers(client)}
    if worker_name not in beats:
        return WorkerStatus.OFFLINE
    return WorkerStatus.BUSY if beats[worker_name].busy else WorkerStatus.IDLE
