"""What the tests send to workers, which import it from here."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pydantic

from graft.config import redis_clock


class Unpicklable(Exception):
    """Holds a lock, which no pickle can carry."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Detailed(Exception):
    """Is made from two arguments, keeps a third thing, and shows neither in ``args``."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _detailed, (self.code, self.reason)


def _detailed(code: int, reason: str) -> Detailed:
    return Detailed(code, reason=reason)


class Price(pydantic.BaseModel):
    cents: int


class Accumulator:
    """An object whose bound method is sent."""

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, x: int) -> int:
        return self.base + x


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def square_slowly_if_even(x: int) -> int:
    """Later items overtake earlier ones."""
    if x % 2 == 0:
        time.sleep(0.05)
    return x * x


def typed(count: int, price: Price | None = None) -> Any:
    return count * 2 if price is None else count * price.cents


def fails_validation(_: Any) -> Any:
    return Price(cents="many")


def add(a: int, b: int) -> int:
    return a + b


def id_of(record: dict[str, int]) -> int:
    return record["id"]


def total(values: list[int]) -> int:
    return sum(values)


def pause(x: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def process_id(_: Any = None) -> int:
    return os.getpid()


def note(path_and_text: tuple[str, str]) -> str:
    """Append a line to a file: one line for each run, whatever becomes of the result."""
    path, text = path_and_text
    with open(path, "a") as file:
        file.write(text + "\n")
    return text


def read_text(path: str) -> str:
    """The text of a file; it fails until somebody has written that."""
    return Path(path).read_text()


def note_success(summary: Any) -> None:
    """Append a line to the file that the batch is named after."""
    note((f"{summary.name}.success", f"{summary.succeeded} {summary.total} {summary.failed}"))


def note_end(summary: Any) -> None:
    note((f"{summary.name}.complete", f"{summary.succeeded} {summary.total} {summary.failed}"))


def begin_next_stage(summary: Any) -> str:
    """A batch that follows another, whose values are its items."""
    import graft

    values = list(graft.batch(summary.id))
    return graft.submit(square, values, name=f"{summary.name}.next").id


def note_slowly(path_and_text: tuple[str, str]) -> str:
    """Append a line to a file, and take a moment."""
    time.sleep(0.02)
    return note(path_and_text)


def note_and_sleep(path_and_seconds: tuple[str, float]) -> float:
    """Append a line to a file, then take that long."""
    path, seconds = path_and_seconds
    note((path, "start"))
    time.sleep(seconds)
    return seconds


async def async_note_and_sleep(path_and_seconds: tuple[str, float]) -> float:
    """The same for the event loop; a second line says that the item was ended."""
    path, seconds = path_and_seconds
    note((path, "start"))
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note((path, "ended"))
        raise
    return seconds


def fail_until(path_and_runs: tuple[str, int]) -> int:
    """Raise a ConnectionError until it has been run so often; the file at *path* counts. Returns the run."""
    path, runs = path_and_runs
    note((path, "run"))
    run = len(Path(path).read_text().splitlines())
    if run < runs:
        raise ConnectionError(f"run {run} of {runs}")
    return run


def fail_slowly_once(path: str) -> str:
    """Takes its time and fails in its first run; returns at once in the second."""
    if not Path(path).exists():
        note((path, "run"))
        time.sleep(0.1)
        raise ConnectionError("the first run")
    return path


def fail_and_note(path: str) -> NoReturn:
    """Raise an error that says where :func:`note_failed_run` notes it."""
    raise ConnectionError(path)


def die_then_fail_then_succeed(path: str) -> int:
    """End the process in the first run, fail in the second, and return how many runs there were in the third."""
    note((path, "run"))
    runs = read_text(path).count("run")
    if runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if runs == 2:
        raise OSError("the second run fails")
    return runs


def note_failed_run(failed: Any) -> None:
    note((str(failed.error), f"{failed.run}/{failed.runs}:{failed.item}"))


def raise_value_error(x: Any) -> NoReturn:
    raise ValueError(f"no {x}")


def raise_value_error_if_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


def raise_from_another(x: Any) -> NoReturn:
    try:
        raise KeyError(x)
    except KeyError as error:
        raise LookupError(f"no {x}") from error


def raise_detailed(code: int) -> NoReturn:
    raise Detailed(code, reason="as asked")


def raise_unpicklable(x: Any) -> NoReturn:
    raise Unpicklable(f"no {x}")


def raise_base_exception(x: Any) -> NoReturn:
    raise KeyboardInterrupt(x)


class RaisesWhenPickled:
    """Pickling it raises *kind*."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> NoReturn:
        raise self.kind("while it was pickled")


class RaisesWhenOpened(RaisesWhenPickled):
    """Opening its pickle raises *kind*."""

    def __reduce__(self) -> Any:
        return raise_, (self.kind,)


def raise_(kind: type[BaseException]) -> NoReturn:
    raise kind("while it was opened")


def return_none(_: Any) -> None:
    return None


