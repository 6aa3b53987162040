"""The values that the checks judge, as they were read. Durations are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft.config.redis_server import RedisServer
from graft.tasks.leaks.findings import Finding
from graft.tasks.shared.limit_states import LimitState


@dataclass(frozen=True)
class Queue:
    """One queue, all its priorities together.

    ``oldest`` is the age of the message that has waited longest. ``round_trip`` is how long the last canary that came
    back took, ``unanswered`` how long one has been on its way; None without any. ``slots`` and ``busy`` are those of
    its readers. ``later`` are messages whose time has not come.
    """

    name: str
    waiting: int = 0
    oldest: float | None = None
    readers: int = 0
    slots: int = 0
    busy: int = 0
    round_trip: float | None = None
    unanswered: float | None = None
    is_paused: bool = False
    later: int = 0


@dataclass(frozen=True)
class Worker:
    """One worker. ``silent`` is the time since its last heartbeat, ``clock`` how far its clock is ahead of Redis's.

    ``idle`` says why it runs nothing, though it is alive; "" where it does.
    """

    name: str
    silent: float
    clock: float | None = None
    is_lost: bool = False
    idle: str = ""


@dataclass(frozen=True)
class Held:
    """Messages that workers have taken and not acknowledged.

    ``abandoned`` is how long ago the least recently renewed lease was renewed, ``longest`` how long one message has
    been held, those with an ETA left out. ``unindexed`` counts messages that are in no index of leases.
    """

    count: int = 0
    abandoned: float = 0.0
    longest: float = 0.0
    unindexed: int = 0


@dataclass(frozen=True)
class Pile:
    """Dead letters or quarantined messages, which somebody has to see to. ``recent`` came within the window."""

    total: int = 0
    recent: int = 0
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """Items that ran within the window of ``seconds``. ``retries`` are failures that were run again."""

    seconds: float = 0.0
    items: int = 0
    errors: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Loop:
    """The event loop of one process: how late it was with a callback due at once, and which task blocked it."""

    process: str
    lag: float
    blocked_by: str = ""


@dataclass(frozen=True)
class Measurements:
    """Everything that one check reads.

    ``beat`` is the time since Beat last sent something, None if it never did; ``started`` the time since the first of
    the live workers started, None without any. ``overdue`` is how long ago the first message was due that has not been
    moved to its queue; ``unfed`` how many durable batches are open, and for how long nobody has fed them.
    """

    queues: tuple[Queue, ...] = ()
    workers: tuple[Worker, ...] = ()
    held: Held = field(default_factory=Held)
    servers: tuple[RedisServer, ...] = ()
    dead_letters: Pile = field(default_factory=Pile)
    quarantine: Pile = field(default_factory=Pile)
    work: Work = field(default_factory=Work)
    loops: tuple[Loop, ...] = ()
    leaks: tuple[Finding, ...] = ()
    limits: tuple[LimitState, ...] = ()
    beat: float | None = None
    started: float | None = None
    overlaps: int = 0
    overdue: float = 0.0
    unfed: tuple[int, float] = (0, 0.0)
