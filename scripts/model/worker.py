"""A worker in the model: the real channel, leases, requests, tracer and guard, without Celery's event loop and pool.

Two processes: the main one fetches, renews, sweeps and settles; the pool process runs one task at a time.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any, Final, Protocol

import redis
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.app.trace import trace_task_ret
from celery.worker.request import Request

from graft.scripts.model.actors import INSIDE, Actor, Process, Scheduler
from graft.scripts.model.helpers import OnDemand, WatchOnDemand
from graft.tasks import worker_runtime
from graft.tasks.delivery import cancellation, lease, run_counter
from graft.tasks.delivery.lease import MARGIN
from graft.tasks.delivery.poison_isolation import _Turnstile
from graft.tasks.queues import pause
from graft.tasks.running.cancel_watch import CancelWatch
from graft.tasks.running.work_stealing import Offer, Sharer
from graft.workers.bootsteps.lease_renewal import LeaseRenewal

logger = logging.getLogger(__name__)

QUEUE: Final = "default"
PREFETCH: Final = 1
HELPED: Final = frozenset({"share", "tell", "look"})  # What threads of a pool process do.
WAIT: Final = 0.001  # Seconds that a fetch waits for a notice, on the clock of this machine.


class Deployment(Protocol):
    """What a worker needs of the model's world."""

    app: Any
    scheduler: Scheduler
    now: float
    restarts: Counter[str]
    cancelled: set[str]
    replayed: Counter[str]
    told_of: dict[str, set[str]]

    def inside(self, process: Process, func: Callable[[], Any]) -> Any:
        """What *func* returns in *process*, in one go."""

    def begin(self, actor: Actor) -> Actor:
        """Have *actor* take its first step."""

    def step(self, actor: Actor) -> None: ...
    def link(self, name: str) -> tuple[Any, Any]:
        """A channel and a consumer for worker *name*, as new."""

    def clients(self) -> dict[Any, Any]:
        """The parts that every process makes for itself."""

    def client(self) -> Any: ...
    def look(self) -> Any:
        """What Redis holds now."""

    def has_expired(self, name: str) -> bool:
        """Whether there is something to sweep for worker *name*."""

    def fetched(self, name: str, task_id: str, tag: str) -> None: ...
    def died(self, name: str, task_id: str, *, has_begun: bool, is_told: bool) -> None:
        """A process of worker *name* ends, with a task whose code had begun or not."""

    def let_go(self, name: str) -> None:
        """The whole worker *name* is dead."""


