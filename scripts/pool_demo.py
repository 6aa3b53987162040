"""The worker pool's demo: five workers, a thousand tasks, and what became of them.

    python -m graft.scripts.pool_demo

Runs on a private stack, or on the workers of ``CELERY_BROKER_URL``. The lines are the old demo's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from graft.compat.worker_pool import Result, Task, WorkerPool
from graft.scripts.console import complain, say
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import StackError

WORKERS = 5
TASKS = 1000
SHOWN = 5
QUEUE = 50
PAUSE = 0.01  # What a task waits for, as for a database; so five workers are worth having on any machine.


def compute(task: Task) -> int:
    """The sum of the numbers below the task's own, after a pause."""
    time.sleep(PAUSE)
    return sum(range(task.data))


def demonstrate(tasks: int = TASKS) -> bool:
    """Run *tasks* through a pool and print the old demo's lines; whether all succeeded."""
    print("=== Worker Pool Pattern Demo ===")
    print(f"Creating worker pool with {WORKERS} workers...")
    pool = WorkerPool(WORKERS, QUEUE, processor=compute)
    pool.start()
    print(f"Processing {tasks} tasks...")
    began = time.perf_counter()
    results = list(_through(pool, tasks))
    seconds = time.perf_counter() - began
    stopping = time.perf_counter()
    pool.graceful_shutdown(30.0)
    stopped = time.perf_counter() - stopping
    failed = sum(result.error is not None for result in results)
    print("\nResults Summary:")
    print(f"- Total tasks processed: {len(results)}")
    print(f"- Total time: {seconds:.1f}s")
    print(f"- Throughput: {len(results) / seconds:.0f} tasks/sec")
    print(f"- Average latency: {pool.metrics().avg_latency * 1000:.0f}ms")
    print(f"- Success rate: {100 * (len(results) - failed) / max(len(results), 1):.0f}%")
    print(f"- Peak workers active: {pool.statistics()['peak_running']}")
    print(f"\nGraceful shutdown completed in {stopped:.1f}s")
    print("All workers stopped cleanly.")
    return len(results) == tasks and not failed


def _through(pool: WorkerPool, tasks: int) -> Sequence[Result]:
    results: list[Result] = []
    stream = pool.get_result()
    for number in range(tasks):
        if number >= QUEUE:  # Those before fit into the queue, whatever is read.
            results.append(_shown(stream.get(60.0), len(results)))
        pool.submit_task_with_timeout(Task(number + 1, number), 60.0)
    while len(results) < tasks:
        results.append(_shown(stream.get(60.0), len(results)))
    return results


def _shown(result: Result, before: int) -> Result:
    if before < SHOWN:
        print(f"Worker {result.worker_id + 1} processing task {result.task_id} (compute: {result.output})")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graft.scripts.pool_demo", description="Show the worker pool.")
    parser.parse_args(argv)
    if os.environ.get("CELERY_BROKER_URL"):
        return 0 if demonstrate() else 1
    say("starting a private Redis and a worker with five processes …")
    try:
        with LocalStack({"cpu": WORKERS}) as stack:
            # A process reads its settings once, so the demo itself is one of its own.
            return subprocess.run(
                [sys.executable, "-m", "graft.scripts.pool_demo"], env=stack.env, check=False
            ).returncode
    except StackError as error:
        complain(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
