from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from graft.config import acl
from tests import roles
from tests.scripts.flower_pages.flower import Flower, another, redis_version, refused, user
from tests.stack import Stack, clean_environ

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="package")
def acting(tmp_path_factory) -> Iterator[Flower]:
    """A stack whose Flower may act, as the Redis user ``operator``, who is refused nothing that the pages do."""
    environ = {**clean_environ(os.environ), "GRAFT_LEAKS_EVERY": "1"}
    with Stack({"cpu": 2}, environ) as stack:
        # An older server cannot tell reading a key from writing it: there `admin` acts.
        may_act = redis_version(stack) >= acl.SEVEN
        role = user(stack, "operator") if may_act else roles.addresses(stack, "admin")
        with another(stack, tmp_path_factory.mktemp("flower"), **role, FLOWER_READ_ONLY="false") as made:
            yield made
        # Without Beat a page looks for itself, and cannot note what later looks compare with.
        assert not [one for one in refused(stack, "operator") if " graft:health:" not in one]


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
