"""What the call report says of a pool: where it was made, what its calls would have taken at home, what to change."""

from __future__ import annotations

import heapq
import os
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Final

MAKERS: Final = frozenset({"graft", "asyncio", "concurrent", "functools", "joblib", "multiprocess", "multiprocessing"})
SHORT: Final = 0.05  # Seconds of a call below which its way there and back counts (docs/unchanged-programs.md).
NOTICED: Final = 0.5  # Seconds that a pool loses on workers before anybody cares.


@dataclass(frozen=True, slots=True)
class PoolShape:
    """One pool of a program: ``FILE:LINE`` that made it, how many processes it has, and slots of the workers then."""

    made_at: str
    processes: int
    slots: int = 0

    def __str__(self) -> str:
        return f"of {self._processes}, made at {self.made_at}"

    def advice(self, calls: int, busy: float, seconds: float, home: float) -> str:
        """What to change so that the pool gains more on workers; empty where nothing stands out."""
        if not calls:
            return ""
        each = busy / calls
        if seconds > home + NOTICED and each < SHORT:
            return (
                f"a call takes {1000 * each:,.1f} ms, and should take {1000 * SHORT:g} or more: send more items in "
                "each (chunksize=, batch_size=)"
            )
        if self.slots < self.processes:
            return f"the workers had {_count(self.slots, 'slot')} for its {self._processes}: start more of them"
        if self.slots > self.processes:
            return (
                f"the workers had {_count(self.slots, 'slot')}: give the pool more than {self._processes} "
                "(max_workers=, processes=, n_jobs=)"
            )
        return ""

    @property
    def _processes(self) -> str:
        return _count(self.processes, "process", "processes")


class HomeEstimate:
    """What calls would have taken at home: one after the other on the pool's processes, and no faster than the cores.

    The calls of one period begin together; what the program does between two periods is not counted.
    """

    def __init__(self, processes: int, cores: int | None = None) -> None:
        self._processes = processes
        self._cores = cores or len(os.sched_getaffinity(0))
        self.begin_period()

    def begin_period(self) -> None:
        """No call was under way, and now there is one."""
        self._free = [0.0] * self._processes
        self._longest = self._cpu = self._told = 0.0

    def add(self, seconds: float, cpu: float) -> float:
        """By how much the period grows with a call of *seconds*, *cpu* of them on a processor."""
        ends = heapq.heappop(self._free) + seconds
        heapq.heappush(self._free, ends)
        self._longest, self._cpu = max(self._longest, ends), self._cpu + cpu
        before, self._told = self._told, max(self._longest, self._cpu / self._cores)
        return self._told - before


def maker(makers: frozenset[str] = MAKERS) -> FrameType:
    """What makes the pool that is being made: the first code that is none of *makers*."""
    frame = sys._getframe(1)
    while frame.f_back is not None and module_of(frame).partition(".")[0] in makers:
        frame = frame.f_back
    return frame


def module_of(frame: FrameType) -> str:
    """The name of the module whose code *frame* runs."""
    return str(frame.f_globals.get("__name__", "?"))


def made_at(frame: FrameType) -> str:
    """``FILE:LINE``; the file as its module has it."""
    file = frame.f_code.co_filename
    depth = module_of(frame).count(".") + (os.path.basename(file) == "__init__.py")
    return f"{'/'.join(file.split(os.sep)[-1 - depth :])}:{frame.f_lineno}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
