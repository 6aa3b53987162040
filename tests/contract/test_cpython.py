"""CPython's own tests, as far as they make sense for workers elsewhere. Not every Python comes with them."""

from __future__ import annotations

import importlib
import unittest
from typing import Any

import pytest

from graft.compat.executor import CeleryExecutor
from graft.compat.pool import Pool

pytestmark = pytest.mark.usefixtures("stack")

FUTURES = "test.test_concurrent_futures"  # A package from Python 3.12 on.
EXECUTOR_TESTS = {
    "executor:ExecutorTest": [
        "test_submit",
        "test_submit_keyword",
        "test_map",
        "test_map_exception",
        "test_shutdown_race_issue12456",
        "test_no_stale_references",
        "test_max_workers_negative",
        "test_free_reference",
        "test_map_buffersize_type_validation",
        "test_map_buffersize_value_validation",
        "test_map_buffersize",
        "test_map_buffersize_on_multiple_iterables",
        "test_map_buffersize_on_infinite_iterable",
        "test_map_buffersize_on_multiple_infinite_iterables",
        "test_map_buffersize_on_empty_iterable",
        "test_map_buffersize_without_iterable",
        "test_map_buffersize_when_buffer_is_full",
    ],
    "test_as_completed:AsCompletedTests": ["test_no_timeout", "test_future_times_out", "test_duplicate_futures"],
    "test_wait:WaitTests": [
        "test_20369",
        "test_first_completed",
        "test_first_completed_some_already_completed",
        "test_first_exception_some_already_complete",
        "test_first_exception_one_already_failed",
        "test_all_completed",
    ],
}
# Left out: what looks into the pool's processes and its private names, the class of a traceback's cause, warnings about
# unclosed processes, values lost with the chunk of an item that raises (ours gives them), and a test of 30 s.
POOL_TESTS = [
    "test_apply",
    "test_map",
    "test_starmap",
    "test_starmap_async",
    "test_map_async",
    "test_map_async_callbacks",
    "test_map_chunksize",
    "test_map_handle_iterable_exception",
    "test_async",
    "test_imap",
    "test_imap_unordered",
    "test_imap_unordered_handle_iterable_exception",
    "test_terminate",
    "test_empty_iterable",
    "test_context",
    "test_wrapped_exception",
    "test_map_no_failfast",
    "test_release_task_refs",
    "test_enter",
]


def run(mixin: Any, name: str, **attributes: Any) -> None:
    if not hasattr(mixin, name):
        pytest.skip(f"this Python's tests have no {name}")
    bases = (mixin,) if issubclass(mixin, unittest.TestCase) else (mixin, unittest.TestCase)
    result = unittest.TestResult()
    unittest.TestSuite([type(mixin.__name__, bases, attributes)(name)]).run(result)
    for _, reason in result.skipped:
        pytest.skip(reason)
    assert not [text for _, text in result.failures + result.errors]
    assert result.testsRun == 1


@pytest.mark.parametrize(
    ("where", "name"), [(where, name) for where in EXECUTOR_TESTS for name in EXECUTOR_TESTS[where]]
)
def test_executor(where: str, name: str) -> None:
    part, _, mixin = where.partition(":")
    home = pytest.importorskip(FUTURES, reason="this Python comes without its tests")
    if hasattr(home, "__path__"):
        home = importlib.import_module(f"{FUTURES}.{part}")

    def set_up(case: Any) -> None:
        case.executor = CeleryExecutor()

    def tear_down(case: Any) -> None:
        case.executor.shutdown()

    run(getattr(home, mixin), name, setUp=set_up, tearDown=tear_down, executor_type=CeleryExecutor, worker_count=5)


@pytest.mark.parametrize("name", POOL_TESTS)
def test_pool(name: str) -> None:
    home = pytest.importorskip("test._test_multiprocessing", reason="this Python comes without its tests")
    # To that test, running calls of threads cannot be stopped, like ours: they sleep a second there, not 300.
    kind = "threads" if name == "test_terminate" else "processes"
    run(home._TestPool, name, Pool=staticmethod(Pool), TYPE=kind)
