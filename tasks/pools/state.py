"""A pool's ledger: what waits, what runs and who may add, the same for every process that uses the pool.

Each method is one atomic step and blocks for one round trip. ``Ledger`` is what a pool needs; ``RedisLedger`` keeps it
for the whole cluster. A script whose answer was lost may be sent again: what it did the first time stays true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Protocol
from uuid import uuid4

import redis

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks.delivery import poison_isolation
from graft.tasks.errors import TaskQueueError
from graft.tasks.ids import new_id
from graft.tasks.pools import scripts
from graft.tasks.results.subscriber import unavailable

PREFIX: Final = keys.POOL
PARTS: Final = ("meta", "waiting", "tasks", "running", "held", "tickets", "idle", "clients", "results", "bell")
CLIENT_LEASE: Final = 15.0  # Seconds after which a client that says nothing has died; it speaks every second.
TO_STREAM: Final = "."
TO_NOBODY: Final = "-"

State = Literal["new", "running", "closing", "closed", "gone"]


class PoolMismatchError(TaskQueueError, ValueError):
    """Two processes use one pool's name with different limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every process that uses one name must agree on."""

    kind: str
    workers: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A task on its way into the pool. ``owner`` is the process that alone can run it, or empty."""

    score: float
    owner: str
    reply: str
    content: str


@dataclass(frozen=True, slots=True)
class Taken:
    """A task that is now its holder's to run. ``losses`` counts the holders that died with it."""

    slot: int
    member: str
    reply: str
    content: str
    losses: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What a holder does next: run ``taken``, wait for more (``idle``), or leave and send ``tickets``.

    ``suspect``: the next task is one that has to run alone, and has not been taken.
    """

    what: Literal["task", "suspect", "idle", "done", "lost", "gone"]
    taken: Taken | None = None
    tickets: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who takes tasks: one run of one ticket, or one thread of a client.

    ``suspects`` says what becomes of a task that one more death would have given up, where it is next: it is taken,
    told of, or skipped. A ticket that ``has_returned`` has outlived a process: it gives back and takes nothing.
    """

    owner: str
    ticket: str
    token: str
    lingers: bool = False
    suspects: Literal["take", "tell", "skip"] = "take"
    has_returned: bool = False

    @property
    def mark(self) -> str:
        return f"{self.token} {self.ticket}"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task, for the ledger: where ``content`` goes is in ``reply``."""

    taken: Taken
    failed: bool
    seconds: float
    content: str = ""


@dataclass(frozen=True)
class Standing:
    """The pool at one moment; totals are since it was opened."""

    state: State = "gone"
    limit: int = 0
    waiting: int = 0
    running: int = 0
    reserved: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    abandoned: int = 0
    busy: float = 0.0
    peak: int = 0
    started: float = 0.0
    ended: float = 0.0
    now: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the pool has been running, or ran."""
        if not self.started:
            return 0.0
        return max(0.0, (self.ended if self.state == "closed" else self.now) - self.started)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was accepted has been finished."""
        return not (self.waiting or self.running or self.reserved)


class Ledger(Protocol):
    """What a pool needs of its ledger."""

    def start(self) -> tuple[State, list[str]]: ...
    def reserve(self, client: str, ready: int, *, more: bool) -> tuple[State, int, int]: ...
    def add(self, client: str, batch: int, unused: int, entries: Sequence[Entry]) -> tuple[State, list[str]]: ...
    def begin(self, holder: Holder) -> Turn: ...
    def step(self, holder: Holder, done: Done, *, more: bool) -> Turn: ...
    def renew(self, holder: Holder, taken: Taken) -> bool: ...
    def tend(self, client: str) -> tuple[State, list[str]]: ...
    def standing(self) -> Standing: ...
    def close(self, state: State) -> tuple[State, list[str], list[str]]: ...
    def resize(self, limit: int) -> tuple[State, list[str]]: ...
    def withdraw(self, replies: Sequence[str]) -> int: ...


@contextmanager
def redis_or_error() -> Iterator[None]:
    """BrokerUnavailable, naming the broker, when Redis does not answer."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise unavailable(error) from error


@cache
def _script(text: str) -> Any:
    return redis.Redis().register_script(text)  # Only for its digest: each call brings its own client.


