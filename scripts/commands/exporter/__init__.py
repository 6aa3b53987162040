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
import redis
from prometheus_client import CollectorRegistry, start_http_server

from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.scripts.commands.exporter.metrics import DeploymentCollector
from graft.scripts.console import complain, say
from graft.tasks.monitoring import worker_load

PORT: Final = 9808


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, envvar="GRAFT_EXPORTER_PORT")
@click.option("--address", default="127.0.0.1", show_default=True, envvar="GRAFT_EXPORTER_ADDRESS")
@click.option("--json", "as_json", is_flag=True, help="Print the figure for scalers once, as JSON, and end.")
@click.option("--lane", type=click.Choice([*worker_load.LANES, "all"]), help="With --json: this lane's alone.")
def command(port: int, address: str, as_json: bool, lane: str | None) -> None:
    """Serve Prometheus metrics of queues, workers, callables, verdicts and dead letters.

    The figure for scalers is graft_scaling_demand_per_slot: what waits, was fetched and runs, for each place that could
    run it. 1.0 is exactly enough.
    """
    if as_json:
        raise SystemExit(print_figure(lane))
    registry = CollectorRegistry()
    registry.register(DeploymentCollector())
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        complain(f"{address}:{port} cannot be had: {error}; choose another with --port or --address")
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


def print_figure(lane: str | None) -> int:
    """The loads as JSON on stdout; 0, or 1 when Redis does not answer."""
    try:
        with connect() as client:
            loads = worker_load.measure(client)
    except (redis.RedisError, OSError) as error:
        complain(f"{settings().broker_name} does not answer: {error}")
        return 1
    found = {load.lane: load.as_dict() for load in loads}
    json.dump(found[lane] if lane else found, sys.stdout)
    sys.stdout.write("\n")
    return 0
