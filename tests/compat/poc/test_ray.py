"""E.3 with Ray: skipped where it is not installed. Ray starts processes of its own, so each test is a program."""

from __future__ import annotations

import importlib.util

import pytest

from tests.stack import run_python

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
ON = {"GRAFT_RAY": "1", "RAY_AUTH_MODE": "disabled"}

HYBRID = """
import asyncio
from graft.compat.celery_ray_hybrid_poc import HybridWorkerOptimizer, PerformanceComparator
from tests import samples
from tests.compat.poc import work

async def main():
    optimizer = HybridWorkerOptimizer()
    assert optimizer.ray_initialized
    for number, method in ((99, "celery"), (100, "ray"), (300, "ray")):
        outcome = await optimizer.hybrid_optimization(range(number), func=work.doubled)
        assert (outcome.method, outcome.result) == (method, [2 * x for x in range(number)])
    assert await optimizer.optimize_with_ray([], work.doubled) == []
    assert await optimizer.optimize_with_ray([1, 2], work.doubled_async) == [2, 4]
    try:
        await optimizer.optimize_with_ray([0, 1], samples.raise_value_error_if_odd)
    except ValueError as error:
        assert type(error) is ValueError and error.args == ("1 is odd",)
    pipeline = optimizer.create_adaptive_pipeline().add_stage("a", work.doubled, use_ray=True)
    assert await pipeline.add_stage("b", work.doubled).execute(3) == 12
    results = await PerformanceComparator(optimizer).compare_methods([{"id": 1}] * 5, 1)
    print([row["method"] for row in results.values()])

asyncio.run(main())
"""

POOL = """
import ray
from graft.compat.celery_ray_hybrid_poc import RayWorkerPool

pool = RayWorkerPool(3)
assert isinstance(pool.actor, ray.actor.ActorHandle)
assert pool.process_batch([1, 2]) == [{"item": 1, "processed": True}, {"item": 2, "processed": True}]
assert pool.get_stats() == {"pool_size": 3, "tasks_processed": 2}
bare = RayWorkerPool.remote(2)
assert len(ray.get(bare.process_batch.remote([1]))) == 1
print(ray.get(bare.get_stats.remote()))
"""


def test_from_the_threshold_on_ray_runs_and_method_says_so(stack):
    finished = run_python(stack, HYBRID, 120.0, env=ON)
    assert finished.stdout.strip() == "['celery', 'ray', 'celery']", finished.stderr


def test_the_worker_pool_is_a_real_actor(redis_stack):
    finished = run_python(redis_stack, POOL, 120.0, env=ON)
    assert finished.stdout.strip() == "{'pool_size': 2, 'tasks_processed': 1}", finished.stderr
