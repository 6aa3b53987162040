"""A durable batch goes on whoever is killed: its caller at any step, the feeder, its worker, Redis. Nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from graft.tasks.durable import feeder_lease
from tests.stack import ROOT, Stack, clean_environ, run_python, wait_until

WAIT = 90.0
ENVELOPE = 5

SUBMIT = """
import os, signal, sys
import graft
from graft.tasks.feeding import spool
from tests import samples

point, ledger = sys.argv[1], sys.argv[2]

def dying(script, point_before, point_after, number=1):
    calls = 0
    def run(*args):
        nonlocal calls
        calls += 1
        if calls == number and point == point_before:
            os.kill(os.getpid(), signal.SIGKILL)
        done = script(*args)
        if calls == number and point == point_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return run

spool.CLAIM = dying(spool.CLAIM, "before", "claimed")
spool.SPOOL = dying(spool.SPOOL, "", "between pages", 2)
spool.COMMIT = dying(spool.COMMIT, "all pages", "committed")
items = [(ledger, f"{n:04}" + "-" * 40_000) for n in range(100)]  # Four pages.
batch = graft.submit(samples.note, items, name="night", batch_size=5)
print(len(batch.collect(60)))
"""
READ = """
import graft
try:
    batch = graft.batch("night")
    batch.wait(60)
    print(batch.progress().done)
except graft.UnknownBatchError:
    print("unknown")
"""


def runs(ledger: Path) -> Counter[str]:
    return Counter(line[:4] for line in ledger.read_text().splitlines()) if ledger.exists() else Counter()


@pytest.fixture(scope="module")
def busy(redis_stack):
    """A stack of its own for the tests that leave it as it was."""
    with Stack({"cpu": 2}, clean_environ(os.environ)) as stack:
        yield stack


@pytest.mark.worker
@pytest.mark.parametrize("point", ["before", "claimed", "between pages", "all pages", "committed"])
def test_a_caller_killed_at_any_step_has_submitted_all_or_nothing(busy, tmp_path, point):
    ledger = tmp_path / "ran"
    killed = run_python(busy, SUBMIT, WAIT, point, str(ledger))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if point == "committed":
        assert run_python(busy, READ, WAIT).stdout.strip() == "100"
    else:
        assert run_python(busy, READ, WAIT).stdout.strip() == "unknown"
        assert not ledger.exists()
    again = run_python(busy, SUBMIT, WAIT, "none", str(ledger))
    assert again.stdout.strip() == "100", again.stderr
    assert set(runs(ledger).values()) == {1}
    assert len(runs(ledger)) == 100
    run_python(busy, 'import graft; graft.batch("night").forget()')
    with busy.connect() as client:
        assert not client.keys("graft:durable:*-*")


LONG = """
import sys, graft
from tests import samples
items = [(sys.argv[1], f"{n:04}") for n in range(int(sys.argv[2]))]
graft.submit(samples.note_slowly, items, name="night", batch_size=5, in_flight=4)
"""
LAST = """
import graft
batch = graft.batch("night")
batch.wait(80)
values = batch.collect(60)
print(batch.state, len(values), values == sorted(values), batch.progress().done)
"""


def begin(stack: Stack, ledger: Path, number: int) -> None:
    done = run_python(stack, LONG, WAIT, str(ledger), str(number))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: len(runs(ledger)) > 10, WAIT, "the batch to run")


def feeder(stack: Stack, other_than: int = 0) -> int:
    """The process that feeds."""

    def found() -> int:
        with stack.connect() as client:
            pid = int(feeder_lease.holder(client).rpartition("/")[2] or 0)
            return pid if pid != other_than else 0

    wait_until(found, WAIT, "somebody to feed")
    return found()


def ended(stack: Stack, number: int) -> None:
    done = run_python(stack, LAST, WAIT)
    assert done.stdout.strip() == f"succeeded {number} True {number}", done.stdout + done.stderr


def test_a_feeder_that_is_killed_is_followed_by_another_within_seconds(fresh_stack, tmp_path):
    stack, ledger, kills = fresh_stack(), tmp_path / "ran", 0
    begin(stack, ledger, 600)
    pid = 0
    while kills < 3:
        pid = feeder(stack, pid)
        os.kill(pid, signal.SIGKILL)
        kills += 1
        far = len(runs(ledger))
        feeder(stack, pid)
        wait_until(lambda far=far: len(runs(ledger)) > min(far + 20, 560), WAIT, "the batch to go on")
    ended(stack, 600)
    doubled = sum(runs(ledger).values()) - 600
    assert len(runs(ledger)) == 600
    assert 0 <= doubled <= kills * ENVELOPE


def test_the_death_of_the_worker_that_feeds_leaves_the_batch_to_another(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    first = stack.worker
    begin(stack, ledger, 300)
    assert psutil.Process(feeder(stack)).ppid() == first.pid
    with stack.another_worker():
        first.kill()
        ended(stack, 300)
    assert len(runs(ledger)) == 300
    assert sum(runs(ledger).values()) - 300 <= 2 * ENVELOPE  # Each of the two processes had one.


def test_a_frozen_feeder_that_wakes_up_sends_nothing_twice(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    with stack.another_worker():
        begin(stack, ledger, 500)
        frozen = feeder(stack)
        os.kill(frozen, signal.SIGSTOP)
        feeder(stack, frozen)
        far = len(runs(ledger))
        wait_until(lambda: len(runs(ledger)) > min(far + 20, 480), WAIT, "the other to feed")
        os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: not psutil.pid_exists(frozen) or _is_zombie(frozen), WAIT, "the first to notice, and to end")
        ended(stack, 500)
    assert set(runs(ledger).values()) == {1}
    assert len(runs(ledger)) == 500


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_restart_of_redis_loses_nothing(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    begin(stack, ledger, 400)
    with stack.connect() as client:
        client.config_set("appendfsync", "always")
    for _ in range(2):
        stack.restart_redis()
        far = len(runs(ledger))
        wait_until(lambda far=far: len(runs(ledger)) > min(far + 20, 380), WAIT, "the batch to go on")
    ended(stack, 400)
    assert len(runs(ledger)) == 400


WATCH = """
import sys, graft
batch = graft.batch("night")
print(len(list(batch)))
"""


def test_a_reader_bears_with_a_restart_and_another_that_is_killed_disturbs_nobody(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    begin(stack, ledger, 300)
    readers = [
        subprocess.Popen([sys.executable, "-c", WATCH], env=stack.env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    time.sleep(1.5)
    readers[0].kill()
    stack.restart_redis()
    assert readers[1].communicate(timeout=WAIT)[0].strip() == "300"
    readers[0].communicate()


EMPTIED = """
import sys, graft
batch = graft.batch("night")
values = iter(batch)
next(values)
print("reading", flush=True)
try:
    list(values)
