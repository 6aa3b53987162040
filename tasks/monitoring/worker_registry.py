"""Which workers are alive: each writes a heartbeat under its name (workers/bootsteps/heartbeat.py); this reads them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.redis_client import shared

NAMES: Final = keys.WORKERS
BEAT: Final = keys.WORKER
BEAT_EVERY: Final = 2.0
BEAT_TTL: Final = 15
KEPT: Final = 20 * BEAT_TTL  # Seconds for which the name of a worker that beats no more is kept.
IO_POOL: Final = "aio_pool"  # ``WorkerBeat.pool`` of the io lane.


@dataclass(frozen=True)
class WorkerBeat:
    """The last heartbeat of one worker.

    ``busy`` counts pool slots running something, ``waiting`` prefetched messages; ``memory`` is resident bytes of the
    worker and its pool processes, pages that they share counted for each. In the io lane ``lag`` is the longest that
    the event loop has kept its tasks waiting within the last minute, in seconds, and ``blocked_by`` the task that last
    did. ``since`` is when the worker started; ``stopped`` counts pool processes that a signal has stopped. ``host`` is
    the name of its machine, or container.
    """

    name: str
    pid: int
    pool: str
    queues: list[str]
    processes: int
    busy: int
    waiting: int
    memory: int
    at: float
    lag: float = 0.0
    blocked_by: str = ""
    since: float = 0.0
    stopped: int = 0
    host: str = ""

    @classmethod
    def read(cls, text: str | bytes) -> WorkerBeat:
        """The heartbeat in *text*, which a worker of another version may have written."""
        record = json.loads(text)
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if name in record})

    @property
    def consumes_nothing(self) -> str:
        """Why this worker runs no message, though it is alive; "" where it does."""
        if not self.queues:
            return "it reads no queue: its queues are paused, or its consumers were cancelled"
        if self.stopped and self.stopped >= self.processes:
            return f"its {self.stopped} pool processes are stopped (SIGSTOP)"
        return ""


def beat(worker: WorkerBeat, client: Any) -> None:
    """Note that *worker* is alive."""
    now = int(redis_clock.now())  # The clocks of workers may differ.
    with client.pipeline(transaction=False) as pipe:
        pipe.set(BEAT + worker.name, json.dumps(asdict(worker)), ex=BEAT_TTL)
        pipe.zadd(NAMES, {worker.name: now})
        if now % KEPT < BEAT_EVERY:  # Nobody looks at what is older; it need not go at once.
            pipe.zremrangebyscore(NAMES, 0, now - KEPT)
        pipe.execute()


def remove(name: str, client: Any) -> None:
    """Forget the worker *name*, which stops on purpose."""
    with client.pipeline(transaction=False) as pipe:
        pipe.delete(BEAT + name)
        pipe.zrem(NAMES, name)
        pipe.execute()


def workers(client: Any = None) -> list[WorkerBeat]:
    """The live workers, by name."""
    client = client or shared()
    now, _ = client.time()
    names = client.zrangebyscore(NAMES, now - KEPT, "+inf")
    beats = client.mget([BEAT + name.decode() for name in names]) if names else []
    return sorted((WorkerBeat.read(text) for text in beats if text), key=lambda worker: worker.name)


def slots(queue: str, client: Any = None) -> int:
    """Pool slots of the live workers that read *queue*; read again once they are a heartbeat old."""
    now = time.monotonic()
    at, found = _slots.get(queue, (float("-inf"), 0))
    if now - at > BEAT_EVERY or not found:
        found = sum(worker.processes for worker in workers(client) if queue in worker.queues)
        _slots[queue] = (now, found)
    return found


_slots: dict[str, tuple[float, int]] = {}
