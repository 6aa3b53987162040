"""Makes a task's process die at a chosen moment of its end, once for each task: those whose argument ``dies`` says so.

``before_store``: what follows is sent as far as Celery knows, the result is not stored. ``after_store``: it is, and the
message is not acknowledged by the worker. ``after_errbacks``, ``after_retry``, ``after_replace``: those were sent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Task
from celery.backends.base import Backend


def die_once(request: Any, point: str) -> None:
    """End this process without any clean-up, where the task of *request* is to die at *point* and has not yet."""
    if request is None or (request.kwargs or {}).get("dies") != point:
        return
    try:
        Path(f"{os.environ['SHOP_LEDGER']}.{request.id}.{request.retries}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def after(func: Callable[..., Any], point: str, request_of: Callable[..., Any]) -> Callable[..., Any]:
    """*func*, after which a process dies, however it ends."""

    def dying(*args: Any, **options: Any) -> Any:
        try:
            return func(*args, **options)
        finally:
            die_once(request_of(*args), point)

    return dying


def arm() -> None:
    """For every task from now on."""
    store: Any = Backend.store_result

    def store_result(self: Any, task_id: str, *args: Any, request: Any = None, **options: Any) -> Any:
        die_once(request, "before_store")
        stored = store(self, task_id, *args, request=request, **options)
        die_once(request, "after_store")
        return stored

    patched: Any = Backend
    patched.store_result = store_result
    patched._call_task_errbacks = after(
        patched._call_task_errbacks, "after_errbacks", lambda self, request, *_: request
    )
    task: Any = Task
    task.retry = after(task.retry, "after_retry", lambda self, *_: self.request)
    task.on_replace = after(task.on_replace, "after_replace", lambda self, *_: self.request)
