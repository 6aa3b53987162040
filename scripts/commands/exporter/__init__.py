"""``celery -A graft exporter``: metrics of the whole deployment, for Prometheus and for autoscalers outside.

One exporter is enough; several report the same.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Final

import click
from prometheus_client import CollectorRegistry, start_http_server

from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.scripts.commands.exporter.metrics import DeploymentCollector
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.console import complain, say
from graft.tasks.monitoring import worker_load

PORT: Final = 9808


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft exporter --port 9808",
    "celery -A graft exporter --json --lane cpu",
))  # fmt: skip
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    envvar="GRAFT_EXPORTER_PORT",
    help="The port to serve on.",
    show_envvar=True,
)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    envvar="GRAFT_EXPORTER_ADDRESS",
    help="The address to serve on.",
    show_envvar=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print the load of each lane as JSON, and end.")
@click.option("--lane", type=click.Choice([*worker_load.LANES, "all"]), help="With --json: only this lane.")
def command(port: int, address: str, as_json: bool, lane: str | None) -> None:
    """Serve Prometheus metrics of queues, workers, callables, limits, health checks and dead letters.

    Autoscalers should use graft_scaling_demand_per_slot: the messages that wait, are fetched or run, divided by the
    slots of all workers. At 1.0 there are exactly enough slots.
    """
    if as_json:
        print_loads(lane)
        return
    registry = CollectorRegistry()
    registry.register(DeploymentCollector())
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        complain(f"{address}:{port} cannot be used: {error}; choose another with --port or --address")
        raise SystemExit(1) from error
    say(f"Metrics of {settings().broker_name} on http://{address}:{server.server_port}/metrics")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        stop.wait()
    except KeyboardInterrupt:
        say("stopped")
    server.shutdown()
    thread.join()


def print_loads(lane: str | None) -> None:
    with connect() as client:
        loads = worker_load.measure(client)
    found = {load.lane: load.as_dict() for load in loads}
    json.dump(found[lane] if lane else found, sys.stdout)
    sys.stdout.write("\n")
