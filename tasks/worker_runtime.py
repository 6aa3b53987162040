"""How this process runs coroutines and blocking calls, if it is a worker: the worker says so at boot.

The event loop belongs to the worker, which supplies "something that runs a coroutine" (:func:`use_runner`).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Protocol

from billiard.common import terminate_handler_fired

from graft.config.deployment import part
from graft.tasks.errors import EnvelopeError


class Runner(Protocol):
    """Something that runs a coroutine to its end while the calling thread waits."""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any: ...


class Item:
    """Marks the context of one item that runs beside others on an event loop."""

    is_over = False


current_item: ContextVar[Item | None] = ContextVar("graft_item", default=None)


class Ended(BaseException):
    """Unwinds a run whose result no longer counts: terminated, timed out, or given back."""


class WorkerEndsError(Exception):
    """This worker ends, or stops before a run has begun: the message goes back."""


class WorkerRuntime:
    """What a worker has told this process about itself."""

    def __init__(self) -> None:
        self.is_worker = False
        self.is_over = False  # What still runs is given up: its messages go back.
        self.make_runner: Callable[[], Runner] | None = None
        self.off_loop: Callable[..., Any] | None = None

    def after_fork(self) -> None:
        """A pool process is a worker as its parent is."""


def enter_worker() -> None:
    """This process runs tasks from now on."""
    part(WorkerRuntime).is_worker = True


def ends_process(error: BaseException) -> bool:
    """Whether *error*, raised while a value was pickled or opened, is meant for this process and not for the value.

    What a value itself raises, a SystemExit too, is the error of its call: a thread that serves many calls lives on.
    """
    if isinstance(error, Exception):
        return False
    if isinstance(error, Ended) or terminate_handler_fired():
        return True
    is_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and is_main and not in_worker()


def end() -> None:
    """What runs here is given up: no further item begins."""
    part(WorkerRuntime).is_over = True


def in_worker() -> bool:
    """Whether this process runs tasks: waiting here for other tasks could leave no worker to run them."""
    return part(WorkerRuntime).is_worker


def use_runner(make: Callable[[], Runner], off_loop: Callable[..., Any] | None = None) -> None:
    """Supply the event loop of this process; *make* is called when the first coroutine arrives.

    *off_loop* is what :func:`off_loop` does here, where tasks themselves run on that loop.
    """
    runtime = part(WorkerRuntime)
    runtime.make_runner, runtime.off_loop = make, off_loop


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The value or error of *coroutine*, in the way in which this process runs coroutines."""
    make = part(WorkerRuntime).make_runner
    if make is None:
        raise EnvelopeError("this process runs no coroutines: it was not started as a worker (graft.workers.app)")
    return make().run(coroutine)


async def resolved(value: Any) -> Any:
    """*value*, or what it comes to where it is awaitable."""
    return await value if inspect.isawaitable(value) else value


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """The value or error of *awaitable*."""
    return run_coroutine(resolved(awaitable))


def off_loop(func: Callable[..., Any], *args: Any, computes: bool = False) -> Any:
    """``func(*args)``, which waits for the network, without holding up an event loop that this may be running on.

    *computes*: it is somebody's plain function and may take as long as it likes.
    """
    elsewhere = part(WorkerRuntime).off_loop
    return func(*args) if elsewhere is None else elsewhere(func, *args, computes=computes)


def pause(seconds: float) -> None:
    """Wait, without holding up an event loop that this may be running on."""
    if part(WorkerRuntime).off_loop is None:
        time.sleep(seconds)
    else:
        wait_for(asyncio.sleep(seconds))
