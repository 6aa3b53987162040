"""Keeps Celery's result backend and its publishing off the loop: a task that waits for Redis keeps nobody waiting.

Reading and writing a result, which every task does, goes through one pipelined connection (line.py). What is rare
(links, retries, chords, errbacks) runs on a thread, Celery's own code as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend

from graft.config.transport import require
from graft.workers.aio import driver
from graft.workers.aio.floor import Floor
from graft.workers.aio.line import Line

require(RedisBackend, "get", "_set", "on_chord_part_return", "chord_error_from_stack", "_call_task_errbacks")


def attach(app: Celery, floor: Floor, patience: float) -> None:
    """On the loop's thread: have its backend, and what *app* publishes there, wait without holding the loop up."""
    app.send_task = _aside(floor, app.send_task)
    app.amqp._retry_publish = _aside(floor, app.amqp._retry_publish)
    backend = app.backend  # Of this thread alone (Celery 5.7, app/base.py).
    if not isinstance(backend, RedisBackend):
        return
    line = Line(patience)
    get, set_ = backend.get, backend._set

    def get_on_line(key: Any) -> Any:
        if not driver.can_wait():
            return get(key)
        return driver.wait(line.send(("GET", key)))[0]

    def set_on_line(key: Any, value: Any, expires: Any = None) -> None:
        if not driver.can_wait():
            set_(key, value, expires)
            return
        seconds = backend.expires if expires is None else expires
        stored = ("SETEX", key, seconds, value) if seconds else ("SET", key, value)
        driver.wait(line.send(stored, ("PUBLISH", key, value)))

    backend.get = get_on_line
    backend._set = set_on_line
    for name in ("on_chord_part_return", "chord_error_from_stack", "_call_task_errbacks"):
        setattr(backend, name, _aside(floor, getattr(backend, name)))


def _aside(floor: Floor, func: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return floor.aside(lambda: func(*args, **kwargs))

    return call
