"""Finds what blocks the loop, and names it: while one task computes or waits in the old way, all others stand still.

A thread asks the loop for a sign of life. What keeps it waiting longer than the limit is reported once, with the name
of the task and the place in its code, in the log, in ``inspect stats`` and in the worker's heartbeat. A loop that is
late because too many tasks want their turn shows in the lag alone: nobody is to blame.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from graft.workers.task_context import Ended

if TYPE_CHECKING:
    from graft.workers.aio.loop_thread import Floor

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 0.5
REMEMBERED: Final = 60.0  # Seconds for which the worst lag is told.


class Watch:
    """Watches one loop from a thread of its own. *limit* is in seconds."""

    def __init__(self, floor: Floor, limit: float) -> None:
        self._floor = floor
        self._limit = limit
        self._sign = threading.Event()
        self._over = threading.Event()
        self._asked = 0.0
        self._worst = 0.0
        self._worst_at = 0.0
        self._blocks = 0
        self._blocked_by = ""
        self._thread = threading.Thread(target=self._watch, name="graft-lag", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def report(self) -> dict[str, Any]:
        """``lag`` (s): the worst of the last minute, or the present one; who was the last to block, and how often."""
        lag = self._worst if time.monotonic() - self._worst_at < REMEMBERED else 0.0
        if self._asked:
            lag = max(lag, time.monotonic() - self._asked)
        return {"lag": round(lag, 4), "blocks": self._blocks, "blocked-by": self._blocked_by}

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self._sign.clear()
            self._asked = asked = time.monotonic()
            steps = self._floor.steps
            try:
                self._floor.loop.call_soon_threadsafe(self._sign.set)
            except RuntimeError:  # Closed.
                return
            blocker = ""
            if not self._sign.wait(self._limit):
                if self._floor.steps - steps <= 1:
                    blocker = self._name_blocker()
                while not self._sign.wait(LOOK_EVERY):
                    if self._over.is_set():
                        return
                    self._interrupt()
            self._note(time.monotonic() - asked, blocker)
            self._asked = 0.0

    def _interrupt(self) -> None:
        """End the code that blocks the loop beyond its task's hard limit: the loop itself cannot.

        The interpreter raises it between two of its instructions, so a call into C that does not return is not ended.
        """
        job = getattr(self._floor.current, "job", None)
        if job is not None and job.end_from_outside():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._floor.thread.ident or 0), ctypes.py_object(Ended)
            )

    def _note(self, lag: float, blocker: str) -> None:
        now = time.monotonic()
        if lag > self._worst or now - self._worst_at > REMEMBERED:
            self._worst, self._worst_at = lag, now
        if blocker:
            logger.warning("the event loop goes on; it had stood still for %.1f s because of %s", lag, blocker)

    def _name_blocker(self) -> str:
        frame = sys._current_frames().get(self._floor.thread.ident or 0)
        name = self._who()
        self._blocks += 1
        self._blocked_by = name
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame is not None else "(no stack)"
        logger.warning(
            "the event loop has stood still for %g s: %s blocks it; await instead, use asyncio.to_thread, or make it a "
            "plain function\n%s",
            self._limit, name, stack,
        )  # fmt: skip
        return name

    def _who(self) -> str:
        current = self._floor.current
        if current is not None:
            return str(current)
        task = asyncio.current_task(self._floor.loop)
        if task is None:
            return "a callback"
        mark = getattr(task, "mark", None)
        return task.get_name() if mark is None else f"{task.get_name()} of {mark}"
