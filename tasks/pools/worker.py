"""What a worker does for a pool: a ticket arrives, takes the best waiting task, runs it, and takes the next.

Which task that is, is decided at the moment it begins, so what the broker has prefetched cannot invert an order. An
envelope that holds a ticket is answered through the pool's own keys; nobody subscribes to it.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

from celery import current_task

from graft.config.deployment import app, settings
from graft.config.queues import broker_priority
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.callables import function_store
from graft.tasks.delivery import poison_isolation
from graft.tasks.envelope import RUN_ENVELOPE, Envelope, WireFunction, error_frame, value_frame
from graft.tasks.errors import PoisonedError
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.pools.state import TO_NOBODY, TO_STREAM, Done, Holder, RedisLedger, Taken, Turn
from graft.tasks.running.item_runner import run_items
from graft.tasks.shared.lease_renewer import lease_renewer

logger = logging.getLogger(__name__)

QUEUE: Final = "batch"
TURN: Final = 1.0  # Seconds after which a ticket leaves its process to what else waits on the queue.
LINGER: Final = 0.05  # Seconds that a ticket waits for more: less than a second message would cost the two of them.


@dataclass(frozen=True, slots=True)
class Job:
    """One task as it travels: call ``function`` with each of ``items``; ``key`` is the caller's own name for it.

    With ``single`` the value is that of the only item, else the list of all. ``timeout`` is for each item.
    """

    key: Any
    function: WireFunction
    items: Sequence[Any]
    packed: bool
    unpack: bool
    single: bool
    timeout: float | None = None

    def seal(self) -> str:
        fields = tuple(getattr(self, name) for name in self.__slots__)
        return codec.seal("pool-task", pickle.dumps(fields, codec.PROTOCOL))

    @classmethod
    def open(cls, text: str) -> Job:
        return cls(*pickle.loads(codec.unseal("pool-task", text)))


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of a job. ``seconds`` excludes waiting; ``item`` is the place of the item that failed."""

    key: Any
    succeeded: bool
    frame: bytes
    seconds: float
    slot: int
    worker: str
    item: int = 0

    def seal(self) -> str:
        fields = tuple(getattr(self, name) for name in self.__slots__)
        return codec.seal("pool-outcome", pickle.dumps(fields, codec.PROTOCOL))

    @classmethod
    def open(cls, text: str) -> JobOutcome:
        return cls(*pickle.loads(codec.unseal("pool-outcome", text)))

    @property
    def value(self) -> Any:
        return pickle.loads(self.frame)

    @property
    def error(self) -> BaseException:
        return codec.load_error(self.frame)


def identity(value: Any) -> Any:
    """What a pool without a processor does with plain data."""
    return value


def send_tickets(name: str, generation: str, tickets: Sequence[str]) -> None:
    """Publish *tickets* for the pool; one that gets lost is replaced by whoever tends the pool."""
    if not tickets:
        return
    function = WireFunction("import", f"{__name__}:run_next", b"", False)
    with app().producer_pool.acquire(block=True) as producer:
        for ticket in tickets:
            envelope = Envelope(ticket, f"pool:{name}", function, [0], [(name, generation, ticket)], False)
            message = app().amqp.as_task_v2(
                ticket, RUN_ENVELOPE, args=(envelope.seal(),), kwargs={}, ignore_result=True,
                argsrepr=f"(the next task of pool {name})", kwargsrepr="{}",
            )  # fmt: skip
            app().amqp.send_task_message(
                producer, RUN_ENVELOPE, message, queue=QUEUE, priority=broker_priority(0), declare=[], retry=False,
                headers={SENT_AT: time.time()},
            )  # fmt: skip


def run_next(item: tuple[str, str, str]) -> int:
    """Run tasks of a pool, best first, until none waits or this ticket's turn is over; how many were run."""
    name, generation, ticket = item
    return _Visit(RedisLedger(name, generation), ticket).run()


