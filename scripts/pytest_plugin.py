"""Fixtures for the test suites of those who use celery-graft: a private Redis and real workers, or no worker at all.

    [tool.pytest.ini_options]
    graft_app = "shop.celery"            # what follows `celery -A`; "graft" for graft.submit alone
    graft_env = ["SHOP_REDIS"]           # further variables that the app reads the address of Redis from

    def test_an_order_is_mailed(graft_worker, graft_run_waiting):
        place_order.delay(17)
        assert graft_run_waiting() == []      # What failed meanwhile, as dead letters.

pytest finds this by itself. Without ``graft_app`` nothing happens: no process, no variable, no import of Celery. The
names of all fixtures begin with ``graft_``, beside those of pytest-celery and celery.contrib.pytest.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from graft.scripts.stack.local_stack import LocalStack
    from graft.scripts.stack.services import Worker
    from graft.tasks.dead_letters.store import DeadLetter

STACK: pytest.StashKey[LocalStack] = pytest.StashKey()
ERROR: pytest.StashKey[Exception] = pytest.StashKey()
PROCESSES: Final = 2
QUIET: Final = 0.3  # Seconds for which nothing must wait or run: a message may be between two places.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings."""
    parser.addini(
        "graft_app", "The app whose workers the fixtures start, as after celery -A; empty for none.", default=""
    )
    parser.addini("graft_env", "Further environment variables that get the address of Redis.", type="args", default=[])


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start Redis before any module is imported: the app may read its address then."""
    if not early_config.getini("graft_app") or getattr(early_config.known_args_namespace, "numprocesses", None):
        return  # With pytest-xdist each of its processes comes by here.
    from graft.scripts.stack.local_stack import LocalStack, own_environ
    from graft.scripts.stack.redis_server import StackError

    stack = LocalStack({}, environ=own_environ(), app=early_config.getini("graft_app"))
    try:
        stack.start()
    except StackError as error:
        early_config.stash[ERROR] = error
        return
    early_config.stash[STACK] = stack
    early_config.add_cleanup(stack.stop)
    variables = stack.variables | dict.fromkeys(early_config.getini("graft_env"), stack.redis_url)
    os.environ.update(variables)
    stack.env.update(variables)


@pytest.fixture(scope="session")
def graft_stack(pytestconfig: pytest.Config) -> LocalStack:
    """The session's private Redis. Its ``redis_url`` is in the environment; ``add_worker`` starts further workers."""
    if not pytestconfig.getini("graft_app"):
        pytest.fail('set graft_app = "MODULE" in the pytest section of pyproject.toml; "graft" is our own app')
    if (error := pytestconfig.stash.get(ERROR, None)) is not None:
        pytest.fail(str(error))
    return pytestconfig.stash[STACK]


@pytest.fixture(scope="session")
def _graft_worker(graft_stack: LocalStack, pytestconfig: pytest.Config) -> Worker:
    root = str(pytestconfig.rootpath)
    # The workers import the tests' own functions from where pytest has.
    own = [root, *(path for path in sys.path if path.startswith(root) and "site-packages" not in path)]
    path = os.pathsep.join(dict.fromkeys([*own, *filter(None, [os.environ.get("PYTHONPATH")])]))
    worker = graft_stack.add_worker("cpu", PROCESSES, env={"PYTHONPATH": path})
    graft_stack.wait_ready()
    return worker


@pytest.fixture
def graft_worker(_graft_worker: Worker) -> Worker:
    """A real worker of the app, the same for all tests. Each test begins with empty queues and no dead letters."""
    from graft.config.redis_client import broker, shared
    from graft.config.transport import due
    from graft.tasks.dead_letters import store
    from graft.tasks.messages.message_format import lists
    from graft.tasks.queues import existing

    _graft_worker.check()
    with broker() as client:
        client.delete(*due.KEPT, *(key for queue in existing.names(client) for key in lists(queue)))
    shared().delete(store.LETTERS, store.INDEX, store.FAILED, store.FAILED_SIZE)
    return _graft_worker


@pytest.fixture
def graft_run_waiting(graft_worker: Worker) -> Callable[..., list[DeadLetter]]:
    """Call it to have all that waits run, also what that sends; it returns the dead letters of this test.

    ``graft_run_waiting(timeout=30)`` fails when something still waits or runs after so many seconds. A task whose time
    (``eta``, ``countdown``) has not come counts as waiting.
    """

    def run_waiting(timeout: float = 30.0) -> list[DeadLetter]:
        from graft.tasks.dead_letters import store
        from graft.tasks.queues import depth

        deadline, quiet_since = time.monotonic() + timeout, None
        while True:
            graft_worker.check()
            waiting, held = {queue: count for queue, count in depth.waiting().items() if count}, depth.unacked()
            if later := sum(depth.later().values()):
                waiting["for their time"] = later
            now = time.monotonic()
            quiet_since = None if waiting or held else quiet_since or now
            if quiet_since is not None and now - quiet_since >= QUIET:
                return list(store.read(store.ids(failed=True)))
            if now > deadline:
                pytest.fail(f"after {timeout:g} s {held} messages still run, and there wait {waiting or 'none'}")
            time.sleep(0.02)

    return run_waiting


@pytest.fixture
def graft_local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the facades run everything in this process (``GRAFT_MODE=local``): no Redis, no worker, no signing key."""
    from graft.config.deployment import current

    monkeypatch.setenv("GRAFT_MODE", "local")
    current.reread_settings()
    yield
    monkeypatch.undo()
    current.reread_settings()


def pytest_report_header(config: pytest.Config) -> Any:
    """Say which Redis the tests use, without its password."""
    if (stack := config.stash.get(STACK, None)) is None:
        return None
    from graft.config.settings import without_password

    return f"celery-graft: {config.getini('graft_app')} on a private Redis, {without_password(stack.redis_url)}"
