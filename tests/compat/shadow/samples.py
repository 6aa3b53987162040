"""Functions that answer differently where the program has changed something: ``planted`` is 0 on workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from graft.compat.shadow import never_shadow

planted = 0.0


def steady(x: int) -> tuple[int, dict[str, float]]:
    return x, {"nan": float("nan")}


def value(x: int) -> float:
    return x + planted


def almost(x: int) -> list[float]:
    return [x * (1 + planted / 1e12)]


def order(x: int) -> list[int]:
    return [x, x + 1, x + 2][:: -1 if planted else 1]


def text(x: int) -> None:
    raise ValueError(f"no {x}, {planted}")


def raises(x: int) -> int:
    if planted:
        raise KeyError(x)
    return x


def arguments(x: dict[str, int]) -> int:
    x["seen"] = 1
    return 0


async def awaited(x: int) -> float:
    return x + planted


def unpicklable(_: int) -> Any:
    return lambda: None


@never_shadow
def marked(x: int) -> int:
    return x


def process(_: Any = None) -> int:
    return os.getpid()


async def process_async(_: Any = None) -> int:
    return os.getpid()


def slowly(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def fails_on_a_worker(x: int) -> int:
    if not planted:
        raise OSError("no such table")
    return x


def write(path: Path, what: str) -> str:
    """Write beside what is there, and say where."""
    path.write_text(f"{what} {planted}")
    (path.parent / "input").read_text()
    return str(path)


def write_elsewhere(name: str) -> None:
    Path(os.environ["SHADOW_TEST_FOLDER"], name).write_text("x")
