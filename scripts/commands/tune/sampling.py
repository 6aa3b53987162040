"""Measures a function: in this process, and from a client process on the workers of a private stack."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import click

from graft.scripts.commands.tune.advice import Sample, fitting_size

AT_ONCE = 100
SIZED = 20  # Items that are pickled, to measure their size.


def load_function(name: str) -> Callable[[Any], Any]:
    """The function that ``module:function`` names, imported from the current directory or wherever Python looks.

    Raises:
        click.BadParameter: it does not exist, or cannot be called.
    """
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise click.BadParameter(f"{name!r} is not module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise click.BadParameter(f"{name!r} is {type(found).__name__} and cannot be called")
    function: Callable[[Any], Any] = found
    return function


def load_items(text: str) -> list[Any]:
    """``1000`` -> the numbers from 0 to 999; a file -> one JSON value per line, or one JSON list.

    Raises:
        click.BadParameter: it is neither, or there are no items.
    """
    if text.isdecimal():
        items: list[Any] = list(range(int(text)))
    else:
        try:
            content = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{text!r} is neither a number nor a file that can be read: {error}") from error
        items = _parse(text, content)
    if not items:
        raise click.BadParameter(f"{text!r} holds no items")
    return items


def _parse(name: str, content: str) -> list[Any]:
    if content.lstrip().startswith("["):
        try:
            found = json.loads(content)
        except ValueError:
            pass  # Several lists, one in each line.
        else:
            return list(found)
    items = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise click.BadParameter(f"line {number} of {name} is not JSON: {error}") from error
    return items


@dataclass(frozen=True)
class Usage:
    """The time of this thread so far, in seconds: on the clock, on a processor, and waiting for a free core."""

    clock: float
    cpu: float
    queued: float

    @classmethod
    def now(cls) -> Self:
        try:
            # The second number, nanoseconds: a busy machine must not make a function look like one that waits.
            queued = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            queued = 0.0
        return cls(time.perf_counter(), time.process_time(), queued)


def sample(function: Callable[[Any], Any], items: Sequence[Any], budget: float) -> Sample:
    """Run items here, one after the other, for *budget* seconds at most.

    Raises:
        Exception: the function's own; a function that fails cannot be measured.
    """
    if inspect.iscoroutinefunction(function):
        return asyncio.run(_sample_async(function, items, budget))
    clock = time.perf_counter
    sizes = [_size(item, function(item)) for item in items[:SIZED]]  # This also imports modules and fills caches.
    times = []
    began = Usage.now()
    deadline = began.clock + budget
    for item in items:
        moment = clock()
        function(item)
        now = clock()
        times.append(now - moment)
        if now > deadline:
            break
    return _sample(times, began, Usage.now(), sizes, is_async=False, at_once=None)


async def _sample_async(function: Callable[[Any], Any], items: Sequence[Any], budget: float) -> Sample:
    clock = time.perf_counter
    sizes = [_size(item, await function(item)) for item in items[:SIZED]]
    times = []
    began = Usage.now()
    deadline = began.clock + budget / 2
    for item in items:
        moment = clock()
        await function(item)
        now = clock()
        times.append(now - moment)
        if now > deadline:
            break
    ended = Usage.now()
    count = max(len(times), min(len(items), AT_ONCE))
    moment = clock()
    for start in range(0, count, AT_ONCE):
        await asyncio.gather(*(function(item) for item in items[start : min(start + AT_ONCE, count)]))
    return _sample(times, began, ended, sizes, is_async=True, at_once=(clock() - moment) / count)


def _sample(
    times: list[float], began: Usage, ended: Usage, sizes: list[int], *, is_async: bool, at_once: float | None
) -> Sample:
    count = len(times)
    queued = min(ended.queued - began.queued, 0.95 * sum(times))
    slowest = statistics.quantiles(times, n=100, method="inclusive")[-1] if count > 1 else times[0]
    cpu = min(ended.cpu - began.cpu, sum(times) - queued)
    return Sample(
        items=count,
        seconds=(sum(times) - queued) / count,
        cpu=cpu / count,
        slowest=slowest / max(statistics.median(times), 1e-9),
        size=sum(sizes) / len(sizes),
        is_async=is_async,
        at_once=at_once,
    )


def _size(item: Any, value: Any) -> int:
    return len(pickle.dumps(item, 5)) + len(pickle.dumps(value, 5))


def measure_cluster(name: str, items: Sequence[Any], found: Sample, workers: int, budget: float) -> dict[str, Any]:
    """Measure on the workers of this process's deployment: seconds of one trip, and per item for some batch sizes."""
    from graft.tasks.submit import submit

    function = load_function(name)
    submit(function, items[:1]).collect(timeout=60 + 10 * found.seconds)
    trips: list[float] = []
    deadline = time.perf_counter() + budget / 4
    while len(trips) < 200 and (len(trips) < 5 or time.perf_counter() < deadline):
        began = time.perf_counter()
        submit(function, items[:1], batch_size=1).collect()
        trips.append(time.perf_counter() - began)
    sizes = [0, *sorted({size for size in (1, 10, 100, 1_000, fitting_size(found)) if size <= len(items)})]
    figures: dict[int, float] = {}
    for size in sizes:
        # As many items as fill this size's share of the time, and one for each worker process at least.
        share = max(budget / (2 * len(sizes)), 0.1)
        fitting = int(share * max(workers, 2) / max(found.here, 2e-5))
        count = max(size, min(len(items), max(fitting, workers)))
        part = items[:count]
        rounds: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            submit(function, part, batch_size=size or None).collect()
            rounds.append((time.perf_counter() - began) / len(part))
        figures[size] = min(rounds)
    # A trip contains the item's own work, which is not overhead.
    return {"trip": max(statistics.median(trips) - found.seconds, 1e-6), "sizes": figures}


def main() -> None:
    """The client process: a request as JSON on stdin, the measurements as JSON on stdout."""
    request = json.load(sys.stdin)
    measured = measure_cluster(
        request["function"],
        load_items(request["items"]),
        Sample(**request["sample"]),
        request["workers"],
        request["budget"],
    )
    json.dump(measured, sys.stdout)


def as_request(name: str, items: str, found: Sample, workers: int, budget: float) -> str:
    """The request that ``main`` reads."""
    request = {"function": name, "items": items, "sample": asdict(found), "workers": workers, "budget": budget}
    return json.dumps(request)


if __name__ == "__main__":
    main()
