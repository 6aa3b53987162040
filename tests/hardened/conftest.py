"""A Redis of its own for each module, and the shop's processes on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hardened.project import Project
from tests.stack import Stack, clean_environ


@pytest.fixture(scope="module")
def server() -> Iterator[Stack]:
    with Stack({}, clean_environ(os.environ)) as stack:
        yield stack


@pytest.fixture
def shop(server: Stack, tmp_path: Path) -> Iterator[Project]:
    """The project, with nothing in Redis."""
    with server.connect() as client:
        client.flushall()
    with Project(server.redis_url, tmp_path) as project:
        yield project
