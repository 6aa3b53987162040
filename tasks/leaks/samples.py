"""One measurement of one worker process, and the bounded series of them that Redis keeps while the process lives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import settings

SERIES: Final = f"{keys.LEAKS}process:"
PROCESSES: Final = f"{keys.LEAKS}processes"
RECYCLE: Final = f"{keys.LEAKS}recycle"  # Asks the process of a series to have itself replaced.
LENGTH: Final = 240


@dataclass(frozen=True)
class Sample:
    """One measurement of one process. ``at`` and ``born`` are epoch seconds.

    ``memory``, which is judged, is resident anonymous memory in MiB: allocated and not given back. The
    ``proportional`` share also grows when a page that it shared with its siblings becomes its own, which is no leak.

    ``files``, ``sockets`` and ``pipes`` (with the other kinds) are open descriptors, ``coroutines`` asyncio tasks,
    ``objects`` tracked by the garbage collector; ``lag`` is how late the event loop was, None without one. ``ran``
    counts items by callable since the sample before. ``evidence`` names the most numerous of a kind, ``held`` are
    connections that were borrowed for longer than allowed.
    """

    at: float
    worker: str
    pid: int
    born: float
    role: str
    memory: float = 0.0
    proportional: float = 0.0
    files: int = 0
    sockets: int = 0
    pipes: int = 0
    threads: int = 0
    coroutines: int = 0
    objects: int = 0
    lag: float | None = None
    ran: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, list[list[Any]]] = field(default_factory=dict)
    held: list[list[Any]] = field(default_factory=list)

    @property
    def process(self) -> str:
        return f"{self.worker} {self.role} process {self.pid}"

    @property
    def key(self) -> str:
        return f"{self.worker}/{self.pid}/{self.born:.0f}"


def keep(sample: Sample, client: Any) -> None:
    """Add *sample* to the series of its process."""
    key = SERIES + sample.key
    with client.pipeline(transaction=False) as pipe:
        pipe.rpush(key, json.dumps(asdict(sample)))
        pipe.ltrim(key, -LENGTH, -1)
        pipe.expire(key, _remembered())
        pipe.zadd(PROCESSES, {sample.key: sample.at})
        pipe.zremrangebyscore(PROCESSES, 0, sample.at - _remembered())
        pipe.expire(PROCESSES, _remembered())
        pipe.execute()


def _remembered() -> int:
    """Seconds for which a process that sends no samples is remembered."""
    return max(60, int(10 * settings().leaks_every))


def all_series(client: Any) -> list[list[Sample]]:
    """The series of every live process, the oldest sample first."""
    return list(series([key.decode() for key in client.zrange(PROCESSES, 0, -1)], client).values())


def series(processes: Iterable[str], client: Any) -> dict[str, list[Sample]]:
    """The series of those *processes* that have one, by key, the oldest sample first."""
    wanted = list(processes)
    with client.pipeline(transaction=False) as pipe:
        for key in wanted:
            pipe.lrange(SERIES + key, 0, -1)
        found = zip(wanted, pipe.execute(), strict=True)
    return {key: [Sample(**json.loads(text)) for text in texts] for key, texts in found if texts}


def latest(client: Any) -> list[Sample]:
    """The last sample of each of these processes."""
    keys = [SERIES + key.decode() for key in client.zrange(PROCESSES, 0, -1)]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.lindex(key, -1)
        return [Sample(**json.loads(text)) for text in pipe.execute() if text]
