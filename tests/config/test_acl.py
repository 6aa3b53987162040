"""Each role does its part of the work as its own Redis user, and is refused what is not its part."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
from redis.exceptions import NoPermissionError, ResponseError

from graft.config import acl
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import find, free_port
from graft.tasks.health import measure
from graft.tasks.leaks import keyspace
from tests.roles import version_of
from tests.stack import ROOT, clean_environ, run_python, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

WAIT = 90.0
FOREIGN = "of:another:program"
PRODUCER = """
from celery import chord, group
import graft
from graft.compat.executor import CeleryExecutor
from graft.config.redis_client import broker
from graft.tasks.queues import locate
from tests import samples
from tests.workers.aio.samples import add, total

batch = graft.submit(samples.square, range(20), batch_size=4)
print(batch.collect(60) == [n * n for n in range(20)], batch.progress().done)
print(graft.submit(samples.square, [1, 2, 3], reduce=samples.total).collect(60))
kept = graft.submit(samples.square, range(20), name="kept", batch_size=4)
kept.pause()
kept.resume()
print(kept.collect(60) == [n * n for n in range(20)], kept.resume(failed=True), graft.batch("kept").state)
kept.forget()
with CeleryExecutor() as pool:
    print(pool.submit(samples.square, 5).result(60), list(pool.map(samples.square, [6, 7])))
print(add.delay(1, 2).get(timeout=60), group(add.s(n, 1) for n in range(3)).apply_async().get(timeout=60))
print(chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async().get(timeout=60))
cancelled = graft.submit(samples.sleep, [0.01] * 200, batch_size=1)
cancelled.cancel()
with broker() as queue_side:  # As for an answer that is overdue.
    print(locate.missing(["nowhere"], queue_side))
"""
# The quarantine gets what is no message; the dead letters what waits, twice: once replayed, once dropped.
ACTS = """
import graft
from graft.config.redis_client import broker, shared
from graft.scripts.commands.batch.running import stop
from graft.tasks.dead_letters import replay, store
from graft.tasks.monitoring import audit
from graft.tasks.queues import pause, purge, quarantined
from tests import samples

pause.pause("low")
batch = graft.submit(samples.square, range(2), queue="low", batch_size=1, name="acts")
with broker() as client:
    while sum(1 for _ in purge.waiting_of(batch.id, client)) < 2:
        pass
shared().lpush("low", "no message")
print(purge.purge("low"), quarantined.drop(quarantined.everything()))
sent, dropped = store.newest()
print(replay.replay(sent), store.replays([sent.id]), store.remove(dropped), store.count())
print(stop(batch.id), pause.resume("low"), audit.may_write(shared()))
audit.end(audit.begin("ada", "here", "acts", shared()), "done", shared())
print([act.result for act in audit.read(shared())])
"""
ACTED = """Withdrawn(dead_letters=2, quarantined=1, dropped=0, items=3) 1
True [1] True 0
1 True True
['done']
"""
DONE = "True 20\n14\nTrue 0 succeeded\n25 [36, 49]\n3 [1, 2, 3]\n6\n{'nowhere'}\n"
LOOK = "from graft.tasks.health import examination; print(examination.examine().state)"
FATE = "from graft.tasks.results import call_status; print(call_status.status_of('nobody'))"
FORCED = """
import time
from functools import partial
from graft.compat.worker_pool import Task, WorkerPool
from tests import samples

pool = WorkerPool(1, 10)
pool.start()
pool.submit_task(Task(1, partial(samples.sleep, 3.0)))
while not pool.statistics()["running"]:
    time.sleep(0.01)
