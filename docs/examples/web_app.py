"""A web application whose handlers have their work done by the io lane, and drop it when nobody waits any more.

    pip install starlette uvicorn websockets
    python -m graft.scripts.dev run --lane io=1000 --pythonpath docs/examples -- \
        env PYTHONPATH=docs/examples uvicorn web_app:app

``GET /prices?articles=30`` answers when all prices are known; ``GET /prices.ndjson?articles=30`` sends each line as
soon as there is one. A WebSocket at ``/prices.ws`` takes requests such as ``{"articles": 30}``, several at once, and
sends each price when it is known. All batches of the process share one connection that hears results: a handler that
waits costs a future.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from web_work import price

import graft


async def prices(request: Request) -> Response:
    batch = graft.submit(price, range(articles_in(request)))
    try:
        return JSONResponse(await unless_gone(request, batch))
    finally:
        if not batch.done():  # The client has gone, or a price could not be had: nobody needs the others.
            batch.cancel()


async def unless_gone(request: Request, batch: graft.Batch) -> Any:
    """The batch's values; raises CancelledError when the client closes its connection before they are there."""
    values = asyncio.ensure_future(_values(batch))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({values, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not values.done():
            raise asyncio.CancelledError("the client has gone")
        return values.result()
    finally:
        values.cancel()
        gone.cancel()


async def _values(batch: graft.Batch) -> Any:
    return await batch


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stream(request: Request) -> Response:
    return StreamingResponse(lines(articles_in(request)), media_type="application/x-ndjson")


async def lines(articles: int) -> AsyncIterator[str]:
    """Prices as they come in. Starlette closes this when the client has gone."""
    batch = graft.submit(price, range(articles))
    try:
        async for outcome in batch.as_completed_async():
            yield json.dumps(outcome.unwrap()) + "\n"
    finally:
        batch.cancel()


async def talk(socket: WebSocket) -> None:
    """Answer every request of one client: its prices as they come, then ``{"done": articles}``."""
    await socket.accept()
    answering: set[asyncio.Task[None]] = set()
    try:
        while True:
            try:
                articles = bounded(int((await socket.receive_json())["articles"]))
            except (ValueError, KeyError, TypeError):  # One bad request costs neither the connection nor the others.
                await socket.send_json({"error": 'send {"articles": NUMBER}'})
                continue
            answer = asyncio.create_task(send_prices(socket, articles))
            answering.add(answer)
            answer.add_done_callback(answering.discard)
    except WebSocketDisconnect:
        pass
    finally:
        for answer in [*answering]:  # The client has gone: the prices that nobody has begun are dropped.
            answer.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


async def send_prices(socket: WebSocket, articles: int) -> None:
    batch = graft.submit(price, range(articles))
    try:
        async for outcome in batch.as_completed_async():
            await socket.send_json(outcome.unwrap())
        await socket.send_json({"done": articles})
    finally:
        batch.cancel()


def articles_in(request: Request) -> int:
    return bounded(int(request.query_params.get("articles", "10")))


def bounded(articles: int) -> int:
    return max(0, min(articles, 10_000))


app = Starlette(routes=[Route("/prices", prices), Route("/prices.ndjson", stream), WebSocketRoute("/prices.ws", talk)])
