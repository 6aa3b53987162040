"""Keeps Celery's result backend and its publishing off the loop: a task that waits for Redis does not delay the others.

Reading and writing a result, which every task does, goes through one pipelined connection (pipelined_redis.py). What is
rare (links, retries, chords, errbacks) runs on a thread, Celery's own code as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from celery import Celery
from celery.backends.redis import RedisBackend

from graft.config import lua
from graft.tasks.delivery import lease
from graft.workers import result_patch
from graft.workers.aio import greenlet_bridge
from graft.workers.aio.loop_thread import LoopThread
from graft.workers.aio.pipelined_redis import PipelinedRedis
from graft.workers.result_patch import arguments

STORE: Final = lua.text(result_patch.__file__, "store_result")


def attach(app: Celery, loop_thread: LoopThread, patience: float) -> None:
    """On the loop's thread: have its backend, and what *app* publishes there, wait without holding the loop up."""
    app.send_task = _off_loop(loop_thread, app.send_task)
    app.amqp._retry_publish = _off_loop(loop_thread, app.amqp._retry_publish)
    backend = app.backend  # Of this thread alone (Celery 5.7, app/base.py).
    if not isinstance(backend, RedisBackend):
        return
    pipelined = PipelinedRedis(patience)
    get, set_ = backend.get, backend._set

    def get_pipelined(key: Any) -> Any:
        if not greenlet_bridge.can_wait():
            return get(key)
        return greenlet_bridge.wait(pipelined.send(("GET", key)))[0]

    def set_pipelined(key: Any, value: Any, expires: Any = None) -> None:
        if not greenlet_bridge.can_wait():
            set_(key, value, expires)
            return
        seconds = backend.expires if expires is None else expires
        stored = ("SETEX", key, seconds, value) if seconds else ("SET", key, value)
        greenlet_bridge.wait(pipelined.send(stored, ("PUBLISH", key, value)))

    store = backend._store_result

    def store_pipelined(
        task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        """One round trip for the two that Celery makes."""
        can_wait = greenlet_bridge.can_wait()
        how = arguments(backend, task_id, result, state, traceback, request) if can_wait else None
        if how is None:
            return store(task_id, result, state, traceback, request, **options)
        reply = greenlet_bridge.wait(pipelined.send(("EVAL", STORE, len(how.keys), *how.keys, *how.values)))[0]
        if int(reply) == -1:
            lease.warn_of_loss(task_id)
        return result

    backend.get = get_pipelined
    backend._set = set_pipelined
    backend._store_result = store_pipelined
    for name in ("on_chord_part_return", "chord_error_from_stack", "_call_task_errbacks"):
        setattr(backend, name, _off_loop(loop_thread, getattr(backend, name)))


def _off_loop(loop_thread: LoopThread, func: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(func)
    def call(*args: Any, **kwargs: Any) -> Any:
        return loop_thread.off_loop(lambda: func(*args, **kwargs))

    return call
