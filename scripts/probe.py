"""``python -m graft.scripts.probe worker|beat|flower|exporter``: a container's health check. Exit code 0 is healthy.

A worker is healthy while its main process writes its heartbeat: that takes an event loop that turns and a Redis that
answers. It is ready (``worker NAME --ready``) while it also runs messages: it reads a queue that is not paused, and its
pool processes are not stopped. Beat is healthy while one of those that share RedBeat's lock ticks, or, a plain one, has
sent something within ``GRAFT_HEALTH_SILENCE``. A busy worker is a healthy one, so nothing here waits for a task.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

import redis

PATIENCE: Final = 5.0


def worker(name: str, *, ready: bool = False) -> str:
    """The fault of the worker *name*, or ""; *ready*: also why it runs nothing."""
    from graft.config.redis_client import connect
    from graft.tasks.monitoring.worker_registry import BEAT, WorkerBeat

    node = name if "@" in name else f"{name}@{socket.gethostname()}"
    try:
        with connect(socket_timeout=PATIENCE) as client:
            text = client.get(BEAT + node)
            if text is None:
                return f"{node} has written no heartbeat for 15 s"
            why = WorkerBeat.read(text).consumes_nothing if ready else ""
            return f"{node} is alive and runs nothing: {why}" if why else ""
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"


def beat() -> str:
    """The fault of Beat, or "". The lock may belong to another Beat, for which this one stands by."""
    from graft.config.deployment import settings
    from graft.config.redbeat import LOCK, LOCK_TIMEOUT
    from graft.config.redis_client import connect, server_time
    from graft.tasks.health import beat_ticks

    config = settings()
    try:
        # The lock is where the schedule is: with the broker.
        with connect(
            config.model_copy(update={"result_backend": config.broker_url}), socket_timeout=PATIENCE
        ) as client:
            if client.exists(LOCK):
                return ""
        with connect(config, socket_timeout=PATIENCE) as client:
            silent = beat_ticks.silence(client, server_time(client))
        if silent is not None and silent <= config.health_silence:
            return ""
        sent = (
            "none has sent anything for a day" if silent is None else f"the last one sent something {silent:.0f} s ago"
        )
        return f"no Beat holds {LOCK} (none with RedBeat has ticked for {LOCK_TIMEOUT} s), and {sent}"
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"


def page(url: str) -> str:
    """The fault of the server at *url*, or ""."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):  # noqa: S310 - an address of this container
            return ""
    except (urllib.error.URLError, TimeoutError) as error:
        return f"{url} does not answer: {error}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m graft.scripts.probe", description=__doc__,
        epilog="example: python -m graft.scripts.probe worker cpu --ready",
    )  # fmt: skip
    parser.add_argument("kind", choices=("worker", "beat", "flower", "exporter"))
    parser.add_argument("name", nargs="?", default="", help="the node: cpu, of this host, or cpu@host")
    parser.add_argument("--ready", action="store_true", help="a worker that runs nothing fails too")
    arguments = parser.parse_args(argv)
    match arguments.kind:
        case "worker":
            wrong = worker(arguments.name or "celery", ready=arguments.ready)
        case "beat":
            wrong = beat()
        case "flower":
            wrong = page(f"http://127.0.0.1:{os.environ.get('FLOWER_PORT', '5555')}/healthcheck")
        case _:
            wrong = page(f"http://127.0.0.1:{os.environ.get('GRAFT_EXPORTER_PORT', '9808')}/metrics")
    if wrong:
        print(wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
