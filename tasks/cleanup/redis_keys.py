"""Removes from Redis what nothing else does: leftovers of Celery's processes, old results, old dead letters.

    replies to an `inspect` that nobody collects (no expiry)    ─► expire in a minute, once idle for five
    result without an expiry                                    ─► expires as results do
    binding of a worker or client that is gone                  ─► removed once unused for an hour
    delivered message that is missing from the index of leases  ─► put into it: the message returns to its queue
    name of a callable whose figures have expired               ─► removed
    id of a durable batch that has expired                      ─► removed
    end of a run that is older, or takes more bytes, than kept  ─► removed

Queues are never touched. A run reads a bounded number of keys; the next one goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from redis.exceptions import ResponseError

from graft.config import keys, lua, redis_clock
from graft.config.deployment import settings
from graft.config.redis_client import broker, server_time, shared
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.durable import record as durable_batches
from graft.tasks.messages.message_format import UNACKED
from graft.tasks.monitoring import function_stats, worker_registry
from graft.tasks.results import attempts

CURSOR: Final = f"{keys.JANITOR}cursor"
SEEN: Final = f"{keys.JANITOR}seen"  # Names that look abandoned, by the time when they first did.
KEYS_AT_ONCE: Final = 20_000
REPLIES: Final = "*.reply.celery.pidbox"
REPLY_IDLE: Final = 300
REPLY_TTL: Final = 60
BINDINGS: Final = ("celery.pidbox", "celeryev", "reply.celery.pidbox")
BINDING_IDLE: Final = 3600.0
RECORD_IDLE: Final = 120.0
INDEX: Final = f"{UNACKED}_index"

REMOVE_OLD_RESULTS: Final = lua.load(__file__, "old_results")


@dataclass
class Tidied:
    """How many leftovers of each kind were removed."""

    replies: int = 0
    results: int = 0
    bindings: int = 0
    records: int = 0
    names: int = 0
    batches: int = 0
    runs: int = 0


def tidy() -> dict[str, int]:
    """Remove the leftovers above; how many of each kind."""
    done = Tidied()
    with broker() as queue_side:
        _keys(queue_side, done)
        _bindings(queue_side, done)
        _records(queue_side, done)
    _results(done)
    _names(done)
    done.batches = durable_batches.prune(shared())
    done.runs = attempts.prune(shared(), server_time(shared()))
    return asdict(done)


def prune_dead_letters() -> int:
    """Remove dead letters that are older than the deployment keeps them; how many."""
    return dead_letters.prune()


def remove_old_results(client: Any = None) -> int:
    """Remove the results of tasks that ended longer than ``result_ttl`` ago; how many.

    Celery gives each result an expiry when it is written. A result that is older was written with another setting or by
    hand, or lost its expiry.
    """
    client = client or shared()
    oldest = (datetime.now(UTC) - timedelta(seconds=settings().result_ttl)).isoformat()
    removed, cursor = 0, 0
    while True:
        cursor, keys = client.scan(cursor, match="celery-task-meta-*", count=200)
        if keys:
            removed += int(REMOVE_OLD_RESULTS(keys, [oldest], client))
        if cursor == 0:
            return removed


def abandoned(found: Iterable[str], seen: dict[str, float], now: float, patience: float) -> tuple[set[str], set[str]]:
    """Of the names that look abandoned now: those that have for *patience* seconds, and the new ones."""
    names = set(found)
    return {name for name in names if now - seen.get(name, now) >= patience}, names - seen.keys()


def _keys(broker: Any, done: Tidied) -> None:
    for key in _scan(broker, "replies", REPLIES):
        with suppress(ResponseError):  # Under an LFU policy Redis does not know how long a key was idle.
            if broker.ttl(key) == -1 and broker.object("idletime", key) >= REPLY_IDLE:
                done.replies += int(broker.expire(key, REPLY_TTL))


def _results(done: Tidied) -> None:
    client = shared()
    ttl = int(settings().result_ttl)
    keys = list(_scan(client, "results", "celery-task*-meta-*"))
    for at in range(0, len(keys), 500):
        with client.pipeline(transaction=False) as pipe:
            for key in keys[at : at + 500]:
                pipe.ttl(key)
            unbounded = [key for key, left in zip(keys[at : at + 500], pipe.execute(), strict=True) if left == -1]
            for key in unbounded:
                pipe.expire(key, ttl)
            pipe.execute()
        done.results += len(unbounded)


def _names(done: Tidied) -> None:
    """A deployment may see a hundred thousand callables; their figures are kept for a month."""
    client = shared()
    cursor = int(client.hget(CURSOR, "names") or 0)
    for _ in range(KEYS_AT_ONCE // 1000):
        cursor, names = client.sscan(function_stats.NAMES, cursor, count=1000)
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(function_stats.STATS + name.decode())
            gone = [name for name, exists in zip(names, pipe.execute(), strict=True) if not exists]
        if gone:
            done.names += int(client.srem(function_stats.NAMES, *gone))
        if not cursor:
            break
    client.hset(CURSOR, "names", cursor)
    client.expire(CURSOR, 86400)


def _scan(client: Any, name: str, pattern: str) -> Iterable[bytes]:
    """Keys like *pattern*, as far as one run goes; the next run goes on behind them."""
    cursor = int(client.hget(CURSOR, name) or 0)
    for _ in range(KEYS_AT_ONCE // 1000):
        cursor, keys = client.scan(cursor, match=pattern, count=1000)
        yield from keys
        if not cursor:
            break
    client.hset(CURSOR, name, cursor)
    client.expire(CURSOR, 86400)


def _bindings(broker: Any, done: Tidied) -> None:
    alive = {worker.name for worker in worker_registry.workers()}
    for exchange in BINDINGS:
        key = keys.BINDINGS + exchange
        members = {member.decode("utf-8", "replace"): member for member in broker.smembers(key)}
        old = _old(broker, exchange, orphans(members, alive), BINDING_IDLE)
        if old:
            done.bindings += int(broker.srem(key, *(members[name] for name in old)))


def orphans(members: Collection[str], alive: Collection[str]) -> list[str]:
    """The bindings that belong to no worker that is *alive*. A client makes its own anew for each inspect."""
    return [name for name in members if name.rpartition("\x16")[2].removesuffix(".celery.pidbox") not in alive]


def _records(broker: Any, done: Tidied) -> None:
    unindexed = []
    for tag, _ in broker.hscan_iter(UNACKED, count=200):
        if broker.zscore(INDEX, tag) is None:
            unindexed.append(tag.decode("utf-8", "replace"))
    for tag in _old(broker, "records", unindexed, RECORD_IDLE):
        if broker.hexists(UNACKED, tag):
            done.records += int(broker.zadd(INDEX, {tag: 0}, nx=True))


def _old(broker: Any, kind: str, found: Iterable[str], patience: float) -> set[str]:
    """Those of *found* that every run since *patience* seconds ago has found."""
    key = f"{SEEN}:{kind}"
    now = redis_clock.now()
    seen = {name.decode("utf-8", "replace"): at for name, at in broker.zrange(key, 0, -1, withscores=True)}
    names = set(found)
    old, new = abandoned(names, seen, now, patience)
    with broker.pipeline(transaction=False) as pipe:
        if gone := (seen.keys() - names) | old:
            pipe.zrem(key, *gone)
        if fresh := new - old:
            pipe.zadd(key, dict.fromkeys(fresh, now))
        pipe.expire(key, 7 * 86400)
        pipe.execute()
    return old