class RedisLedger:
    """The ledger of the pool *name* in this deployment's Redis, in one of its generations."""

    def __init__(self, name: str, generation: str) -> None:
        self.name = name
        self.generation = generation
        self.keys = [f"{PREFIX}{name}:{part}" for part in PARTS]

    @classmethod
    def open(cls, name: str, limits: Limits, limit: int) -> RedisLedger:
        """The pool under *name*, made if there is none or the last one is down; *limit* slots run at first.

        Raises:
            PoolMismatchError: it exists with other limits.
            BrokerUnavailable: Redis does not answer.
        """
        ledger = cls(name, uuid4().hex)
        found = ledger._run(scripts.OPEN, limits.kind, limits.workers, limits.capacity, limit)
        generation, kind, workers, capacity = (part.decode() for part in found)
        theirs = Limits(kind, int(workers), int(capacity))
        if theirs != limits:
            raise PoolMismatchError(f"the pool {name!r} is in use as {theirs}, not as {limits}; agree, or rename one")
        ledger.generation = generation
        return ledger

    def replies_key(self, client: str) -> str:
        return f"{PREFIX}{self.name}:replies:{client}"

    @property
    def results_key(self) -> str:
        return self.keys[8]

    @property
    def bell_key(self) -> str:
        return self.keys[9]

    def start(self) -> tuple[State, list[str]]:
        """Let tasks run; a pool that has been started, or is closing, stays as it is."""
        state, *tickets = self._run(scripts.START, new_id())
        return _state(state), _texts(tickets[0]) if tickets else []

    def reserve(self, client: str, ready: int, *, more: bool) -> tuple[State, int, int]:
        """Places for *client* to fill: one, or with *more* a share of the queue.

        *ready* is the number of slots that live workers have: a task that an idle one takes at once needs no place in
        the queue. Returns the state, the places, and where there was none how many others hold unused.
        """
        state, granted, others = self._run(scripts.RESERVE, client, ready, int(more))
        return _state(state), int(granted), int(others)

    def add(self, client: str, batch: int, unused: int, entries: Sequence[Entry]) -> tuple[State, list[str]]:
        """Put *entries* into places that were reserved, and give *unused* ones back; *batch* counts up."""
        fields = [
            field
            for entry in entries
            for field in (repr(entry.score), entry.owner, f"{entry.score!r} {entry.reply} {entry.content}")
        ]
        state, tickets = self._run(scripts.ADD, client, batch, unused, new_id(), *fields)
        return _state(state), _texts(tickets)

    def begin(self, holder: Holder) -> Turn:
        """A first task for *holder*."""
        return _turn(self._run(scripts.BEGIN, *self._holder(holder)))

    def step(self, holder: Holder, done: Done, *, more: bool) -> Turn:
        """Finish a task, deliver what became of it, and take another one if *more*."""
        reply = done.taken.reply
        target = self.results_key if reply == TO_STREAM else self.replies_key(reply.partition(":")[0])
        return _turn(
            self._run(
                scripts.STEP, *self._holder(holder), done.taken.slot, done.taken.member, int(done.failed),
                f"{done.seconds:.6f}", done.content, int(settings().result_ttl), int(more), target=target,
            )
        )  # fmt: skip

    def renew(self, holder: Holder, taken: Taken) -> bool:
        """Keep the slot; False when it has been given to somebody else."""
        mark = f"{holder.mark} {taken.member}"
        return bool(self._run(scripts.RENEW, settings().visibility_timeout, taken.slot, mark))

    def tend(self, client: str) -> tuple[State, list[str]]:
        """Say that *client* lives, give back what dead holders held, and replace tickets that were lost."""
        state, tickets = self._run(scripts.TEND, client, CLIENT_LEASE, new_id(), int(settings().result_ttl))
        return _state(state), _texts(tickets)

    def standing(self) -> Standing:
        """The pool as it is now."""
        meta, waiting, running, reserved, now = self._run(scripts.STATUS)
        record = {name.decode(): value.decode() for name, value in zip(meta[::2], meta[1::2], strict=True)}
        if not record:
            return Standing()
        return Standing(
            state=record["state"], limit=int(record["limit"]), waiting=waiting, running=running, reserved=reserved,
            busy=float(record.get("busy", 0)), started=float(record.get("started", 0)),
            ended=float(record.get("ended", 0)), now=float(now),
            **{name: int(record.get(name, 0)) for name in ("submitted", "completed", "failed", "abandoned", "peak")},
        )  # fmt: skip

    def close(self, state: State) -> tuple[State, list[str], list[str]]:
        """Refuse new tasks (``closing``), or abandon what waits, too (``closed``); also the tickets that run now."""
        now, tickets, running = self._run(scripts.CLOSE, state, new_id())
        return _state(now), _texts(tickets), _texts(running)

    def resize(self, limit: int) -> tuple[State, list[str]]:
        """Run at most *limit* tasks at once from now on; what runs is finished first."""
        state, tickets = self._run(scripts.RESIZE, limit, new_id())
        return _state(state), _texts(tickets)

    def withdraw(self, replies: Sequence[str]) -> int:
        """Take out the waiting tasks that would answer *replies*; how many there were."""
        return int(self._run(scripts.WITHDRAW, *replies))

    def forget(self, *, keep_results: bool) -> None:
        """Remove what Redis knows of a pool that is down."""
        with redis_or_error():
            if keep_results:
                shared().unlink(*self.keys[1:8], self.bell_key)
                shared().expire(self.keys[0], int(settings().result_ttl))
            else:
                shared().unlink(*self.keys)

    def _holder(self, holder: Holder) -> tuple[object, ...]:
        lease = settings().visibility_timeout
        return (
            holder.owner, holder.ticket, holder.token, lease, new_id(), int(holder.lingers), holder.suspects,
            poison_isolation.deaths(), int(holder.has_returned),
        )  # fmt: skip

    def _run(self, script: str, *arguments: Any, target: str | None = None) -> Any:
        keys = self.keys if target is None else [*self.keys, target]
        with redis_or_error():
            return _script(script)(keys, (self.generation, *arguments), client=shared())


def _state(reply: bytes | None) -> State:
    known: dict[bytes | None, State] = {
        b"new": "new", b"running": "running", b"closing": "closing", b"closed": "closed"
    }  # fmt: skip
    return known.get(reply, "gone")


def _texts(parts: Sequence[bytes]) -> list[str]:
    return [part.decode() for part in parts]


def _turn(reply: list[Any]) -> Turn:
    what = reply[0].decode()
    if what == "task":
        slot, member, kept, losses = reply[1]
        _, reply_to, content = kept.decode().split(" ", 2)
        return Turn("task", Taken(int(slot), member.decode(), reply_to, content, int(losses)))
    return Turn(what, tickets=_texts(reply[1]) if len(reply) > 1 else ())
