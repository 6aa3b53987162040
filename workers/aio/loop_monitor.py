"""Names the task that blocks the loop: while one computes, or waits without ``await``, all others stand still.

A thread has the loop call it back every half second. A callback later than the limit is reported once: the task's name
and the line of its code in the log, the name in ``inspect stats`` and in the worker's heartbeat. A loop that is late
because too many tasks want their turn shows in the lag alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import time
import traceback
from typing import Any, Final

from graft.workers.aio.loop_thread import LoopThread
from graft.workers.task_context import Ended

logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 0.5
REMEMBERED: Final = 60.0  # Seconds for which the worst lag is reported.


class LoopMonitor:
    """Measures the lag of one loop, from a thread of its own. *limit* is in seconds."""

    def __init__(self, loop_thread: LoopThread, limit: float) -> None:
        self._loop_thread = loop_thread
        self._limit = limit
        self._sign = threading.Event()
        self._over = threading.Event()
        self._checked_at = 0.0
        self._worst = 0.0
        self._worst_at = 0.0
        self._blocks = 0
        self._blocked_by = ""
        self._thread = threading.Thread(target=self._monitor, name="graft-lag", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def report(self) -> dict[str, Any]:
        """``lag`` (s): the worst of the last minute, or the present one; who was the last to block, and how often."""
        lag = self._worst if time.monotonic() - self._worst_at < REMEMBERED else 0.0
        if self._checked_at:
            lag = max(lag, time.monotonic() - self._checked_at)
        return {"lag": round(lag, 4), "blocks": self._blocks, "blocked-by": self._blocked_by}

    def _monitor(self) -> None:
        while not self._over.wait(CHECK_EVERY):
            self._sign.clear()
            self._checked_at = began = time.monotonic()
            steps = self._loop_thread.steps
            try:
                self._loop_thread.loop.call_soon_threadsafe(self._sign.set)
            except RuntimeError:  # Closed.
                return
            blocker = ""
            if not self._sign.wait(self._limit):
                if self._loop_thread.steps - steps <= 1:
                    blocker = self._name_blocker()
                while not self._sign.wait(CHECK_EVERY):
                    if self._over.is_set():
                        return
                    self._interrupt()
            self._note(time.monotonic() - began, blocker)
            self._checked_at = 0.0

    def _interrupt(self) -> None:
        """End the code that blocks the loop beyond its task's hard limit: the loop itself cannot.

        The interpreter raises it between two of its instructions, so a call into C that does not return is not ended.
        """
        run = getattr(self._loop_thread.current, "run", None)
        if run is not None and run.end_from_outside():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._loop_thread.thread.ident or 0), ctypes.py_object(Ended)
            )

    def _note(self, lag: float, blocker: str) -> None:
        now = time.monotonic()
        if lag > self._worst or now - self._worst_at > REMEMBERED:
            self._worst, self._worst_at = lag, now
        if blocker:
            logger.warning("the event loop goes on after %.1f s; %s had blocked it", lag, blocker)

    def _name_blocker(self) -> str:
        frame = sys._current_frames().get(self._loop_thread.thread.ident or 0)
        name = self._who()
        self._blocks += 1
        self._blocked_by = name
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame is not None else "(no stack)"
        logger.warning(
            "%s has blocked the event loop for %g s, and all other tasks of this worker with it; use await or "
            "asyncio.to_thread there, or make it a plain function\n%s",
            name, self._limit, stack,
        )  # fmt: skip
        return name

    def _who(self) -> str:
        current = self._loop_thread.current
        if current is not None:
            return str(current)
        task = asyncio.current_task(self._loop_thread.loop)
        if task is None:
            return "a callback"
        mark = getattr(task, "mark", None)
        return task.get_name() if mark is None else f"{task.get_name()} of {mark}"
