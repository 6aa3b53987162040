"""The deployment in the model: one Redis, workers, a caller, an operator, a clock, and what truly happened.

Whatever decides runs unchanged: the channel and its scripts, the guard, the counters, letters, replay and search.
The model only says who takes the next step, what time it is, and who dies.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis
from celery import Task
from kombu import Consumer, Queue
from redis.backoff import NoBackoff
from redis.lock import Lock
from redis.retry import Retry

from graft.config import keys, lua, redis_client, redis_clock
from graft.config.deployment import current as deployment
from graft.config.deployment import settings
from graft.config.transport import fetch, qos, quarantine
from graft.scripts.model.actors import INSIDE, Actor, Died, Fate, Process, Scheduler
from graft.scripts.model.wire import CLOCK, Wire
from graft.scripts.model.worker import QUEUE, Worker
from graft.tasks import worker_runtime
from graft.tasks.dead_letters import replay
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import cancellation
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import locate
from graft.workers import async_tasks, outbox_patch, result_patch

T = TypeVar("T")

TASK: Final = "model.work"
TRIES: Final = 2  # How often a command is tried again.
EPOCH: Final = 1_700_000_000.0
STOPS: Final = (INSIDE, "pause")  # Where an actor stands that waits, rather than before a command.
READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
ID: Final = re.compile(rb'"correlation_id": ?"([^"]*)"')
# Every key's expiry, that much nearer.
AGE: Final = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, math.max(0, left - ARGV[1] * 1000)) end
end
"""

LOOK: Final = f"""
local waiting, results, runs = {{}}, {{}}, {{}}
for _, key in ipairs(ARGV) do
  local found = redis.call('LRANGE', key, 0, -1)
  for i = #found, 1, -1 do waiting[#waiting + 1] = found[i] end
end
for _, key in ipairs(redis.call('KEYS', 'celery-task-meta-*')) do results[#results + 1] = redis.call('GET', key) end
for _, key in ipairs(redis.call('KEYS', '{keys.RUN}*')) do
  runs[#runs + 1] = key
  runs[#runs + 1] = redis.call('HGETALL', key)
end
return {{
  waiting, redis.call('HGETALL', '{keys.UNACKED}'), redis.call('ZRANGE', '{keys.UNACKED_INDEX}', 0, -1, 'WITHSCORES'),
  results, redis.call('HVALS', '{dead_letters.LETTERS}'), redis.call('LRANGE', '{quarantine.MESSAGES}', 0, -1), runs,
  redis.call('EXISTS', '{keys.UNACKED_MUTEX}'),
}}
"""


class Broken(AssertionError):
    """A guarantee does not hold."""


class ExpectedError(Exception):
    """What a task raises because it is told to."""


