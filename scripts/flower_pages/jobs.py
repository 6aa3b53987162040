"""Acts that take longer than a viewer waits: one thread each in Flower's process, shown with a bar, and to be stopped.

A job goes through a list, one step for each entry. If Flower ends meanwhile, what is left stays as it was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from graft.config.redis_client import shared
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.scripts.flower_pages.reading import UNREACHABLE
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import audit

logger = logging.getLogger(__name__)

REMEMBERED: Final = 10


@dataclass
class Job:
    """One act on a list. ``done`` counts what was changed, ``refused`` what could not be, ``seen`` all."""

    id: str
    title: str
    total: int
    began: float
    seen: int = 0
    done: int = 0
    refused: int = 0
    error: str = ""
    ended: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def result(self) -> str:
        parts = [f"{self.done:,} of {self.total:,} done"]
        if self.refused:
            parts.append(f"{self.refused:,} refused and kept: {self.error}")
        elif self.error:
            parts.append(self.error)
        return "; ".join(parts + ["stopped"] * self.stop.is_set())


@dataclass(frozen=True)
class JobLine:
    """A job as pages show it. ``ended`` is 0 while it runs; times are seconds since the epoch."""

    id: str
    title: str
    total: int
    seen: int
    result: str
    began: float
    ended: float


class Jobs:
    """The jobs of this process, the latest first."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def start(
        self, act: str, title: str, entries: Sequence[str], step: Callable[[str], bool], rate: float | None = None
    ) -> Job:
        """Call ``step(entry)`` for each of *entries*, at most *rate* a second; it says whether it changed something."""
        job = Job(act, title, len(entries), time.time())
        self._jobs = [job, *self._jobs[: REMEMBERED - 1]]
        arguments = (job, list(entries), step, rate)
        threading.Thread(target=_run, args=arguments, name=f"graft-job-{act}", daemon=True).start()
        return job

    def lines(self) -> tuple[JobLine, ...]:
        return tuple(
            JobLine(job.id, job.title, job.total, job.seen, job.result, job.began, job.ended) for job in self._jobs
        )

    def running(self, name: str) -> Job:
        """The job *name*, if it runs.

        Raises:
            LookupError: it does not.
        """
        for job in self._jobs:
            if job.id == name and not job.ended:
                return job
        raise LookupError("this job has ended, or runs in another Flower")


@cache
def jobs() -> Jobs:
    """Those of this process."""
    return Jobs()


def _run(job: Job, entries: Sequence[str], step: Callable[[str], bool], rate: float | None) -> None:
    client: Any = shared()
    began = time.monotonic()
    try:
        for entry in entries:
            if rate and job.stop.wait(max(0.0, began + job.done / rate - time.monotonic())):
                break
            if job.stop.is_set():
                break
            try:
                job.done += step(entry)
            except TaskQueueError as error:
                job.refused, job.error = job.refused + 1, str(error)
            job.seen += 1
    except Exception as error:  # Whatever it is, the audit list says it.
        job.error = f"{type(error).__name__}: {error}"
        logger.exception("%s ended early", job.title)
    finally:
        job.ended = time.time()
    try:
        audit.end(job.id, job.result, client)
    except UNREACHABLE as error:
        logger.warning("%s: %s; the audit list could not be told: %s", job.title, job.result, error)


def _plan_stop(given: Given) -> Plan:
    job = jobs().running(given.get("job", ""))
    left = job.total - job.seen
    return Plan(f"Stop “{job.title}”", f"{job.result}. What is left stays as it is.", "Stop it", left)


def _stop(given: Given) -> str:
    job = jobs().running(given.get("job", ""))
    job.stop.set()
    return job.result


STOP: Final = Action(_plan_stop, _stop)
