"""The caller in the drill: sends tasks at a steady rate and writes down which of them the broker took.

``python -m graft.scripts.drill.produce '{"count": 500, "rate": 100}'``, with the stage's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import redis
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

import graft
from graft.scripts.drill import app as drill
from graft.scripts.drill.ledger import note
from graft.tasks.durable_batch import DurableBatch

SLOW = 1.0  # Seconds after which a send that succeeds is written down as one that kept its caller waiting.


def produce(
    count: int, rate: float = 100.0, seconds: float = 0.02, long_share: float = 0.1, long: float = 1.0,
    task: str = "work", prefix: str = "t", ids: bool = False, patience: float = 120.0, **options: Any,
) -> None:  # fmt: skip
    """Send *count* tasks, *rate* a second, each of *seconds* and every tenth of *long* seconds."""
    every = round(1 / long_share) if long_share else 0
    began = time.monotonic()
    for number in range(count):
        label = f"{prefix}{number}"
        lasts = long if every and number % every == 0 else seconds
        arguments = (label,) if task in ("kill_process", "kill_worker", "eat_memory") else (label, lasts)
        if ids:
            options["task_id"] = f"drill-{label}"
        _send(getattr(drill, task), label, arguments, options, began + patience)
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))


def ping_all(workers: int, patience: float = 120.0) -> None:
    """Ping until as many *workers* answer; one that is just connecting again does not hear a broadcast."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        if len(drill.app.control.ping(timeout=10, limit=workers)) == workers:
            note("pinged", f"{workers}:{time.monotonic() - began:.3f}")
            return


def wait_for_answers(count: int, seconds: float = 0.2, prefix: str = "a", patience: float = 90.0) -> None:
    """Send *count* items and wait for what becomes of each: ``answered``, or ``told`` that it failed or is lost."""
    labels = [f"{prefix}{number}" for number in range(count)]
    for label in labels:
        note("asked", label)
    ends = _ends_of_stock if drill.IS_STOCK else _ends_of_ours
    try:
        for label, error in ends(labels, seconds, patience):
            note("told" if error else "answered", label)
            if error:
                note("error", f"{label}:{type(error).__name__}")
    except Exception as error:  # Whoever has heard nothing until then waits in vain.
        note("error", f"{type(error).__name__}")


def send_a_batch(count: int, size: int, seconds: float = 0.02, prefix: str = "b") -> None:
    """Hand *count* items to the deployment and wait for them; all are to run, whatever becomes of this process."""
    labels = [f"{prefix}{number}" for number in range(count)]
    if drill.IS_STOCK:
        for label in labels:
            note("sent", label)
        for label in labels:
            drill.work.delay(label, seconds)
        return
    items: list[Any] = [((label, seconds), {}) for label in labels]
    batch = graft.submit(drill.take, items, unpack=True, name="drill", batch_size=size)
    for label in labels:
        note("sent", label)
    cast(DurableBatch, batch).wait()


def run_in_a_pool(count: int, workers: int, seconds: float = 0.1, prefix: str = "p", patience: float = 120.0) -> None:
    """Run *count* tasks in a pool of *workers*, and wait for what becomes of each."""
    from graft.compat.worker_pool import Task, WorkerPool

    labels = [f"{prefix}{number}" for number in range(count)]
    pool = WorkerPool(workers, count, processor=drill.take_pooled)
    pool.start()
    for number, label in enumerate(labels):
        note("asked", label)
        pool.submit_task_with_timeout(Task(number, (label, seconds)), patience)
        note("sent", label)
    results = pool.get_result()
    for _ in labels:
        result = results.get(patience)
        label = labels[result.task_id or 0]
        note("told" if result.error else "answered", label)
        if result.error:
            note("error", f"{label}:{type(result.error).__name__}")
    pool.graceful_shutdown(patience)


def _ends_of_ours(labels: list[str], seconds: float, patience: float) -> Iterator[tuple[str, BaseException | None]]:
    batch = graft.submit(drill.take, [((label, seconds), {}) for label in labels], batch_size=4, unpack=True)
    for label in labels:
        note("sent", label)
    for outcome in batch.as_completed(patience):
        yield labels[outcome.index], outcome.error


def _ends_of_stock(labels: list[str], seconds: float, patience: float) -> Iterator[tuple[str, BaseException | None]]:
    results = []
    for label in labels:
        results.append(drill.answer.delay(label, seconds))
        note("sent", label)
    for label, result in zip(labels, results, strict=True):
        deadline = time.monotonic() + patience
        while True:
            try:
                result.get(timeout=max(0.1, deadline - time.monotonic()))
                yield label, None
            except (redis.ConnectionError, OperationalError):  # A caller of Celery asks again.
                if time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
            except CeleryTimeoutError:
                patience = 1.0  # The others have had their time, too.
            except Exception as error:
                yield label, error
            break


def _send(task: Any, label: str, arguments: tuple[Any, ...], options: dict[str, Any], deadline: float) -> None:
    """Send one, again under another label while the broker refuses: a refusal is the caller's to answer."""
    attempt = 0
    while True:
        tried = f"{label}.{attempt}" if attempt else label
        began = time.monotonic()
        try:
            task.apply_async((tried, *arguments[1:]), **options)
        except Exception as error:
            note("unsure", tried)
            note("refused", f"{type(error).__name__}:{time.monotonic() - began:.1f}")
            if time.monotonic() > deadline:
                return
            attempt += 1
            time.sleep(0.2)
        else:
            note("sent", tried)
            if (took := time.monotonic() - began) > SLOW:
                note("slow", f"{took:.1f}")
            return


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    if "answers" in what:
        wait_for_answers(what.pop("answers"), **what)
    elif "pooled" in what:
        run_in_a_pool(what.pop("pooled"), **what)
    elif "durable" in what:
        send_a_batch(what.pop("durable"), **what)
    elif "pings" in what:
        ping_all(what["pings"])
    elif "chains" in what:
        for number in range(what["chains"]):
            for label in drill.send_chain(f"chain{number}"):
                note("sent", label)
    elif "chords" in what:
        for number in range(what["chords"]):
            drill.send_chord(f"{what.get('prefix', 'c')}{number}")
            note("sent", f"{what.get('prefix', 'c')}{number}")
    else:
        produce(**what)
