"""Many workers that share what they have imported: ``python -m graft.scripts.drill.fleet FIRST COUNT TOKEN``.

Each is a real worker of its own name, forked from this process, which runs one task at a time in itself (``-P solo``).
It costs a fraction of the memory that a worker costs alone, and all that it says to Redis.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Final

from graft.scripts.drill.app import app

PAUSE: Final = 0.5  # Seconds between two starts: they would take the machine from everybody else.
IMPORTED: Final = ("celery.apps.worker", "celery.worker.consumer", "celery.concurrency.solo", "celery.bin.worker")


def main(first: int, count: int, token: str) -> None:
    """Start the workers *first* to *first* + *count*, and wait for all of them."""
    app.finalize()
    for module in IMPORTED:
        import_module(module)
    children = []
    for number in range(first, first + count):
        children.append(_fork(f"fleet{number}@drill-{token}"))
        time.sleep(PAUSE)
    signal.signal(signal.SIGTERM, partial(_end, children))
    for _ in children:
        os.wait()


def _end(children: list[int], *_: object) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)


def _fork(name: str) -> int:
    child = os.fork()
    if child:
        return child
    try:
        options = ["-P", "solo", "-c", "1", "--without-gossip", "--without-mingle", "-l", "INFO"]
        app.worker_main(["worker", "-n", name, *options])
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
