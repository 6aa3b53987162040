from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.sandbox import Sandbox
from tests.stack import Stack


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lane = [item for item in items if item.get_closest_marker("wheel")]
    if lane and "wheel" not in (config.getoption("-m") or ""):
        config.hook.pytest_deselected(items=lane)
        items[:] = [item for item in items if item not in lane]


@pytest.fixture
def sandbox(tmp_path: Path, redis_stack: Stack) -> Iterator[Sandbox]:
    """A place to start stacks in; nothing may survive the test that uses it."""
    made = Sandbox(tmp_path)
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert not left
