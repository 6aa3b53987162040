"""One pool in several processes, and what outlives the death of a worker."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from uuid import uuid4

import pytest

from graft.compat import worker_pool as wp
from graft.compat.worker_pool import Task, WorkerPool, submission
from graft.config.deployment import app
from graft.tasks.messages.message_format import lists
from tests.compat.worker_pool import work
from tests.people import held
from tests.stack import ROOT, run_python, wait_until

PRODUCE = """
import functools, sys
from graft.compat.worker_pool import *
from tests.compat.worker_pool import work
from tests.people import held
name, path, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pool = WorkerPool(2, 5, name=name)
pool.start()
for number in range(first, first + count):
    pool.submit_task_with_timeout(Task(number, functools.partial(work.count_overlap, path)), 60)
"""


def test_ten_thousand_tasks_arrive_once_each(stack):
    pool = WorkerPool(20, 200)
    pool.start()
    found = []

    def produce(part):
        for number in range(part, 10_000, 4):
            pool.submit_task_with_timeout(Task(number, number), 60)

    def consume():
        found.extend((result.task_id, result.output, result.error) for result in pool.get_result())

    producers = [threading.Thread(target=produce, args=(part,)) for part in range(4)]
    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in [*producers, *consumers]:
        thread.start()
    for thread in producers:
        thread.join()
    pool.graceful_shutdown(120)
    for thread in consumers:
        thread.join()
    assert sorted(found) == [(number, number, None) for number in range(10_000)]
    assert pool.metrics().tasks_processed == 10_000


def test_two_processes_share_both_bounds(stack, tmp_path):
    name = f"shared {uuid4().hex}"
    marks = tmp_path / "marks"
    marks.mkdir()
    env = {"PYTHONPATH": str(ROOT)}
    mine = WorkerPool(2, 5, name=name)
    mine.start()
    with stack.another_worker(concurrency=2):  # Four processes for a pool of two.
        others = [
            threading.Thread(
                target=run_python, args=(stack, PRODUCE, 90, name, str(marks), str(first), "40"), kwargs={"env": env}
            )
            for first in (0, 40)
        ]
        for thread in others:
            thread.start()
        most = 0
        results = []
        while len(results) < 80:
            results.append(mine.get_result().get(60))
            most = max(most, mine._client.status().queued)
        for thread in others:
            thread.join()
    assert sorted(result.task_id for result in results) == list(range(80))
    assert max(result.output for result in results) <= 2
    assert most <= 5 + 2  # An idle worker's next task needs no place.
    assert {result.worker_id for result in results} <= {0, 1}
    mine.graceful_shutdown(30)


def test_places_that_one_process_reserved_are_not_lost_to_the_other(stack, tmp_path):
    name = f"shared {uuid4().hex}"
    first, second = WorkerPool(1, 40, name=name), WorkerPool(1, 40, name=name)
    for number in range(5):
        first.submit_task(Task(number, number))
    for number in range(5, 40):
        second.submit_task(Task(number, number))
    for pool in (first, second):
        with pytest.raises(wp.QueueFullError):
            pool.submit_task(Task(99))
    first.start()
    results = [second.get_result().get(30) for _ in range(40)]
    assert sorted(result.task_id for result in results) == list(range(40))
    second.graceful_shutdown(30)
    with pytest.raises(wp.PoolClosedError):
        first.submit_task_with_timeout(Task(1), 5)
    assert first.state == "closed"


def test_two_limits_for_one_name_are_an_error_that_says_both(stack):
    name = f"disputed {uuid4().hex}"
    with WorkerPool(2, 5, name=name):
        for other in (
            WorkerPool(3, 5, name=name),
            WorkerPool(2, 6, name=name),
            wp.PriorityWorkerPool(2, 5, name=name),
        ):
            with pytest.raises(wp.PoolMismatchError, match=r"in use as .*workers=2, capacity=5"):
                other.start()
    with WorkerPool(3, 5, name=name) as again:  # The last one is down.
        again.submit_task(Task(1, 1))
        assert again.get_result().get(30).output == 1


@pytest.mark.parametrize("name", ["a b:c", "ünï", "*?[x]", "x" * 300, "new\nline", "%s{0}"])
def test_a_name_may_hold_anything(stack, name):
    with WorkerPool(1, 5, name=name) as pool:
        pool.submit_task(Task(1, 1))
        assert pool.get_result().get(30).output == 1


def test_a_killed_worker_loses_no_task(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=2)
    gate, log = tmp_path / "gate", tmp_path / "log"
    program = """