class _Visit:
    """One ticket at work in this process: it holds one slot while it runs tasks."""

    def __init__(self, ledger: RedisLedger, ticket: str) -> None:
        self.ledger = ledger
        self.holder = Holder("", ticket, uuid4().hex, lingers=True, suspects="tell")
        request = current_task.request if current_task else None
        self.worker = str(request.hostname) if request else "?"
        self.has_returned = bool(request and (request.delivery_info or {}).get("redelivered"))
        self.held: Taken | None = None
        self.count = 0

    def run(self) -> int:
        lease_renewer().keep(self.holder.token, self.renew, settings().visibility_timeout / 3)
        try:
            turn = self.work()
        finally:
            lease_renewer().drop(self.holder.token)
        send_tickets(self.ledger.name, self.ledger.generation, turn.tickets)
        return self.count

    def renew(self) -> bool:
        held = self.held
        if held is not None:
            self.ledger.renew(self.holder, held)  # One that is lost is noticed when it is finished.
        return True

    def work(self) -> Turn:
        end = time.monotonic() + TURN
        turn = self.ledger.begin(replace(self.holder, has_returned=self.has_returned))
        while True:
            if turn.what == "task" and turn.taken is not None:
                self.held = turn.taken
                done = self.done(turn.taken)
                self.held = None
                self.count += 1
                turn = self.ledger.step(self.holder, done, more=time.monotonic() < end)
                poison_isolation.leave(self.holder.ticket)  # Not before it is recorded as finished.
            elif turn.what == "suspect":
                turn = self.alone()
            elif turn.what == "idle":
                turn = self.linger(end)
            else:
                return turn

    def linger(self, end: float) -> Turn:
        leave = min(end, time.monotonic() + LINGER)
        while True:
            wait = leave - time.monotonic()
            if wait > 0.002:  # Redis 6.2 takes less than a millisecond for "without end".
                shared().blpop(self.ledger.bell_key, timeout=wait)
            stays = time.monotonic() < leave
            turn = self.ledger.begin(replace(self.holder, lingers=stays))
            if turn.what != "idle":
                return turn

    def alone(self) -> Turn:
        """Next is what one more death would have given up: take it if no other suspect runs in this worker.

        Else take what may run before it; where nothing may, leave. Tickets that are sent then may go elsewhere.
        """
        try:
            poison_isolation.enter(self.holder.ticket)
        except poison_isolation.NotAloneError:
            turn = self.ledger.begin(replace(self.holder, suspects="skip", lingers=False))
            if turn.what == "done":
                time.sleep(poison_isolation.WAIT)
            return turn
        turn = self.ledger.begin(replace(self.holder, suspects="take"))
        if turn.taken is None or turn.taken.losses < poison_isolation.deaths():  # Somebody else was faster.
            poison_isolation.leave(self.holder.ticket)
        return turn

    def done(self, taken: Taken) -> Done:
        outcome = self.outcome(taken)
        if taken.reply == TO_NOBODY:
            if not outcome.succeeded:
                logger.error("a task spawned in pool %s failed: %r", self.ledger.name, outcome.error)
            return Done(taken, not outcome.succeeded, outcome.seconds)
        content = outcome.seal()
        if taken.reply != TO_STREAM:
            content = f"{taken.reply.partition(':')[2]} {content}"
        return Done(taken, not outcome.succeeded, outcome.seconds, content)

    def outcome(self, taken: Taken) -> JobOutcome:
        key = None
        began = time.perf_counter()
        try:
            job = Job.open(taken.content)
            key = job.key
            if taken.losses >= settings().run_limit:
                raise PoisonedError(
                    f"the task was running when {taken.losses} worker processes died; it is not run again"
                )
            return self.ran(job, taken)
        except Exception as error:  # It cannot be opened or run at all: that is this task's outcome.
            seconds = time.perf_counter() - began
            return JobOutcome(key, False, error_frame(error)[1], seconds, taken.slot, self.worker)

    def ran(self, job: Job, taken: Taken) -> JobOutcome:
        func = function_store.load(job.function)
        places = range(len(job.items))
        envelope = Envelope(
            taken.member, self.ledger.name, job.function, places, job.items, job.packed, job.unpack, timeout=job.timeout
        )
        ran = run_items(envelope, func, places, is_cancelled=lambda: False)
        failed = min([*ran.errors, *ran.left], default=None)
        if failed is not None:
            succeeded, frame = error_frame(ran.errors.get(failed, TimeoutError("not begun")), skip_frames=1)
        else:
            value = ran.values[0] if job.single else [ran.values[place] for place in places]
            succeeded, frame = value_frame(value, 0, settings().item_limit * len(job.items))
        return JobOutcome(job.key, succeeded, frame, ran.busy, taken.slot, self.worker, failed or 0)
