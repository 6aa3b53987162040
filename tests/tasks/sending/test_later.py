"""Work for later: it waits in Redis until its time has come, and is moved to its queue in one step."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

import graft
from graft.config import redis_clock
from graft.config.deployment import current
from graft.config.transport import due
from graft.config.transport.due import Placed
from graft.config.transport.sending_channel import WAKEUP_MS
from graft.scripts import snapshot
from graft.tasks.durable import record
from graft.tasks.health import measure
from graft.tasks.ids import new_id
from graft.tasks.queues import locate, purge
from tests import samples
from tests.stack import wait_until

WAIT = 60.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> Iterator[None]:
    """What is due in more than a second waits in Redis."""
    monkeypatch.setenv("GRAFT_DUE_AFTER", "1")
    current.reread_settings()
    yield
    monkeypatch.undo()
    current.reread_settings()


def test_batches_begin_when_they_are_due_and_no_worker_holds_them_before(stack, redis):
    name = f"later {new_id()}"
    at = redis_clock.now() + 3
    wait_until(lambda: redis.exists("graft:due:mover:seen"), WAIT)
    batches = [
        graft.submit(samples.now, range(50), batch_size=5, in_flight=20, countdown=3),
        graft.submit(samples.async_now, range(3), eta=datetime.fromtimestamp(at, UTC)),
        graft.submit(samples.now, [0], unique=name, countdown=3),
        graft.submit(samples.now, [0], unique=name),  # Attached to that.
        graft.submit(samples.now, range(50), name=name, countdown=3),
    ]
    far = [
        graft.submit(samples.now, range(20), batch_size=10, countdown=3600),
        graft.submit(samples.now, [0], unique=f"{name} far", countdown=3600),
        graft.submit(samples.now, range(20), name=f"{name} far", countdown=3600 * 24 * 30),
        graft.submit(samples.now, range(20), batch_size=10, countdown=3600),
    ]
    far_away = redis_clock.now() + 1800
    wait_until(lambda: redis.zcount("graft:due", far_away, "+inf") == 2 + 1 + 2, WAIT)
    assert far[2].state == "later"
    line = next(line for line in snapshot.take().queues if line.name == "batch")
    assert line.later >= 5
    assert next(queue for queue in measure.everything().queues if queue.name == "batch").later >= 5
    waiting = [name for name, _ in due.mentioning(far[0].id, redis)]
    assert {one.place for one in locate.find(waiting, redis).values()} == {"later"}
    assert graft.status_of(waiting[0]) == "scheduled"
    assert purge.cancel(far[3].id) == 2
    for batch in far[:3]:
        batch.cancel()
    for batch in far:
        with pytest.raises(graft.CancelledBatchError):
            batch.collect(WAIT)
    assert not list(redis.scan_iter(f"graft:unique:*{name} far"))
    for batch in batches:
        assert min(batch.collect(WAIT)) >= at - 0.6, "nothing begins before its time"
    assert not [name for batch in (*batches, *far) for name, _ in due.mentioning(batch.id, redis)]
    for one in record.every(redis):
        record.forget(one, redis)


def placed(number: int) -> tuple[float, Placed]:
    queue = f"later-{number % 2}"
    return 1.0 + number, Placed(f"id-{number}", queue, queue, f"{queue}:sign", f'{{"n": {number}, "retries": 0}}')


def test_one_script_moves_what_is_due_for_one_mover_at_a_time(fresh_stack):
    with fresh_stack(cpu=0).connect() as redis:
        due.put([placed(0)], WAKEUP_MS, redis)
        assert redis.lrange("later-0", 0, -1) == [b'{"n": 0, "retries": 0}']  # Nobody would move it.
        redis.delete("later-0", "later-0:sign")
        assert due.move("one", WAKEUP_MS, redis) == (0, None)
        due.put([placed(number) for number in range(1201)], WAKEUP_MS, redis)
        due.put([placed(7)], WAKEUP_MS, redis)  # Its sender did not hear that it had arrived.
        due.put([(9e9, placed(2000)[1]), (9e9, placed(2001)[1])], WAKEUP_MS, redis)
        assert due.counts(redis) == {"later-0": 602, "later-1": 601}
        assert due.remove(["id-2000", "id-77777"], redis) == {"id-2000": b'{"n": 2000, "retries": 0}'}
        assert [due.move("one", WAKEUP_MS, redis)[0] for _ in range(2)] == [500, 500]
        assert due.move("other", WAKEUP_MS, redis) == (-1, None)  # Until the lease of the first is over.
        assert redis.pttl("graft:due:mover") <= due.LEASE_MS
        redis.delete("graft:due:mover")
        moved, wait = due.move("other", WAKEUP_MS, redis)
        assert moved == 201
        assert wait > 1e9
        for rest in (0, 1):
            found = [int(text.split(b",")[0][6:]) for text in redis.lrange(f"later-{rest}", 0, -1)]
            assert found == [number for number in range(1200, -1, -1) if number % 2 == rest]  # The first one goes next.
            assert redis.llen(f"later-{rest}:sign") == len(found)
        assert due.counts(redis) == {"later-1": 1}
        assert due.first(redis) == 9e9


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"countdown": -1}, "must be 0 to"),
        ({"countdown": 7 * 86400}, "a durable one"),
        ({"countdown": 1, "eta": datetime.now(UTC)}, "one of them"),
        ({"eta": datetime(2030, 1, 1)}, "with a timezone"),
        ({"eta": datetime.now(UTC) + timedelta(days=500), "durable": True}, "must be 0 to"),
    ],
)
def test_times_that_cannot_be_are_refused(how, text):
    with pytest.raises(ValueError, match=text):
        graft.submit(samples.identity, [1], **how)
    with pytest.raises(TypeError):
        graft.submit(samples.identity, [1], countdown="soon")
