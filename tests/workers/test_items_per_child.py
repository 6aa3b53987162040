"""A pool process is replaced after so many items, whatever envelopes they came in."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

import graft
from tests.stack import run_python

LIMIT = 60
PROGRAM = """
import graft, json, os
from tests.samples import process_id
print(json.dumps([graft.submit(process_id, range(20), batch_size=10).collect() for _ in range(10)]))
"""


def test_items_are_counted_and_not_envelopes(fresh_stack):
    stack = fresh_stack(cpu=1, GRAFT_ITEMS_PER_CHILD=str(LIMIT))
    done = run_python(stack, PROGRAM)
    assert done.returncode == 0, done.stderr
    ran = Counter(pid for batch in json.loads(done.stdout) for pid in batch)
    assert sum(ran.values()) == 200
    # Each ends with the envelope that reaches the limit; only the last may have run fewer.
    assert sorted(ran.values(), reverse=True)[:3] == [LIMIT] * 3
    assert len(ran) == 4


ONE_BY_ONE = """
import graft
from tests.samples import process_id
print(len({graft.submit(process_id, [0]).collect(60)[0] for _ in range(15)}))
"""


def test_no_task_is_written_to_a_process_that_has_done_its_last(fresh_stack, tmp_path):
    """Celery takes it for idle; the task would lie in its pipe until the process is gone and that is noticed."""
    stack = fresh_stack(cpu=0)
    ledger = tmp_path / "ledger"
    env = {**stack.env_of("worker"), "TEST_LEDGER": str(ledger)}
    argv = [sys.executable, "-m", "celery", "-A", "graft", "worker", "-c", "2", "--max-tasks-per-child", "3"]
    stack.guard.start([*argv, "-I", "tests.workers.slow_to_leave"], env, log=stack.directory / "leaving.log")
    done = run_python(stack, ONE_BY_ONE, 120)
    assert int(done.stdout) >= 5, done.stderr
    assert not ledger.exists()


def test_a_process_that_has_done_its_last_does_not_wait_to_be_replaced(stack):
    """Celery's looks ten times a second whether its result was read: with one task each it costs every call."""

    def looks(_: int) -> tuple[float, float]:
        import billiard.pool

        pause = billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
        return pause, pause * billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT

    ((pause, patience),) = graft.submit(looks, [0]).collect(60)
    assert pause <= 0.01
    assert patience == pytest.approx(30.0)  # As in billiard.
