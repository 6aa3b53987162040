"""Calls with a unique key: one at a time, whoever submits it, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from celery.app.task import Context

import graft
from graft.config import keys
from graft.config.transport.due import Placed
from graft.config.transport.unique import Terms
from graft.tasks.dead_letters import replay, store
from graft.tasks.delivery import lease
from graft.tasks.ids import new_id
from graft.tasks.monitoring.function_stats import Ran
from graft.tasks.queues import pause, peek, purge, unique
from graft.tasks.results.result_store import Conclusion
from tests import samples
from tests.stack import run_python, wait_until

WAIT = 60.0
QUEUE = "batch"


@pytest.fixture
def key() -> str:
    return f"test {new_id()}"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def paused(stack) -> Iterator[str]:
    """The queue, which no worker reads until it is resumed."""
    pause.pause(QUEUE)
    try:
        time.sleep(2.5)  # Workers obey within two seconds.
        yield QUEUE
    finally:
        pause.resume(QUEUE)


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().split() if ledger.exists() else []


def wait_for_lines(ledger: Path, number: int = 1) -> None:
    wait_until(lambda: len(lines(ledger)) >= number, WAIT)


def held(redis, key: str) -> dict[bytes, bytes]:
    (name,) = list(redis.scan_iter(f"{keys.UNIQUE}*{key}")) or [b"none"]
    return dict(redis.hgetall(name))


def gated(ledger: Path) -> list[str]:
    return [str(ledger)]


def open_gate(ledger: Path) -> None:
    ledger.with_suffix(".open").touch()


def test_whoever_submits_it_while_it_runs_gets_the_outcome_of_the_one_run(stack, redis, key, ledger):
    with ThreadPoolExecutor(8) as threads:
        how = {"unique": key}
        calls = list(threads.map(lambda _: graft.submit(samples.note_and_wait, gated(ledger), **how), range(8)))
    wait_for_lines(ledger)
    code = (
        f"import graft\nfrom tests import samples\nbatch = graft.submit(samples.note_and_wait, {gated(ledger)!r}, "
        f"unique={key!r})\nsamples.note(({str(ledger) + '.other'!r}, 'sent'))\nprint(batch.collect(60))"
    )
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(run_python, stack, code)
        dropped = graft.submit(samples.note_and_wait, gated(ledger), unique=key, if_running="drop")
        with pytest.raises(graft.CancelledBatchError, match=r"dropped: .* has the unique key .* \(begun\)"):
            dropped.collect(WAIT)
        left = graft.submit(samples.note_and_wait, gated(ledger), unique=key)
        wait_until(lambda: left.progress().sent, WAIT)
        left.cancel()
        with pytest.raises(graft.CancelledBatchError, match="cancelled"):
            left.collect(WAIT)
        graft.submit(samples.identity, [1], unique=key).collect(WAIT)  # Another callable has keys of its own.
        assert held(redis, key)[b"begun"] == b"1"
        wait_for_lines(ledger.with_name("ledger.other"))
        time.sleep(0.5)  # Until it has asked for the key.
        open_gate(ledger)
        assert [call.collect(WAIT) for call in calls] == [["1"]] * 8
        assert other.result().stdout.split() == ["['1']"]
    assert held(redis, key) == {}
    assert graft.submit(samples.note_and_wait, gated(ledger), unique=key).collect(WAIT) == ["2"]


def test_it_stays_unique_for_a_while_after_its_end_where_asked(stack, redis, key, ledger):
    def submit(**how):
        return graft.submit(samples.note_large, [(str(ledger), 300_000)], unique=key, unique_for=2.5, **how)

    first = submit().collect(WAIT)
    # Its report is kept beside the result, which those behind it read too.
    assert [submit().collect(WAIT) for _ in range(2)] == [first] * 2
    with pytest.raises(graft.CancelledBatchError, match="ended"):
        submit(if_running="drop").collect(WAIT)
    assert submit(if_running="replace").collect(WAIT) == first
    assert len(lines(ledger)) == 1
    wait_until(lambda: not held(redis, key), WAIT)
    submit().collect(WAIT)
    assert len(lines(ledger)) == 2


def test_one_that_waits_gives_way_and_one_that_runs_does_not(stack, redis, key, ledger, paused):
    def submit(text: str, **how):
        return graft.submit(samples.note_first, [(str(ledger), text)], unique=key, **how)

    calls = []
    for text in ("old", "newer", "newest"):
        before = held(redis, key).get(b"id")
        calls.append(submit(text, if_running="replace"))
        wait_until(lambda before=before: held(redis, key).get(b"id", before) != before, WAIT)
    attached = submit("attached")
    wait_until(lambda: attached.progress().sent, WAIT)
    pause.resume(paused)
    wait_for_lines(ledger)
    late = submit("late", if_running="replace")
    time.sleep(0.5)  # Until it has asked for the key.
    open_gate(ledger)
    assert calls[2].collect(WAIT) == attached.collect(WAIT) == late.collect(WAIT) == ["newest"]
    for call in calls[:2]:
        with pytest.raises(graft.CancelledBatchError):
            call.collect(WAIT)
    assert lines(ledger) == ["newest"]


def test_it_keeps_its_key_while_it_waits_to_be_run_again(stack, redis, key, ledger):
    def submit():
        return graft.submit(
            samples.note_and_fail_until_open, gated(ledger), unique=key, retry=graft.RetryPolicy(100, 0.2, 0.2)
        )

    first = submit()
    wait_for_lines(ledger, 2)
    second = submit()
    open_gate(ledger)
    assert first.collect(WAIT) == second.collect(WAIT) == ["at last"]
    assert not held(redis, key)


def test_what_is_lost_purged_cancelled_or_buried_frees_it_and_a_replay_takes_it_again(
    stack, redis, key, ledger, paused
):
    def submit(**how):
        return graft.submit(samples.note_and_wait, gated(ledger), unique=key, **how)

    def is_here(one):
        return one.function.endswith("note_and_wait")

    lost = submit()
    wait_until(lambda: [one for one in peek.every(paused) if is_here(one)], WAIT)
    redis.delete(*[name for name in redis.scan_iter(f"{paused}*") if redis.type(name) == b"list"])
    lost.detach()
    (name,) = redis.scan_iter(f"{keys.UNIQUE}*{key}")
    redis.hincrbyfloat(name, "seen", -100)
    purged = submit()  # Whoever comes next looks for a call that was silent for so long.
    wait_until(lambda: [one for one in peek.every(paused) if is_here(one)], WAIT)
    purge.purge(paused, is_here)
    with pytest.raises(graft.CancelledBatchError):
        purged.collect(WAIT)
    assert not held(redis, key)
    (letter,) = [one for one in store.newest() if one.unique and key in one.unique[0]]
    cancelled = submit()
    wait_until(lambda: held(redis, key), WAIT)
    with pytest.raises(replay.NotReplayable, match="only one of them is to run at a time"):
        replay.replay(letter)
    cancelled.cancel()
    pause.resume(paused)
    with pytest.raises(graft.CancelledBatchError):
        cancelled.collect(WAIT)
    wait_until(lambda: not held(redis, key), WAIT)
    assert replay.replay(letter)
    wait_for_lines(ledger)
    assert held(redis, key)[b"id"].decode() == letter.id
    attached = submit()
    wait_until(lambda: attached.progress().sent, WAIT)
    open_gate(ledger)
    assert attached.collect(WAIT) == ["1"]
    with pytest.raises(graft.PoisonedError):
        graft.submit(samples.kill_process, [1], unique=key).collect(WAIT)
    assert not held(redis, key)
    (letter,) = [one for one in store.newest() if one.unique and key in one.unique[0]]
    store.remove(letter)


def test_it_is_for_single_calls():
    numbers = count()
    for items, how, text in (
        ([1, 2], {}, "list of one item"),
        (numbers, {}, "list of one item"),
        ([1], {"durable": True}, "single call"),
        ([1], {"name": "night"}, "single call"),
        ([1], {"reduce": sum}, "single call"),
        ([1], {"if_running": "wait"}, "must be one of 'attach', 'drop', 'replace'"),
        ([1], {"unique_for": -1}, "seconds after the end"),
        ([1], {"unique_for": 1e9}, "GRAFT_BATCH_TTL"),
        ([1], {"unique": ""}, "1 to 500"),
        ([1], {"unique": "a\nb"}, "printable"),
        ([1], {"unique": None, "if_running": "drop"}, "give its unique="),
    ):
        with pytest.raises(ValueError, match=text):
            graft.submit(samples.identity, items, **{"unique": "key", **how})
    with pytest.raises(TypeError, match="must be a text"):
        graft.submit(samples.identity, [1], unique=17)
    assert next(numbers) == 0


@pytest.mark.acl_role("worker")
def test_a_run_whose_message_went_back_neither_takes_the_key_nor_gives_it_back(redis, key):
    """Another worker has the message: it is the one that runs now whose end frees the key."""
    request = Context(id=new_id(), properties={"delivery_tag": new_id()}, ignore_result=False)
    request.graft_unique = Terms(key).header
    returned, name = keys.RETURNED + request.properties["delivery_tag"], Terms(key).name
    lease.hold(request, acks_late=True)

    def conclude():
        with redis.pipeline(transaction=False) as pipe:
            Conclusion.make(request, "the report", ("none",), Ran("tests.samples:square", 1, 0.1)).put_on(pipe)
            return pipe.execute()

    assert unique.may_begin(request)
    redis.set(returned, 1, ex=60)
    assert conclude() == [-1]
    unique.end(request)
    assert redis.hget(name, "id") == request.id.encode()
    redis.delete(returned)
    assert conclude() == [1]
    assert not redis.exists(name)
    redis.set(returned, 1, ex=60)
    with pytest.raises(lease.LeaseLost):
        unique.may_begin(request)
    assert not redis.exists(name)


@pytest.mark.acl_role("worker")
def test_a_call_that_was_replaced_does_not_begin_when_the_other_has_ended(redis, key):
    """It had been fetched by a worker that was busy, and its key was free again."""
    old, new = (Context(id=new_id(), graft_unique=Terms(key, "replace").header) for _ in range(2))
    for request in (old, new):
        message = Placed(request.id, "none", f"{key} list", f"{key} wakeups", "{}")
        Terms(key, "replace").push(message, None, 1000, redis)
    assert unique.may_begin(new)
    unique.end(new)
    assert not redis.exists(Terms(key).name)
    assert not unique.may_begin(old)
    redis.delete(f"{key} list", f"{key} wakeups")
