"""Measures the calling process, from /proc where there is one, in about a millisecond."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from graft.tasks.leaks import gc_types

SAMPLED: Final = 20_000  # Objects of which the types are counted.
MOST: Final = 5
LOOP_PATIENCE: Final = 5.0  # Seconds that an event loop may take to call back.


def memory() -> tuple[float, float]:
    """Anonymous resident memory, and the proportional share (pages that several map count for each in part), in MiB."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
        found = dict(re.findall(r"^(Pss|Anonymous):\s+(\d+) kB", text, re.MULTILINE))
        return int(found["Anonymous"]) / 1024, int(found["Pss"]) / 1024
    except (OSError, KeyError):
        resident = psutil.Process().memory_info().rss / 2**20
        return resident, resident


def descriptors() -> tuple[dict[str, int], list[list[Any]]]:
    """Open descriptors by kind, and the files that are open most."""
    kinds: Counter[str] = Counter()
    files: Counter[str] = Counter()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return {"files": psutil.Process().num_fds()}, []
    for number in numbers:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # The one that listed the others.
            continue
        if target.startswith("socket:"):
            kinds["sockets"] += 1
        elif target.startswith("/") and not target.startswith("/dev/"):
            kinds["files"] += 1
            files[_alike(target)] += 1
        else:
            kinds["pipes"] += 1
    return dict(kinds), most(files)


def sockets() -> list[list[Any]]:
    """The addresses that most of this process's connections lead to."""
    try:
        found = psutil.Process().net_connections("inet")
    except (psutil.Error, OSError):
        return []
    return most(Counter(f"{one.raddr.ip}:{one.raddr.port}" for one in found if one.raddr))


def threads() -> list[list[Any]]:
    return most(Counter(_alike(thread.name) for thread in threading.enumerate()))


def objects() -> tuple[int, list[list[Any]]]:
    """How many objects the garbage collector tracks, and the most frequent types among a sample of them."""
    found = gc_types.types()
    step = max(1, len(found) // SAMPLED)
    types = Counter(f"{one.__module__}.{one.__qualname__}" for one in found[::step])
    return len(found), [[name, count * step] for name, count in types.most_common(MOST)]


def coroutines(loop: asyncio.AbstractEventLoop | None) -> tuple[int, list[list[Any]], float | None]:
    """The number of asyncio tasks of *loop*, the most frequent, and how late it is; None without a loop."""
    if loop is None:
        return 0, [], None
    called_back = threading.Event()
    began = time.monotonic()
    try:
        loop.call_soon_threadsafe(called_back.set)
    except RuntimeError:  # Closed just now.
        return 0, [], None
    called_back.wait(LOOP_PATIENCE)
    lag = time.monotonic() - began
    running = asyncio.all_tasks(loop)
    return len(running), most(Counter(_name(task) for task in running)), lag


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", coroutine))


# The name of a temporary file ends in eight letters, digits and underscores.
_RANDOM: Final = re.compile(r"(?:(?<=tmp)|(?<=[-_.])(?=[a-z_]*\d))[a-z0-9_]{8}(?=$| )|[0-9a-f]{8,}|\d+")


def _alike(name: str) -> str:
    """*name* with its numbers and random parts replaced, so that those of one kind are counted together."""
    return _RANDOM.sub("*", name)


def most(counts: Counter[str] | Iterable[str]) -> list[list[Any]]:
    return [[name, count] for name, count in Counter(counts).most_common(MOST)]
