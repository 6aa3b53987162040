"""The pool itself: its processes, and the jobs that the worker's main process has for them.

    celery -A graft worker -c 8

A job is what Celery applies to a pool: a task that no pool process has taken by itself, or one whose run was promoted.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import select
import signal as signals
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from billiard.common import human_status
from billiard.context import ForkContext
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from billiard.pool import SIG_SOFT_TIMEOUT
from celery.concurrency import prefork
from celery.exceptions import ImproperlyConfigured
from kombu.asynchronous import get_event_loop

from graft.workers.direct.job import Job
from graft.workers.direct.link import MainEnd, ProcessEnd
from graft.workers.direct.process import PoolProcess
from graft.workers.direct.shared_state import MOST_PROCESSES, SharedState, State

logger = logging.getLogger(__name__)

KILLED_AFTER: Final = 0.1  # Seconds that a process has to end by itself after its hard time limit.
TERMINATE_SECONDS: Final = 5.0


class Child:
    """A pool process, as the main process knows it."""

    def __init__(self, number: int, process: Any, link: MainEnd, lock: Any) -> None:
        self.number, self.process, self.link, self.lock = number, process, link, lock
        self.pid: int = process.pid
        self.is_up = False
        self.is_leaving = False
        self.job: Job | None = None
        self.tag = ""  # Of the run that was promoted to this job.
        self.kill_at: float | None = None


class TaskPool(prefork.TaskPool):
    """Celery's prefork pool as far as anybody else can see."""

    uses_semaphore = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = SharedState()
        self.children: dict[int, Child] = {}
        self.on_message: Callable[..., None] = self._keep_message  # promotion.py takes its place.
        self.on_lost: Callable[[Child], None] = lambda child: None
        self.wake_others: Callable[[Iterable[Child]], None] = lambda children: None
        self._early: list[tuple[Any, ...]] = []
        self._jobs: deque[Job] = deque()
        self._count = 0
        self._size = int(self.limit)
        self._hub: Any = None
        self._is_closing = False

    # ---- processes ---------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        if self.options.get("threads", True):
            raise ImproperlyConfigured("the pool direct needs a broker on Redis; use prefork, or threads")
        self.maintain_pool()

    def register_with_event_loop(self, hub: Any) -> None:
        self._hub = hub
        for child in self.children.values():
            hub.add_reader(child.link.fileno(), self._read, child)

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Notice ended processes, and have as many as wanted."""
        for child in tuple(self.children.values()):
            if child.process.exitcode is not None:
                self._read(child)
        while not self._is_closing and sum(not child.is_leaving for child in self.children.values()) < self._size:
            self._fork()

    def _fork(self) -> None:
        number = next(number for number in range(MOST_PROCESSES) if number not in self.children)
        self.shared.clear(number)
        ours, theirs = socket.socketpair()
        lock = multiprocessing.get_context("fork").Lock()
        app, hostname = self.options["initargs"]
        runner = PoolProcess(
            number, ProcessEnd(theirs), self.shared, lock, app, hostname,
            self.options.get("maxtasksperchild"), self.options.get("max_memory_per_child"),
        )  # fmt: skip
        process = ForkContext().Process(
            target=_run, args=(runner, [ours, *(child.link for child in self.children.values())])
        )  # fmt: skip
        process.name = process.name.replace("Process", "PoolWorker")
        process.daemon = True
        process.index = number
        process.start()
        theirs.close()
        child = self.children[number] = Child(number, process, MainEnd(ours), lock)
        if self._hub is not None:
            self._hub.add_reader(child.link.fileno(), self._read, child)

    def _read(self, child: Child) -> None:
        messages, is_gone = child.link.read()
        for kind, *rest in messages:
            self._understand(child, kind, rest)
        if is_gone:
            self._bury(child)

    def _understand(self, child: Child, kind: str, rest: list[Any]) -> None:
        match kind:
            case "up":
                child.is_up = True
            case "job":
                self._give_job(child)
            case "done":
                self._end_job(child, rest[1])
            case "ended" if child.tag == rest[0]:
                self._end_job(child, rest[1])
            case _:
                self.on_message(child, kind, *rest)

    def _keep_message(self, child: Child, kind: str, *rest: Any) -> None:
        self._early.append((child, kind, *rest))

    def attach(self, on_message: Callable[..., None]) -> None:
        """Have *on_message* told what pool processes say of messages, from now on and before."""
        self.on_message = on_message
        early, self._early = self._early, []
        for said in early:
            on_message(*said)

    def _bury(self, child: Child) -> None:
        """A process has ended: what it ran is lost, unless it was told to end."""
        if self.children.get(child.number) is not child:
            return
        if self._hub is not None:
            self._hub.remove(child.link.fileno())
        child.link.close()
        child.process.join(TERMINATE_SECONDS)
        self.on_lost(child)
        del self.children[child.number]
        job, child.job = child.job, None
        if job is not None and job.signal is not None:
            job.fail(Terminated(-job.signal))
        elif job is not None:
            code = human_status(child.process.exitcode)
            job.fail(WorkerLostError(f"Worker exited prematurely: {code} Job: {job.number}."))
        self.shared.clear(child.number)
        if not self._is_closing and child.is_up:  # Else the next upkeep does it, half a second later.
            self.maintain_pool()

    # ---- jobs --------------------------------------------------------------------------------------------------------

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Job:
        job = self.new_job(target, args, **options)
        self._jobs.append(job)
        self._offer()
        return job

    def new_job(self, target: Any, arguments: Any, **options: Any) -> Job:
        """A job with the limits of the pool, where it has none of its own."""
        self._count += 1
        soft, hard = self.limits
        options["soft_timeout"] = options.get("soft_timeout") or soft
        options["timeout"] = options.get("timeout") or hard
        return Job(self._count, target, arguments, **options)

    def _offer(self) -> None:
        self.shared.jobs = len(self._jobs)
        if self._jobs:
            idle = [child for child in self.children.values() if child.is_up and child.job is None]
            for child in idle[: len(self._jobs)]:
                child.link.wake()
            self.wake_others(idle)

    def _give_job(self, child: Child) -> None:
        job = self._jobs.popleft() if self._jobs and not self._is_closing else None
        self.shared.jobs = len(self._jobs)
        text = pickle.dumps(job and (job.number, job.target, tuple(job.arguments)))
        try:
            child.link.answer(text)
        except OSError:  # It ends, or was stopped.
            if job is not None:
                self._jobs.appendleft(job)
                self.shared.jobs = len(self._jobs)
            return
        if job is not None:
            child.job = job
            job.accept(child.pid, time.monotonic())

    def promote(self, child: Child, tag: str, job: Job, began: float) -> None:
        """The run that *child* has begun by itself is *job* from now on."""
        child.job, child.tag = job, tag
        job.accept(child.pid, began)

    def _end_job(self, child: Child, answer: tuple[bool, Any]) -> None:
        job, child.job, child.tag = child.job, None, ""
        if job is not None:
            job.end(answer)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The pool's own time limits, soft and hard."""
        return self.options.get("soft_timeout"), self.options.get("timeout")

    def check_limits(self, now: float) -> None:
        """End what runs for too long."""
        for child in tuple(self.children.values()):
            if child.kill_at is not None and now >= child.kill_at:
                _signal(child.pid, signals.SIGKILL)
            job = child.job
            if job is None or job.began is None or job.is_over:
                continue
            if job.hard and now - job.began >= job.hard:
                job.fail(TimeLimitExceeded(job.hard))
                job.tell_timeout(soft=False)
                _signal(child.pid, signals.SIGTERM)
                child.kill_at = now + KILLED_AFTER
            elif job.soft and now - job.began >= job.soft:
                job.tell_timeout(soft=True)
                job.soft = None
                self._tell_soft_limit(child)

    def _tell_soft_limit(self, child: Child) -> None:
        """Unless its run has ended meanwhile: the next one would be told."""
        if not child.tag:
            _signal(child.pid, SIG_SOFT_TIMEOUT)
            return
        for entry in self.shared.entries(child.number):
            if entry.tag == child.tag and entry.state is State.PROMOTED:
                _signal(child.pid, SIG_SOFT_TIMEOUT)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        _signal(pid, int(signal or signals.SIGTERM))

    # ---- size --------------------------------------------------------------------------------------------------------

    @property
    def unseen_runs(self) -> int:
        """Runs that were not promoted, or not yet."""
        return sum(
            any(entry.state is State.RUNNING for entry in self.shared.entries(number))
            for number in tuple(self.children)
        )

    @property
    def num_processes(self) -> int:
        return self._size

    def grow(self, n: int = 1) -> None:
        if self._size + n > MOST_PROCESSES:
            raise ValueError(f"a pool has at most {MOST_PROCESSES} processes, not {self._size + n}")
        self._size += n
        self.maintain_pool()

    def shrink(self, n: int = 1) -> None:
        """Have *n* processes end, idle ones first; one that is busy ends after its run."""
        if n >= self._size:
            raise ValueError(f"cannot take {n} from a pool of {self._size} processes")
        self._size -= n
        staying = [child for child in self.children.values() if not child.is_leaving]
        for child in sorted(staying, key=lambda child: child.job is not None)[:n]:
            self._send_away(child)

    def restart(self) -> None:
        for child in tuple(self.children.values()):
            self._send_away(child)
        self.maintain_pool()

    def _send_away(self, child: Child) -> None:
        child.is_leaving = True
        self.shared.end(child.number)
        child.link.wake()
        self.wake_others([child])

    def did_start_ok(self) -> bool:
        return all(child.process.exitcode is None for child in self.children.values())

    def flush(self) -> None:
        """Celery's asks for what is written to pipes; there is nothing."""

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super(prefork.TaskPool, self)._get_info()
        return {
            **info,
            "max-concurrency": self.limit,
            "processes": [child.pid for child in self.children.values()],
            "max-tasks-per-child": self.options.get("maxtasksperchild") or "N/A",
            "put-guarded-by-semaphore": False,
            "timeouts": (self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0),
            "waiting": len(self._jobs),
        }

    # ---- stop --------------------------------------------------------------------------------------------------------

    def on_close(self) -> None:
        self._is_closing = True

    def stop_jobs(self) -> None:
        """Begin none of the jobs that wait: their messages go back."""
        self._jobs.clear()
        self.shared.jobs = 0

    def on_stop(self) -> None:
        """Finish what runs. A cold shutdown may come meanwhile, and terminate it."""
        self._is_closing = True
        self.stop_jobs()
        for child in tuple(self.children.values()):
            self._send_away(child)
        while self.children:
            self.take_turn(0.1)

    def on_terminate(self) -> None:
        """End what runs; its messages go back as the consumer closes."""
        self._is_closing = True
        self.stop_jobs()
        for child in tuple(self.children.values()):
            _signal(child.pid, signals.SIGTERM)
        deadline = time.monotonic() + TERMINATE_SECONDS
        while self.children and time.monotonic() < deadline:
            self.take_turn(0.05)
        for child in tuple(self.children.values()):
            _signal(child.pid, signals.SIGKILL)
        while self.children:
            self.take_turn(0.05)

    def take_turn(self, seconds: float) -> None:
        """What the event loop does, while the pool is waited for: timers fire, messages are settled."""
        links = {child.link: child for child in self.children.values()}
        for link in select.select(links, [], [], seconds)[0]:
            self._read(links[link])
        hub = get_event_loop()
        if hub is None:
            return
        for ready in hub._pop_ready():
            ready()
        hub.fire_timers()


def _run(runner: PoolProcess, of_the_parent: Iterable[socket.socket | MainEnd]) -> None:
    for link in of_the_parent:
        link.close()
    runner.run()


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError as error:
        logger.debug("process %d is gone: %s", pid, error)
