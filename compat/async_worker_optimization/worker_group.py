"""Brings a worker group to a wanted size without holding up whoever wants it: up at once, down when idle."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from graft.compat import worker_admin

logger = logging.getLogger("graft.compat.async_worker_optimization")


@dataclass(frozen=True)
class Wish:
    """A size that was asked for: pool processes, messages fetched, and how long a surplus stays. Times are seconds."""

    processes: int
    prefetch: int
    idle_timeout: float
    made: float = field(default_factory=time.monotonic)

    def due(self, present: int, surplus_since: float | None) -> float:
        """When a group of *present* processes takes this size; one that is not larger does not wait."""
        if self.processes >= present:
            return self.made
        return (self.made if surplus_since is None else surplus_since) + self.idle_timeout


class WorkerGroup:
    """The workers named ``<name>@…``. One thread obeys the latest wish, and ends when it is met."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._changed = threading.Condition()
        self._wish: Wish | None = None
        self._present: int | None = None
        self._surplus_since: float | None = None
        self._is_obeying = False
        self._settled = _running_future()

    def want(self, processes: int, prefetch: int, idle_timeout: float) -> None:
        """Bring the group to *processes*; a later wish replaces one that has not been met."""
        with self._changed:
            self._wish = Wish(processes, prefetch, idle_timeout)
            if self._settled.done():
                self._settled = _running_future()
            if not self._is_obeying:
                self._is_obeying = True
                threading.Thread(target=self._obey, name=f"graft-group-{self.name}", daemon=True).start()
            self._changed.notify_all()

    def settled(self) -> Future[dict[str, int]]:
        """Done when the latest wish is met: node name to pool processes, or the error that came in between."""
        with self._changed:
            return self._settled

    def _obey(self) -> None:
        while wish := self._next_due():
            nodes, error = self._resize(wish)
            with self._changed:
                self._present = wish.processes if error is None else None
                self._surplus_since = None
                if self._wish is not wish:
                    continue  # Somebody wants something else by now, and waits for that.
                self._wish = None
                if error is None:
                    self._settled.set_result(nodes)
                else:
                    self._settled.set_exception(error)

    def _resize(self, wish: Wish) -> tuple[dict[str, int], Exception | None]:
        try:
            return worker_admin.resize_workers(self.name, wish.processes, wish.prefetch), None
        except Exception as error:
            logger.warning("worker group %s was not resized to %d: %s", self.name, wish.processes, error)
            return {}, error

    def _next_due(self) -> Wish | None:
        """The latest wish once it is due; None, and the thread's end, when there is none."""
        if self._present is None:
            self._present = self._largest()
        with self._changed:
            while wish := self._wish:
                if wish.processes >= self._present:
                    self._surplus_since = None
                elif self._surplus_since is None:
                    self._surplus_since = wish.made
                remaining = wish.due(self._present, self._surplus_since) - time.monotonic()
                if remaining <= 0:
                    return wish
                self._changed.wait(remaining)
            self._is_obeying = False
            return None

    def _largest(self) -> int:
        """Pool processes of the largest worker, 0 when none answers: then nothing waits and the resize says why."""
        try:
            figures = worker_admin.worker_loads()
        except Exception as error:
            logger.debug("worker group %s: no figures: %s", self.name, error)
            return 0
        return max(
            (int(each["capacity"]) for each in figures if str(each["id"]).partition("@")[0] == self.name), default=0
        )


def _running_future() -> Future[dict[str, int]]:
    """A future that a waiter who gives up cannot cancel for the others."""
    future: Future[dict[str, int]] = Future()
    future.set_running_or_notify_cancel()
    return future
