"""A worker that is asked to stop finishes what it can in time, and gives back the rest."""

from __future__ import annotations

import signal

import pytest

from graft.tasks.messages.message_format import lists
from tests.stack import run_python, wait_until

SEND = "import graft, time; graft.submit(time.sleep, [{seconds}], batch_size=1); time.sleep(2)"


def start_to_drain(stack, seconds: float) -> None:
    assert run_python(stack, SEND.format(seconds=seconds)).returncode == 0
    with stack.connect() as client:
        wait_until(lambda: client.hlen("graft:unacked") == 1, 20, "the worker has it")
    worker = stack.worker
    worker.signal(signal.SIGTERM)
    wait_until(lambda: worker.status is not None, 60, "the worker ends by itself")


@pytest.mark.parametrize("lane", ["cpu", "io"])
def test_what_is_not_finished_in_time_goes_back_to_its_queue(fresh_stack, lane):
    stack = fresh_stack(**{"cpu": 0, lane: 1}, GRAFT_DRAIN_TIMEOUT="1", GRAFT_VISIBILITY_TIMEOUT="60")
    start_to_drain(stack, 300)
    with stack.connect() as client:
        waiting = sum(client.llen(name) for name in lists("batch"))
        assert waiting + client.hlen("graft:unacked") == 1
        if lane == "cpu":  # A thread cannot be cancelled; its message comes back with its lease.
            assert waiting == 1


def test_what_is_finished_in_time_is_finished(fresh_stack):
    stack = fresh_stack(cpu=1, GRAFT_DRAIN_TIMEOUT="30")
    start_to_drain(stack, 10)
    assert stack.workers[0].status == 0
    with stack.connect() as client:
        assert sum(client.llen(name) for name in lists("batch")) + client.hlen("graft:unacked") == 0
