"""What the pools' tests send to workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from graft.compat.worker_pool import Result, Task


def hold(path: str) -> str:
    """Say that it has begun, in a file of its own, and wait until *path* exists."""
    Path(f"{path}.begun.{os.getpid()}.{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return path


def begun(path: str) -> int:
    """How many calls of ``hold(path)`` have begun."""
    return len(list(Path(path).parent.glob(f"{Path(path).name}.begun.*")))


def count_overlap(path: str) -> int:
    """How many of these calls run now, this one included; the marks are files in the directory *path*."""
    mark = Path(path) / f"{os.getpid()}.{time.monotonic_ns()}"
    mark.touch()
    time.sleep(0.01)
    together = len(os.listdir(path))
    mark.unlink()
    return together


def double(task: Task) -> int:
    return int(task.data) * 2


def double_or_fail(task: Task) -> int:
    if task.data < 0:
        raise ValueError(f"negative: {task.data}")
    return int(task.data) * 2


def whole_result(task: Task) -> Result:
    return Result(output=f"made of {task.data}")


def note_task(task: Task) -> int:
    path, number = task.data
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return int(number)


def kill_once(path: str) -> str:
    """Kill the process the first time, answer the second time."""
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pause(task: Task) -> int:
    time.sleep(task.data)
    return int(task.id)


def one() -> int:
    return 1


def boom() -> None:
    raise ValueError("boom")


async def async_one() -> int:
    return 1


def nothing() -> None:
    return None


def million() -> int:
    return sum(range(1_000_000))


def twice(x: int) -> int:
    return 2 * x


def square(x: int) -> int:
    return x * x


def square_not_three(x: int) -> int:
    if x in (3, 7):
        raise ValueError(f"{x} is refused")
    return x * x


def sum_to(x: int) -> int:
    return sum(range(x % 1000))


def forever() -> Any:
    while True:
        time.sleep(0.01)
