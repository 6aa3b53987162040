"""Batches in the model: a caller with its real sender and inbox, what its items do, and a worker pool of one slot.

What a label begins with says it: ``items`` is an envelope of two items, of which the second may be given away;
``itemkill`` the same, whose first item ends its process; ``itemfail`` the same, whose first item fails and is run
again, as its policy says; ``itemdead`` that item alone, which the policy gives up at once; ``pooled`` an envelope of
one item in the pool; ``unique`` one of which there is one at a time, whoever sends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from graft.config.transport.unique import HEADER, HeldError, Terms
from graft.scripts.model import items
from graft.scripts.model.actors import Actor, Process, Scheduler
from graft.scripts.model.worker import QUEUE
from graft.tasks import ids
from graft.tasks.callables.references import FunctionRef
from graft.tasks.envelope import Envelope, PoolRef
from graft.tasks.policy import ONCE, RetryPolicy
from graft.tasks.pools.lost_slots import LostSlots
from graft.tasks.pools.state import Limits, RedisPool
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.results.subscriber import inbox
from graft.tasks.sending import publisher
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.packing import PackedItems
from graft.tasks.sending.sources import ListSource

POOL: Final = "model"
POOL_SLOTS: Final = 1
CLIENT: Final = "caller"
FIRST_ITEMS: Final = {
    "items": "plain",
    "itemkill": "kills-process",
    "itemfail": "fails-first",
    "itemdead": "fails-first",
}
POLICIES: Final = {"itemfail": RetryPolicy(2, base=0.0), "itemdead": RetryPolicy(2, base=0.0, on=OSError)}
POOLED: Final = "pooled"
UNIQUE: Final = "unique"
TERMS: Final = Terms("model", "replace")
PREFIX: Final = "c%07d-0000-0000-0000-"  # Of every id that a caller makes.


def is_batch(label: str) -> bool:
    """Whether *label* stands for a batch, and not for a task of its own."""
    return label.partition("-")[0] in (*FIRST_ITEMS, POOLED, UNIQUE)


def items_of(label: str) -> list[str]:
    """The items of the batch *label*, by what they do."""
    if label.startswith((POOLED, UNIQUE)):
        return [f"plain-{label}.0"]
    first = f"{FIRST_ITEMS[label.partition('-')[0]]}-{label}.0"
    return [first] if label.startswith("itemdead") else [first, f"plain-{label}.1"]


class Sender(BatchSender[Outcomes]):
    """The real sender, of one envelope that may be given away, or that runs in a pool."""

    pool: PoolRef | None = None

    def _envelope(self, packed: PackedItems) -> Envelope:
        return replace(super()._envelope(packed), shared=self.pool is None, pool=self.pool)


@dataclass
class Batch:
    """A batch that a caller has sent, and what it heard of it."""

    label: str
    sender: Sender
    items: Sequence[str]
    caller: Caller
    ids: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Outcomes:
        return self.sender.receiver


class Caller:
    """The process that sends batches: what it waits for and what it has heard."""

    def __init__(self, number: int = 0) -> None:
        self.process = Process("caller")
        numbered = ids._Ids()
        numbered.prefix = PREFIX % number
        self.process.parts[ids._Ids] = numbered
        self.batches: dict[str, Batch] = {}
        self.pool: RedisPool | None = None
        self.is_deaf = False  # It hears what is stored, later, and nothing of what is only announced.

    @property
    def is_dead(self) -> bool:
        return self.process.is_dead


class Batches:
    """The part of the world that sends batches and listens."""

    app: Any
    log: list[str]
    accepted: set[str]
    batches: dict[str, Batch]  # By the id of an envelope, also of those that workers made of it.
    caller: Actor | None = None
    at_caller: Caller
    callers_made: int = 0
    replaced: set[str]  # Unique calls that had not begun when another took their place, or that had ended.
    scheduler: Scheduler

    def begin(self, actor: Actor) -> Actor:
        raise NotImplementedError

    def inside(self, process: Process, func: Any) -> Any:
        raise NotImplementedError

    def look(self) -> Any:
        raise NotImplementedError

    def client(self) -> Any:
        raise NotImplementedError

    def forget_look(self) -> None:
        raise NotImplementedError

    def send_batch(self, label: str) -> None:
        """Have the caller send the batch *label*."""
        process = self.at_caller.process
        self.caller = self.begin(Actor(process, "caller", lambda: self._send_batch(label)))

    def _send_batch(self, label: str) -> None:
        policy = POLICIES.get(label.partition("-")[0], ONCE)
        own = items_of(label)
        ref = FunctionRef("import", f"{items.__name__}:{items.run_item.__name__}", b"", False)
        options = BatchOptions(ref, QUEUE, 5, batch_size=len(own), policy=policy)
        sender = Sender(Outcomes(len(own)), ListSource(own), options, lambda sender: None)
        batch = Batch(label, sender, own, self.at_caller)
        if label.startswith(POOLED):
            sender.pool = self._pool_ref(label)
        messages = sender.cut(self.client())
        for message in messages:
            self.batches[message.id] = batch
            self.at_caller.batches[message.id] = batch
            batch.ids.append(message.id)
            inbox().expect(message.id, sender.answered)
        with self.app.producer_or_acquire() as producer:
            ready = [publisher._rendered(message, producer.channel) for message in messages]
            if not label.startswith(UNIQUE):
                producer.channel.push(ready)
            elif not self._is_taken_at_once(ready, producer.channel):
                self._drop(batch)
                return
        self.accepted.update(batch.ids)

    def _is_taken_at_once(self, ready: Sequence[Any], channel: Any) -> bool:
        """Send what is *ready*, unless another call has the key."""
        for one in ready:
            one.message["headers"][HEADER] = TERMS.header
            try:
                channel._put(one.queue, one.message)
                self.replaced |= {name for name, batch in self.batches.items() if self._gives_way(name, batch, one)}
            except HeldError as held:
                self.log.append(f"{held.holder} has the key")
                return False
        return True

    @staticmethod
    def _gives_way(name: str, batch: Batch, one: Any) -> bool:
        """Whether the envelope *name* has, or had, the key that *one* has taken."""
        return batch.label.startswith(UNIQUE) and name != one.message["headers"]["id"]

    def _drop(self, batch: Batch) -> None:
        """Nobody will answer *batch*: another call has its key."""
        for envelope_id in batch.ids:
            del self.batches[envelope_id]
            inbox().forget(envelope_id)

    def _pool_ref(self, label: str) -> PoolRef:
        caller = self.at_caller
        if caller.pool is None:
            caller.pool = RedisPool.open(POOL, Limits("tasks", POOL_SLOTS, 10), POOL_SLOTS)
            caller.pool.enter("running")
        caller.pool.reserve(CLIENT, 1, 1)
        since = f"{len(self.batches) + 1:016x}"
        return PoolRef(POOL, caller.pool.generation, CLIENT, 0.0, since, {}, "caller", True)

    def recover_slots(self) -> None:
        """Have the caller look for slots of its pool whose messages are lost."""
        pool = self.at_caller.pool
        assert pool is not None

        def act() -> None:
            found = LostSlots(pool)
            for _ in range(2):
                found.recover()

        self.caller = self.begin(Actor(self.at_caller.process, "caller", act))

    def listen(self) -> None:
        """The caller hears what there is for it by now, at once, unless it is deaf."""
        caller = self.at_caller
        if caller.is_deaf:
            return
        results = self.look().results
        if any(name in results and name in self._expected() for name in self.batches):
            self.hear()

    def hear(self) -> None:
        """The caller looks up every result that it expects."""
        self.inside(self.at_caller.process, lambda: inbox().look_up(list(self._expected())))
        self.forget_look()

    def _expected(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.inside(self.at_caller.process, lambda: inbox()._expected)
        return found

    def announced(self, record: bytes) -> None:
        """Somebody has published *record*. Who does not listen does not hear it."""
        if not self.at_caller.is_deaf and b'"EARLY"' in record:
            self.inside(self.at_caller.process, lambda: inbox()._deliver(record))

    def adopted(self, parent: str, child: str) -> None:
        """A worker makes the envelope *child* of items of *parent*."""
        batch = self.batches[parent]
        self.batches[child] = batch
        batch.ids.append(child)

    def kill_caller(self) -> None:
        """The caller dies, and nobody waits any longer for what it has sent. Another takes its place."""
        self.at_caller.process.is_dead = True
        if self.caller is not None:
            self.scheduler.kill(self.caller)
        self.callers_made += 1
        self.at_caller = Caller(self.callers_made)
        self.log.append("the caller dies")