print(pool.advanced_shutdown(0.05, 60.0), pool.statistics()["abandoned"])
"""
JANITOR = "from graft.tasks.cleanup import redis_keys; print(redis_keys.tidy(), redis_keys.prune_dead_letters())"


class Deployment:
    """A server that knows the roles, and what runs on it."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.passwords = acl.write(folder / "acl", version=version_of(program))
        self.program = program
        self.folder = folder
        self.port = free_port()

    def url(self, role: str) -> str:
        return f"redis://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/0"

    def environ(self, role: str) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.url(role), "CELERY_RESULT_BACKEND": self.url(role)}

    def client(self, role: str) -> redis_py.Redis:
        return redis_py.Redis.from_url(self.url(role), socket_timeout=10)

    def start(self) -> subprocess.Popen[bytes]:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--aclfile", str(self.folder / "acl" / "users.acl")]
        process = subprocess.Popen(
            [str(self.program), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        with self.client("admin") as client:
            wait_until(lambda: process.poll() is not None or _answers(client), WAIT, "Redis")
        return process

    def refusals(self) -> set[tuple[str, str]]:
        """Who was refused what since the server started."""
        with self.client("admin") as client:
            entries = client.execute_command("ACL", "LOG", "128")
        rows = [
            entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True)) for entry in entries
        ]
        return {(_text(row, "username"), _text(row, "object")) for row in rows}


def _text(row: dict[str | bytes, bytes], name: str) -> str:
    value = row.get(name, row.get(name.encode(), b""))
    return value.decode() if isinstance(value, bytes) else str(value)