except graft.UnknownBatchError as error:
    print(error)
"""


def test_whoever_reads_while_redis_is_emptied_is_told(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    begin(stack, ledger, 300)
    with subprocess.Popen(
        [sys.executable, "-c", EMPTIED], env=stack.env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout
        assert reader.stdout.readline() == "reading\n"
        with stack.connect() as client:
            client.flushall()
        assert "no durable batch has the id or name" in reader.communicate(timeout=WAIT)[0]
    ledger.unlink()
    begin(stack, ledger, 100)
    ended(stack, 100)


FULL = """
import graft
from tests import samples
try:
    graft.submit(samples.identity, [bytes(1_000_000) for _ in range(40)], name="full")
except graft.BrokerUnavailable as error:
    print(error)
"""


def test_a_full_redis_is_named_and_nothing_is_left_of_the_batch(fresh_stack, tmp_path):
    stack = fresh_stack()
    with stack.connect() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + (8 << 20))
        done = run_python(stack, FULL, WAIT)
        assert "is full" in done.stdout, done.stderr
        assert "maxmemory" in done.stdout
        client.config_set("maxmemory", 0)
        assert not client.keys("graft:durable:*-*")


def test_an_async_lane_feeds_too(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(cpu=0, io=10), tmp_path / "ran"
    begin(stack, ledger, 200)
    ended(stack, 200)


def test_a_batch_waits_for_a_worker_and_goes_on_when_all_have_been_restarted(fresh_stack, tmp_path):
    stack, ledger = fresh_stack(), tmp_path / "ran"
    begin(stack, ledger, 200)
    stack.worker.stop()
    far = len(runs(ledger))
    with stack.connect() as client:
        assert not feeder_lease.holder(client)  # Given back, not run out.
    with stack.another_worker():
        ended(stack, 200)
    assert far < 200
    assert set(runs(ledger).values()) == {1}


@pytest.mark.parametrize("point", ["noted", "sent"])
def test_a_feeder_that_dies_while_it_sends_leaves_nothing_out_and_doubles_nothing(fresh_stack, tmp_path, point):
    stack, ledger, died = fresh_stack(), tmp_path / "ran", tmp_path / "failpoint"
    stack.worker.stop()
    env = {"TEST_FEEDER_DIES": point, "TEST_LEDGER": str(died)}
    worker = stack.add_worker("cpu", 2, env=env, include=("tests.feeder_failpoint",))
    stack.wait_ready(services=[worker])
    begin(stack, ledger, 200)
    ended(stack, 200)
    assert died.read_text() == "died\n"
    assert set(runs(ledger).values()) == {1}


GO_ON = """
import os, signal, sys
import graft
from graft.config.redis_client import server_time, shared
from graft.tasks.durable import feeder_lease
from graft.tasks.feeding import spool
from tests import samples

point = sys.argv[1]
items = range(100) if point == "first" else range(50, 150)
commit = spool.COMMIT

def dying(*args):
    if point == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = commit(*args)
    if point == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return done

spool.COMMIT = dying
batch = graft.submit(samples.identity, items, name="grows", key="item")
if point == "unfed":
    print(feeder_lease.unfed(shared(), server_time(shared()) + 60))
else:
    print(batch.collect(60) == list(items), batch.progress().done)
"""


def test_a_caller_killed_while_it_goes_on_from_another_batch_leaves_one_of_the_two(fresh_stack):
    stack = fresh_stack(cpu=1)

    def go_on(point: str) -> str:
        done = run_python(stack, GO_ON, WAIT, point)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.stdout.strip()

    read = "import graft\nprint(graft.batch('grows').collect(60)[0])"
    assert go_on("first") == "True 100"
    assert go_on("before") == ""
    assert run_python(stack, read).stdout == "0\n"
    assert go_on("after") == ""
    assert run_python(stack, read).stdout == "50\n"
    assert go_on("again") == "True 100"


def test_health_is_told_that_nobody_feeds(fresh_stack):
    stack = fresh_stack(cpu=0)
    count, seconds = run_python(stack, GO_ON, WAIT, "unfed").stdout.strip("()\n").split(", ")
    assert count == "1"
    assert float(seconds) > 59
