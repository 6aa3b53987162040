"""``celery -A graft html-report``: one page that holds everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.stack import Stack, clean_environ, run_python, wait_until

REPORT = [sys.executable, "-m", "celery", "-A", "graft", "html-report"]
LOAD = """
import graft
from tests import samples
graft.submit(samples.square, range(50)).collect()
try:
    graft.submit(samples.square, ["<script>alert(1)</script>"], retry=1).collect()
except TypeError:
    pass
"""


class Page(HTMLParser):
    """The addresses that a browser would fetch, and the text that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.foreign += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def report(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPORT, *arguments], env=stack.env_of("viewer"), capture_output=True, text=True, timeout=90, check=False
    )


@pytest.fixture
def watched(redis_stack) -> Stack:
    """A stack that Beat looks at every second."""
    quick = {"GRAFT_HEALTH_EVERY": "1", "GRAFT_LEAKS_EVERY": "1"}
    with Stack({"cpu": 1}, {**clean_environ(os.environ), **quick}, beat=True) as stack:
        yield stack


def test_the_page_shows_what_happened_and_needs_nothing_else(watched, tmp_path):
    assert run_python(watched, LOAD).returncode == 0
    with watched.connect() as client:
        wait_until(lambda: client.llen("graft:history") >= 4, 60, "four looks")
        wait_until(lambda: client.exists("graft:health"), 30, "a health check")
    bench = tmp_path / "bench.json"
    run = {
        "targets": [
            {"promise": "quick", "sense": "at least", "limit": 2, "unit": "x", "measured": 3.5, "verdict": "reached"}
        ],
        "results": [
            {
                "workload": "noop",
                "title": "no-ops",
                "contender_title": "ours",
                "seconds": [0.1, 0.2, 0.3],
                "scaled_seconds": {"least": 0.1, "median": 0.2, "p90": 0.3},
            }
        ],
    }
    bench.write_text(json.dumps(run))
    out = tmp_path / "report.html"

    done = report(watched, "--out", str(out), "--bench", str(bench))
    assert done.returncode == 0, done.stderr
    page = Page()
    source = out.read_text()
    page.feed(source)
    assert page.foreign == []
    assert "script" not in page.tags
    assert "url(" not in source
    assert page.tags.count("polyline") >= 6
    for shown in ("tests.samples:square", "items per second", "messages per slot", "MiB per hour", "retries_exhausted",
                  "quick", "no-ops", "time, UTC", "prefers-color-scheme"):  # fmt: skip
        assert shown in page.text, shown
    assert re.search(r"celery-graft: (ok|degraded|failing)", page.text)
    assert "**@" not in page.text or watched.redis_url not in page.text


def test_a_deployment_without_history_gets_a_page_too(fresh_stack, tmp_path):
    out = tmp_path / "report.html"
    done = report(fresh_stack(cpu=0), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Beat has recorded no history yet" in out.read_text()


def test_a_redis_that_is_down_is_an_exit_code(stack, tmp_path):
    env = {**stack.env, "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [*REPORT, "--out", str(tmp_path / "page")], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "does not answer" in done.stderr
