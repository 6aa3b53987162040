"""Tasks of a program's own, most of them ``async def``. The workers of all test stacks import them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
import time
from asyncio import all_tasks as early_all_tasks
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals
from celery.exceptions import Ignore, Reject

from graft.config.celery_app import app
from graft.config.redis_client import shared
from graft.tasks.base import ReliableTask
from graft.tasks.policy import RetryPolicy
from graft.tasks.submit import submit

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="nobody's")


def tell(key: str, text: str) -> None:
    """Leave *text* where the test looks for it."""
    shared().rpush(f"test:{key}", text)


@app.task(name="aio.add")
async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@app.task(name="aio.nothing")
async def nothing(x: int) -> int:
    return x


@app.task(name="aio.total")
async def total(values: list[int]) -> int:
    await asyncio.sleep(0)
    return sum(values)


@app.task(name="aio.pause")
async def pause(value: Any, seconds: float = 1.0) -> Any:
    await asyncio.sleep(seconds)
    return value


@app.task(name="aio.fail")
async def fail(text: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


@app.task(name="aio.request", bind=True)
async def request(self: Any) -> list[list[Any]]:
    """What the task knows of itself: in its body, in an asyncio task of its own, and in a helper thread."""

    def known() -> list[Any]:
        return [self.request.id, self.request.retries, self.request.delivery_info["routing_key"]]

    async def later() -> list[Any]:
        await asyncio.sleep(0.01)
        return known()

    return [known(), *await asyncio.gather(later(), asyncio.to_thread(known))]


@app.task(name="aio.retry", bind=True, max_retries=3)
async def retry(self: Any, enough: int) -> int:
    await asyncio.sleep(0)
    if self.request.retries < enough:
        raise self.retry(countdown=0, exc=ConnectionError(f"run {self.request.retries}"))
    return int(self.request.retries)


@app.task(name="aio.autoretry", bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
async def autoretry(self: Any, enough: int) -> int:
    await asyncio.sleep(0)
    if self.request.retries < enough:
        raise ConnectionError("not yet")
    return int(self.request.retries)


@app.task(name="aio.reliable", base=ReliableTask, bind=True, policy=RetryPolicy(3, 0.01, 0.02))
async def reliable(self: Any, enough: int) -> int:
    await asyncio.sleep(0)
    if self.request.retries < enough:
        raise ConnectionError("not yet")
    return int(self.request.retries)


@app.task(name="aio.replaced", bind=True)
async def replaced(self: Any, a: int, b: int) -> int:
    await asyncio.sleep(0)
    raise self.replace(add.si(a, b).set(queue=self.request.delivery_info["routing_key"]))


@app.task(name="aio.ignore")
async def ignore() -> None:
    raise Ignore


@app.task(name="aio.reject")
async def reject() -> None:
    raise Reject("not for me", requeue=False)


@app.task(name="aio.soft", soft_time_limit=0.3, time_limit=30)
async def soft(answer: str) -> str:
    try:
        await asyncio.sleep(30)
    except SoftTimeLimitExceeded:
        if answer:
            return answer
        raise
    return "not limited"


@app.task(name="aio.hard", soft_time_limit=0.2, time_limit=0.6)
async def hard() -> None:
    try:
        await asyncio.sleep(30)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(30)


@app.task(name="aio.started", track_started=True)
async def started(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.task(name="aio.tell")
async def tell_it(key: str, text: str = "told") -> str:
    await asyncio.to_thread(tell, key, text)
    return text


@app.task(name="aio.errback")
def errback(request: Any, error: Any, traceback: Any) -> None:
    tell(request.id, f"{type(error).__name__}: {error}")


@app.task(name="aio.mark")
async def set_mark(text: str) -> tuple[str, str]:
    before = mark.get()
    mark.set(text)
    await asyncio.sleep(0.05)
    return before, mark.get()


@app.task(name="aio.calls")
async def calls(x: int) -> list[int]:
    """Calls another task as a coroutine, and one in place."""
    return [await add(x, 1), (await asyncio.to_thread(add.apply, (x, 2))).get(disable_sync_subtasks=False)]


@app.task(name="aio.delays")
async def delays(queue: str) -> list[str]:
    return [add.apply_async((1, 2), queue=queue).id for _ in range(3)]


def _wrapped(func: Any) -> Any:
    @functools.wraps(func)
    def call(*args: Any) -> Any:
        return func(*args)

    return call


@app.task(name="aio.decorated")
@_wrapped
async def decorated(x: int) -> int:
    await asyncio.sleep(0)
    return x


class Later:
    """Can be awaited, and is no coroutine."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Any:
        yield from asyncio.sleep(0.01).__await__()
        return self.value


@app.task(name="aio.awaitable")
def awaitable(x: int) -> Any:
    return Later(x)


