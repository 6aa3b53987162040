"""The deployment in the model: one Redis, workers, a caller, an operator, a clock, and what truly happened.

Whatever decides runs unchanged: the channel and its scripts, the guard, the counters, letters, replay and search.
The model only says who takes the next step, what time it is, and who dies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, TypeVar

import redis
from kombu import Consumer, Queue
from redis.backoff import NoBackoff
from redis.lock import Lock
from redis.retry import Retry

from graft.config import each_second, keys, lua, redis_client, redis_clock
from graft.config.deployment import current as deployment
from graft.config.deployment import settings
from graft.config.transport import fetch, qos
from graft.scripts.model import items
from graft.scripts.model.actors import INSIDE, Actor, Fate, Process, Scheduler
from graft.scripts.model.batches import Batch, Batches, Caller
from graft.scripts.model.clocks import Clocks
from graft.scripts.model.helpers import LOCKED
from graft.scripts.model.people import People
from graft.scripts.model.snapshot import LOOK, Snapshot
from graft.scripts.model.wire import Wire
from graft.scripts.model.witness import Witness
from graft.scripts.model.worker import QUEUE, Worker
from graft.tasks import worker_runtime
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.messages.message_format import lists
from graft.tasks.pools import due_messages, state
from graft.tasks.results import celery_backend
from graft.tasks.running import envelope_task, work_stealing
from graft.tasks.sending import amqp, batch_sender
from graft.workers import async_tasks, outbox_patch, result_patch

T = TypeVar("T")

TAGGED: Final = "t-"  # So a delivery's tag begins.
TRIES: Final = 2  # How often a command is tried again.
STOPS: Final = (INSIDE, "pause", LOCKED)  # Where an actor stands that waits, rather than before a command.


class Broken(AssertionError):
    """A guarantee does not hold."""


class World(Batches, People, Clocks, Witness):
    """One deployment and its history. Make one for a process, and ``reset`` it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.scheduler = Scheduler()
        self.scheduler.on_step = self.note
        self.wire = Wire(self.scheduler)
        self.wire.announce = self._announce
        self._announced: list[bytes] = []  # Records that were published and nobody has heard.
        self.scheduler.on_switch = self._switched
        self.redis: Any = redis.Redis.from_url(settings().broker_url)
        # As patient as a worker's, whose commands are tried again for two minutes (redis_client.be_patient).
        self._clients: Any = redis_client.connect(retry=Retry(NoBackoff(), TRIES))
        self._links: dict[str, tuple[Any, Any, Any]] = {}
        self._look = self.redis.register_script(LOOK)
        self._seen: Snapshot | None = None
        Clocks.__init__(self)
        self.begins_deaf = False  # So is the caller, when a history begins.
        self._made: list[Worker] = []
        items.define(app, self)
        assert envelope_task.run_envelope  # Registered with the app.
        result_patch.install()
        outbox_patch.install()
        async_tasks.prepare(app)
        self.know_scripts()

    def know_scripts(self) -> None:
        """Have Redis know every script of the project: asking for one that it does not know is another history."""
        self.wire.forget_scripts()
        for script in (*lua.LOADED, fetch.FETCH.encode()):
            self.wire.load(script, self.redis)
        for text in (Lock.LUA_RELEASE_SCRIPT, Lock.LUA_EXTEND_SCRIPT, Lock.LUA_REACQUIRE_SCRIPT):
            self.wire.load(text.encode(), self.redis)

    # ---- installing -------------------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Meanwhile this process is the model."""
        patches: list[tuple[Any, str, Any]] = [
            (time, "time", self.local_time),
            (redis_clock, "running", lambda: self.elapsed),
            (redis_clock, "now", lambda: self.now + self._ticked()),
            (fetch, "uuid", lambda: TAGGED.rstrip("-")),
            (fetch, "itertools", SimpleNamespace(count=lambda: iter(self._next_number, None))),
            (qos, "get_event_loop", self._hub),
            (celery_backend, "task_join_will_block", lambda: True),  # As in a pool process: nobody listens.
            (amqp, "_is_declared", lambda queue, producer: True),  # As in all but the first sending.
            (worker_runtime, "pause", lambda seconds: self.scheduler.stop("pause")),
            (time, "perf_counter", lambda: self.elapsed),
            (dead_letters, "redis_clock", SimpleNamespace(now=self._next_burial)),
            (each_second._Writers, "add", lambda *_: None),  # Statistics, on a thread of their own.
            (work_stealing, "sibling_of", self._sibling_of),
            (work_stealing, "slots", lambda queue: 2),
            (batch_sender, "slots", lambda queue, client: 2),
            (due_messages, "table", lambda: SimpleNamespace(batch=QUEUE)),
            (state, "uuid4", lambda: SimpleNamespace(hex="f" * 32)),
        ]
        before = [(where, name, getattr(where, name)) for where, name, _ in patches]
        for where, name, value in patches:
            setattr(where, name, value)
        try:
            with self.wire.installed():
                yield
        finally:
            for where, name, value in before:
                setattr(where, name, value)

    def reset(self, workers: int = 2) -> None:
        """Begin anew, with an empty Redis."""
        self.close()
        self.redis.flushall()
        self.reset_clocks()
        self.forget()
        self._tags_made = 1000  # As texts they have the order of numbers.
        self.owners: dict[str, str] = {}  # The worker of each delivery.
        self.priorities = {}
        self.accepted = set()
        self.replayed = Counter[str]()
        self.doubled = Counter[str]()  # Messages that the network delivered once more.
        self.arrived = Counter[str]()  # Messages of tasks that follow others, by how often one came.
        self.cancelled, self.replaced = set(), set()
        self.workers: dict[str, Worker] = {}
        self.caller = self.operator = None
        self.batches: dict[str, Batch] = {}
        self.at_caller, self.callers_made = Caller(), 0
        self.at_caller.is_deaf = self.begins_deaf
        self._announced.clear()
        self._burials = 0
        self.redis.execute_command("ZADD", keys.QUEUES, 0, QUEUE)
        for number in range(workers):
            self.add_worker(f"w{number + 1}")

    def close(self) -> None:
        """Let go of every worker, and of what people are about."""
        for actor in (self.caller, self.operator):
            if actor is not None:
                self.scheduler.kill(actor)
        for worker in self._made:
            self._close(worker)
        self._made.clear()
        for _, channel, _ in self._links.values():
            channel.qos._on_collect.cancel()  # Else it gives back, at the end of this process, what it holds.

    def add_worker(self, name: str) -> Worker:
        worker = self.workers[name] = Worker(self, name)
        self._made.append(worker)
        return worker

    def _close(self, worker: Worker) -> None:
        for actor in (worker.at_helper, worker.at_pool, worker.at_main):
            if actor is not None:
                self.scheduler.kill(actor)

    def link(self, name: str) -> tuple[Any, Any]:
        """A channel and a consumer for worker *name*, as new; the connections behind them are kept."""
        if name not in self._links:
            connection = self.app.connection_for_read()
            channel = connection.channel()
            channel.collects_acks = True
            queue = Queue(QUEUE, routing_key=QUEUE)
            consumer = Consumer(channel, [queue], accept=["json"], auto_declare=False, no_ack=False)
            consumer.consume()
            client = channel.client
            client.connection = client.connection_pool.get_connection()
            self._links[name] = connection, channel, consumer
        _, channel, consumer = self._links[name]
        channel.qos._on_collect.cancel()
        channel._qos = None
        channel.pending_acks, channel.unsent_acks, channel.recorded_tag = {}, [], ""
        channel._fetcher, channel._in_poll, channel._next_flush_at = fetch.Fetcher(), None, 0.0
        return channel, consumer

    def clients(self) -> dict[Any, Any]:
        """The clients that every process makes for itself: here one, which has no state of its own."""
        return {redis_client._shared: self._clients}

    def client(self) -> Any:
        return self._clients

    def _switched(self, is_inside: bool) -> None:
        self.wire.is_direct = not is_inside
        self._seen = None

    def inside(self, process: Process, func: Callable[[], T]) -> T:
        """What *func* returns in *process*, in one go."""
        process.parts.update(self.clients())
        before, deployment._parts = deployment._parts, process.parts
        try:
            return func()
        finally:
            deployment._parts = before

    def begin(self, actor: Actor) -> Actor:
        """Have *actor* take its first step; up to there it has done nothing that others notice."""
        actor.process.parts.update(self.clients())
        self.step(actor)
        if not actor.is_over and actor.next not in STOPS:
            self.step(actor)
        return actor

    def step(self, actor: Actor, fate: Fate = "go") -> None:
        self.scheduler.step(actor, fate)

    def _hub(self) -> Any:
        actor = self.scheduler.current
        worker = None if actor is None else self.workers.get(actor.process.name.partition(".")[0])
        return None if worker is None else _Hub(worker)

    def _next_number(self) -> int:
        """A number for the next delivery: of leases of one moment that of the earlier one is swept first."""
        self._tags_made += 1
        actor = self.scheduler.current
        self.owners[f"{TAGGED}{self._tags_made}"] = "?" if actor is None else actor.process.name.partition(".")[0]
        return self._tags_made

    # ---- batches ----------------------------------------------------------------------------------------------------

    def _announce(self, record: bytes) -> None:
        self._announced.append(record)

    def _next_burial(self) -> float:
        """No two letters are of the same moment: a run lies between them, which takes no time here."""
        self._burials += 1
        return self.now + 1e-6 * self._burials

    def _sibling_of(self, envelope_id: str) -> str:
        """The id of an envelope that a worker makes of *envelope_id*."""
        made = f"{envelope_id[:24]}f{len(self.batches):011x}"
        self.adopted(envelope_id, made)
        return made

    def settle_steps(self) -> None:
        """Take note of the actors that have come to their end, and have the caller hear what there is to hear."""
        while self._announced:
            self.announced(self._announced.pop(0))
        if self.batches:
            self.listen()
        for worker in self.workers.values():
            worker.settle_steps()
        for name in ("caller", "operator"):
            actor = getattr(self, name)
            if actor is not None and actor.is_over:
                setattr(self, name, None)
                if actor.error is not None and not isinstance(actor.error, redis.RedisError | OSError):
                    raise actor.error

    # ---- looking ----------------------------------------------------------------------------------------------------

    def look(self) -> Snapshot:
        """What Redis holds now. Read once for each step, in one round trip."""
        if self._seen is None:
            self._seen = Snapshot.of(self._look(args=lists(QUEUE)))
        return self._seen

    def forget_look(self) -> None:
        """What Redis holds has changed."""
        self._seen = None

    def has_expired(self, name: str) -> bool:
        """Whether there is something to sweep: by Redis's clock, and in a variant also by that of worker *name*."""
        latest = self.now + self.wrong_clocks.get(name, 0.0) - settings().visibility_timeout
        return any(at <= latest for at in self.look().leases.values())


class _Hub:
    """The event loop of a worker's main process, as far as acknowledgements need it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def call_later(self, delay: float, func: Callable[[], object]) -> None:
        self._worker.timers.append(func)
