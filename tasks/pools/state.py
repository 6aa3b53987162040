"""What Redis knows of a pool: its slots and who has them, what waits for one, and the places in its queue.

Each call is one operation of state.lua, so it is atomic and costs one round trip. A slot is
held from the moment in which it is given until the envelope is answered. The envelope's own message is what outlives a
worker: it comes back, and goes on in its slot. So slots need no leases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from uuid import uuid4

import redis

from graft.config import keys, lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import durations
from graft.tasks.results.subscriber import unavailable

PREFIX: Final = keys.POOL
PARTS: Final = ("meta", "slots", "waiting", "messages", "clients", "results")
CLIENT_LEASE: Final = 15.0  # Seconds after which a client that says nothing has died; it speaks every second.
HAS_TO_WAIT: Final = -1
MUST_NOT: Final = -2

State = Literal["new", "running", "closing", "closed", "gone"]


class PoolMismatchError(TaskQueueError, ValueError):
    """Two processes use one pool's name with different limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every process that uses one name must agree on."""

    kind: str
    workers: int
    capacity: int


class Waiting(NamedTuple):
    """An envelope that waits for a slot; ``message`` is what to publish then, or ``@`` and the client that runs it."""

    member: str
    score: float
    message: str


class Killed(NamedTuple):
    """An envelope whose process was killed: the slot that it had, and for how many seconds it ran."""

    member: str
    slot: int
    seconds: float


class Change(NamedTuple):
    """What a change of state came to: messages that are due now, and the members that run."""

    state: State
    due: Sequence[bytes] = ()
    running: Sequence[str] = ()


@dataclass(frozen=True)
class PoolStatus:
    """The pool at one moment; totals are since it was opened. ``unfinished`` counts the places that clients have."""

    state: State = "gone"
    limit: int = 0
    unfinished: int = 0
    running: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    abandoned: int = 0
    busy: float = 0.0
    peak: int = 0
    started: float = 0.0
    ended: float = 0.0
    now: float = 0.0
    took: Mapping[int, int] = field(
        default_factory=dict
    )  # Tasks by how long they took (tasks/monitoring/durations.py).

    @property
    def seconds(self) -> float:
        """How long the pool has been running, or ran."""
        if not self.started:
            return 0.0
        return max(0.0, (self.ended if self.state == "closed" else self.now) - self.started)

    @property
    def queued(self) -> int:
        """Tasks that were accepted and have not begun."""
        return max(0, self.unfinished - self.running)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was accepted has been finished."""
        return not (self.unfinished or self.running)


@contextmanager
def redis_or_error() -> Iterator[None]:
    """BrokerUnavailable, naming the broker, when Redis does not answer."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise unavailable(error) from error


SCRIPT: Final = lua.load(__file__, "state")