def return_exception(x: Any) -> ValueError:
    return ValueError(x)


def return_unpicklable(_: Any) -> Any:
    return threading.Lock()


def return_bytes(size: int) -> bytes:
    return b"x" * size


def exit_process(code: int) -> NoReturn:
    sys.exit(code)


def kill_process(code: int) -> NoReturn:
    """End the process without any clean-up, as a crash in a C extension does."""
    os._exit(code)


def kill_worker(seconds: float) -> None:
    """End the worker and all its processes after so long, as a machine that runs out of memory does."""
    time.sleep(seconds)
    worker = psutil.Process(os.getppid())
    neighbours = worker.children()
    worker.kill()
    for process in sorted(neighbours, key=lambda process: process.pid == os.getpid()):
        process.kill()


def kill_process_if(x_and_bad: tuple[int, int]) -> int:
    x, bad = x_and_bad
    if x == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def recurse_for_ever(x: int) -> int:
    return recurse_for_ever(x + 1) + 1


async def async_identity(x: Any) -> Any:
    return x


async def async_square(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


async def async_square_slowly_if_even(x: int) -> int:
    """Later items overtake earlier ones."""
    if x % 2 == 0:
        await asyncio.sleep(0.05)
    return x * x


async def async_pause(x: Any, seconds: float = 0.2) -> Any:
    await asyncio.sleep(seconds)
    return x


async def async_sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def async_raise_value_error(x: Any) -> NoReturn:
    await asyncio.sleep(0)
    raise ValueError(f"no {x}")


async def async_return_none(_: Any) -> None:
    await asyncio.sleep(0)


async def async_process_id(_: Any = None) -> int:
    return os.getpid()


_kept: list[bytes] = []


def keep_memory(size: int) -> int:
    """Hold on to so many bytes for as long as this process lives."""
    _kept.append(b"x" * size)
    return len(_kept)


async def async_loop_id(_: Any) -> int:
    return id(asyncio.get_running_loop())


def wait_for_a_batch(x: int) -> Any:
    import graft

    return graft.submit(square, [x]).collect(10)


def optimize_inside(x: int) -> tuple[int, int]:
    """The process of this task, and the one that an old call made in it runs in."""
    from graft.compat.async_worker_optimization import AsyncWorkerOptimizer

    (there,) = asyncio.run(AsyncWorkerOptimizer().optimize_batch_processing([x], process_id))
    return os.getpid(), there


def import_old_name(name: str) -> str:
    return importlib.import_module(name).__name__


def sleep_through_everything(seconds: float) -> float:
    """Takes no hint: only a kill ends it early."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            time.sleep(left)
        except BaseException:
            continue
    return seconds


def note_and_wait(path: str) -> str:
    """Append a line to a file, then wait for the one that opens the gate; how many lines there are."""
    note((path, "run"))
    return _when_open(path, str(len(Path(path).read_text().split())))


def note_first(path_and_text: tuple[str, str]) -> str:
    note(path_and_text)
    return _when_open(*path_and_text)


def _when_open(path: str, value: str) -> str:
    while not Path(path).with_suffix(".open").exists():
        time.sleep(0.02)
    return value


def note_and_fail_until_open(path: str) -> str:
    note((path, "run"))
    if not Path(path).with_suffix(".open").exists():
        raise ConnectionError("not yet")
    return "at last"


def note_large(path_and_size: tuple[str, int]) -> bytes:
    """Append a line to a file; a value that differs from run to run."""
    path, size = path_and_size
    note((path, "run"))
    return os.urandom(size)


def now(_: Any) -> float:
    return redis_clock.now()


async def async_now(_: Any) -> float:
    return redis_clock.now()


def note_row(path: str, row: dict[str, int]) -> str:
    """Note the row's id; rows 7 and 17 have a bug until a file says that it is mended."""
    note((path, str(row["id"])))
    if row["id"] in (7, 17) and not Path(path).with_name("mended").exists():
        raise ValueError("a bug")
    return f"{row['id']} {row['price']}"


def price_of(row: dict[str, Any]) -> Any:
    if row["id"] == 7 and row["price"] == 2:
        raise ValueError("row 7")
    return row["id"] * row["price"]


def rows_after(key: Any) -> tuple[list[Any], Any]:
    """Pages of 1,000 rows of 2,500, by the last row's id."""
    first = 0 if key is None else key[0]
    rows = [{"id": number} for number in range(first + 1, min(first + 1000, 2500) + 1)]
    return rows, (rows[-1]["id"],) if rows else None


def same_page_for_ever(key: Any) -> tuple[list[Any], Any]:
    return [1], 5


def tally(outcomes: list[Any]) -> dict[str, int]:
    """The sum of the values, and how often each error came."""
    counts = {"values": sum(outcome.value for outcome in outcomes if outcome.error is None)}
    for outcome in outcomes:
        if outcome.error is not None:
            counts[type(outcome.error).__name__] = counts.get(type(outcome.error).__name__, 0) + 1
    return counts
