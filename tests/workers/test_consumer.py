"""What a worker does when Redis or its connections go away while tasks run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.workers.redis_server import RedisServer, Worker, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


def cut_all_connections(server: RedisServer) -> int:
    """Close every connection but the one that asks; how many there were."""
    return int(server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")) + int(
        server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    )


def test_a_task_that_runs_while_redis_is_killed_and_restarted_runs_once(server):
    with Worker(server) as worker:
        worker.wait_until_ready()
        worker.send("long", seconds=3)
        wait_until(lambda: worker.has("start", "long"), "the task runs")
        server.kill()
        wait_until(lambda: worker.said("Connection to broker lost"), "the worker notices")
        server.start()
        worker.send("after")
        wait_until(lambda: worker.has("end", "after", "long"), "both tasks end")
        wait_until(lambda: not server.client.hlen("graft:unacked"), "everything is acknowledged")
        assert worker.is_alive()
        assert set(worker.events().values()) == {1}


def test_an_acknowledgement_that_redis_missed_is_made_good(server):
    with Worker(server, vt=4) as worker:
        worker.wait_until_ready()
        worker.send("first", "second", seconds=1)
        wait_until(lambda: worker.has("start", "first", "second"), "the tasks run")
        server.kill()
        wait_until(lambda: worker.has("end", "first", "second"), "the tasks end without Redis")
        server.start()
        wait_until(lambda: not server.client.hlen("graft:unacked"), "the acknowledgements arrive")
        assert not server.client.llen("default")
        assert set(worker.events().values()) == {1}


def test_tasks_go_on_while_all_connections_are_cut_again_and_again(server):
    labels = ["one", "two", "three", "four"]
    with Worker(server) as worker:
        worker.wait_until_ready()
        worker.send("eta", countdown=8)  # Something is held at every cut.
        worker.send(*labels, seconds=2)
        wait_until(lambda: worker.has("start", "one", "two"), "two tasks run")
        for cut in range(1, 4):
            wait_until(lambda: server.client.client_list(_type="pubsub"), "the worker listens")
            assert cut_all_connections(server) > 2
            wait_until(lambda at=cut: worker.said("went on with") == at, "the worker is back")
        wait_until(lambda: worker.has("end", "eta", *labels), "all tasks end")
        wait_until(lambda: not server.client.hlen("graft:unacked"), "everything is acknowledged")
        assert worker.is_alive()
        assert set(worker.events().values()) == {1}
        worker.send("after")
        wait_until(lambda: worker.has("end", "after"), "the worker takes new tasks")


def test_connections_that_are_cut_again_and_again_leave_no_file_open(server):
    """A pool opens a second connection where two find theirs cut at once; then there are enough."""
    with Worker(server) as worker:
        worker.wait_until_ready()
        opened = []
        for cut in range(8):
            wait_until(lambda: server.client.client_list(_type="pubsub"), "the worker listens")
            assert cut_all_connections(server) > 2
            worker.send(f"after{cut}")
            wait_until(lambda label=f"after{cut}": worker.has("end", label), "the worker takes new tasks")
            opened.append(psutil.Process(worker.process.pid).num_fds())
    assert max(opened[4:]) <= max(opened[:4]) + 3, opened


def test_connections_that_are_cut_while_the_worker_reconnects_cost_nothing(server):
    labels = ["one", "two", "three", "four"]
    with Worker(server) as worker:
        worker.wait_until_ready()
        worker.send("eta", countdown=3)
        worker.send(*labels, seconds=2)
        wait_until(lambda: worker.has("start", "one", "two"), "two tasks run")
        for _ in range(100):  # Some come in the middle of a reconnect, whose first steps succeed.
            cut_all_connections(server)
            time.sleep(0.02)
        wait_until(lambda: worker.has("end", "eta", *labels), "all tasks end")
        worker.send("after")
        wait_until(lambda: worker.has("end", "after"), "the worker takes new tasks")
        wait_until(lambda: not server.client.hlen("graft:unacked"), "everything is acknowledged")
        assert set(worker.events().values()) == {1}


def test_a_worker_that_starts_while_redis_has_too_few_replicas_waits_for_them(server):
    server.client.config_set("min-replicas-to-write", 1)
    with Worker(server) as worker:
        wait_until(lambda: worker.said("NOREPLICAS"), "the worker says why it waits")
        server.client.config_set("min-replicas-to-write", 0)
        worker.wait_until_ready()
        worker.send("one")
        wait_until(lambda: worker.has("end", "one"), "the task ends")


def test_negative_control_stock_celery_dies_with_redis(server):
    with Worker(server, stock=True) as worker:
        worker.wait_until_ready()
        worker.send("long", seconds=3)
        wait_until(lambda: worker.has("start", "long"), "the task runs")
        server.kill()
        wait_until(lambda: not worker.is_alive(), "the worker ends")
        assert worker.said("Unrecoverable error")


def test_negative_control_stock_celery_runs_twice_what_runs_while_connections_are_cut(server):
    with Worker(server, stock=True) as worker:
        worker.wait_until_ready()
        worker.send("one", "two", seconds=2)
        wait_until(lambda: worker.has("start", "one", "two"), "two tasks run")
        cut_all_connections(server)
        wait_until(lambda: max(worker.events().values()) == 2, "one of them starts again")
