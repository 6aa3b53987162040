"""The test cases of multiprocessing's process pools, as CPython's test_multiprocessing_fork makes them."""

from __future__ import annotations

import unittest
from typing import Any

from test import _test_multiprocessing as suite


class Processes(suite.ProcessesMixin):
    """Without the pools and threads that a case notes: no guest could be sent those, and its pools would stay home."""

    @classmethod
    def setUpClass(cls) -> None:
        if issubclass(cls, suite._TestPool):
            holder: Any = unittest.TestCase  # Of the standard library, where nobody looks for what was set.
            holder.pool = cls.Pool(4)

    @classmethod
    def tearDownClass(cls) -> None:
        if issubclass(cls, suite._TestPool):
            cls.pool.terminate()
            cls.pool.join()


class PoolTest(Processes, suite._TestPool, unittest.TestCase):
    pass


class PoolWorkerErrorsTest(Processes, suite._TestPoolWorkerErrors, unittest.TestCase):
    pass


class PoolWorkerLifetimeTest(Processes, suite._TestPoolWorkerLifetime, unittest.TestCase):
    pass


class PoolNotLeakOnFailureTest(suite.TestPoolNotLeakOnFailure):
    pass
