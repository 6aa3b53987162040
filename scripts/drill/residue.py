"""The caller of the fault ``residue``, one process: ``python -m graft.scripts.drill.residue '{"tasks": 1000}' TURNS``.

After each turn it says which part that was, and goes on when a line comes on its standard input: meanwhile nothing is
under way, and what all processes and Redis have kept is measured.
"""

from __future__ import annotations

import json
import operator
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import graft
from graft.config import redis_client
from graft.scripts.drill import app as drill
from graft.tasks.cleanup import redis_keys
from graft.tasks.messages.message_format import lists
from graft.tasks.monitoring import worker_registry
from graft.tasks.monitoring.worker_registry import WorkerBeat

QUEUE: Final = "default"
CALLERS: Final = 8  # Batches under way at once.
ENVELOPES: Final = 10  # In one batch.
WAITING: Final = 3000  # Messages that wait at most: what waits is no residue.


def send_tasks(first: int, count: int) -> None:
    """Send *count* plain tasks, and wait until all have run."""
    with drill.app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            drill.nothing.apply_async((first + number,), queue=QUEUE, producer=producer)
            if number % 1000 == 999:
                _until_fewer_wait(WAITING)
    _until_fewer_wait(1)


def run_batches(first: int, count: int) -> None:
    """Run *count* envelopes of one item each, some to a batch of its own id."""
    _at_once(lambda number: graft.submit(operator.pos, range(ENVELOPES), batch_size=1).collect(), count // ENVELOPES)


def run_callables(first: int, count: int) -> None:
    """Run *count* batches of one item, each with a callable of its own, which travels by value."""
    _at_once(lambda number: graft.submit(_callable(first + number), [1], batch_size=1).collect(), count)


def name_workers(first: int, count: int) -> None:
    """Say what workers of *count* further names say of themselves, and no more of it."""
    with redis_client.broker() as client:
        for number in range(first, first + count):
            name = f"passing{number}@drill"
            beat = WorkerBeat(name, 1, "prefork", [QUEUE], 1, 0, 0, 1 << 20, time.time(), host="drill")
            worker_registry.beat(beat, client)


def _callable(number: int) -> Callable[[int], int]:
    def add(item: int) -> int:
        return item + number

    add.__name__ = add.__qualname__ = f"add{number}"  # Figures are kept by name.
    return add


def _at_once(func: Callable[[int], object], count: int) -> None:
    with ThreadPoolExecutor(CALLERS) as threads:
        for _ in threads.map(func, range(count)):
            pass


def _until_fewer_wait(count: int) -> None:
    with redis_client.broker() as client:
        while sum(client.llen(name) for name in lists(QUEUE)) >= count:
            time.sleep(0.02)


PARTS: Final[Mapping[str, Callable[[int, int], None]]] = {
    "tasks": send_tasks, "batches": run_batches, "callables": run_callables, "workers": name_workers,
}  # fmt: skip


def main(parts: Mapping[str, int], turns: int) -> None:
    """Do each of *parts* so many times, *turns* times."""
    for part, count in parts.items():
        for turn in range(turns):
            PARTS[part](turn * count, count)
            print(part, flush=True)
            sys.stdin.readline()
    if not drill.IS_STOCK:
        redis_keys.tidy()
    print("end", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