class Worker:
    """One worker, until it dies or stops."""

    def __init__(self, world: Deployment, name: str) -> None:
        self.world = world
        self.name = name
        self.main = Process(f"{name}.main")
        self.pool = Process(f"{name}.pool")
        self.at_main: Actor | None = None
        self.at_pool: Actor | None = None
        self.at_helper: Actor | None = None  # A thread of the pool process.
        self.offers: list[Offer] = []  # What its envelope has not begun.
        self.reserved: deque[Request] = deque()
        self.running: Request | None = None
        self.ended: deque[tuple[Request, Any]] = deque()  # What the pool process has to say.
        self.collected: Request | None = None  # Of which the main process takes up the end.
        self.timers: list[Callable[[], object]] = []
        self.is_stopping = False
        self.is_frozen = False
        self.is_paused = False  # Its queue is, as far as it knows.
        self.obeys = True  # It looks by itself whether its queue is paused.
        self.renewed_at = world.now
        self.world.inside(self.main, self._boot)

    def _boot(self) -> None:
        worker_runtime.enter_worker()
        cancellation.keep_filter().update(self.world.client())  # Before it fetches anything.
        self.world.told_of.pop(self.name, None)
        clock = lease.keep_clock()
        self.channel, self.consumer = self.world.link(self.name)
        self.consumer.on_message = self._received
        self.channel.qos._owners_could_report = True  # The model's Redis has been up for long.
        self.channel.basic_qos(0, PREFETCH, False)
        consumer: Any = SimpleNamespace(task_consumer=self.consumer, pool=None, kept={})
        self.leases = LeaseRenewal(consumer)
        self.leases._channel = self.channel
        clock.renewed(lease.now(), self.channel.visibility_timeout)
        self._fork()

    def _fork(self) -> None:
        """A new pool process, with those parts of its parent that outlive a fork."""
        self.pool = Process(f"{self.name}.pool")
        kept = {make: part for make, part in self.main.parts.items() if hasattr(part, "after_fork")}
        kept.pop(_Turnstile, None)
        self.pool.parts = kept
        self.pool.parts.update(self.world.clients())
        self.offers = []
        self.pool.parts[Sharer] = OnDemand(self.world.scheduler, self.offers)
        self.pool.parts[CancelWatch] = WatchOnDemand()

    @property
    def processes(self) -> tuple[Process, Process]:
        return self.main, self.pool

    @property
    def is_dead(self) -> bool:
        return self.main.is_dead

    def requests(self) -> Iterator[Request]:
        """Those that it has to run, runs, or has to say something about."""
        yield from self.reserved
        yield from (request for request, _ in self.ended)
        yield from (request for request in (self.running, self.collected) if request is not None)

    @property
    def held(self) -> dict[str, str]:
        """The messages that this worker believes to hold: task's id by delivery tag."""
        return {tag: message.headers["id"] for tag, message in self.channel.qos.outstanding().items()}

    # ---- the main process --------------------------------------------------------------------------------------------

    def operations(self) -> list[str]:
        """What the main process may begin now."""
        if self.is_dead or self.is_stopping or self.at_main is not None:
            return []
        found = []
        if self.timers:
            found.append("acks")
        if self.main.is_cut:
            return found
        channel = self.channel
        if not self.is_paused and channel.qos.can_consume() and self.world.look().queue:
            found.append("fetch")
        if self.may_renew():
            found.append("renew")
        if self.is_behind():
            found.append("obey")
        if self.world.has_expired(self.name):
            found.append("sweep")
        return found

    def may_renew(self) -> bool:
        """Whether a renewal would change anything: a lease that is older than now or gone, or what is certain."""
        if self.channel.pending_acks:
            return self.renewed_at != self.world.now
        leases, certain = self.world.look().leases, MARGIN * self.channel.visibility_timeout
        return bool(self.held) and (
            self.is_certain_for() < round(certain, 3) or any(leases.get(tag, 0.0) < self.world.now for tag in self.held)
        )

    def is_behind(self) -> bool:
        """Whether it has yet to learn of a pause, its end, or a cancelled task. Others are told by chance alone."""
        now = self.world.look()
        return self.obeys and (now.is_paused != self.is_paused or not self.knows_all_cancelled(now.cancelled))

    def knows_all_cancelled(self, names: Iterable[str]) -> bool:
        known = self.main.parts[cancellation.SharedFilter]
        return all(name in known for name in names)

    def help_operations(self) -> list[str]:
        """What a helper thread of the pool process may begin now."""
        if self.is_dead or self.is_stopping or self.at_helper is not None or self.at_pool is None or self.main.is_cut:
            return []
        found = []
        if any(offer._todo for offer in self.offers) and not self.world.look().queue:
            found.append("share")
        return found

    def begin(self, operation: str) -> None:
        """Have the main process begin *operation*, or a helper thread of the pool process."""
        func = getattr(self, f"_{operation}")
        if operation in HELPED:
            self.at_helper = self.world.begin(Actor(self.pool, f"{self.name}.helper", func))
            return
        self.at_main = self.world.begin(Actor(self.main, f"{self.name}.main", func))

    def _fetch(self) -> None:
        channel = self.channel
        channel._brpop_start(timeout=WAIT)
        try:
            if channel._in_poll:
                channel._brpop_read()
        except Empty:
            pass

    def _received(self, message: Any) -> None:
        """As Celery's own strategy does, without events and rates."""
        task = self.world.app.tasks[message.headers["task"]]
        body = message.body if message.headers.get("lang") else message.payload
        self.reserved.append(
            Request(
                message, on_ack=message.ack_log_error, on_reject=message.reject_log_error, app=self.world.app,
                hostname=self.name, eventer=None, task=task, connection_errors=self.channel.connection_errors,
                body=body, headers=message.headers, decoded=False, utc=True,
            )
        )  # fmt: skip
        self.world.fetched(self.name, message.headers["id"], message.delivery_tag)

    def _renew(self) -> None:
        self.renewed_at = self.world.now
        self.leases.renew()

    def _sweep(self) -> None:
        self.channel.qos.restore_visible(num=200, interval=1)

    def _acks(self) -> None:
        timers, self.timers = self.timers, []
        for func in timers:
            func()

    def _collect(self) -> None:
        request, answer = self.ended.popleft()
        self.collected = request
        if isinstance(answer, ExceptionInfo):
            request.on_failure(answer)
        else:
            request.on_success(answer)

    def _stop(self) -> None:
        """A cold shutdown: what runs is pardoned. Then it is ended, all messages go back, and the process ends."""
        self.is_stopping = True
        self.world.restarts.update({*self.held.values()})
        if self.running is not None:
            retries = int(self.running.request_dict.get("retries") or 0)
            run = (self.running.id, retries, self.running.message.delivery_tag)
            run_counter.pardon([run], self.world.client())

    def _leave(self) -> None:
        self.channel.qos.send_acks()
        self.channel.qos.restore_unacked()
        self.main.is_dead = True

    def _obey(self) -> None:
        """Look whether the queue is paused, and what is cancelled (queue_pause.py, cancel_filter.py)."""
        self.is_paused = QUEUE in pause.paused(self.world.client())
        known = [task_id for task_id in self.world.cancelled if task_id not in self.world.replayed]
        cancellation.keep_filter().update(self.world.client())
        inside = self.running.id if self.running is not None else ""
        self.world.told_of.setdefault(self.name, set()).update(name for name in known if name != inside)

    # ---- helper threads of the pool process --------------------------------------------------------------------------

    def _share(self) -> None:
        """Give away what the envelope that runs has not begun."""
        for offer in tuple(self.offers):
            offer.share()

    def _tell(self) -> None:
        """Publish what has ended of the envelope that runs."""
        for offer in tuple(self.offers):
            offer.tell()

    def _look(self) -> None:
        """Look whether what runs is cancelled."""
        watch = self.pool.parts[CancelWatch]
        watch.look(self.world.client())

    # ---- the pool process --------------------------------------------------------------------------------------------

    def can_run(self) -> bool:
        return bool(self.reserved) and self.at_pool is None and not self.is_dead and not self.is_stopping

    def run(self) -> None:
        """Have the pool process begin the next task."""
        request = self.running = self.reserved.popleft()
        self.at_pool = self.world.begin(Actor(self.pool, f"{self.name}.pool", lambda: self._run(request)))

    def _run(self, request: Request) -> None:
        answer = trace_task_ret(
            request.name, request.id, dict(request.request_dict), request.body, request.content_type,
            request.content_encoding, app=self.world.app,
        )  # fmt: skip
        self.ended.append((request, answer))

    def end_pool(self, *, is_told: bool = False) -> None:
        """The pool process dies; unless the worker was *told* to end, its main process hears of it."""
        actor, request = self.at_pool, self.running
        self.pool.is_dead = True
        self._end_run(is_told=is_told)
        self.at_pool = self.running = None
        if actor is not None and not is_told:
            try:
                raise WorkerLostError("the pool process died")
            except WorkerLostError:
                self.ended.append((request, ExceptionInfo()))
        self.world.inside(self.main, self._fork)

    def _end_run(self, *, is_told: bool) -> None:
        actor, request = self.at_pool, self.running
        if actor is None or request is None:
            return
        has_begun = INSIDE in actor.steps or actor.next == INSIDE
        self.world.died(self.name, request.id, has_begun=has_begun, is_told=is_told)
        self.world.scheduler.kill(actor)
        if self.at_helper is not None:
            self.world.scheduler.kill(self.at_helper)
            self.at_helper = None

    def die(self) -> None:
        """The whole worker dies."""
        self._end_run(is_told=False)
        if self.at_main is not None:
            self.world.scheduler.kill(self.at_main)
        self.main.is_dead = self.pool.is_dead = True
        self.at_main = self.at_pool = None
        self.world.let_go(self.name)

    def settle_steps(self) -> None:
        """Note which actors have come to their end."""
        if self.at_main is not None and self.at_main.is_over:
            error, self.at_main, self.collected = self.at_main.error, None, None
            if error is not None and not isinstance(error, redis.RedisError | OSError):
                raise error
            if self.is_stopping and not self.is_dead:
                self.end_pool(is_told=True)
                self.begin("leave")
                self.settle_steps()
                return
        if self.at_helper is not None and self.at_helper.is_over:
            error, self.at_helper = self.at_helper.error, None
            if error is not None and not isinstance(error, redis.RedisError | OSError):
                raise error
        if self.at_pool is not None and self.at_pool.is_over:
            error, self.at_pool, self.running = self.at_pool.error, None, None
            if error is not None:
                raise error
        if self.ended and self.at_main is None and not self.is_dead and not self.is_stopping:
            # At once: up to its first command this is nobody else's business.
            actor = self.at_main = Actor(self.main, f"{self.name}.main", self._collect)
            self.world.step(actor)
            self.settle_steps()

    def is_certain_for(self) -> float:
        """For how many seconds this worker takes its leases for certain."""
        clock: lease.LeaseClock = self.main.parts[lease.LeaseClock]
        return max(0.0, round(clock.holds_until - lease.now(), 3))
