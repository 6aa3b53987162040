"""Cancelling reaches the work: what has not begun does not begin, in no envelope; what runs can be ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import graft
from graft.compat.executor import CeleryExecutor
from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.tasks.delivery import cancellation
from graft.tasks.errors import CancelledBatchError
from graft.tasks.messages.message_format import lists
from tests import samples
from tests.compat.async_patterns.programs import program
from tests.stack import wait_until

WAIT = 60.0
ITEMS = 60  # Of a fifth of a second each: twelve seconds in one envelope.


def begun(ledger: Path) -> int:
    return ledger.read_text().split().count("start") if ledger.exists() else 0


def slow(ledger: Path, seconds: float = 0.2) -> list[tuple[str, float]]:
    return [(str(ledger), seconds)] * ITEMS


def cut_short(batch: graft.Batch, ledger: Path) -> None:
    """Most items never ran, and say so; those that ran are the ones that have a value."""
    outcomes = list(batch.as_completed(WAIT))
    assert len(outcomes) == ITEMS
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert {type(error) for error in errors} == {CancelledBatchError}
    assert len(errors) > ITEMS / 2
    assert begun(ledger) == ITEMS - len(errors)


def test_a_cancelled_await_keeps_what_has_not_begun_from_running(stack, tmp_path):
    ledger = tmp_path / "ran"

    async def leave() -> graft.Batch:
        batch = graft.submit(samples.note_and_sleep, slow(ledger), batch_size=1)
        waiting = asyncio.ensure_future(asyncio.wait_for(batch, WAIT))
        await asyncio.to_thread(wait_until, lambda: begun(ledger), WAIT, "an item to begin")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return batch

    cut_short(asyncio.run(leave()), ledger)


def test_a_shielded_batch_goes_on(stack):
    async def leave() -> Any:
        batch = graft.submit(samples.pause, range(4), batch_size=1)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(batch), 0.01)
        return await batch

    assert asyncio.run(leave()) == list(range(4))


@pytest.mark.parametrize("func", [samples.note_and_sleep, samples.async_note_and_sleep])
@pytest.mark.parametrize("by", ["batch", "envelope"])
def test_an_envelope_under_way_begins_no_more_items(stack, tmp_path, func, by):
    ledger = tmp_path / "ran"
    batch = graft.submit(func, slow(ledger), batch_size=ITEMS, concurrency=1)
    wait_until(lambda: begun(ledger), WAIT, "an item to begin")
    if by == "batch":
        batch.cancel()
    else:
        wait_until(lambda: app().GroupResult.restore(batch.id), WAIT, "its ids to be saved")
        (envelope,) = app().GroupResult.restore(batch.id).results
        cancellation.cancel(envelope.id, 60)  # What `celery control graft_cancel ID` has a worker do.
    cut_short(batch, ledger)


WHILE_FULL = """
import sys
import graft
from tests import samples
batch = graft.submit(samples.note_and_sleep, [(sys.argv[1], 0.2)] * 200, batch_size=1, in_flight=200)
next(batch.as_completed(60))
print("runs", flush=True)
sys.stdin.readline()
batch.cancel()
print(sum(isinstance(one.error, graft.CancelledBatchError) for one in batch.as_completed(60)), flush=True)
"""


def raises_flag(command: str) -> bool:
    return cancellation.CANCEL_KEY in command and cancellation.LIST in command.split()


def test_a_batch_that_is_cancelled_while_redis_takes_nothing_is_so_when_it_does(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=1)
    with program(stack, WHILE_FULL, str(tmp_path / "ran")) as client, stack.connect() as redis:
        assert client.stdout.readline() == "runs\n"
        wait_until(lambda: sum(map(redis.llen, lists("batch"))) > 150, WAIT, "all to be sent: the publisher is idle")
        redis.config_set("maxmemory", 1)
        with redis.monitor() as monitor:
            client.stdin.write("\n")
            client.stdin.flush()
            next(seen for seen in monitor.listen() if raises_flag(seen["command"]))  # It is refused.
        redis.config_set("maxmemory", 0)
        assert int(client.stdout.readline()) > 100


@pytest.mark.parametrize("func", [samples.note_and_sleep, samples.async_note_and_sleep])
def test_what_runs_is_ended_where_that_is_asked_for_and_is_no_death(stack, redis, tmp_path, func):
    ledger = tmp_path / "ran"
    before = set(redis.scan_iter("graft:run:*"))
    batch = graft.submit(func, slow(ledger, 600), batch_size=ITEMS, concurrency=2, retry=3)
    wait_until(lambda: begun(ledger), WAIT, "an item to begin")
    batch.cancel(running=True)
    outcomes = list(batch.as_completed(WAIT))
    assert {type(outcome.error) for outcome in outcomes} == {CancelledBatchError}
    assert "while it ran" in {str(outcome.error)[-12:] for outcome in outcomes}
    lines = ledger.read_text().split()
    assert lines.count("start") in (1, 2)
    if func is samples.async_note_and_sleep:
        assert lines.count("ended") == lines.count("start")
    assert not redis.exists(f"graft:dead-letters:{batch.id}")
    assert not set(redis.scan_iter("graft:run:*")) - before
    assert graft.submit(samples.square, range(4)).collect(WAIT) == [0, 1, 4, 9]  # The processes work on.


def test_a_sent_call_that_has_not_begun_is_skipped_and_its_future_cancelled(stack, redis, tmp_path):
    ledger = tmp_path / "ran"
    for learnt in redis.scan_iter("graft:pace:*"):  # Who knows how long they take puts one into each envelope.
        redis.delete(learnt)
    with CeleryExecutor(place="cluster") as executor:
        futures = [executor.submit(samples.note_and_sleep, (str(ledger), 0.2)) for _ in range(ITEMS)]
        wait_until(lambda: begun(ledger), WAIT, "a call to begin")
        seen: list[Any] = []
        for future in futures:
            future.add_done_callback(seen.append)
        sent = [future for future in futures if not future.cancel()]  # Nobody here knows which of them have begun.
        assert sent
        wait_until(lambda: len(seen) == ITEMS, WAIT, "the calls to end")
        skipped = [future for future in sent if future.cancelled()]
        with pytest.raises(CancelledError):
            skipped[0].result()
        values = [future.result() for future in futures if not future.cancelled()]
    assert begun(ledger) == len(values) == len(sent) - len(skipped)


@pytest.mark.parametrize(
    ("raised", "is_whole", "running", "positions"),
    [
        (["some"], False, False, {5, 5000}),
        (["all"], True, False, set()),
        (["running", "all", "some"], True, True, set()),
        (["some", "all"], True, False, set()),
    ],
)
def test_a_flag_is_raised_and_never_lowered(redis, raised, is_whole, running, positions):
    batch = f"flags-{'-'.join(raised)}"
    for each in raised:
        if each == "some":
            cancellation.cancel_items(batch, [5, 5000, 9], 60)
        else:
            cancellation.cancel(batch, 60, running=each == "running")
    assert cancellation.is_cancelled(batch) == is_whole
    flags = shared().mget(cancellation.flag_keys(batch, "envelope"))
    found = cancellation.read(flags, batch, (4, 5, 5000), shared())
    assert (found.everything, found.running, set(found.positions)) == (is_whole, running, positions)
    assert all(0 < redis.ttl(key) <= 60 for key in keys_of(redis, batch))


def keys_of(redis: Any, batch: str) -> Iterable[bytes]:
    found = list(redis.scan_iter(f"{cancellation.CANCEL_KEY}{batch}*"))
    assert found
    return found
