"""A worker group is brought to a wanted size in the background: it grows at once and shrinks when idle."""

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
    """A wanted size: pool processes, messages fetched, and how long a surplus stays. Times are seconds."""

    processes: int
    prefetch: int
    idle_timeout: float
    made: float = field(default_factory=time.monotonic)

    def due(self, present: int, surplus_since: float | None) -> float:
        """When a group of *present* processes takes this size: at once, unless it shrinks."""
        if self.processes >= present:
            return self.made
        return (surplus_since or self.made) + self.idle_timeout


class WorkerGroup:
    """The workers named ``<name>@…`` or ``<name>1@…``. A thread applies the latest wish, then ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._changed = threading.Condition()
        self._wish: Wish | None = None
        self._present: int | None = None  # Processes.
        self._surplus_since: float | None = None
        self._is_running = False
        self._settled = _running_future()

    def want(self, processes: int, prefetch: int, idle_timeout: float) -> None:
        """Bring the group to *processes*; a later wish replaces one that has not been applied."""
        with self._changed:
            self._wish = Wish(processes, prefetch, idle_timeout)
            if self._settled.done():
                self._settled = _running_future()
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name=f"graft-group-{self.name}", daemon=True).start()
            self._changed.notify_all()

    def settled(self) -> Future[dict[str, int]]:
        """Done when the latest wish is applied: node name to pool processes, or the error."""
        with self._changed:
            return self._settled

    def _run(self) -> None:
        while wish := self._next_due():
            nodes: dict[str, int] = {}
            failure: Exception | None = None
            try:
                nodes = worker_admin.resize_workers(self.name, wish.processes, wish.prefetch)
            except Exception as error:
                failure = error
                logger.warning("worker group %s was not resized to %d: %s", self.name, wish.processes, error)
            with self._changed:
                self._present = None if failure else wish.processes
                self._surplus_since = None
                if self._wish is not wish:
                    continue  # A later wish settles the future.
                self._wish = None
                if failure:
                    self._settled.set_exception(failure)
                else:
                    self._settled.set_result(nodes)

    def _next_due(self) -> Wish | None:
        """The latest wish once it is due; None, which ends the thread, when there is none."""
        present = self._largest() if self._present is None else self._present
        with self._changed:
            while wish := self._wish:
                self._surplus_since = (self._surplus_since or wish.made) if wish.processes < present else None
                remaining = wish.due(present, self._surplus_since) - time.monotonic()
                if remaining <= 0:
                    return wish
                self._changed.wait(remaining)
            self._is_running = False
            return None

    def _largest(self) -> int:
        """Pool processes of the largest worker; 0 without an answer, so that nothing waits and the resize says why."""
        try:
            loads = worker_admin.worker_loads()
        except Exception as error:
            logger.debug("worker group %s: the workers cannot be read: %s", self.name, error)
            return 0
        return max((load["capacity"] for load in loads if worker_admin.is_in_group(load["id"], self.name)), default=0)


def _running_future() -> Future[dict[str, int]]:
    """A future that one waiter cannot cancel for the others."""
    future: Future[dict[str, int]] = Future()
    future.set_running_or_notify_cancel()
    return future
