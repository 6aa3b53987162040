"""Functions under limits, which workers import from here. Each test has a key of its own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from graft import BreakerRules, limit
from tests import samples


def noted(event: Any) -> None:
    """The hook of limits whose key is a directory: a line for each event."""
    samples.note((f"{event.key}/events", f"{event.kind} {event.what} {event.items}"))


def _spend(folder: str, seconds: float = 0.05) -> None:
    samples.note((f"{folder}/log", f"in {time.time():.6f}"))
    time.sleep(seconds)
    samples.note((f"{folder}/log", f"out {time.time():.6f}"))


@limit(rate="3/second", by="folder", on_event=noted)
def three_a_second(folder: str, number: int = 0) -> int:
    _spend(folder, 0.0)
    return number


@limit(rate="3/second", by="folder")
async def three_a_second_async(folder: str, number: int = 0) -> int:
    _spend(folder, 0.0)
    return number


@limit(rate="1/hour", by=lambda folder, *_: folder)
def once_an_hour(folder: str, number: int = 0) -> int:
    _spend(folder, 0.0)
    return number


@limit(semaphore=1, by="folder")
def one_at_a_time(folder: str, number: int = 0) -> int:
    _spend(folder)
    return number


@limit(semaphore=3, by="folder")
async def three_at_a_time(folder: str, number: int = 0) -> int:
    samples.note((f"{folder}/log", f"in {time.time():.6f}"))
    await asyncio.sleep(0.05)
    samples.note((f"{folder}/log", f"out {time.time():.6f}"))
    return number


@limit(breaker=BreakerRules(3, 1, 1.5, 1), by="folder", on_event=noted)
def service(folder: str, number: int = 0) -> int:
    """Fails while a file says so."""
    samples.note((f"{folder}/log", f"in {time.time():.6f}"))
    if Path(folder, "down").exists():
        raise ConnectionError("the service is down")
    return number


@limit(breaker=BreakerRules(3, 1, 1.5, 1), by="folder", name="service_async")
async def service_async(folder: str, number: int = 0) -> int:
    """The same on the event loop."""
    return service(folder, number)


@limit(rate="3/second", by="folder")
def killer(folder: str, number: int = 0) -> int:
    """Number 2 takes its process along, once."""
    if number == 2 and not Path(folder, "killed").exists():
        Path(folder, "killed").touch()
        samples.kill_process(1)
    _spend(folder, 0.0)
    return number


@limit(rate="3/second", by="folder")
def fails_once(folder: str, number: int = 0) -> int:
    """Each item fails in its first run."""
    first = Path(folder, f"failed-{number}")
    if not first.exists():
        first.touch()
        raise ConnectionError("once")
    return number


@limit(rate="1000/second", by=lambda text: int(text))
def keyed_by_a_digit(text: str) -> str:
    return text
