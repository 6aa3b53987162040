"""A long envelope shares what it has not begun with idle processes, and every item has one outcome."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graft
from graft.tasks.running.work_stealing import Offer, Sharer
from tests.stack import run_python, wait_until

WAIT = 60.0


def test_what_one_process_has_not_begun_runs_on_the_other(stack, tmp_path):
    runs = tmp_path / "runs"

    def work(x: int, path: str = str(runs)) -> tuple[int, int]:
        time.sleep(0.3 if x < 6 else 0)
        with open(path, "a") as file:
            file.write(f"{x}\n")
        return x, os.getpid()

    graft.submit(work, range(100, 4100)).collect(WAIT)  # Items of no duration: the next envelopes will be large.
    runs.unlink()
    values = graft.submit(work, [0, 1, 2, 3, 4, 5, *range(100, 400)]).collect(WAIT)
    assert [value for value, _ in values] == [0, 1, 2, 3, 4, 5, *range(100, 400)]
    assert len({process for value, process in values if value < 6}) > 1
    assert sorted(map(int, runs.read_text().split())) == [0, 1, 2, 3, 4, 5, *range(100, 400)]


@pytest.mark.parametrize("batch_size", [None, 21], ids=["given away", "ended before"])
def test_quick_calls_are_answered_while_a_long_neighbour_still_runs(stack, tmp_path, batch_size):
    """They waited for it, an hour where it took an hour: only the report at its end told of them."""
    gate = tmp_path / "gate"

    def work(x: int, gate: str = str(gate)) -> int:
        while x == 0 and not os.path.exists(gate):
            time.sleep(0.05)
        return x

    items = [*range(21)] if batch_size is None else [*range(20, -1, -1)]
    outcomes = graft.submit(work, items, batch_size=batch_size).as_completed(timeout=WAIT)
    try:
        early = [next(outcomes).value for _ in range(20)]
    finally:
        gate.touch()
    assert sorted(early) == list(range(1, 21))
    assert [outcome.value for outcome in outcomes] == [0]


def test_a_batch_of_a_size_that_was_asked_for_stays_as_it_is(stack):
    def tell(x: int) -> int:
        time.sleep(0.2)
        return os.getpid()

    processes = graft.submit(tell, range(5), batch_size=5).collect(WAIT)
    assert len(set(processes)) == 1


def test_errors_and_retries_reach_the_caller_wherever_an_item_ran(stack):
    def work(x: int) -> int:
        time.sleep(0.2 if x < 8 else 0)
        if x % 2:
            raise ValueError(x)
        return x

    graft.submit(work, range(100, 4100, 2)).collect(WAIT)
    batch = graft.submit(work, range(40), retry=graft.RetryPolicy(2, on=Exception))
    outcomes = {outcome.index: outcome for outcome in batch.as_completed(WAIT)}
    assert sorted(outcomes) == list(range(40))
    assert all((outcome.error is not None) == index % 2 for index, outcome in outcomes.items())
    assert batch.progress().done == 40
    assert batch.progress().retries == 20


KILLED = """
import os, time
import graft

def work(x, runs):
    with open(runs, "a") as file:
        file.write(f"{x}\\n")
    if x == 1 and open(runs).read().split().count("1") < 2:
        time.sleep(2)  # The rest has been shared by then.
        os._exit(3)
    return x

runs = os.environ["RUNS"]
from functools import partial
call = partial(work, runs=runs)
graft.submit(call, range(100, 4100)).collect(60)
os.unlink(runs)
print(graft.submit(call, [1, *range(100, 400)]).collect(60) == [1, *range(100, 400)])
ran = open(runs).read().split()
print(ran.count("1"), max(ran.count(str(x)) for x in range(102, 400)))
"""


def test_a_process_that_dies_after_sharing_runs_only_its_own_again(fresh_stack, tmp_path):
    done = run_python(fresh_stack(cpu=2), KILLED, env={"RUNS": str(tmp_path / "runs")})
    assert (done.stdout, done.stderr) == ("True\n2 1\n", "")


@given(st.integers(0, 200), st.booleans())
def test_a_runner_and_the_sharer_divide_the_items_between_them(count, is_wanted):
    todo = deque(range(count))
    shared: list[int] = []

    def share(indexes: list[int]) -> bool:
        if is_wanted:
            shared.extend(indexes)
        return is_wanted

    offer = Offer(todo, share)
    ran: list[int] = []
    thread = threading.Thread(target=offer.share)
    thread.start()
    while todo or not offer.is_exhausted():
        try:
            ran.append(todo.popleft())
        except IndexError:
            continue
    thread.join()
    assert sorted(ran + shared) == list(range(count))
    assert shared == sorted(shared)


def test_what_cannot_be_shared_stays_with_its_runner(caplog):
    def share(indexes: list[int]) -> bool:
        raise ConnectionError("no broker")

    todo = deque([1, 2, 3])
    Offer(todo, share).share()
    assert list(todo) == [1, 2, 3]
    assert "could not be shared: ConnectionError('no broker')" in caplog.text


def test_the_sharer_wakes_again_after_it_has_slept(monkeypatch):
    monkeypatch.setattr("graft.tasks.running.work_stealing.IDLE_AFTER", 0)
    sharer = Sharer()
    for _ in range(2):
        taken: list[int] = []
        with sharer.offered(deque([1, 2]), lambda indexes, taken=taken: bool(taken.extend(indexes) or True), 0.01):
            wait_until(lambda taken=taken: taken == [1, 2])
        time.sleep(0.1)
