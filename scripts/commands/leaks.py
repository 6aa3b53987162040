"""``celery -A graft leaks``: growth in worker processes and in Redis. Exit code 0 clean, 1 suspect, 2 leaking."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name, settings
from graft.config.queues import table as queue_table
from graft.config.redis_client import server_time, shared
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.console import complain, output, say, show
from graft.tasks.leaks import findings, keyspace, samples, thread_stacks, tracemalloc_session
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.keyspace import RedisSample
from graft.tasks.leaks.samples import Sample

STYLES = {"clean": "green", "suspect": "yellow", "leaking": "bold red"}


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft leaks",
    "celery -A graft leaks --trace 4711 --seconds 30",
    "celery -A graft leaks --stack 4711            where its threads are now",
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print findings and the last samples as JSON.")
@click.option("--trace", "pid", type=int, metavar="PID", help="Trace the allocations of this worker process.")
@click.option("--stack", "stuck", type=int, metavar="PID", help="Show where this worker process is now.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="With --trace: for how long."
)
def command(as_json: bool, pid: int | None, stuck: int | None, seconds: float) -> None:
    """Show which worker processes and Redis keys grow, and which callables ran meanwhile.

    Workers and Redis are measured every GRAFT_LEAKS_EVERY seconds, if Beat runs. A finding needs a dozen measurements
    and growth that continues, beyond noise at 99 % confidence. Exit code 0: clean, 1: suspect, 2: leaking, 3: Redis
    does not answer, or a trace failed.
    """
    client = shared()
    latest = samples.latest(client)
    if pid is not None:
        trace(pid, seconds, latest)
        return
    if stuck is not None:
        stack(stuck, latest)
        return
    found = findings.read(client)
    measured = keyspace.series(client)
    now = server_time(client)
    if as_json:
        record = {
            "findings": [asdict(each) for each in found],
            "processes": [asdict(each) for each in latest],
            "redis": asdict(measured[-1]) if measured else None,
        }
        click.echo(json.dumps(record, indent=2))
    else:
        show_findings(found, measured, now)
        show_processes(latest, now)
    raise SystemExit(2 if any(each.verdict == "leaking" for each in found) else 1 if found else 0)


def show_findings(found: list[Finding], measured: list[RedisSample], now: float) -> None:
    state = "leaking" if any(each.verdict == "leaking" for each in found) else "suspect" if found else "clean"
    if not measured:
        say(
            f"There are no measurements yet: start Beat (celery -A {app_name()} beat), "
            f"and a worker that reads the queue {queue_table().maintenance}."
        )
        return
    output().print(Text.assemble(("●", STYLES[state]), " ", (state, STYLES[state])))
    say(f"{len(measured)} measurements of Redis, the last {now - measured[-1].at:.0f} s ago.")
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
    """Let a process trace its allocations, wait, and show where memory was allocated and not freed."""
    process, client = wanted(pid, latest), shared()
    tracemalloc_session.request(process.key, seconds, client)
    every = settings().leaks_every
    say(f"Process {pid} begins to trace within {every:g} s, and does so for {seconds:g} s. It is slower meanwhile.")
    deadline = time.monotonic() + seconds + 3 * every + 30
    while (lines := tracemalloc_session.result(process.key, client)) is None:
        if time.monotonic() > deadline:
            complain(f"process {pid} sent no trace; it may have ended")
            raise SystemExit(3)
        time.sleep(0.2)
    table = Table("KiB", "blocks", box=None, pad_edge=False)
    table.add_column("where it was allocated, and not freed", overflow="fold")
    for one in lines:
        where = Text(f"{one['file']}:{one['line']}\n  {one['code']}")
        table.add_row(f"{one['bytes'] / 1024:,.0f}", f"{one['blocks']:,}", where)
    show(table)


def wanted(pid: int, latest: list[Sample]) -> Sample:
    """The process *pid*; the program ends where it is not known."""
    for one in latest:
        if one.pid == pid:
            return one
    complain(f"no worker process {pid} is known; known are {', '.join(str(one.pid) for one in latest) or 'none'}")
    raise SystemExit(3)


def stack(pid: int, latest: list[Sample]) -> None:
    """Have a process show where its threads are, wait, and print it."""
    process, client, every = wanted(pid, latest), shared(), settings().leaks_every
    thread_stacks.request(process.key, client)
    say(f"Process {pid} answers within {every:g} s.")
    deadline = time.monotonic() + 2 * every + 10
    while (found := thread_stacks.result(process.key, client)) is None:
        if time.monotonic() > deadline:
            complain(f"process {pid} did not answer; it may have ended, or be stopped")
            raise SystemExit(3)
        time.sleep(0.2)
    for name, text in found.threads.items():
        output().print(f"{name}\n{text}", markup=False)
