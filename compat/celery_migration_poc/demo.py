"""The demonstration of the proof of concept: one item, a batch of 10, a chain."""

from __future__ import annotations

import asyncio
from typing import Final

from graft.compat.celery_migration_poc.optimizer import CeleryWorkerOptimizer
from graft.tasks.sending import by_task_name

PATIENCE: Final = 60.0


def demo_celery_usage() -> None:
    """Run one item, a batch of 10 and a chain on the deployment's workers, and print what came of them.

    Raises:
        ResultTimeout: no worker answered within a minute.
        BrokerUnavailable: the broker did not answer.
    """
    optimizer = CeleryWorkerOptimizer()
    one = by_task_name.send("process_item", [{"id": "one"}])
    print(f"one item   {by_task_name.collect([one], PATIENCE)[0]}")
    results = asyncio.run(optimizer.optimize_batch_processing([{"id": number} for number in range(10)]))
    print(f"a batch    {len(results)} results, ids {[result['id'] for result in results]}")
    last = optimizer.setup_pipeline(["process_item", "heavy_computation"]).delay({"id": "chained"})
    print(f"a chain    {by_task_name.collect([last.id], PATIENCE)[0]}")
    metrics = optimizer.get_worker_metrics()
    print(f"workers    {', '.join(metrics['workers']) or 'none'}")
    print(f"waiting    {metrics['queue_lengths']}")
