"""What a project's callers are told when Redis does not answer."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.hardened.project import Project
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