import functools, sys
from graft.compat.worker_pool import *
from tests.compat.worker_pool import work
from tests.people import held
gate, log = sys.argv[1:]
pool = WorkerPool(2, 50)
pool.start()
for number in range(2):
    pool.submit_task(Task(number, functools.partial(work.hold, gate)))
for number in range(2, 30):
    pool.submit_task(Task(number, functools.partial(work.note_task, Task(number, (log, number)))))
print(sorted(pool.get_result().get(80).task_id for _ in range(30)))
pool.graceful_shutdown(20)
print(pool.metrics().tasks_processed)
"""
    answers = []
    client = threading.Thread(
        target=lambda: answers.append(
            run_python(stack, program, 100, str(gate), str(log), env={"PYTHONPATH": str(ROOT)})
        )
    )
    client.start()
    wait_until(lambda: work.begun(str(gate)) == 2)
    stack.worker.kill()
    with stack.another_worker():
        gate.touch()
        client.join()
    assert answers[0].stdout.split("\n")[:2] == [str(list(range(30))), "30"], answers[0].stderr
    assert max(Counter(log.read_text().split()).values()) == 1


def test_a_child_of_fork_has_a_pool_of_the_same_name_to_submit_to(stack):
    pool = WorkerPool(2, 20)
    pool.start()
    pool.submit_task(Task(1, 1))
    child = os.fork()
    if child == 0:
        try:
            pool.submit_task(Task(2, 2))
            pool._client.leave()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(pool.get_result().get(30).task_id for _ in range(2)) == [1, 2]
    pool.graceful_shutdown(30)


def test_a_broker_out_of_reach_is_named(stack, monkeypatch):
    program = """
from graft.compat.worker_pool import *
import asyncio
try:
    WorkerPool(1, 1).start()
except ConnectionError as error:
    print("start", "127.0.0.1:1" in str(error))
try:
    asyncio.run(WorkerPool.new(1, 1).spawn_cpu_work(int))
except ParallelError.JoinError as error:
    print("spawn", "127.0.0.1:1" in str(error))
"""
    address = "redis://127.0.0.1:1/0"
    done = run_python(stack, program, 30, env={"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address})
    assert done.stdout.split("\n")[:2] == ["start True", "spawn True"], done.stderr


def test_results_of_a_closed_pool_that_is_shared_can_be_read_by_another_process(stack):
    name = f"left {uuid4().hex}"
    writer, reader = WorkerPool(1, 10, name=name), WorkerPool(1, 10, name=name)
    reader.start()
    writer.start()
    for number in range(6):
        writer.submit_task(Task(number, functools.partial(work.twice, number)))
    writer.graceful_shutdown(30)
    assert sorted(result.output for result in reader.get_result()) == [0, 2, 4, 6, 8, 10]


SUBMIT_AND_DIE = """
import functools, os, sys
from graft.compat.worker_pool import *
from tests.compat.worker_pool import work
from tests.people import held
pool = WorkerPool(1, 5, name=sys.argv[1])
pool.start()
pool.submit_task(Task("orphan", functools.partial(work.twice, 21)))
pool._client._senders[-1].leave(30)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.acl_role("admin")
@pytest.mark.parametrize("has_ended", [False, True], ids=["not run", "ended by a time limit"])
def test_a_slot_whose_message_got_lost_with_its_client_is_found(stack, redis, monkeypatch, has_ended):
    monkeypatch.setattr(submission, "SEARCH_EVERY", 0.2)
    name = f"lost {uuid4().hex}"
    with held("batch"):
        gone = run_python(stack, SUBMIT_AND_DIE, 90, name)
        assert gone.returncode == 0, gone.stderr
        wait_until(lambda: redis.exists(*lists("batch")), 30, "the message")
        ((member, _),) = redis.hgetall(f"graft:pool:{name}:slots").items()
        if has_ended:
            redis.set(app().backend.get_key_for_task(member[16:].decode()), "{}", ex=60)
        redis.delete(*lists("batch"))  # As if its client had died before it was published.
    pool = WorkerPool(1, 5, name=name)
    pool.start()
    try:
        if not has_ended:
            assert pool.get_result().get(60).output == 42
        pool.submit_task(Task("next", 1))  # There is one slot, so it is free again.
        assert pool.get_result().get(60).task_id == "next"
    finally:
        pool.graceful_shutdown(30)
