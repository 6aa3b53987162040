"""A FastAPI application with tasks: 202 and an id, then the result by id."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from fastapi import FastAPI

import graft

app = graft.harden(Celery("api", broker=os.environ["SHOP_REDIS"], backend=os.environ["SHOP_REDIS"]))
api = FastAPI()


@app.task
def roast(beans: str) -> str:
    if beans == "stone":
        os._exit(1)
    return f"roasted {beans}"


@api.post("/roasts", status_code=202)
def order(beans: str) -> dict[str, str]:
    return {"id": roast.delay(beans).id}


@api.get("/roasts/{task_id}")
def status(task_id: str) -> dict[str, Any]:
    result = app.AsyncResult(task_id)
    return {"state": result.state, "value": result.result if result.successful() else None}