class Noting(app.Task):  # type: ignore[name-defined,misc]
    """Tells of every call that Celery makes to a task's handlers."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        tell(task_id, "before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        tell(task_id, "on_success")

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell(task_id, "on_failure")

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell(task_id, "on_retry")

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        tell(task_id, f"after_return {status}")


@app.task(name="aio.noted", base=Noting, bind=True)
async def noted(self: Any, end: str) -> str:
    await asyncio.sleep(0)
    if end == "failure":
        raise ValueError(end)
    if end == "retry" and not self.request.retries:
        raise self.retry(countdown=0)
    return end


def _signalled(name: str) -> Any:
    def receive(sender: Any = None, **_: Any) -> None:
        if getattr(sender, "name", "") == "aio.noted":
            tell(sender.request.id, name)

    return receive


RECEIVERS = [_signalled(name) for name in ("prerun", "postrun", "success", "failure", "retry")]
for _name, _receiver in zip(("prerun", "postrun", "success", "failure", "retry"), RECEIVERS, strict=True):
    getattr(signals, f"task_{_name}").connect(_receiver)


# ---- functions for batches -------------------------------------------------------------------------------------------


async def behind_the_gate(item: str) -> str:
    """The item. One that names a gate waits until the gate is open, ``slow`` a moment, and ``fail`` fails."""
    await asyncio.sleep(0.25 if item == "slow" else 0)
    if item == "fail":
        raise ValueError(item)
    if item.startswith("test:gate:"):
        await asyncio.to_thread(shared().incr, f"{item}:reached")
        while not await asyncio.to_thread(shared().exists, item):  # noqa: ASYNC110 - opened by another process.
            await asyncio.sleep(0.05)
    return item


_running: dict[str, int] = {}


async def count_at_once(key: str) -> int:
    """How many calls with *key* run in this process, this one included."""
    _running[key] = now = _running.get(key, 0) + 1
    await asyncio.sleep(0.02)
    _running[key] -= 1
    return now


# ---- what nobody should write ----------------------------------------------------------------------------------------


@app.task(name="aio.bad.stubborn", soft_time_limit=0.2, time_limit=0.4)
async def stubborn() -> None:
    """Swallows every cancellation."""
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            continue


@app.task(name="aio.bad.blocks")
async def blocks(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251
    return "blocked"


@app.task(name="aio.bad.spins", soft_time_limit=0.5, time_limit=1.0)
async def spins() -> None:
    while True:
        pass


@app.task(name="aio.bad.raises")
async def raises(kind: str) -> None:
    await asyncio.sleep(0)
    raise {
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "GeneratorExit": GeneratorExit(),
        "CancelledError": asyncio.CancelledError(),
        "BaseException": BaseException("base"),
    }[kind]


async def _exit() -> None:
    sys.exit(4)


@app.task(name="aio.bad.child_exits")
async def child_exits() -> str:
    child = asyncio.ensure_future(_exit())
    await asyncio.sleep(0.05)
    return type(child.exception()).__name__


@app.task(name="aio.bad.stray")
async def stray() -> str:
    stray.kept = asyncio.ensure_future(asyncio.sleep(300))
    return "left it"


@app.task(name="aio.bad.closes_the_loop")
async def closes_the_loop() -> None:
    asyncio.get_running_loop().close()


@app.task(name="aio.bad.stops_the_loop")
async def stops_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "went on"


@app.task(name="aio.bad.changes_the_policy")
async def changes_the_policy() -> str:
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    await asyncio.sleep(0)
    return "changed"


@app.task(name="aio.bad.runs_a_loop")
async def runs_a_loop() -> None:
    asyncio.run(asyncio.sleep(0))


@app.task(name="aio.bad.generator")
async def generator() -> Any:
    yield 1


@app.task(name="aio.bad.cancels_itself")
async def cancels_itself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)


@app.task(name="aio.bad.awaits_itself")
async def awaits_itself() -> None:
    await asyncio.current_task()


@app.task(name="aio.bad.waits_for_a_result")
async def waits_for_a_result() -> Any:
    return add.apply_async((1, 2), queue="io").get(timeout=5)


@app.task(name="aio.bad.awaits_a_batch")
async def awaits_a_batch() -> Any:
    return await submit(behind_the_gate, ["a"])


@app.task(name="aio.bad.never_ends", soft_time_limit=0.5, time_limit=30)
async def never_ends() -> None:
    await asyncio.get_running_loop().create_future()


async def misbehaves(kind: str) -> str:
    """As an item of a batch."""
    await asyncio.sleep(0.05)
    match kind:
        case "cancels itself":
            await cancels_itself()
        case "stops the loop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.01)
        case "leaves a task":
            stray.kept = asyncio.ensure_future(asyncio.sleep(300))
        case "awaits its batch":
            await submit(behind_the_gate, ["a"])
        case "fine":
            pass
        case _:
            await raises(kind)
    return kind


@app.task(name="aio.where")
async def where() -> list[Any]:
    return [os.getpid(), threading.current_thread().name]


@app.task(name="aio.plain")
def plain(seconds: float) -> list[Any]:
    time.sleep(seconds)
    return [os.getpid(), threading.current_thread().name]


@app.task(name="aio.plain_over_its_limit", soft_time_limit=0.3, time_limit=0.3)
def plain_over_its_limit(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="aio.cancels_the_others")
async def cancels_the_others(number: int, all_tasks: str = "now") -> int:
    """As a home-made pool ends: "every task but me". How many of its own were cancelled; others may have left some."""
    mine = asyncio.create_task(asyncio.sleep(300))
    await asyncio.sleep(0.3)  # For the others to begin.
    known = asyncio.all_tasks() if all_tasks == "now" else early_all_tasks()
    cancelled = [task for task in known if task is not asyncio.current_task() and task.cancel()]
    await asyncio.gather(*cancelled, return_exceptions=True)
    return int(mine in cancelled and mine.cancelled())


async def cancel_the_others_if_first(number: int) -> int:
    """The same, for an item among others."""
    if number == 0:
        return int(await cancels_the_others.run(0))
    await asyncio.sleep(1.0)
    return number
