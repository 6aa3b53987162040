"""The app that the drill's workers and producers load: ours, or Celery as it comes. ``DRILL_STOCK`` decides.

Stock is set as Celery's documentation advises for work that must not be lost (late acknowledgement, requeued when its
process dies, no prefetching), with our visibility timeout and sweep: what differs is the code, not the settings.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, chain, chord

from graft.scripts.drill.ledger import note

TICK = 2.0  # Seconds between two ticks of Beat.
VISIBILITY: float = float(os.environ.get("GRAFT_VISIBILITY_TIMEOUT", "60"))


def _stock() -> Celery:
    made = Celery("drill", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
    master = os.environ.get("GRAFT_SENTINEL_MASTER")
    sentinel = {"master_name": master} if master else {}
    made.conf.update(
        broker_transport_options={
            "visibility_timeout": VISIBILITY,
            "unacked_restore_interval": max(0.5, VISIBILITY / 4),
            "unacked_restore_throttle": 1,
            **sentinel,
        },
        result_backend_transport_options=sentinel,
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_default_queue="default",
    )
    return made


def _ours() -> Celery:
    from graft.celery import app

    return app


IS_STOCK = bool(os.environ.get("DRILL_STOCK"))
IS_IO = os.environ.get("DRILL_LANE") == "io"  # One process, and coroutines in it.
app: Any = _stock() if IS_STOCK else _ours()


def _task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    registered: Callable[[Callable[..., Any]], Any] = app.task(name=name, **options)
    return registered


def _take(label: str, seconds: float = 0.0) -> str:
    """Take *seconds*, and leave a line at either end."""
    note("start", label)
    time.sleep(seconds)
    note("end", label)
    return label


async def _take_async(label: str, seconds: float = 0.0) -> str:
    """The same on the event loop."""
    note("start", label)
    await asyncio.sleep(seconds)
    note("end", label)
    return label


take = _take_async if IS_IO else _take


def take_pooled(task: Any) -> str:
    """The same for a task of a worker pool, whose data are its label and its seconds."""
    return _take(*task.data)


work = _task("drill.work", ignore_result=True)(take)
answer = _task("drill.answer")(take)


@_task("drill.nothing", ignore_result=True)
def nothing(number: int) -> None:
    """Leave nothing behind."""


@_task("drill.kill_process", ignore_result=True)
def kill_process(label: str) -> None:
    """End the pool process that runs this, as a crash in a C extension does."""
    note("start", label)
    os.kill(os.getpid(), signal.SIGKILL)


@_task("drill.kill_worker", ignore_result=True)
def kill_worker(label: str) -> None:
    """End the worker with all its processes, as a machine that runs out of memory does."""
    note("start", label)
    if not IS_IO:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@_task("drill.tick", ignore_result=True)
def tick() -> None:
    """Say that Beat ticks."""
    note("tick", ".tick")


app.conf.beat_schedule = {
    **(app.conf.beat_schedule or {}),
    "drill.tick": {"task": "drill.tick", "schedule": TICK, "options": {"expires": 10.0, "queue": "default"}},
}


@_task("drill.limited", ignore_result=True)
def limited(label: str, seconds: float = 0.1) -> str:
    """Run under a semaphore and a rate limit that all workers share; stock Celery has neither."""
    from graft.scripts.drill import limited as limits

    return limits.run(label, seconds)


@_task("drill.eat_memory", ignore_result=True)
def eat_memory(label: str) -> None:
    """Take memory until there is none, as a task whose input is larger than anybody thought."""
    note("start", label)
    eaten = []
    while True:
        eaten.append(b"x" * (8 << 20))


@_task("drill.part")
def part(label: str) -> int:
    return 1


@_task("drill.body")
def body(values: list[int], label: str) -> int:
    note("start", label)
    note("end", label)
    return sum(values)


def send_chord(label: str, parts: int = 3) -> str:
    """Send one chord whose body leaves the lines; the id of its body."""
    return str(chord([part.s(f"{label}-{number}") for number in range(parts)], body.s(label)).apply_async().id)


@_task("drill.step")
def step(before: int, label: str) -> int:
    note("start", label)
    note("end", label)
    return before + 1


def send_chain(label: str) -> list[str]:
    """Send two steps, a chord and a step behind it; the labels of what leaves lines: all but the parts of the chord."""
    labels = [f"{label}-{name}" for name in ("first", "second", "body", "last")]
    first, second, end, last = labels
    parts = [part.si(f"{label}-part-{number}") for number in range(2)]
    chain(step.s(0, first), step.s(second), chord(parts, body.s(end)), step.s(last)).apply_async()
    return labels


if os.environ.get("DRILL_KEEPS_PROCESSES"):  # What a pool process keeps of what it has run goes with it.
    app.conf.worker_max_tasks_per_child = None

if os.environ.get("DRILL_FAILPOINT"):
    from graft.scripts.drill.failpoints import arm

    arm(os.environ["DRILL_FAILPOINT"])
