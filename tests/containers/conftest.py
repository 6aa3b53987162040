"""The container lane: only when asked for (pytest -m containers), since it builds an image and takes minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import compose
from tests.containers.compose import Deployment

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lane = [item for item in items if HERE in item.path.parents]
    for item in lane:
        item.add_marker("containers")
        item.add_marker(pytest.mark.timeout(900))
    if lane and "containers" not in (config.getoption("-m") or ""):
        config.hook.pytest_deselected(items=lane)
        items[:] = [item for item in items if item not in lane]


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The stack of docker-compose.yml with a second Beat, up and healthy."""
    if reason := compose.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; .ci/containers installs what is missing")
        pytest.skip(reason)
    made = Deployment(tmp_path_factory.mktemp("compose"))
    try:
        made.bring_up("--profile", "ha")
        yield made
    finally:
        made.remove()
