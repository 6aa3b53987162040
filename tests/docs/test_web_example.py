"""The web application in ``docs/examples`` does what its text says. Spoken to in ASGI, as a server does."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from graft.tasks.errors import CancelledBatchError
from tests.stack import EXAMPLES, wait_until

pytest.importorskip("starlette")


@pytest.fixture
def web_app(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("web_app")
    for name in ("web_app", "web_work"):
        sys.modules.pop(name, None)


class Exchange:
    """One request to an ASGI application; the client can leave in the middle."""

    def __init__(self, path: str, query: str) -> None:
        self.scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": [], "scheme": "http",
            "root_path": "", "server": ("test", 80), "client": ("test", 1),
        }  # fmt: skip
        self.body = b""
        self.left = asyncio.Event()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.body += message.get("body", b"")


class Conversation:
    """A client's side of one WebSocket to an ASGI application."""

    def __init__(self, app: Any, path: str) -> None:
        scope = {
            "type": "websocket", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "ws",
            "root_path": "", "server": ("test", 80), "client": ("test", 1), "subprotocols": [],
        }  # fmt: skip
        self.to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.to_app.put_nowait({"type": "websocket.connect"})
        self.handler = asyncio.ensure_future(app(scope, self.to_app.get, self.from_app.put))

    def ask(self, text: str) -> None:
        self.to_app.put_nowait({"type": "websocket.receive", "text": text})

    async def heard(self) -> Any:
        message = await asyncio.wait_for(self.from_app.get(), 60)
        return json.loads(message["text"]) if message["type"] == "websocket.send" else message["type"]

    async def leave(self) -> None:
        self.to_app.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait_for(self.handler, 30)


@pytest.fixture
def batches(web_app: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that the application makes."""
    made: list[Any] = []
    submit = web_app.graft.submit

    def submitted(*args: Any, **kwargs: Any) -> Any:
        # Little at once, so that most of it has not begun when the client leaves.
        made.append(submit(*args, in_flight=1, batch_size=10, concurrency=5, **kwargs))
        return made[-1]

    monkeypatch.setattr(web_app.graft, "submit", submitted)
    return made


def test_prices_come_when_all_are_there(web_app, batches):
    exchange = Exchange("/prices", "articles=3")
    asyncio.run(web_app.app(exchange.scope, exchange.receive, exchange.send))
    assert json.loads(exchange.body) == [{"article": number, "cents": 100 + 7 * number} for number in range(3)]


def test_prices_stream_as_they_come(web_app, batches):
    exchange = Exchange("/prices.ndjson", "articles=5")
    asyncio.run(web_app.app(exchange.scope, exchange.receive, exchange.send))
    lines = [json.loads(line) for line in exchange.body.splitlines()]
    assert sorted(line["article"] for line in lines) == list(range(5))


@pytest.mark.parametrize("path", ["/prices", "/prices.ndjson"])
def test_a_client_that_leaves_takes_its_batch_with_it(web_app, batches, path):
    async def leave() -> None:
        exchange = Exchange(path, "articles=200")
        answering = asyncio.ensure_future(web_app.app(exchange.scope, exchange.receive, exchange.send))
        await asyncio.to_thread(wait_until, lambda: batches and batches[0].progress().sent, 30, "the batch to begin")
        exchange.left.set()
        await asyncio.wait([answering], timeout=30)
        assert answering.done()

    asyncio.run(leave())
    outcomes = list(batches[0].as_completed(timeout=60))
    cancelled = [outcome for outcome in outcomes if isinstance(outcome.error, CancelledBatchError)]
    assert len(outcomes) == 200
    assert len(cancelled) > 100


def test_a_socket_answers_several_requests_and_survives_bad_ones(web_app, batches):
    async def talk() -> None:
        client = Conversation(web_app.app, "/prices.ws")
        assert await client.heard() == "websocket.accept"
        for bad in ("no json", "[]", '{"articles": "many"}', "{}"):
            client.ask(bad)
            assert await client.heard() == {"error": 'send {"articles": NUMBER}'}
        client.ask('{"articles": 3}')
        client.ask('{"articles": 2}')
        heard = [await client.heard() for _ in range(7)]
        assert sorted(line["article"] for line in heard if "article" in line) == [0, 0, 1, 1, 2]
        assert sorted(line["done"] for line in heard if "done" in line) == [2, 3]
        await client.leave()

    asyncio.run(talk())
    assert len(batches) == 2


def test_a_socket_that_closes_takes_its_batches_with_it(web_app, batches):
    async def talk() -> None:
        client = Conversation(web_app.app, "/prices.ws")
        assert await client.heard() == "websocket.accept"
        client.ask('{"articles": 200}')
        assert "article" in await client.heard()
        await client.leave()

    asyncio.run(talk())
    outcomes = list(batches[0].as_completed(timeout=60))
    cancelled = [outcome for outcome in outcomes if isinstance(outcome.error, CancelledBatchError)]
    assert len(cancelled) > 100


def test_the_example_imports_nothing_of_the_web_on_workers():
    text = (EXAMPLES / "web_work.py").read_text()
    assert "starlette" not in text
