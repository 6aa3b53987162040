"""What the checks judge: values as they were read, without an opinion. Durations are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Queue:
    """One queue, all its priorities together.

    ``oldest`` is the age of the message that has waited longest. ``round_trip`` is what the last answered echo took,
    ``unanswered`` how long one has been on its way; None without any. ``slots`` and ``busy`` are those of its readers.
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


@dataclass(frozen=True)
class Worker:
    """One worker. ``silent`` is the time since its last heartbeat, ``clock`` how far its clock is ahead of Redis's."""

    name: str
    silent: float
    clock: float | None = None
    is_lost: bool = False


@dataclass(frozen=True)
class Held:
    """Messages that workers have taken and not settled.

    ``abandoned`` is how long ago the least recently renewed lease was renewed, ``longest`` how long one message has
    been held, those that wait for their time left out. ``unindexed`` counts records that no sweep would find.
    """

    count: int = 0
    abandoned: float = 0.0
    longest: float = 0.0
    unindexed: int = 0


@dataclass(frozen=True)
class Redis:
    """One Redis server, from its INFO. ``memory_limit`` is 0 without a limit, ``memory_total`` the machine's memory.

    ``evicted`` counts keys evicted since the last look. ``replicas`` are (address, bytes behind).
    """

    role: str
    version: tuple[int, ...]
    policy: str
    memory: int
    memory_limit: int
    memory_total: int
    clients: int
    clients_limit: int
    evicted: int = 0
    appends: bool = True
    saves: bool = False
    append_ok: bool = True
    save_ok: bool = True
    is_replica: bool = False
    link_up: bool = True
    replicas: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Pile:
    """Things that somebody has to look at: dead letters, quarantined messages. ``recent`` came within the window."""

    total: int = 0
    recent: int = 0
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What ran within the window of ``seconds``. ``retries`` are failures that were run again."""

    seconds: float = 0.0
    items: int = 0
    errors: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Loop:
    """The event loop of one process: how late it was with what it was asked to do at once, and what kept it."""

    process: str
    lag: float
    blocked_by: str = ""


@dataclass(frozen=True)
class Growth:
    """What a leak check found: ``verdict`` is suspect or leaking."""

    subject: str
    verdict: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class Measured:
    """Everything that one look found. ``beat`` is the time since Beat last sent something, None if it never did."""

    queues: tuple[Queue, ...] = ()
    workers: tuple[Worker, ...] = ()
    held: Held = field(default_factory=Held)
    servers: tuple[Redis, ...] = ()
    letters: Pile = field(default_factory=Pile)
    quarantine: Pile = field(default_factory=Pile)
    work: Work = field(default_factory=Work)
    loops: tuple[Loop, ...] = ()
    growths: tuple[Growth, ...] = ()
    beat: float | None = None
    overlaps: int = 0
