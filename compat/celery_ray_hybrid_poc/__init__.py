"""The mirror of ``celery_ray_hybrid_poc``: single tasks for few items, the bulk engine or Ray for many.

Ray is optional: ``pip install celery-graft[ray]`` and ``GRAFT_RAY=1``. Without it the bulk engine runs, and
``method`` says what ran. The tasks live in ``tasks/legacy/ray_hybrid_poc.py``, where workers find them.
"""

from __future__ import annotations

from graft.compat.celery_ray_hybrid_poc.comparator import PerformanceComparator, demo_hybrid_optimization
from graft.compat.celery_ray_hybrid_poc.optimizer import AdaptivePipeline, HybridWorkerOptimizer, OptimizationResult
from graft.compat.celery_ray_hybrid_poc.ray_pool import RayWorkerPool
from graft.tasks.legacy.ray_hybrid_poc import orchestrate_hybrid_job, process_small_batch

__all__ = [
    "AdaptivePipeline",
    "HybridWorkerOptimizer",
    "OptimizationResult",
    "PerformanceComparator",
    "RayWorkerPool",
    "demo_hybrid_optimization",
    "orchestrate_hybrid_job",
    "process_small_batch",
]
