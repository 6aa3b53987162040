"""CPython's own tests of its process pools, on workers; nothing is left out, and what differs is listed.

Some Pythons come without them. ``CPYTHON_SUITES=all`` runs each with every start method, which takes minutes.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "cpython" / "suites.py"
POOL, FUTURES = "test._test_multiprocessing", "test.test_concurrent_futures"
POOLS = ("PoolTest", "PoolWorkerErrors", "PoolWorkerLifetime", "PoolNotLeakOnFailure")
EXECUTORS = (
    "ProcessPoolExecutorTest", "InitializerTest", "FailingInitializerTest", "ProcessPoolShutdownTest",
    "ExecutorDeadlockTest", "AsCompletedTest", "WaitTest",
)  # fmt: skip
# Those that a minute has room for: with fresh processes, and with forks what asks less of this machine.
CHOSEN = [
    ("spawn", ["PoolTest", "PoolWorkerLifetime", "PoolNotLeakOnFailure"]),
    ("fork", ["PoolWorkerErrors", "ProcessPoolForkInitializerTest", "ProcessPoolForkFailingInitializerTest"]),
    ("spawn", [f"ProcessPoolSpawn{case}" for case in (EXECUTORS[0], *EXECUTORS[3:5])]),
]
ALL = [(method, [case]) for method in ("fork", "spawn", "forkserver") for case in POOLS] + [
    (method, [f"ProcessPool{method.capitalize()}{case}"])
    for method in ("fork", "spawn", "forkserver") for case in EXECUTORS
]  # fmt: skip

DIFFERS = {
    "test_pool_worker_lifetime":
        "maxtasksperchild replaces the guests; the processes that Pool._pool lists, with their pids, stay",
    "test_python_finalization_error":
        "it lets this process make one thread and no more; a pool whose processes are elsewhere needs two of its own",
}  # fmt: skip
# Pools of one process move here, as the fixture asks for it: now and then two guests share its calls.
MAY_DIFFER = {"test_max_tasks_per_child"}
AT_HOME = ("PoolNotLeakOnFailure", "FailingInitializerTest")  # All pools of these cases stay there.
HOME = {
    "multiprocessing.Pool": "its context makes processes that are none of multiprocessing's",
    "ProcessPoolExecutor":
        "its initializer or initargs can only be inherited (RuntimeError: Queue objects should only be shared between "
        "processes through inheritance); pass what can be pickled, or a manager's proxy",
}  # fmt: skip


def has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(not has_module(POOL), reason=f"this Python comes without {POOL}")
@pytest.mark.parametrize(("method", "cases"), ALL if os.environ.get("CPYTHON_SUITES") == "all" else CHOSEN)
def test_cpythons_own_suite_passes_on_workers(
    moved: Callable[..., object], tmp_path: Path, method: str, cases: list[str]
) -> None:
    cases = [case for case in cases if has_module(FUTURES if case.startswith("ProcessPool") else POOL)]
    if not cases:
        pytest.skip(f"this Python comes without {FUTURES}")
    ended = moved(str(PROGRAM), str(tmp_path / "results"), method, *cases, timeout=300)
    assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "results").read_text())
    assert {case for case in cases if not any(name.startswith(case) for name in results)} == set()
    failed = {
        name: text for name, text in results.items()
        if text and not text.startswith("skipped") and name.partition(".")[2] not in MAY_DIFFER
    }  # fmt: skip
    assert not [text for name, text in failed.items() if name.partition(".")[2] not in DIFFERS]
    listed = {name for name in results if name.partition(".")[2] in DIFFERS}
    assert listed == failed.keys()  # What passes by now must not be listed.
    assert all(row["reason"] == HOME[row["call"]] for row in ended.calls if row["where"] == "local")
    assert any(row["where"] == "cluster" for row in ended.calls) or all(case.endswith(AT_HOME) for case in cases)
