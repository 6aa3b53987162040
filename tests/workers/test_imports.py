"""A worker imports what its tasks need before it forks, and leaves out what few workers need."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.stack import ROOT, clean_environ

WORKER = """
import sys
from graft.celery import app
app.Worker(pool=sys.argv[1], concurrency=1)
print(*sys.modules)
"""
NEEDLESS = {
    *("rich", "cloudpickle", "pickletools", "celery.schedules"),
    "graft.scripts",
    *("graft.tasks.cleanup.chord_recovery", "graft.tasks.cleanup.redis_keys"),
    "graft.tasks.feeding.feeder",
    "graft.tasks.health.measure",
    "graft.tasks.leaks.findings",
    "graft.tasks.pools.state",
}
POOLS = {"graft.workers.direct.direct_pool", "graft.workers.thread_pool", "graft.workers.aio_pool"}


@pytest.mark.parametrize(
    ("pool", "needed"),
    [
        ("prefork", None),
        ("threads", "graft.workers.thread_pool"),
        ("direct", "graft.workers.direct.direct_pool"),
        ("graft.workers.aio_pool:TaskPool", "graft.workers.aio_pool"),
    ],
)
def test_a_worker_imports_its_own_pool_and_nothing_that_few_workers_need(pool, needed):
    ours = {"PYTHONPATH": str(ROOT), "GRAFT_SIGNING_KEY": "k" * 32, "GRAFT_POC_TASKS": "false", "GRAFT_POOL": "prefork"}
    environ = {**clean_environ(os.environ), **ours}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER, pool], env=environ, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert "graft.tasks.running.envelope_run" in modules  # Once, and shared with the processes that are forked.
    assert modules & POOLS == {needed} - {None}
    assert not modules & NEEDLESS
