"""``celery -A graft leaks``: what grows in worker processes and in Redis. Exit code 0 clean, 1 suspect, 2 leaking."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click
import redis
from rich.table import Table
from rich.text import Text

from graft.config.deployment import settings
from graft.config.redis_client import server_time, shared
from graft.scripts.console import complain, output, say, show
from graft.tasks.leaks import findings, keyspace, samples, tracemalloc_session
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.keyspace import RedisSample
from graft.tasks.leaks.samples import Sample

STYLES = {"clean": "green", "suspect": "yellow", "leaking": "bold red"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Findings, and the last sample of everything, as JSON.")
@click.option("--trace", "pid", type=int, metavar="PID", help="Have this process trace its allocations for a while.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long it traces.")
def command(as_json: bool, pid: int | None, seconds: float) -> None:
    """Say which process or family of keys grows, and what ran while it did.

    Beat has everything measured every GRAFT_LEAKS_EVERY seconds. A finding needs a dozen measurements, growth beyond
    noise at 99 % confidence, and growth that goes on. Exit code 0: clean, 1: suspect, 2: leaking.
    """
    try:
        client = shared()
        latest = samples.latest(client)
        if pid is not None:
            trace(pid, seconds, latest)
            return
        found = findings.read(client)
        looks = keyspace.series(client)
        now = server_time(client)
    except (redis.RedisError, OSError) as error:
        complain(f"{settings().broker_name} does not answer: {error}; start it, or set CELERY_BROKER_URL")
        raise SystemExit(3) from error
    if as_json:
        told = {
            "findings": [asdict(each) for each in found],
            "processes": [asdict(each) for each in latest],
            "redis": asdict(looks[-1]) if looks else None,
        }
        click.echo(json.dumps(told, indent=2))
    else:
        show_findings(found, looks, now)
        show_processes(latest, now)
    raise SystemExit(2 if any(each.verdict == "leaking" for each in found) else 1 if found else 0)


def show_findings(found: list[Finding], looks: list[RedisSample], now: float) -> None:
    state = "leaking" if any(each.verdict == "leaking" for each in found) else "suspect" if found else "clean"
    if not looks:
        say(
            "Nothing was measured yet: start Beat (celery -A graft beat) and a worker that reads the queue maintenance."
        )
        return
    output.print(Text.assemble(("●", STYLES[state]), " ", (state, STYLES[state])))
    say(f"{len(looks)} measurements of Redis, the last {now - looks[-1].at:.0f} s ago.")
    if found:
        table = Table("", box=None, pad_edge=False)
        table.add_column("what", overflow="fold", max_width=24)
        table.add_column("evidence", overflow="fold")
        for each in sorted(found, key=lambda each: each.verdict):
            evidence = Text(each.detail)
            if each.per_hour:
                evidence.append(
                    f"\n{each.per_hour:,.0f} an hour, between {each.low:,.0f} and {each.high:,.0f} with 99 % "
                    f"confidence, from {each.samples} measurements",
                    "dim",
                )
            evidence.append(f"\n→ {each.remedy}", "cyan")
            table.add_row(Text(each.verdict, STYLES[each.verdict]), Text(f"{each.subject}\n{each.measure}"), evidence)
        show(table)


def show_processes(latest: list[Sample], now: float) -> None:
    table = Table("pid", "role", box=None, pad_edge=False)
    for name in ("age", "MiB", "share", "files", "socks", "pipes", "thr", "async", "seen"):
        table.add_column(name, justify="right")
    table.add_column("worker", overflow="fold")
    for one in sorted(latest, key=lambda one: (one.worker, one.role, one.pid)):
        table.add_row(
            str(one.pid), one.role, age(now - one.born), f"{one.memory:.0f}", f"{one.proportional:.0f}",
            str(one.files), str(one.sockets),
            str(one.pipes), str(one.threads), str(one.coroutines), f"{max(0.0, now - one.at):.0f} s", one.worker,
        )  # fmt: skip
    if latest:
        show(table)


def age(seconds: float) -> str:
    for name, unit in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def trace(pid: int, seconds: float, latest: list[Sample]) -> None:
    """Ask the process to trace its allocations, wait, and show where memory was allocated and kept."""
    known = [one for one in latest if one.pid == pid]
    if not known:
        complain(f"no worker process {pid} is known; there are {', '.join(str(one.pid) for one in latest) or 'none'}")
        raise SystemExit(3)
    client = shared()
    tracemalloc_session.request(known[0].key, seconds, client)
    every = settings().leaks_every
    say(f"Process {pid} traces from its next look on (every {every:g} s) for {seconds:g} s; it is slower meanwhile.")
    deadline = time.monotonic() + seconds + 3 * every + 30
    while (told := tracemalloc_session.result(known[0].key, client)) is None:
        if time.monotonic() > deadline:
            complain(f"process {pid} did not answer; it may have ended")
            raise SystemExit(3)
        time.sleep(0.2)
    table = Table("KiB", "blocks", box=None, pad_edge=False)
    table.add_column("where it was allocated, and not freed", overflow="fold")
    for one in told:
        where = Text(f"{one['file']}:{one['line']}\n  {one['code']}")
        table.add_row(f"{one['bytes'] / 1024:,.0f}", f"{one['blocks']:,}", where)
    show(table)
