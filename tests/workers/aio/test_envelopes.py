"""Batches of coroutines on the io lane: what has ended is told while the rest of its envelope still runs."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

import graft
from graft.compat.executor import CeleryExecutor
from graft.config.redis_client import shared
from graft.tasks.errors import CancelledBatchError
from tests.stack import wait_until
from tests.workers.aio import samples

WAIT = 60.0


@pytest.fixture
def gate(stack: Any) -> Any:
    """The name of a gate; calls it holds up go on at the end of the test at the latest."""
    name = f"test:gate:{uuid.uuid4()}"
    yield name
    open_(name)


def open_(gate: str) -> None:
    shared().set(gate, "open", ex=300)


def test_outcomes_arrive_while_another_item_of_the_envelope_still_runs(gate):
    items = [f"{number}" for number in range(20)] + [gate, "fail"]
    batch = graft.submit(samples.behind_the_gate, items, batch_size=len(items), concurrency=len(items))
    outcomes = batch.as_completed(timeout=WAIT)
    early = [next(outcomes) for _ in range(21)]
    assert sorted(outcome.index for outcome in early) == [*range(20), 21]
    assert [repr(outcome.error) for outcome in early if outcome.error] == ["ValueError('fail')"]
    assert batch.progress().done == 21
    assert batch.progress().envelopes == 1
    open_(gate)
    (last,) = outcomes
    assert (last.index, last.value) == (20, gate)
    # The report at the end has all outcomes once more, which changes nothing.
    assert (batch.progress().done, batch.progress().failed) == (22, 1)


def test_a_coroutine_hears_of_them_too(gate):
    async def hear() -> list[str]:
        seen = []
        async for outcome in graft.submit(
            samples.behind_the_gate, ["a", "b", gate], batch_size=3, concurrency=3
        ).as_completed_async():
            seen.append(outcome.value)
            if len(seen) == 2:
                await asyncio.to_thread(open_, gate)
        return seen

    seen = asyncio.run(asyncio.wait_for(hear(), WAIT))
    assert (sorted(seen[:2]), seen[2]) == (["a", "b"], gate)


def test_what_may_run_again_has_no_outcome_yet(gate):
    batch = graft.submit(samples.behind_the_gate, ["a", "fail", gate], batch_size=3, concurrency=3, retry=1)
    outcomes = batch.as_completed(timeout=WAIT)
    assert next(outcomes).value == "a"
    assert batch.progress().failed == 0
    open_(gate)
    assert {outcome.index: repr(outcome.error) for outcome in outcomes} == {1: "ValueError('fail')", 2: "None"}
    assert batch.progress().done == 3


def test_a_long_call_holds_up_no_short_one_that_shares_its_envelope(gate):
    with CeleryExecutor() as executor:
        slow = executor.submit(samples.behind_the_gate, gate)
        quick = [executor.submit(samples.behind_the_gate, f"{number}") for number in range(50)]
        assert [future.result(WAIT) for future in quick] == [f"{number}" for number in range(50)]
        assert not slow.done()
        open_(gate)
        assert slow.result(WAIT) == gate


def test_a_call_leaves_however_many_are_under_way(gate):
    """Each of these travels alone, and none ends before all have begun."""
    with CeleryExecutor() as executor:
        calls = []
        for number in range(1, 9):
            calls.append(executor.submit(samples.behind_the_gate, gate))
            wait_until(lambda number=number: shared().get(f"{gate}:reached") == b"%d" % number, WAIT, f"call {number}")
        open_(gate)
        assert [call.result(WAIT) for call in calls] == [gate] * 8


def test_as_many_items_run_at_once_as_were_asked_for(gate):
    """Neither more, nor fewer: where one ends, the next begins."""
    key = f"{gate}:count"
    batch = graft.submit(samples.count_at_once, [key] * 60, batch_size=30, in_flight=2, concurrency=5)
    assert max(batch.collect(WAIT)) <= 10
    batch = graft.submit(samples.count_at_once, [key] * 60, batch_size=60, in_flight=1, concurrency=5)
    assert max(batch.collect(WAIT)) == 5


def test_a_cancelled_batch_begins_no_more_of_its_items(gate):
    items = [gate] * 4 + ["slow"] * 200  # These would take more than ten seconds.
    batch = graft.submit(samples.behind_the_gate, items, batch_size=len(items), concurrency=4)
    wait_until(lambda: shared().get(f"{gate}:reached") == b"4", WAIT, "four items to wait")
    batch.cancel()
    open_(gate)
    outcomes = {outcome.index: outcome for outcome in batch.as_completed(timeout=WAIT)}
    assert [outcomes[index].value for index in range(4)] == [gate] * 4
    assert isinstance(outcomes[203].error, CancelledBatchError)
    assert len(outcomes) == len(items)
