"""CPython's own tests of process pools, as one program: ``suites.py RESULTS METHOD CASE…``

METHOD is a start method, a CASE the beginning of the name of one of its test cases. RESULTS gets what became of each
test: nothing, or why it failed or was skipped.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import subprocess
import sys
import unittest
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

FUTURES = "test.test_concurrent_futures"
numbers = count()
PARTS = ("test_as_completed", "test_deadlock", "test_init", "test_process_pool", "test_shutdown", "test_wait")


def run_moved(*arguments: str, **_: Any) -> tuple[int, bytes, bytes]:
    """``assert_python_ok("-c", source)``, but with ``--pools``: some of the tests are programs of their own."""
    source = Path(f"inner{next(numbers)}.py")
    source.write_text(arguments[-1], encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "graft.compat", "--pools", "--report", f"{source}.txt", str(source)],
        capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def modules() -> Iterator[ModuleType]:
    helper: Any = importlib.import_module("test.support.script_helper")
    helper.assert_python_ok = run_moved
    yield importlib.import_module("pool_tests")
    try:
        futures = importlib.import_module(FUTURES)
    except ModuleNotFoundError:  # The releases of Python differ in what they install.
        return
    if not hasattr(futures, "__path__"):
        yield futures
        return
    for part in PARTS:
        yield importlib.import_module(f"{FUTURES}.{part}")


def tests(begin: tuple[str, ...]) -> unittest.TestSuite:
    suite = unittest.TestSuite()
    for module in modules():
        for name, case in sorted(vars(module).items()):
            if name.startswith(begin) and isinstance(case, type) and issubclass(case, unittest.TestCase):
                suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    return suite


def name_of(test: unittest.TestCase) -> str:
    return ".".join(test.id().split(".")[-2:])


def main(path: str, method: str, begin: list[str]) -> None:
    multiprocessing.set_start_method(method)
    results: dict[str, str] = {}

    class Results(unittest.TestResult):
        def startTest(self, test: unittest.TestCase) -> None:
            super().startTest(test)
            results[name_of(test)] = ""

    found = Results()
    tests(tuple(begin)).run(found)
    skipped = ((test, f"skipped: {why}") for test, why in found.skipped)
    for test, text in (*found.failures, *found.errors, *skipped):
        results[name_of(test)] = text
    Path(path).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
