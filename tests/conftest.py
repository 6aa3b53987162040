"""Fixtures. The whole session shares one private Redis; its workers start with the first test that asks for them.

pytest itself is a client process, and settings are read once per process: the environment is set before any test
module is imported.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
import redis as redis_py

from graft.config.deployment import current, existing
from graft.config.queues import Lane
from graft.scripts.stack.redis_server import StackError
from graft.tasks.sending.publisher import Publisher
from tests import roles
from tests.stack import Stack, clean_environ

LANES: dict[Lane, int] = {"cpu": 2, "io": 50}
LONGEST_FIRST = {"docs": 0, "workers": 0, "scripts": 1, "tasks": 2}
MARKERS = {"redis": "redis", "stack": "worker", "fresh_stack": "worker"}
SERVER: pytest.StashKey[Stack | StackError] = pytest.StashKey()

hypothesis.settings.register_profile("graft", deadline=None)  # However long an example takes on a busy machine.
hypothesis.settings.load_profile("graft")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("dist", "no") != "no":
        return  # Tests run in processes of pytest-xdist, each of which comes by here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job; what the tests start and interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    environ = clean_environ(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    if roles.DEFAULT:
        folder = tempfile.TemporaryDirectory(prefix="celery-graft-acl-")
        session.config.add_cleanup(folder.cleanup)
        roles.introduce(Path(folder.name))
    server = Stack({}, environ)
    try:
        server.start()
    except StackError as error:
        session.config.stash[SERVER] = error
        return
    session.config.add_cleanup(server.stop)
    session.config.stash[SERVER] = server
    os.environ.update(server.variables)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The directories with the longest files first: nobody is left alone with one at the end.
    items.sort(key=lambda item: LONGEST_FIRST.get(item.path.parent.name, len(LONGEST_FIRST)))
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before any fixture, since those do their part of a test in the same role.
    marker = item.get_closest_marker("acl_role")
    roles.play(marker.args[0] if marker else roles.DEFAULT)


@pytest.fixture(scope="session")
def redis_stack(pytestconfig: pytest.Config) -> Stack:
    """The session's Redis; without any server to start, skips locally and fails in CI."""
    found = pytestconfig.stash[SERVER]
    if isinstance(found, Stack):
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(str(found))
    pytest.skip(str(found))


@pytest.fixture(name="redis", scope="session")
def redis_client(redis_stack: Stack) -> Iterator[redis_py.Redis]:
    """A client of the session's Redis."""
    with redis_stack.connect() as client:
        yield client


@pytest.fixture(scope="session")
def stack(redis_stack: Stack) -> Stack:
    """The session's Redis and workers: cpu=2, io=50."""
    redis_stack.heal(LANES)
    return redis_stack


@pytest.fixture(autouse=True)
def _own_publisher() -> None:
    """What an earlier test has left with a broker that is gone keeps nobody's messages waiting."""
    found = existing(Publisher)
    if found is not None and found._producer is None:  # It has lost its broker, or has had none yet.
        current.drop(Publisher)


@pytest.fixture(autouse=True)
def _healed(request: pytest.FixtureRequest) -> None:
    """A test that broke the stack does not fail the next one."""
    if "stack" in request.fixturenames:
        request.getfixturevalue("stack").heal(LANES)


@pytest.fixture
def fresh_stack(redis_stack: Stack) -> Iterator[Callable[..., Stack]]:
    """Makes stacks to break: ``fresh_stack(cpu=2, io=0, GRAFT_RUN_LIMIT="1")``; talk to them with ``run_python``."""
    with ExitStack() as stacks:

        def make(cpu: int = 2, io: int = 0, **environ: str) -> Stack:
            numbers: dict[Lane, int] = {"cpu": cpu, "io": io}
            lanes = {lane: number for lane, number in numbers.items() if number}
            return stacks.enter_context(Stack(lanes, {**clean_environ(os.environ), **environ}))

        yield make
