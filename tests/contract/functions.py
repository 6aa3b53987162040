"""What the contract suite runs, on threads, in processes and on workers; all of them import it from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

LONG = 60.0


def touch(path: str) -> None:
    Path(path).touch()


def hold(path: str, value: Any = None) -> Any:
    """Say that this has begun, and go on once the file ``<path>.go`` is there."""
    touch(path)
    deadline = time.monotonic() + LONG
    while not Path(f"{path}.go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path}.go did not come")
        time.sleep(0.005)
    return value


def arguments(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def divide(a: int, b: int) -> float:
    return a / b


def stop_iteration(x: Any) -> Any:
    """Raises what an iterator must not take for its own end."""
    raise StopIteration(x)


def größe_als_名前(x: int) -> int:  # noqa: PLC2401 - the point
    """A name of letters that not every encoding has."""
    return x * x


def note_and_die_if(path_number_bad: tuple[str, int, int]) -> int:
    """Leave a line, and take the process along where the number is the bad one."""
    path, number, bad = path_number_bad
    with Path(path).open("a") as file:
        file.write(f"{number}\n")
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def log_span(path: str, seconds: float = 0.02) -> None:
    """Leave a line in *path* when this begins and when it ends."""
    for sign in ("+", "-"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, sign.encode())
        os.close(descriptor)
        if sign == "+":
            time.sleep(seconds)


def most_at_once(path: str) -> int:
    """How many spans of the log lay on top of each other."""
    most = now = 0
    for sign in Path(path).read_text():
        now += 1 if sign == "+" else -1
        most = max(most, now)
    return most


def weakly_referable(x: Any) -> set[Any]:
    return {x}


_state: list[Any] = []


def set_state(value: Any) -> None:
    _state.append(value)


def state_and(x: Any) -> tuple[list[Any], Any]:
    return list(_state[-1:]), x


def log_span_too(path: str) -> None:
    """Another function with the same trace: a bound holds for both together."""
    log_span(path)


def square_by_executor(x: int) -> list[int]:
    """Uses an executor inside a task."""
    from graft.compat.executor import CeleryExecutor
    from graft.compat.pool import Pool
    from tests.samples import square

    with CeleryExecutor(1) as executor, Pool(1) as pool:
        return [executor.submit(square, x).result(), *executor.map(square, [x]), *pool.map(square, [x])]


def nested_joblib(x: int) -> list[int]:
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=2)(delayed(int)(i) for i in (x, x + 1)))


def sleep_and_note(seconds: float, path: str) -> None:
    """Take that long, then append a line to a file."""
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write("ended\n")
