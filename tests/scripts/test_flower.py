"""``celery -A graft flower`` as it starts by itself: who gets in, what may be done, and what is shown of a batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urlencode

import psutil
import pytest

from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import free_port
from tests.stack import Stack, clean_environ, run_python, wait_until

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def watched() -> Iterator[Stack]:
    """A stack with Flower."""
    with Stack({"cpu": 1}, clean_environ(os.environ), flower=True) as stack:
        yield stack


def ask(stack: LocalStack, path: str, *, login: bool = True, method: str = "GET") -> tuple[int, str]:
    who, _, address = stack.flower_url.removeprefix("http://").rpartition("@")
    request = urllib.request.Request(f"http://{address}{path}", method=method)
    if login:
        request.add_header("Authorization", f"Basic {b64encode(who.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def rows(stack: LocalStack) -> list[dict[str, str]]:
    """The table of tasks, as the page fetches it."""
    query = {
        "draw": 1,
        "start": 0,
        "length": 100,
        "order[0][column]": 0,
        "columns[0][data]": "name",
        "search[value]": "",
    }
    status, text = ask(stack, f"/tasks/datatable?{urlencode(query)}")
    assert status == 200
    found: list[dict[str, str]] = json.loads(text)["data"]
    return found


def test_nothing_is_shown_without_the_password(watched):
    assert ask(watched, "/tasks", login=False)[0] == 401
    assert ask(watched, "/api/tasks", login=False)[0] == 401
    assert ask(watched, "/tasks")[0] == 200


def test_nothing_can_be_changed_even_with_it(watched):
    for path in (
        "/api/task/async-apply/graft.batch",
        "/api/task/revoke/1",
        f"/api/worker/shutdown/{watched.workers[0].name}",
    ):
        assert ask(watched, path, method="POST")[0] in (403, 405), path
    assert watched.workers[0].status is None


def test_it_listens_on_loopback_alone(watched):
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(watched.flower.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_a_batch_is_shown_by_its_callable_and_items(watched):
    code = "import graft; from tests import samples; graft.submit(samples.square, range(30), batch_size=10).collect()"

    def shown() -> dict[str, str] | None:
        # Flower asks workers for events every five seconds: what ran before is not seen.
        done = run_python(watched, code)
        assert done.returncode == 0, done.stderr
        return next((row for row in rows(watched) if row["name"] == "tests.samples:square"), None)

    wait_until(shown, 60, "Flower sees a batch")
    row = shown()
    assert row is not None
    assert re.fullmatch(r"10 items from (0|10|20), batch .{8}….{4}", row["args"])
    wait_until(lambda: any(row["result"] == "10 items" for row in rows(watched)), 30, "a result")
    assert f'href="/graft/call/{row["uuid"]}"' in ask(watched, f"/task/{row['uuid']}")[1]  # From Flower's page to ours.


def test_an_envelope_says_how_many_of_its_items_failed_and_the_first_error(watched):
    code = (
        "import graft; from tests import samples\n"
        "list(graft.submit(samples.raise_value_error_if_odd, range(10), batch_size=10).as_completed())"
    )

    def shown() -> list[str]:
        done = run_python(watched, code)
        assert done.returncode == 0, done.stderr
        return [row["result"] for row in rows(watched) if row["name"] == "tests.samples:raise_value_error_if_odd"]

    wait_until(lambda: any("5 of 10 items failed: ValueError: " in one for one in shown()), 60, "Flower sees a batch")


def test_without_a_password_of_yours_it_makes_one(redis_stack, tmp_path):
    environ = {**redis_stack.env, "XDG_STATE_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "celery", "-A", "graft", "flower", f"--port={free_port()}"]
    process = subprocess.Popen(
        argv, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path
    )
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "FLOWER_BASIC_AUTH" in line)
        assert re.search(r"the login is graft:\S{12,}", said)
        assert (tmp_path / "celery-graft").stat().st_mode & 0o077 == 0
    finally:
        process.kill()
        process.communicate()
