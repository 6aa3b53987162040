from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scripts.sandbox import Sandbox
from tests.stack import Stack


@pytest.fixture
def sandbox(tmp_path: Path, redis_stack: Stack) -> Iterator[Sandbox]:
    """A place to start stacks in; nothing may survive the test that uses it."""
    made = Sandbox(tmp_path)
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert not left
