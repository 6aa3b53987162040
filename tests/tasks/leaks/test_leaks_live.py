"""Leaks planted in real workers are found and named; an idle deployment stays clean. Ticks of a fifth of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from graft.tasks.leaks import findings, keyspace, samples, tracemalloc_session
from graft.tasks.leaks.examination import CHECK
from graft.tasks.leaks.findings import Finding
from graft.tasks.monitoring.exclusive import totals
from tests.stack import Stack, clean_environ, wait_until

pytestmark = pytest.mark.worker

WAIT = 90.0
EVERY = "0.2"
TICKS = 150  # A leak is named within so many: thirty seconds here, an hour and a quarter at the usual pace.

DRIVER = """
import sys, time
import graft
from tests.tasks.leaks import leaky
leak = getattr(leaky, sys.argv[1])
for number in range(100_000):
    graft.submit(leak, [2 * number, 2 * number + 1], batch_size=1).collect(60)
    graft.submit(leaky.innocent, range(2), batch_size=1).collect(60)
    time.sleep(0.1)
"""


@contextmanager
def deployment(**environ: str) -> Iterator[Stack]:
    settings = {"GRAFT_LEAKS_EVERY": EVERY, "GRAFT_HEALTH_EVERY": "600", **environ}
    with Stack({"cpu": 2}, {**clean_environ(os.environ), **settings}) as made:
        argv = [sys.executable, "-m", "celery", "-A", "graft", "beat", "-s", str(made.directory / "s"), "--pidfile="]
        log = open(made.directory / "beat.log", "w")  # noqa: SIM115 - closed below
        with log, subprocess.Popen(argv, env=made.env_of("beat"), stdout=log, stderr=log) as beat:
            try:
                yield made
            finally:
                beat.kill()


@pytest.fixture(scope="module")
def watched(redis_stack: Stack) -> Iterator[Stack]:
    with deployment() as made:
        yield made


@contextmanager
def running(stack: Stack, leak: str) -> Iterator[None]:
    """A client that has the leaking callable run, and an innocent one, for as long as the block lasts."""
    with subprocess.Popen([sys.executable, "-c", DRIVER, leak], env=stack.env) as client:
        try:
            yield
        finally:
            client.kill()


def ticks(client: Any) -> int:
    return totals(CHECK, client)[0]


def test_an_idle_deployment_stays_clean(watched):
    with watched.connect() as client:
        wait_until(lambda: ticks(client) >= 40, WAIT, "forty ticks")
        assert findings.read(client) == []
        roles = sorted(sample.role for sample in samples.latest(client))
        assert roles == ["main", "pool", "pool"]
        assert all(sample.memory > 5 and sample.threads and sample.sockets for sample in samples.latest(client))


@pytest.mark.parametrize(
    ("leak", "measure", "evidence"),
    [
        ("files", "files", "spool-"),
        ("threads", "threads", "forgotten-*"),
        ("connections", "connections forgotten", "oldest"),
        ("keys", "keys test:basket:*", "basket:"),
    ],
)
def test_a_planted_leak_is_found_and_named_within_bounded_ticks(watched, leak, measure, evidence):
    with watched.connect() as client, running(watched, leak):
        began = ticks(client)

        def found() -> Finding | None:
            return next(
                (one for one in findings.read(client) if (one.measure, one.verdict) == (measure, "leaking")), None
            )

        wait_until(found, WAIT, f"the leak of {leak}")
        assert ticks(client) - began <= TICKS
        # The one that leaks before the one that only ran as well; what leaked earlier may still be remembered.
        wait_until(lambda: (one := found()) and f"tests.tasks.leaks.leaky:{leak}" in one.names, WAIT, "its name")
        one = found()
        assert one is not None
        assert evidence in one.detail
        assert one.low > 0


def test_the_command_says_what_leaks_and_traces_it(watched):
    with watched.connect() as client, running(watched, "memory"):
        began = ticks(client)

        def named() -> list[Finding]:
            found = [one for one in findings.read(client) if (one.measure, one.verdict) == ("memory", "leaking")]
            return [one for one in found if one.names[:1] == ("tests.tasks.leaks.leaky:memory",)]

        seen: list[Finding] = []
        wait_until(lambda: seen.extend(named()) or seen, WAIT, "the leak")
        assert ticks(client) - began <= TICKS
        leaks = [sys.executable, "-m", "celery", "-A", "graft", "leaks"]
        told = subprocess.run(leaks, env=watched.env_of("viewer"), capture_output=True, text=True, check=False)
        assert told.returncode in (1, 2)
        assert "tests.tasks.leaks.leaky:memory" in told.stdout
        pid = seen[0].process.split("/")[-2]
        argv = [*leaks, "--trace", pid, "--seconds", "4"]
        traced = subprocess.run(argv, env=watched.env_of("operator"), capture_output=True, text=True, check=False)
        assert "leaky.py" in traced.stdout, traced.stderr
        assert "bytearray" in traced.stdout
        assert tracemalloc_session.result("nobody", client) is None
        argv = [*leaks, "--stack", pid]
        stacks = subprocess.run(argv, env=watched.env_of("operator"), capture_output=True, text=True, check=False)
        assert "MainThread" in stacks.stdout, stacks.stderr
        shown = json.loads(
            subprocess.run([*leaks, "--json"], env=watched.env_of("viewer"), capture_output=True, check=False).stdout
        )
        assert keyspace.SERIES.startswith("graft:leaks")
        assert {"findings", "processes", "redis"} == set(shown)


def test_a_leaking_process_is_replaced_between_two_items_where_that_is_wanted(redis_stack, tmp_path):
    ledger = tmp_path / "ledger"
    program = f"""
import os, threading, time
import graft
from pathlib import Path
from tests.tasks.leaks import leaky
from tests import samples

def leak_slowly(number):
    leaky.files(number)
    time.sleep(0.02)
    return os.getpid()

pids = []
deadline = time.monotonic() + 80
while time.monotonic() < deadline and len(set(pids)) < 4:
    pids += graft.submit(leaky_pid, [1, 2, 3, 4], batch_size=1).collect(60)
    time.sleep(0.05)
Path({str(ledger)!r}).write_text(f"{{len(set(pids))}} {{len(pids)}}")
"""
    program = program.replace("leaky_pid", "leak_slowly")
    with deployment(GRAFT_LEAKS_RECYCLE="true") as stack:
        first = {child.pid for child in stack.worker.process.children()}
        done = subprocess.run(
            [sys.executable, "-c", program], env=stack.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        processes, items = map(int, Path(ledger).read_text().split())
        assert processes >= 4, "no process was replaced"
        assert items % 4 == 0  # Every batch came back whole, without an error.
        assert not first & {child.pid for child in stack.worker.process.children()} or processes > 4
        with stack.connect() as client:
            assert client.hlen("graft:dead-letters") == 0