def _answers(client: redis_py.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis_py.RedisError:
        return False


def servers() -> list[Path]:
    """The Redis that tests use, and that of the system where it is of another version: 6.2 and 7 have other rules."""
    found = {version_of(program): program for program in (Path("/usr/bin/redis-server"),) if program.exists()}
    program = shutil.which("redis-server")
    return list((found | ({version_of(program): Path(program)} if program else {})).values()) or [find(os.environ)]


@pytest.fixture(
    scope="module", params=servers(), ids=lambda program: "redis-" + ".".join(map(str, version_of(program)))
)
def deployment(request, tmp_path_factory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("acl"), request.param)
    process = made.start()
    try:
        yield made
    finally:
        process.kill()
        process.wait()


def celery(stack: LocalStack, deployment: Deployment, role: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "celery", "-A", "graft", *arguments]
    return subprocess.run(
        argv, env={**stack.env, **deployment.environ(role)}, capture_output=True, text=True, timeout=WAIT, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def deployed(deployment: Deployment) -> Iterator[LocalStack]:
    """A worker and Beat, each as its own user."""
    environ = {**clean_environ(os.environ), **deployment.environ("worker")}
    environ |= {"GRAFT_HEALTH_EVERY": "1", "GRAFT_LEAKS_EVERY": "1", "GRAFT_SIGNING_KEY": "k" * 32}
    with LocalStack({}, pythonpath=[ROOT], environ=environ) as made:
        made.add_worker("cpu", 2, include=("tests.workers.aio.samples",))
        made.beat = made._start_service(
            "beat", ["beat", "-s", str(made.directory / "schedule"), "--pidfile="], deployment.environ("beat")
        )
        made.wait_ready(WAIT)
        yield made


def test_every_role_does_its_part_and_is_refused_nothing_of_it(deployment, deployed):
    with deployment.client("admin") as client:
        client.set(FOREIGN, 1)
        done = run_python(deployed, PRODUCER, WAIT, env=deployment.environ("producer"))
        assert done.stdout == DONE, done.stderr
        wait_until(lambda: client.exists("graft:health"), WAIT, "a health check that Beat sent")
        wait_until(lambda: keyspace.series(client), WAIT, "a look for leaks that Beat sent")
        assert [name for name in keyspace.series(client)[-1].values if name.startswith("connections ")]
        shown = [
            celery(deployed, deployment, "viewer", *command)
            for command in (
                ("health", "--all"), ("top", "--plain", "--count", "1"), ("doctor", "--json"),
                ("dead-letters", "list"), ("queue", "list"), ("batch", "list"), ("exporter", "--json"), ("leaks",),
                ("track", "nobody"),
                ("html-report", "--out", str(deployment.folder / "page.html")),
            )
        ]  # fmt: skip
        for one in shown:
            assert "NOPERM" not in one.stdout + one.stderr
            assert "no permissions" not in one.stdout + one.stderr, one.stderr
            assert "Traceback" not in one.stderr, one.stderr
        client.set("celery-task-meta-unbounded", "x")
        tidied = run_python(deployed, JANITOR, WAIT, env=deployment.environ("janitor"))
        assert tidied.returncode == 0, tidied.stderr
        assert client.ttl("celery-task-meta-unbounded") > 0
        commanded = celery(deployed, deployment, "operator", "inspect", "ping", "--timeout", "10")
        assert "pong" in commanded.stdout, commanded.stderr
    coarse = () if version_of(deployment.program) >= acl.SEVEN else ("config", "client")
    # What the server's own settings are is not theirs to know; redis-py tells its version, which older servers refuse.
    asked = {(role, command) for role in acl.roles(()) for command in ("config|get", "client|setinfo", *coarse)}
    # Where Beat is late a viewer looks for itself, and cannot note what later looks compare with.
    noted = {("viewer", key) for key in (measure.SEEN, measure.HELD, measure.PILES, measure.WORK)}
    # The look for leaks leaves out what it may not look at.
    assert deployment.refusals() <= asked | noted | {("worker", FOREIGN)}


REFUSED = [
    *((role, command) for role in acl.roles(()) for command in (
        "FLUSHALL", "FLUSHDB", "CONFIG GET requirepass", "CONFIG SET maxmemory 1", "SHUTDOWN NOSAVE", "KEYS *",
        "ACL LIST", "ACL SETUSER x on", "MONITOR", "CLIENT KILL TYPE normal", "CLIENT NO-EVICT on",
        "REPLICAOF NO ONE", "SWAPDB 0 1", "MODULE LIST", "SCRIPT KILL", "SCRIPT FLUSH", "SET elsewhere 1",
        "EVAL return(redis.call('SET','elsewhere','1')) 0",
    )),
    *((role, "CLIENT LIST") for role in acl.roles(()) if role != "worker"),
    *(("producer", command) for command in (
        "PUBLISH /0.celery.pidbox x", "DEL graft:dead-letters", "LPUSH graft:quarantine x",
        "GET elsewhere", "SCAN 0", "RENAME default other", "SET graft:redbeat:lock x", "HSET graft:janitor:cursor x 1",
    )),
    *(("viewer", command) for command in (
        "LPUSH default x", "DEL default", "SET graft:paused x", "EXPIRE default 1", "LPOP default",
        "HDEL graft:unacked x",
        "PUBLISH celery-task-meta-x x", "PUBLISH /0.celery.pidbox x", "DEL graft:dead-letters",
        "ZADD graft:cancelled 1 x",
    )),
    *(("beat", command) for command in (
        "GET celery-task-meta-x", "HGETALL graft:unacked", "PUBLISH /0.celery.pidbox x", "DEL graft:dead-letters",
        "HGETALL graft:run:x",
    )),
    *(("janitor", command) for command in (
        "LPUSH default x", "LRANGE default 0 -1", "DEL default", "PUBLISH /0.celery.pidbox x",
        "SUBSCRIBE /0.celery.pidbox", "EXPIRE default 1", "GET graft:function:x", "SET celery-task-meta-x forged",
    )),
    *(("operator", command) for command in (
        "SCAN 0", "DEL graft:dead-letters", "DEL graft:dead-letters:by-time", "DEL graft:paused", "DEL graft:audit",
        "DEL graft:quarantine", "SET graft:run:x 1", "SET graft:leaks:findings x", "SET graft:health x",
        "SADD graft:workers x", "HSET graft:worker:x y z", "XADD graft:attempts * x y", "SET graft:beats x",
        "SADD graft:limits x", "RENAME default other",
    )),
    *(("worker", command) for command in ("RENAME default elsewhere", "MOVE default 1", "GET elsewhere")),
]  # fmt: skip


def test_no_role_may_do_what_is_not_its_part(deployment):
    for role, text in REFUSED:
        with deployment.client(role) as client:
            try:
                found = str(client.execute_command(*text.split()))
            except redis_py.RedisError as error:
                found = str(error)
        assert "permission" in found or "executing the script can't" in found, f"{role}: {text}: {found}"


def test_what_only_redis_7_can_tell_apart(deployment, deployed):
    if version_of(deployment.program) < acl.SEVEN:
        pytest.skip("keys cannot be readable only on this server")
    for role in ("producer", "operator", "viewer"):
        told = run_python(deployed, FATE, WAIT, env=deployment.environ(role))
        assert told.stdout == "unknown\n", told.stderr
    acted = run_python(deployed, ACTS, WAIT, env=deployment.environ("operator"))
    assert acted.stdout == ACTED, acted.stderr
    process = str(deployed.workers[0].pid)
    traced = celery(deployed, deployment, "operator", "leaks", "--trace", process, "--seconds", "1")
    assert "where it was allocated" in traced.stdout, traced.stderr
    for role in ("producer", "janitor"):
        for text in ("HDEL graft:unacked x", "DEL graft:worker:x", "SADD graft:workers x", "SET graft:health x"):
            with deployment.client(role) as client, pytest.raises(NoPermissionError):
                client.execute_command(*text.split())
    for role, text in (
        ("producer", "EVAL return(redis.call('HDEL',KEYS[1],'x')) 1 graft:unacked"),
        ("producer", "HGETALL graft:dead-letters"),
        ("viewer", "EVAL return(redis.call('DEL',KEYS[1])) 1 default"), ("producer", "SET graft:leaks:trace:x 1"),
        ("operator", "SET graft:leaks:findings x"),
        ("operator", "EVAL return(redis.call('DEL',KEYS[1])) 1 graft:dead-letters"),
        ("operator", "EVAL return(redis.call('SET',KEYS[1],1)) 1 elsewhere"),
    ):  # fmt: skip
        with deployment.client(role) as client, pytest.raises(ResponseError, match=r"permission|can't"):
            client.execute_command(*text.split())


def test_a_producers_pool_waits_for_what_it_may_not_end_by_force(deployment, deployed):
    told = run_python(deployed, FORCED, WAIT, env=deployment.environ("producer"))
    assert told.stdout == "None 0\n", told.stderr
    assert "what the pool still runs (tasks: 1) is not ended by force" in told.stderr


def test_a_viewer_can_look_at_a_deployment_that_nobody_has_looked_at(deployment, deployed):
    told = run_python(deployed, LOOK, WAIT, env=deployment.environ("viewer"))
    assert told.stdout.strip() in ("ok", "degraded", "failing"), told.stderr


def test_nobody_comes_in_without_a_name(deployment):
    with redis_py.Redis(port=deployment.port) as client, pytest.raises(redis_py.AuthenticationError):
        client.ping()


def test_the_files_are_for_one_user_alone_and_hold_no_password_in_clear(deployment):
    users, addresses = (deployment.folder / "acl" / name for name in ("users.acl", "addresses.env"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in (users, addresses)} == {0o600}
    assert not any(password in users.read_text() for password in deployment.passwords.values())
    assert f"REDIS_WORKER=worker:{deployment.passwords['worker']}\n" in addresses.read_text()


def test_the_command_writes_users_for_queues_of_ones_own(tmp_path):
    command = [sys.executable, "-m", "graft.config.acl", str(tmp_path), "--queue", "mine", "--redis", "6.2"]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    (producer,) = (
        line for line in (tmp_path / "users.acl").read_text().splitlines() if line.startswith("user producer")
    )
    assert "~mine ~mine??[0-9] ~mine??sign" in producer
    assert "%" not in producer
