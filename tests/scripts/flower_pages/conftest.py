from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.scripts.flower_pages.flower import Flower
from tests.stack import Stack, clean_environ

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="package")
def acting() -> Iterator[Flower]:
    """A stack whose Flower may act; its user is whoever may do everything."""
    environ = {**clean_environ(os.environ), "FLOWER_READ_ONLY": "false", "GRAFT_LEAKS_EVERY": "1"}
    with Stack({"cpu": 2}, environ, flower=True) as stack:
        yield Flower.of(stack)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """A real Chromium without a screen."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on PATH; on Debian: apt install chromium")
    with playwright.sync_playwright() as started:
        # Without a sandbox of its own: tests run as root in containers, and it opens nothing but our pages.
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(acting: Flower, browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a new window, logged in; what its console complains of fails the test."""
    complaints: list[str] = []
    windows: list[Any] = []

    def open_page(path: str) -> Any:
        name, _, password = acting.login.partition(":")
        credentials = {"username": name, "password": password}
        window = browser.new_context(viewport={"width": 1400, "height": 900}, http_credentials=credentials)
        windows.append(window)
        page = window.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda sent: complaints.append(sent.url) if not sent.url.startswith(acting.address) else None
        )
        page.goto(acting.address + path)
        return page

    yield open_page
    for window in windows:
        window.close()
    assert not complaints
