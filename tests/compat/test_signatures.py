"""Every old call keeps its parameters, their order and defaults, and whether it is awaited.

New parameters are keyword-only, or last with a default.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest

from graft.compat import celery_integration_framework as framework
from graft.compat import celery_ray_hybrid_poc as hybrid

# module -> its old calls.
OLD = {
    "async_worker_optimization": """
        TaskItem(id, data, priority=0)
        WorkerMetrics(tasks_processed=0, total_processing_time=0.0, errors_count=0, last_task_time=None)
        AsyncWorkerOptimizer()
        async AsyncWorkerOptimizer.optimize_batch_processing(self, items, task_func, batch_size=10, max_concurrent=5)
        AsyncWorkerOptimizer.setup_pipeline(self, stages)
        AsyncWorkerOptimizer.manage_resource_pool(self, pool_name, config)
        async AsyncWorkerOptimizer.distribute_tasks(self, tasks, workers)
        AsyncWorkerOptimizer.calculate_balance_score(self, distribution, workers)
        AsyncWorkerOptimizer.profile_performance(self)
        Pipeline(stages)
        async Pipeline.process(self, items)
        Pipeline.get_metrics(self)
        ResourcePool(name, min_workers, max_workers, scaling_factor=2.0, idle_timeout=30)
        ResourcePool.get_active_workers(self)
        ResourcePool.get_utilization(self)
        ResourcePool.simulate_load(self, high)
        PerformanceProfiler()
        PerformanceProfiler.start_profiling(self)
        PerformanceProfiler.stop_profiling(self)
        PerformanceProfiler.profile_async(self, func)
        PerformanceProfiler.get_profile_report(self)
        PerformanceProfiler.analyze_bottlenecks(self, profile_data)
        AsyncBatchProcessor(batch_size=10, timeout=1.0)
        AsyncBatchProcessor.set_handler(self, handler)
        async AsyncBatchProcessor.add_item(self, item)
        AsyncBatchProcessor.get_statistics(self)
        async AsyncBatchProcessor._process_batch(self)
        ConnectionPoolOptimizer()
        async ConnectionPoolOptimizer.create_pool(self, min_size, max_size, connection_factory)
        ConnectionPoolOptimizer.optimize_pool_size(self, load_pattern, pool)
        async ConnectionPoolOptimizer.monitor_pool_health(self, pool)
        async ConnectionPoolOptimizer.monitor_health(self, pool)
        ConnectionPoolOptimizer.detect_leaks(self, pool=None, max_hold_seconds=300.0)
        ConnectionPool(min_size, max_size, connection_factory)
        async ConnectionPool.initialize(self)
        MockConnection(alive=True)
        async MockConnection.is_alive(self)
        AsyncTaskScheduler()
        async AsyncTaskScheduler.schedule_task(self, task_id, task_func, priority=0)
        AsyncTaskScheduler.cancel_task(self, task_id)
        AsyncTaskScheduler.get_pending_tasks(self)
        AsyncTaskScheduler.has_pending_tasks(self)
        async AsyncTaskScheduler.execute_next(self)
        AsyncTaskScheduler.optimize_schedule(self, tasks)
        AsyncTaskScheduler.calculate_total_time(self, schedule)
        MemoryOptimizer()
        MemoryOptimizer.analyze_memory_usage(self, data)
        MemoryOptimizer.optimize_data_structures(self, data)
        MemoryOptimizer.setup_memory_pool(self, size)
        MemoryOptimizer.start_leak_detection(self)
        MemoryOptimizer.detect_memory_leaks(self)
        MemoryOptimizer.detect_leaks(self)
        MemoryOptimizer.profile_memory(self, data=None)
        MemoryPool(size)
        MemoryPool.allocate(self, n)
    """,
    "worker_pool": """
        Task(id, data=None, priority=0, timeout=0.0)
        Result(task_id, output, error, duration, worker_id)
        WorkerPool.start(self)
        WorkerPool.submit_task(self, task)
        WorkerPool.submit_task_with_timeout(self, task, timeout)
        WorkerPool.get_result(self)
        WorkerPool.graceful_shutdown(self, timeout)
        WorkerPool.metrics(self)
        WorkerPool.worker_count(self)
        WorkerPool.statistics(self)
        async WorkerPool.spawn(self, task)
        async WorkerPool.spawn_cpu_work(self, work)
        async WorkerPool.spawn_parallel_batch(self, items, process_fn)
        async WorkerPool.spawn_chunked_parallel(self, items, chunk_size, process_fn)
        async WorkerPool.shutdown(self)
        TaskProcessor(fn)
        TaskProcessor.process(self, task)
        PriorityTaskQueue()
        PriorityTaskQueue.push(self, task)
        PriorityTaskQueue.pop(self)
        ResultCollector(buffer_size)
        ResultCollector.start(self)
        ResultCollector.submit(self, result)
        ResultCollector.get_results(self)
        ResultCollector.close(self)
        DynamicWorkerPool(min_workers, max_workers, queue_size)
    """,
    "async_patterns": """
        Stream(source)
        Stream.map(self, f)
        Stream.filter(self, p)
        Stream.take(self, n)
        async Stream.fold(self, init, f)
        Stream.scan(self, init, f)
        Stream.chunks(self, n)
        Stream.buffered(self, n)
        Stream.buffer_unordered(self, n)
        async Stream.for_each_concurrent(self, n, f)
        Semaphore(n)
        ConnectionPool(max)
        RateLimiter(per_second)
        async retry_with_backoff(operation, max_retries, initial_delay)
        async retry_with_jitter(operation, config)
        async smart_retry(operation, max_retries)
        is_retryable(error)
        async batch_with_timeout(items, func, total_timeout, item_timeout=10.0)
        channel(capacity)
        bounded_pipeline(stages, capacities)
        async fan_out_fan_in(items, num_workers, func=None)
        async map_reduce(inputs, map_fn, reduce_fn)
        async batch_process(items, batch_size, max_concurrent_batches, func=None)
        async debounce(rx, delay, handler)
        async throttle(rx, interval, handler)
        AsyncCache(ttl)
        async AsyncCache.get(self, key)
        async AsyncCache.set(self, key, value)
        async AsyncCache.get_or_insert(self, key, factory)
    """,
    "celery_migration_poc": """
        CeleryWorkerOptimizer()
        async CeleryWorkerOptimizer.optimize_batch_processing(self, items, batch_size=10, max_concurrent=5)
        CeleryWorkerOptimizer.setup_pipeline(self, stages)
        CeleryWorkerOptimizer.create_resource_pool(self, name, size=10)
        CeleryWorkerOptimizer.get_worker_metrics(self)
        CeleryWorkerOptimizer.dynamic_load_balancing(self, load_level)
        AsyncWorkerOptimizationCompat()
        async AsyncWorkerOptimizationCompat.optimize_batch_processing(\
self, items, task_func, batch_size=10, max_concurrent=5)
        AsyncWorkerOptimizationCompat.setup_pipeline(self, stages)
        AsyncWorkerOptimizationCompat.create_resource_pool(self, name, size=10)
        demo_celery_usage()
    """,
    "celery_ray_hybrid_poc": """
        HybridWorkerOptimizer()
        async HybridWorkerOptimizer.optimize_with_ray(self, items, func)
        HybridWorkerOptimizer.optimize_with_celery(self, items, task_name)
        async HybridWorkerOptimizer.hybrid_optimization(self, items, threshold=100)
        HybridWorkerOptimizer.create_adaptive_pipeline(self)
        AdaptivePipeline(optimizer)
        AdaptivePipeline.add_stage(self, name, func, use_ray=False)
        async AdaptivePipeline.execute(self, data)
        RayWorkerPool(size=4)
        RayWorkerPool.process_batch(self, items)
        RayWorkerPool.get_stats(self)
        PerformanceComparator()
        async PerformanceComparator.compare_methods(self, items, iterations=3)
        PerformanceComparator.print_comparison(self)
        demo_hybrid_optimization()
    """,
    "celery_integration_framework": """
        CeleryIntegrationFramework(app_name, broker_url, result_backend)
        CeleryIntegrationFramework.create_task(self, func, name=None, queue="normal", priority=5, retry_limit=3)
        CeleryIntegrationFramework.submit_task(\
self, task, args=(), kwargs=None, queue="normal", countdown=0, eta=None)
        CeleryIntegrationFramework.get_task_result(self, task_id)
        CeleryIntegrationFramework.wait_for_task(self, task_id, timeout=None)
        CeleryIntegrationFramework.get_worker_stats(self)
        CeleryIntegrationFramework.create_batch_processor(self, batch_size=10, max_parallel=5)
        CeleryIntegrationFramework.shutdown(self)
        CeleryBatchProcessor.process_batch(self, task, items, queue="normal")
        CeleryBatchProcessor.wait_for_batch(self, ids, timeout=None)
        create_sample_tasks(framework)
        create_celery_app(config=None)
    """,
}
# What the contract names without saying how its parameters are called.
NAMELESS = {"n", "f", "p", "init", "rx", "max", "ids", "high", "source"}


def calls() -> list[Any]:
    found = []
    for module, text in OLD.items():
        for line in filter(None, map(str.strip, text.splitlines())):
            is_async, line = line.startswith("async "), line.removeprefix("async ")
            name, _, parameters = line.partition("(")
            found.append(pytest.param(module, name, f"({parameters}", is_async, id=f"{module}.{name}"))
    return found


@pytest.mark.parametrize(("module", "name", "parameters", "is_async"), calls())
def test_an_old_call_keeps_its_parameters(module, name, parameters, is_async):
    found = import_module(f"graft.compat.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    space: dict[str, Any] = {}
    exec(f"def old{parameters}: ...", space)
    old = list(inspect.signature(space["old"]).parameters.values())
    now = list(inspect.signature(found).parameters.values())
    for was, now_is in zip(old, now, strict=False):
        assert was.name == now_is.name or was.name in NAMELESS
        assert was.default in (was.empty, now_is.default)  # What had to be given may have a default now.
        assert now_is.kind is not inspect.Parameter.KEYWORD_ONLY
    assert len(now) >= len(old)
    assert all(new.default is not new.empty or new.kind is new.VAR_KEYWORD for new in now[len(old) :])
    assert inspect.iscoroutinefunction(found) == is_async


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (hybrid.OptimizationResult, "task_id processing_time method result metrics"),
        (
            framework.TaskResult,
            "task_id status result traceback execution_time worker_name created_at completed_at",
        ),
        (
            framework.WorkerMetrics,
            "worker_name active_tasks completed_tasks failed_tasks total_execution_time memory_usage cpu_usage "
            "last_heartbeat",
        ),
    ],
)
def test_a_record_keeps_its_fields_in_their_order(kind, names):
    assert [field.name for field in fields(kind)] == names.split()


def test_the_statuses_keep_their_values():
    names = ["PENDING", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED"]
    assert [status.value for status in framework.TaskStatus] == names
    names = ["IDLE", "BUSY", "OFFLINE", "ERROR"]
    assert [(status.name, status.value) for status in framework.WorkerStatus] == [(n, n.lower()) for n in names]
    assert framework.TaskResult("id", framework.TaskStatus.PENDING).execution_time == 0.0
