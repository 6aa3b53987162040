"""The implementations: those of the standard library are the reference, ours runs on the session's workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from graft.compat.executor import CeleryExecutor
from graft.compat.pool import Pool
from tests.conftest import LANES
from tests.contract import functions
from tests.stack import wait_until

CONTEXT = multiprocessing.get_context("forkserver")  # pytest has threads, and forking them is deprecated.
CELERY = pytest.param("celery", marks=pytest.mark.worker)

Make = Callable[..., Any]


def process_executor(max_workers: int = 2) -> Executor:
    return ProcessPoolExecutor(max_workers, mp_context=CONTEXT)


def thread_executor(max_workers: int = 2) -> Executor:
    return ThreadPoolExecutor(max_workers)


EXECUTORS: dict[str, Make] = {"threads": thread_executor, "processes": process_executor, "celery": CeleryExecutor}
POOLS: dict[str, Make] = {"multiprocessing": CONTEXT.Pool, "celery": Pool}


def implementation(request: pytest.FixtureRequest, makes: dict[str, Make]) -> Make:
    if request.param == "celery":
        request.getfixturevalue("stack").heal(LANES)
    return makes[request.param]


@pytest.fixture(params=["threads", "processes", CELERY])
def new_executor(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes executors that a test may shut down; ``new_executor(1)`` has one worker."""
    make = implementation(request, EXECUTORS)
    with ExitStack() as executors:
        yield lambda *args, **kwargs: executors.enter_context(make(*args, **kwargs))


@pytest.fixture(scope="module", params=["threads", "processes", CELERY])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """One executor for all tests that leave it as it is."""
    with implementation(request, EXECUTORS)() as made:
        yield made


@pytest.fixture(params=["multiprocessing", CELERY])
def new_pool(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes pools that a test may close."""
    make = implementation(request, POOLS)
    with ExitStack() as pools:

        def new(*args: Any, **kwargs: Any) -> Any:
            pool = make(*args, **kwargs)
            pools.callback(pool.join)
            pools.callback(pool.terminate)
            return pool

        yield new


@pytest.fixture(scope="module", params=["multiprocessing", CELERY])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One pool for all tests that leave it as it is."""
    make = implementation(request, POOLS)
    with make(2) if make is not Pool else make() as made:
        yield made


class Gate:
    """A call that has begun and goes on when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def wait_begun(self) -> None:
        wait_until(Path(self.path).exists, what="the held call has begun")

    def open(self) -> None:
        functions.touch(f"{self.path}.go")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()
