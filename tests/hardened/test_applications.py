"""Applications of the kinds that people have, with real workers: Django, FastAPI. A package is tests/projects/shop."""

from __future__ import annotations

import pytest

from tests.hardened.project import Project
from tests.stack import wait_until

WAIT = 60.0
DJANGO = "import tests.projects.bakery, django\ndjango.setup()\nfrom tests.projects.bakery.orders.models import Order\n"
TASKS = "from tests.projects.bakery.orders.tasks import bake, crash\nfrom django.db import transaction\n"
BY_ID = """
import asyncio, json, time
from tests.projects.api import api

async def ask(method, path, query=""):
    sent = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        sent.append(message)
    await api({"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
               "raw_path": path.encode(), "query_string": query.encode(), "headers": [], "scheme": "http",
               "root_path": "", "server": ("test", 80), "client": ("test", 1)}, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))

async def main(beans):
    code, answer = await ask("POST", "/roasts", f"beans={beans}")
    found = {"state": "PENDING"}
    while found["state"] in ("PENDING", "STARTED"):
        await asyncio.sleep(0.1)
        _, found = await ask("GET", f"/roasts/{answer['id']}")
    print(code, found["state"], found["value"])

asyncio.run(main("arabica"))
asyncio.run(main("stone"))
"""


@pytest.fixture
def bakery(server, tmp_path):
    pytest.importorskip("django")
    with server.connect() as client:
        client.flushall()
    database = str(tmp_path / "bakery.sqlite3")
    with Project(server.redis_url, tmp_path, "tests.projects.bakery", BAKERY_DATABASE=database) as project:
        made = "from django.db import connection\nwith connection.schema_editor() as editor: editor.create_model(Order)"
        project.run(DJANGO + made)
        yield project


def test_a_django_project_sends_on_commit_and_loses_nothing_to_a_crash(bakery):
    bakery.worker("-Q", "celery,risky")
    told = bakery.run(
        f"{DJANGO}{TASKS}"
        "with transaction.atomic():\n    order = Order.objects.create(loaves=3)\n    bake.delay_on_commit(order.pk)\n"
        "while not Order.objects.get(pk=order.pk).is_baked: time.sleep(0.05)\n"
        "print(repr(crash.delay(order.pk).get(timeout=60, propagate=False)))"
    )
    assert told == "PoisonedError('tests.projects.bakery.orders.tasks.crash took 3 worker processes with it')"
    assert "crash  poisoned" in bakery.celery("dead-letters", "list")
    assert "risky" in bakery.celery("queue", "list")


def test_a_django_project_is_stock_celery_without_the_line(bakery):
    bakery.worker(stock=True)
    told = bakery.run(
        f"{DJANGO}{TASKS}order = Order.objects.create(loaves=3)\nprint(bake.delay(order.pk).get(timeout=60))",
        stock=True,
    )
    assert told == "3"


def test_a_fastapi_application_answers_with_an_id_and_then_with_the_result(server, tmp_path):
    pytest.importorskip("fastapi")
    with Project(server.redis_url, tmp_path, "tests.projects.api") as project:
        project.worker()
        assert project.run(BY_ID).splitlines() == ["202 SUCCESS roasted arabica", "202 FAILURE None"]
        wait_until(lambda: "api.roast" in project.celery("dead-letters", "list"), WAIT)