class RedisPool:
    """The state of the pool *name* in this deployment's Redis, in one of its generations."""

    def __init__(self, name: str, generation: str) -> None:
        self.name = name
        self.generation = generation
        self.keys = [f"{PREFIX}{name}:{part}" for part in PARTS]

    @classmethod
    def open(cls, name: str, limits: Limits, limit: int) -> RedisPool:
        """The pool under *name*, made if there is none or the last one is down; *limit* slots run at first.

        Raises:
            PoolMismatchError: it exists with other limits.
            BrokerUnavailable: Redis does not answer.
        """
        pool = cls(name, uuid4().hex)
        found = pool._run("open", limits.kind, limits.workers, limits.capacity, limit)
        generation, kind, workers, capacity = (part.decode() for part in found)
        theirs = Limits(kind, int(workers), int(capacity))
        if theirs != limits:
            raise PoolMismatchError(f"the pool {name!r} is in use as {theirs}, not as {limits}; agree, or rename one")
        pool.generation = generation
        return pool

    @property
    def results_key(self) -> str:
        return self.keys[-1]

    def reserve(self, client: str, wanted: int, ready: int, unused: int = 0) -> tuple[State, int, int]:
        """Up to *wanted* places for new tasks, giving *unused* ones back: the state, places, and other clients."""
        state, granted, others = self._run("reserve", client, wanted, ready, unused)
        return _state(state), int(granted), int(others)

    def begin(self, member: str, score: float, owner: str = "", tasks: int = 1) -> int:
        """The slot in which *member* runs now; HAS_TO_WAIT, or MUST_NOT: the pool is closed, or it was withdrawn.

        *owner* is ``@`` and the client that runs it, where no worker does; *tasks* are how many the envelope has.
        """
        return int(self._run("begin", member, score, owner, tasks))

    def killed(self, members: Sequence[str]) -> list[Killed]:
        """The processes that ran *members* were killed: those whose tasks count as failed now."""
        found = self._run("killed", *members)
        return [Killed(member.decode(), int(slot), float(seconds)) for member, slot, seconds in found]

    def park(self, waiting: Sequence[Waiting]) -> Sequence[bytes] | None:
        """Have envelopes wait for a slot; the messages that are due now. None: the pool is closed."""
        due: Sequence[bytes] | None = self._run("park", *(field for one in waiting for field in one))
        return due

    def kept_messages(self) -> dict[str, bytes]:
        """The messages of those members that have a slot and were sent by way of the index."""
        with redis_or_error():
            members = [member.decode() for member in shared().hkeys(self.keys[1])]
            found = shared().hmget(self.keys[3], members) if members else []
        return {member: text for member, text in zip(members, found, strict=True) if text and text[:1] == b"["}

    def is_waiting(self, member: str) -> bool:
        """Whether *member* is in the index, and so on no queue."""
        with redis_or_error():
            return shared().zscore(self.keys[2], member) is not None

    def step_back(self, member: str, slot: int) -> None:
        """*member* does not run yet; it keeps its slot."""
        with redis_or_error():
            shared().hset(self.keys[1], member, slot)

    def withdraw(self, client: str, members: Mapping[str, int]) -> tuple[list[str], Sequence[bytes]]:
        """Keep *members*, each with so many tasks, from beginning.

        Those that will not be answered, and the messages that are due now.
        """
        out, due = self._run("withdraw", client, *(field for one in members.items() for field in one))
        return [member.decode() for member in out], due

    def finish(self, member: str, client: str, tasks: int, failed: int, seconds: float) -> Sequence[bytes]:
        """*member* has ended: its slot and its *tasks* places are free. The messages that are due now."""
        took = durations.packed([seconds]) if tasks == 1 and seconds else ""  # Else it never ran.
        return self._finish(member, client, "completed", tasks, failed, f"{seconds:.6f}", took)

    def abandon(self, client: str, tasks: int) -> Sequence[bytes]:
        """*tasks* that were accepted will not be sent."""
        return self._finish("", client, "abandoned", tasks, 0, 0, "")

    def _finish(self, *arguments: Any) -> Sequence[bytes]:
        due: Sequence[bytes] = self._run("finish", *arguments, _kept(), "")
        return due

    def finish_on(
        self,
        pipe: Any,
        member: str,
        client: str,
        total: Literal["completed", "abandoned"],
        tasks: int,
        failed: int,
        seconds: float,
        took: Sequence[float],
        results: Sequence[bytes],
        *,
        delivery: str = "",
    ) -> Callable[[], Sequence[bytes]]:
        """The same as :meth:`finish`, first on the caller's pipeline; *results* go into the stream.

        Nothing is done where the message of *delivery* went back. *took* are the seconds of each task that ran.

        Executing it raises NoScriptError where Redis was replaced since the slot was taken: what is returned is to be
        called then. redis-py (8.1) would rule that out by a round trip before each execution.
        """
        known = durations.packed(took)
        returned = delivery and keys.RETURNED + delivery
        arguments: list[Any] = [
            member, client, total, tasks, failed, f"{seconds:.6f}", known, _kept(), returned, *results
        ]  # fmt: skip
        pipe.evalsha(SCRIPT.sha, len(self.keys), *self.keys, "finish", self.generation, *arguments)
        return functools.partial(self._run, "finish", *arguments)

    def tend(self, client: str, unused: int = 0) -> tuple[State, int, Sequence[bytes]]:
        """Say that *client* lives; the state, the limit, and the messages that are due now."""
        state, limit, due = self._run("tend", client, unused, CLIENT_LEASE, _kept())
        return _state(state), int(limit), due

    def enter(self, state: State, client: str = "", unused: int = 0) -> Change:
        """Start, refuse new tasks (``closing``), or abandon what waits, too (``closed``)."""
        return self._change("state", state, client, unused)

    def resize(self, limit: int) -> Change:
        """Run at most *limit* tasks at once from now on; what runs is finished first."""
        return self._change("limit", limit, "", 0)

    def _change(self, field: str, value: str | int, client: str, unused: int) -> Change:
        state, due, running = self._run("change", client, unused, field, value)
        return Change(_state(state), due, [member.decode() for member in running])

    def status(self) -> PoolStatus:
        """The pool as it is now."""
        meta, unfinished, running, now = self._run("status")
        record = {name.decode(): value.decode() for name, value in zip(meta[::2], meta[1::2], strict=True)}
        if not record:
            return PoolStatus()
        took = {int(name[5:]): int(count) for name, count in record.items() if name.startswith("took:")}
        return PoolStatus(
            state=_state(record["state"].encode()), limit=int(record["limit"]), unfinished=unfinished, running=running,
            busy=float(record.get("busy", 0)), started=float(record.get("started", 0)),
            ended=float(record.get("ended", 0)), now=float(now), took=took,
            **{name: int(record.get(name, 0)) for name in ("submitted", "completed", "failed", "abandoned", "peak")},
        )  # fmt: skip

    def forget(self, *, keep_results: bool) -> None:
        """Remove what Redis knows of a pool that is down."""
        with redis_or_error():
            if keep_results:
                shared().unlink(*self.keys[1:-1])
                shared().expire(self.keys[0], _kept())
            else:
                shared().unlink(*self.keys)

    def _run(self, name: str, *arguments: Any) -> Any:
        with redis_or_error():
            return SCRIPT(self.keys, (name, self.generation, *arguments), client=shared())


def _kept() -> int:
    """Seconds for which Redis remembers a pool that nobody uses."""
    return int(settings().result_ttl)


def _state(reply: bytes | None) -> State:
    known: dict[bytes | None, State] = {
        b"new": "new", b"running": "running", b"closing": "closing", b"closed": "closed"
    }  # fmt: skip
    return known.get(reply, "gone")
