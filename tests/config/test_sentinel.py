"""Behind Sentinel: a master that dies costs neither work nor the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_py

from graft.config.queues import Lane
from graft.scripts.stack.redis_server import find, free_port
from tests import roles
from tests.stack import Stack, run_python, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

MASTER = "graft-test"
CONFIGURATION = """\
port {port}
bind 127.0.0.1
sentinel monitor {name} 127.0.0.1 {master} 1
sentinel down-after-milliseconds {name} 1000
sentinel failover-timeout {name} 5000
sentinel resolve-hostnames no
"""


class Watched:
    """A master, its replica and a Sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = str(find(os.environ))
        self.ports = {name: free_port() for name in ("master", "replica", "sentinel")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._serve("master")
        self._serve("replica", "--replicaof", "127.0.0.1", str(self.ports["master"]))
        configuration = self.folder / "sentinel.conf"
        configuration.write_text(
            CONFIGURATION.format(port=self.ports["sentinel"], master=self.ports["master"], name=MASTER)
        )
        self._run("sentinel", [self.program, str(configuration), "--sentinel"])
        with self.client("sentinel") as sentinel, self.client("master") as master:
            wait_until(lambda: master.info("replication")["connected_slaves"] == 1, what="the replica")
            wait_until(lambda: len(sentinel.sentinel_slaves(MASTER)) == 1, what="Sentinel to see the replica")
            wait_until(lambda: master.wait(1, 100) == 1, what="the replica to follow")

    def url(self, user: str) -> str:
        return f"sentinel://{roles.login(user)}127.0.0.1:{self.ports['sentinel']}"

    def client(self, name: str) -> redis_py.Redis:
        return redis_py.Redis(port=self.ports[name], socket_timeout=5)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def _serve(self, name: str, *options: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        port = str(self.ports[name])
        command = [self.program, "--port", port, "--dir", str(folder), "--appendonly", "yes", *options]
        self._run(name, command + roles.options())

    def _run(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
        with self.client(name) as client:
            wait_until(lambda: _answers(client), what=f"the {name}")


def _answers(client: redis_py.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis_py.RedisError:
        return False


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    servers = Watched(tmp_path)
    try:
        servers.start()
        yield servers
    finally:
        for name in servers.processes:
            servers.kill(name)


def behind(watched: Watched, fresh_stack: Callable[..., Stack], lane: Lane, concurrency: int, **environ: str) -> Stack:
    """A worker of the servers that *watched* has, and the environment of its callers."""
    stack = fresh_stack(cpu=0, CELERY_BROKER_URL=watched.url("caller"), GRAFT_SENTINEL_MASTER=MASTER, **environ)
    stack.add_worker(lane, concurrency, env=dict.fromkeys(roles.ADDRESSES, watched.url("worker")))
    stack.wait_ready()
    return stack


CLIENT = """
import sys, time
import graft
from tests import samples

batch = graft.submit(samples.pause, range(60), batch_size=1)
while batch.progress().done < 5:
    time.sleep(0.01)
print("running", flush=True)
print(batch.collect(120) == list(range(60)), flush=True)
"""


def test_a_failover_loses_no_item_and_no_worker(watched, fresh_stack):
    stack = behind(watched, fresh_stack, "cpu", 2, GRAFT_LOST_AFTER="5")
    pid = stack.worker.pid
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT], env=stack.env, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    with client:
        assert client.stdout.readline() == "running\n"
        watched.kill("master")
        answer, _ = client.communicate(timeout=150)
    assert answer == "True\n"
    with watched.client("replica") as replica:
        assert replica.info("replication")["role"] == "master"
    assert stack.worker.pid == pid
    done = run_python(stack, "import graft; print(graft.submit(abs, [-4]).collect(60))")
    assert done.stdout == "[4]\n", done.stderr


ASYNC_CLIENT = """
from tests.workers.aio import samples as tasks

print([tasks.pause.apply_async((number, 0.1), queue="io").get(timeout=60) for number in range(3)])
"""


def test_async_tasks_store_their_results_behind_sentinel(watched, fresh_stack):
    stack = behind(watched, fresh_stack, "io", 10)
    done = run_python(stack, ASYNC_CLIENT)
    assert done.stdout == "[0, 1, 2]\n", done.stderr


def test_an_address_of_sentinel_needs_the_masters_name(fresh_stack):
    done = run_python(
        fresh_stack(cpu=0), "import graft; graft.submit(abs, [1])", env={"CELERY_BROKER_URL": "sentinel://h:1"}
    )
    assert "set GRAFT_SENTINEL_MASTER" in done.stderr