class World:
    """One deployment and its history. Make one for a process, and ``reset`` it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.scheduler = Scheduler()
        self.scheduler.on_step = self._note
        self.wire = Wire(self.scheduler.pause, self.scheduler.hear)
        self.scheduler.on_switch = self._switched
        self.redis: Any = redis.Redis.from_url(settings().broker_url)
        # As patient as a worker's, whose commands are tried again for two minutes (redis_client.be_patient).
        self._clients: Any = redis_client.connect(retry=Retry(NoBackoff(), TRIES))
        self._links: dict[str, tuple[Any, Any, Any]] = {}
        self._look = self.redis.register_script(LOOK)
        self._seen: Snapshot | None = None
        self._age = self.redis.register_script(AGE)
        self.now = EPOCH
        self.elapsed = 0.0  # On the clocks of machines that go on evenly, whatever Redis's clock does.
        self.wrong_clocks: dict[str, float] = {}  # The skew that each history begins with.
        self._made: list[Worker] = []
        self.tick = (
            0.0  # By how much local clocks go on between two looks at one. With none, histories can be compared.
        )
        self._ticks = 0.0
        self.skew: dict[str, float] = {}  # By worker: how far its own clock is ahead.
        self._kept_clock = time.time
        self._define_task()
        self.know_scripts()

    def _note(self, text: str) -> None:
        self.log.append(text)

    def know_scripts(self) -> None:
        """Have Redis know every script of the project: asking for one that it does not know is another history."""
        self.wire.forget_scripts()
        for script in (*lua.LOADED, fetch.FETCH.encode()):
            self.wire.load(script, self.redis)
        for text in (Lock.LUA_RELEASE_SCRIPT, Lock.LUA_EXTEND_SCRIPT, Lock.LUA_REACQUIRE_SCRIPT):
            self.wire.load(text.encode(), self.redis)

    def _define_task(self) -> None:
        world = self

        class Work(Task):
            abstract = True
            graft_letters = True

        @self.app.task(name=TASK, base=Work, bind=True)
        def work(task: Any, label: str) -> str:
            return world.item(task.request.id, label)

        result_patch.install()
        outbox_patch.install()
        async_tasks.prepare(self.app)

    # ---- installing -------------------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Meanwhile this process is the model."""
        patches: list[tuple[Any, str, Any]] = [
            (time, "time", self.local_time),
            (redis_clock, "running", lambda: self.elapsed),
            (redis_clock, "now", lambda: self.now + self._ticked()),
            (fetch, "uuid", self._next_tag),
            (qos, "get_event_loop", self._hub),
            (worker_runtime, "pause", lambda seconds: self.scheduler.stop("pause")),
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
        self.now, self.elapsed = EPOCH, 1000.0
        self.skew = dict(self.wrong_clocks)
        self.tags: dict[str, tuple[str, str]] = {}  # Worker and task by delivery tag.
        self._tags_made = Counter[str]()
        self.priorities: dict[str, int] = {}
        self.accepted: set[str] = set()
        self.begun = Counter[str]()
        self.finished = Counter[str]()
        self.deaths = Counter[str]()  # Of processes while the code of this task ran.
        self.kills = Counter[str]()  # That the code itself has ended.
        self.lost = Counter[str]()  # Deliveries that went back while their worker lived.
        self.restarts = Counter[str]()  # Of workers that held this task when they were told to stop.
        self.replayed = Counter[str]()
        self.cancelled: set[str] = set()
        self.log: list[str] = []
        self.workers: dict[str, Worker] = {}
        self.caller: Actor | None = None
        self.operator: Actor | None = None
        self._set_clock()
        self.redis.execute_command("ZADD", keys.QUEUES, 0, QUEUE)
        for number in range(workers):
            self.add_worker(f"w{number + 1}")

    def close(self) -> None:
        """Let go of every worker."""
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
        for actor in (worker.at_pool, worker.at_main):
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

    def _next_tag(self) -> str:
        actor = self.scheduler.current
        name = "model" if actor is None else actor.process.name.partition(".")[0]
        self._tags_made[name] += 1
        return f"{name}-{self._tags_made[name]}"

    # ---- time -------------------------------------------------------------------------------------------------------

    def local_time(self) -> float:
        """The clock of the machine of whoever asks."""
        actor = self.scheduler.current
        if actor is None:
            return self.now
        return self.now + self._ticked() + self.skew.get(actor.process.name.partition(".")[0], 0.0)

    def _ticked(self) -> float:
        self._ticks += self.tick
        return self._ticks

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, for everybody."""
        self.now += seconds
        self.elapsed += seconds
        self._set_clock()
        self._age(args=[seconds])

    def jump(self, seconds: float) -> None:
        """Redis's clock is set forward; expiries and local clocks do not notice."""
        self.now += seconds
        self._set_clock()

    def _set_clock(self) -> None:
        self._seen = None
        pipe = self.redis.pipeline()
        pipe.delete(CLOCK).rpush(CLOCK, int(self.now), int(self.now % 1 * 1e6)).execute()

    # ---- what tasks do ----------------------------------------------------------------------------------------------

    def item(self, task_id: str, label: str) -> str:
        """The code of a task. *label* says what it does; it can be stopped before it begins and in the middle."""
        self.begun[task_id] += 1
        number = self.begun[task_id]
        self.log.append(f"{self._here()} begins {task_id}, run {number}")
        self.scheduler.stop(INSIDE)
        if label.startswith("kills"):
            self.kills[task_id] += 1
            self.scheduler.stop(label)  # The model ends the process there.
            raise Died
        self.finished[task_id] += 1
        if label.startswith("raises") or (label.startswith("fails-first") and number == 1):
            raise ExpectedError(label)
        return label

    def _here(self) -> str:
        actor = self.scheduler.current
        return "?" if actor is None else actor.process.name

    def fetched(self, name: str, task_id: str, tag: str) -> None:
        self.tags[tag] = (name, task_id)
        self.log.append(f"{name} has {task_id}")

    def died(self, name: str, task_id: str, *, has_begun: bool, is_told: bool) -> None:
        """A process of worker *name* ends while it runs a task; if its code *has_begun*, that is a death of its own."""
        if has_begun and not is_told:
            self.deaths[task_id] += 1
        self.log.append(f"{name}: the process of {task_id} ends")

    def let_go(self, name: str) -> None:
        self.log.append(f"{name} dies")

    # ---- the caller and the operator --------------------------------------------------------------------------------

    def send(self, label: str) -> None:
        """Have the caller send a task named *label*, whose id that is."""
        self.caller = self.begin(Actor(Process("caller"), "caller", lambda: self._send(label)))

    def _send(self, label: str) -> None:
        with self.app.producer_or_acquire() as producer:
            message = self.app.amqp.as_task_v2(label, TASK, args=[label], kwargs={}, root_id=label)
            self.app.amqp.send_task_message(
                producer, TASK, message, queue=QUEUE, priority=self.priorities.get(label), declare=[], retry=False
            )
        self.accepted.add(label)

    def search(self) -> None:
        """Have the caller search for what it has no answer to, and send again what is nowhere, twice.

        Callers of batches do so, which take one answer for each item; so of tasks that answer the same each time.
        """
        results = self.look().results
        plain = [name for name in self.accepted if name.startswith("plain")]
        unanswered = sorted(name for name in plain if results.get(name, ("",))[0] not in READY)

        def act() -> None:
            with redis_client.broker() as client:
                missing = locate.missing(unanswered, client) if unanswered else set()
                missing &= locate.missing(missing, client) if missing else missing
            for label in sorted(missing):
                self.log.append(f"the caller misses {label}")
                self._send(label)

        self.caller = self.begin(Actor(Process("caller"), "caller", act))

    def operate(self, name: str, func: Callable[[], object]) -> None:
        """Have the operator do something."""
        self.operator = self.begin(Actor(Process("operator"), "operator", func))
        self.log.append(f"the operator: {name}")

    def replay_letters(self) -> None:
        """Have the operator replay every letter."""

        def act() -> None:
            for letter in tuple(dead_letters.newest()):
                # From here on an answer may take the place of the one that came with the letter.
                self.replayed[letter.id.partition(":")[0]] += 1
                replay.replay(letter)

        self.operate("replays letters", act)

    def cancel(self, task_id: str) -> None:
        """Have the operator cancel a task."""

        def act() -> None:
            cancellation.cancel(task_id, settings().result_ttl)
            self.cancelled.add(task_id)

        self.operate(f"cancels {task_id}", act)

    def duplicate(self, task_id: str) -> None:
        """The network delivers a message that waits twice: a send whose reply was lost, and that was repeated."""
        for key in lists(QUEUE):
            for raw in self.redis.lrange(key, 0, -1):
                if _id(raw) == task_id:
                    self.redis.lpush(key, raw)
                    self._seen = None
                    self.log.append(f"{task_id} is doubled")
                    return

    def settle_steps(self) -> None:
        """Take note of the actors that have come to their end."""
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

    def has_expired(self, name: str) -> bool:
        """Whether there is something to sweep: by Redis's clock, and in a variant also by that of worker *name*."""
        latest = self.now + self.wrong_clocks.get(name, 0.0) - settings().visibility_timeout
        return any(at <= latest for at in self.look().leases.values())

    def fingerprint(self) -> str:
        """A name for this state: two histories that have the same one go on in the same ways."""
        now = self.now
        tags = {tag: f"{name}:{task}" for tag, (name, task) in self.tags.items()}
        seen = self.look()
        parts: list[object] = [
            seen.queue,
            sorted((tags.get(tag, tag), one) for tag, one in seen.held.items()),
            sorted((tags.get(tag, tag), round(now - at, 3)) for tag, at in seen.leases.items()),
            sorted(seen.results.items()),
            sorted(seen.letters.items()),
            seen.runs,
            seen.is_swept,
            sorted(self.accepted), sorted(self.begun.items()), sorted(self.deaths.items()),
        ]  # fmt: skip
        for name, worker in sorted(self.workers.items()):
            parts.append([
                name, worker.is_dead, worker.main.is_cut, worker.is_stopping, len(worker.timers),
                [request.id for request in worker.reserved],
                [(request.id, str(answer)[:40]) for request, answer in worker.ended],
                sorted(tags.get(tag, tag) for tag in (() if worker.is_dead else worker.held)),
                [tags.get(tag, tag) for tag in worker.channel.unsent_acks],
                round(now - worker.renewed_at, 3), worker.is_certain(),
                [_trace(actor) for actor in (worker.at_main, worker.at_pool)],
            ])  # fmt: skip
        parts.append([_trace(actor) for actor in (self.caller, self.operator)])
        return hashlib.sha1(repr(parts).encode(), usedforsecurity=False).hexdigest()


class _Hub:
    """The event loop of a worker's main process, as far as acknowledgements need it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def call_later(self, delay: float, func: Callable[[], object]) -> None:
        self._worker.timers.append(func)


def _trace(actor: Actor | None) -> object:
    return None if actor is None else (actor.next, actor.heard)


@dataclass(frozen=True)
class Snapshot:
    """What Redis holds: by task, whose ids these are.

    Attributes:
        queue: each waiting message's task, and whether it was lost before; the next one first.
        held: the task of each message on record as held, by delivery tag.
        leases: when each lease was renewed last, by Redis's clock.
        results: state and value of each result.
        letters: the reason of each letter.
        quarantined: messages in the quarantine.
        runs: the records of runs.
        is_swept: a worker holds the lock of those who sweep.
    """

    queue: list[tuple[str, bool]]
    held: dict[str, str]
    leases: dict[str, float]
    results: dict[str, tuple[str, str]]
    letters: dict[str, str]
    quarantined: frozenset[str]
    runs: str
    is_swept: bool

    @classmethod
    def of(cls, reply: Any) -> Snapshot:
        """The snapshot in what LOOK returned."""
        waiting, held, leases, results, letters, quarantined, runs, is_swept = reply
        records = [json.loads(text) for text in results]
        kept = [json.loads(text) for text in letters]
        return cls(
            [(_id(raw), b'"redelivered": true' in raw) for raw in waiting],
            {tag.decode(): _id(raw) for tag, raw in _pairs(held)},
            {tag.decode(): float(at) for tag, at in _pairs(leases)},
            {one["task_id"]: (one["status"], str(one["result"])) for one in records},
            {one["id"].partition(":")[0]: one["reason"] for one in kept},
            frozenset(_id(b64decode(json.loads(one)["raw"])) for one in quarantined),
            repr(sorted((key, sorted(_pairs(record))) for key, record in _pairs(runs))),
            bool(is_swept),
        )

    @property
    def waiting(self) -> list[str]:
        """The tasks that wait, the next one first."""
        return [name for name, _ in self.queue]


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _id(raw: bytes) -> str:
    found = ID.search(raw)
    return "" if found is None else found[1].decode()
