"""However a worker is told to stop, what it ran is finished or given back, and no item is blamed for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import graft
from graft.tasks.messages.message_format import lists
from tests import samples
from tests.stack import TESTED_POOL, run_python, wait_until

WAIT = 90.0
of_prefork = pytest.mark.skipif(TESTED_POOL != "prefork", reason="about the pipes of Celery's prefork pool")


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().split() if ledger.exists() else []


def gone(worker) -> bool:
    return worker.status is not None


def stop(stack, worker, number: int, *, group: bool = False) -> None:
    worker._child.signal(number, group=group)
    wait_until(lambda: gone(worker), timeout=60, what="the worker to end")
    stack.workers.remove(worker)


def caller(stack, items: str, ledger: Path) -> subprocess.Popen[str]:
    """A process that has *items* run, each of which leaves a line in *ledger*, and prints how many answers it got."""
    code = (
        "import sys, graft; from tests import samples\n"
        f"items = [(sys.argv[1], seconds) for seconds in {items}]\n"
        "print(len(graft.submit(samples.note_and_sleep, items, batch_size=2).collect(120)))"
    )
    command = [sys.executable, "-c", code, str(ledger)]
    return subprocess.Popen(command, env=stack.env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGQUIT, False), (signal.SIGTERM, True)], ids=["cold", "the whole group"]
)
def test_an_item_outlives_more_restarts_than_it_may_kill_processes(fresh_stack, tmp_path, number, group):
    """With a limit of one death, any restart that counted as one would bury it."""
    stack = fresh_stack(cpu=1, GRAFT_RUN_LIMIT="1")
    ledger = tmp_path / "ledger"
    with caller(stack, "[1.5]", ledger) as client:
        for started in range(1, 3):
            wait_until(lambda at=started: len(lines(ledger)) >= at, timeout=60, what="the item to start")
            stop(stack, stack.worker, number, group=group)
            stack.add_worker("cpu", 1)
            stack.wait_ready()
        answer, _ = client.communicate(timeout=120)
    assert answer == "1\n"
    assert len(lines(ledger)) == 3


@of_prefork
def test_a_cold_stop_does_not_wait_for_a_process_that_waits_for_the_rest_of_its_task(fresh_stack):
    """The message is larger than a pipe, so that half of it is on its way when the signal comes."""
    stack = fresh_stack(cpu=1, GRAFT_VISIBILITY_TIMEOUT="60")
    worker = stack.worker
    (process,) = psutil.Process(worker.pid).children()
    process.suspend()
    sent = run_python(
        stack,
        "from tests.workers.aio.samples import pause\n"
        "pause.apply_async(('x' * 1_000_000, 0.0), queue='default', task_id='large')",
    )
    assert sent.stderr == ""
    with stack.connect() as client:
        wait_until(lambda: client.hlen("graft:unacked") == 1, what="the task to be taken")
        time.sleep(1.0)  # For as much of it as goes into the pipe.
        worker._child.signal(signal.SIGQUIT)
        time.sleep(1.0)  # For the shutdown to find the process still waiting; nothing tells of that.
        process.resume()
        wait_until(lambda: gone(worker), timeout=60, what="the worker to end")
        assert client.exists(*lists("default"), "celery-task-meta-large") == 1


def test_a_warm_stop_finishes_what_runs_and_gives_the_rest_back(stack, tmp_path):
    ledger = tmp_path / "ledger"
    with stack.another_worker("cpu", 2) as worker:
        batch = graft.submit(samples.note_and_sleep, [(str(ledger), 0.3)] * 30, batch_size=1, in_flight=30)
        wait_until(lambda: batch.progress().done >= 4, what="work in progress")
        worker.stop(timeout=60)
        assert worker.status == 0
    assert batch.collect(WAIT) == [0.3] * 30
    assert len(lines(ledger)) == 30


def test_rolling_restarts_under_load_lose_nothing(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=2)
    stack.add_worker("cpu", 2)
    stack.wait_ready()
    ledger = tmp_path / "ledger"
    with caller(stack, "[0.02] * 600", ledger) as client:
        wait_until(lambda: len(lines(ledger)) > 20, timeout=60, what="the load")
        restarts = 0
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGTERM, signal.SIGQUIT):
            stack.add_worker("cpu", 2)
            stop(stack, stack.worker, number)
            stack.wait_ready()
            restarts += 1
        answer, _ = client.communicate(timeout=120)
    assert answer == "600\n"
    assert 600 <= len(lines(ledger)) <= 600 + restarts * 2 * 2 * 2  # Two envelopes of two items a process at most.


@of_prefork
def test_a_task_that_was_just_handed_to_a_process_is_waited_for(fresh_stack):
    """Celery gives its message back, though the process runs it, and then waits 30 s for that process."""
    stack = fresh_stack(cpu=0)
    samples_here = "tests.workers.aio.samples"
    worker = stack.add_worker("cpu", 1, include=(samples_here, "tests.workers.stop_while_writing"))
    sent = run_python(
        stack, f"from {samples_here} import pause; pause.apply_async((1, 0.5), queue='default', task_id='handed')"
    )
    assert sent.stderr == ""
    wait_until(lambda: gone(worker), timeout=90, what="the worker to end")
    stack.workers.remove(worker)
    with stack.connect() as client:
        assert client.exists("celery-task-meta-handed")
        assert not client.exists(*lists("default"), "graft:unacked")


@pytest.mark.skipif(TESTED_POOL == "prefork", reason="about runs that the main process does not see at once")
def test_a_worker_that_is_stopped_while_it_sends_events_finishes_what_runs(fresh_stack):
    """Whoever sends an event holds Celery's lock for it, also against the handler of a signal."""
    stack = fresh_stack(cpu=0)
    worker = stack.add_worker("cpu", 2, include=("tests.workers.stop_while_telling",))
    stack.wait_ready()
    sent = run_python(
        stack,
        "from graft.config.celery_app import app\n"
        "app.control.enable_events(reply=True, timeout=5, limit=1)\n"
        "for seconds in [0.01] * 100 + [0.7] * 10: app.send_task('telling.nap', (seconds,), queue='default')",
    )
    assert sent.returncode == 0, sent.stderr
    wait_until(lambda: gone(worker), timeout=40, what="the worker to end")
    assert worker.status == 0
    stack.workers.remove(worker)
    with stack.connect() as client:
        assert not client.exists("graft:unacked")
