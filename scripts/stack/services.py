"""The processes of a local stack beside Redis: workers, Beat, Flower."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil

from graft.config.queues import Lane
from graft.scripts.stack.guard import Child
from graft.scripts.stack.redis_server import StackError, last_lines

GRACE = 10.0


class Service:
    """One process of the stack beside Redis: a worker, Beat or Flower."""

    def __init__(self, name: str, log: Path, child: Child) -> None:
        self.name = name
        self.log = log
        self._child = child

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, pid {self.pid}>"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def process(self) -> psutil.Process:
        """A handle on the parent process; NoSuchProcess once that has ended."""
        return psutil.Process(self.pid)

    @property
    def status(self) -> int | None:
        """The exit code, -n when signal n ended it, or None while it runs."""
        return self._child.status()

    def signal(self, number: int) -> None:
        """Send a signal to the parent process alone."""
        self._child.signal(number)

    def kill(self) -> None:
        """Kill it with its pool processes, as the loss of a machine would, and wait until it is gone."""
        self._child.kill()

    def stop(self, timeout: float = GRACE) -> None:
        """Ask it to finish what it runs and end; killed with its pool processes after *timeout* seconds."""
        self._child.signal(signal.SIGTERM)
        if not self._child.wait(timeout):
            self.kill()

    def check(self) -> None:
        """Raise a StackError with the end of the log if it has ended."""
        if self.status is not None:
            raise StackError(f"{self.name} ended with exit code {self.status}:\n{last_lines(self.log)}")


class Worker(Service):
    """A worker; its name is Celery's node name."""

    def __init__(self, name: str, lane: Lane, log: Path, child: Child) -> None:
        super().__init__(name, log, child)
        self.lane = lane
