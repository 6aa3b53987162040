"""What a project's callers are told when Redis does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hardened.project import Project
from tests.stack import ROOT
from tests.workers.redis_server import RedisServer

pytestmark = [pytest.mark.redis]

# The clock starts when Redis has stopped; 40 threads ask at once for one of ten producers.
CALL = """
import os, signal, threading, time
if {warm}:
    at_once.delay("warm")
    time.sleep(1)
app.amqp.router
os.kill({pid}, signal.SIGSTOP)
told = []
def call():
    try:
        at_once.delay("x")
    except Exception as error:
        told.append(type(error).__name__ + str("127.0.0.1" in str(error)))
threads = [threading.Thread(target=call, daemon=True) for _ in range(40)]
for thread in threads: thread.start()
deadline = time.monotonic() + 15
for thread in threads: thread.join(max(0, deadline - time.monotonic()))
print(*told, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("warm", [False, True], ids=["first call", "later call"])
def test_every_caller_is_told_soon_that_the_broker_does_not_answer(tmp_path: Path, warm: bool) -> None:
    """Celery waits for a producer without bound, and for each of its own attempts: 40 s, or for ever."""
    with RedisServer(tmp_path) as server, Project(server.url, tmp_path) as shop:
        assert server._process is not None
        pid = server._process.pid
        try:
            told = shop.run(CALL.format(warm=warm, pid=pid), GRAFT_CONNECT_TIMEOUT="0.5").split()
        finally:
            os.kill(pid, signal.SIGCONT)
    assert Counter(told) == {"OperationalErrorTrue": 40}


LEAVE = """
import os, signal
from tests.projects.shop.celery import app, at_once
kept = [at_once.delay("x") for _ in range(20)]
os.kill({pid}, signal.SIGKILL)
"""


def test_a_program_ends_quietly_with_results_outstanding_and_redis_gone(tmp_path: Path) -> None:
    """Celery says 300 lines about exceptions that it ignores."""
    with RedisServer(tmp_path) as server, Project(server.url, tmp_path) as shop:
        assert server._process is not None
        argv = [sys.executable, "-c", LEAVE.format(pid=server._process.pid)]
        env = shop.environ(stock=False)
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


MIXED = """
import threading
told = []
def call(argument):
    try:
        at_once.delay(argument)
        told.append("sent")
    except Exception as error:
        told.append(type(error).__name__)
threads = [threading.Thread(target=call, args=(argument,)) for argument in ["x", object()] * 40]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*told)
"""


def test_an_argument_that_cannot_be_sent_fails_no_other_call(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Project(server.url, tmp_path) as shop:
        assert Counter(shop.run(MIXED).split()) == {"sent": 40, "EncodeError": 40}
