"""A worker that was stopped for longer than its leases, and goes on: what it finishes then belongs to another."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.workers.redis_server import RedisServer, Worker, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

LINKED = {
    "task": "sample.note", "args": ["linked"], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True,
}  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


def send_signal(worker: Worker, number: int) -> None:
    """To the whole worker, as a laptop's lid does; its main process last."""
    main = psutil.Process(worker.process.pid)
    for process in (*main.children(recursive=True), main):
        process.send_signal(number)


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_what_a_frozen_worker_finishes_late_is_dropped(server, pool):
    with Worker(server, pool, vt=3) as frozen, Worker(server, "threads", vt=3) as other:
        frozen.wait_until_ready()
        other.wait_until_ready()
        # Both may take it: the other one is stopped first.
        send_signal(other, signal.SIGSTOP)
        frozen.send("long", seconds=5, link=[LINKED])
        wait_until(lambda: frozen.has("start", "long"), "it runs")
        send_signal(frozen, signal.SIGSTOP)
        send_signal(other, signal.SIGCONT)
        wait_until(lambda: other.has("end", "long", "linked"), "another worker has it", seconds=60)
        send_signal(frozen, signal.SIGCONT)
        wait_until(lambda: frozen.said("what came of this run is dropped"), "the fence holds", seconds=60)
        wait_until(lambda: not other.queue.hlen("graft:unacked"), "everything is settled")
        assert frozen.events()["end", "long"] == 1
        assert frozen.events()["end", "linked"] + other.events()["end", "linked"] == 1


def test_a_worker_whose_main_process_was_frozen_for_a_moment_concludes(server):
    with Worker(server, vt=30) as worker:
        worker.wait_until_ready()
        worker.send("long", seconds=1, link=[LINKED])
        wait_until(lambda: worker.has("start", "long"), "it runs")
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: worker.has("end", "long"), "it has ended")
        worker.process.send_signal(signal.SIGCONT)
        wait_until(lambda: worker.has("end", "linked"), "its link runs")
        assert not worker.said("is dropped")
