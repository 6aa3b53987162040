"""Reads from Redis what the checks judge: a few dozen short commands, however many messages wait."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import broker, server_time, shared
from graft.config.transport import due
from graft.config.transport.quarantine import COUNTS, MESSAGES
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import causes
from graft.tasks.durable import feeder_lease
from graft.tasks.health import beat_ticks, canaries, redis_server
from graft.tasks.health.measurements import Held, Loop, Measurements, Pile, Queue, Work, Worker
from graft.tasks.leaks import findings, samples
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.trend import SURE
from graft.tasks.messages.message_format import UNACKED, waits_since
from graft.tasks.monitoring import function_stats
from graft.tasks.monitoring.run_counts import plain_totals
from graft.tasks.monitoring.worker_registry import BEAT, BEAT_TTL, IO_POOL, NAMES, WorkerBeat
from graft.tasks.queues import existing, pause
from graft.tasks.shared import limit_states

SEEN: Final = "graft:health:seen"  # queue and step -> the message at its head, and when it was first seen there
HELD: Final = "graft:health:held"  # delivery tag -> when it was first seen with a worker
WORK: Final = "graft:health:work"  # totals at earlier checks, the newest first
PILES: Final = "graft:health:quarantine"  # counts of quarantined messages at earlier checks, likewise
UNACKED_INDEX: Final = keys.UNACKED_INDEX
AGED: Final = 1000  # Messages held by workers of which the age is measured.
LEAVE_AFTER: Final = 20 * BEAT_TTL


def everything(overlaps: int = 0) -> Measurements:
    """Measure the whole deployment."""
    client = shared()
    now = server_time(client)
    with broker(client_name="graft-health") as queue_side:
        alive, beats = workers(client, now)
        return Measurements(
            queues=queues(queue_side, client, beats, now),
            workers=alive,
            held=held(queue_side, client, now),
            servers=redis_server.measure(client, queue_side),
            dead_letters=new_dead_letters(now),
            quarantine=quarantine(queue_side, client, now),
            work=work(client, now),
            loops=loops(client, beats),
            leaks=leaks(client),
            limits=limit_states.read(client),
            beat=beat_ticks.silence(client, now),
            started=started(beats),
            overlaps=overlaps,
            overdue=max(0.0, now - (due.first(queue_side) or now)),
            unfed=feeder_lease.unfed(client, now),
        )


def leaks(client: Any) -> tuple[Finding, ...]:
    """Everything that leaks; and suspects, once they have been sampled for long enough to be no young process."""
    return tuple(
        found
        for found in findings.read(client)
        if found.verdict == "leaking" or found.samples >= SURE or found.measure == "loans"
    )


def loops(client: Any, beats: Iterable[WorkerBeat]) -> tuple[Loop, ...]:
    """The event loops of the deployment: the io lane's, which are always measured, and others, which are sampled."""
    watched = {beat.name: Loop(beat.name, beat.lag, beat.blocked_by) for beat in beats if beat.pool == IO_POOL}
    sampled = [one for one in samples.latest(client) if one.lag is not None and one.worker not in watched]
    return (*watched.values(), *(Loop(one.process, one.lag) for one in sampled if one.lag is not None))


def workers(client: Any, now: float) -> tuple[tuple[Worker, ...], list[WorkerBeat]]:
    """Every worker with a recent heartbeat that did not stop on purpose; and the heartbeats of those alive."""
    names = client.zrangebyscore(NAMES, now - LEAVE_AFTER, "+inf", withscores=True)
    with client.pipeline(transaction=False) as pipe:
        for name, _ in names:
            pipe.get(BEAT + name.decode())
            pipe.pttl(BEAT + name.decode())
        replies = iter(pipe.execute())
    found, beats = [], []
    for name, last in names:
        text, left = next(replies), next(replies)
        if text is None:
            found.append(Worker(name.decode(), max(0.0, now - last), is_lost=True))
            continue
        beat = WorkerBeat.read(text)
        beats.append(beat)
        # The key's expiry gives Redis's time of the beat, the beat itself its worker's.
        silent = BEAT_TTL - left / 1000
        found.append(Worker(beat.name, max(0.0, silent), beat.at - (now - silent), idle=beat.consumes_nothing))
    return tuple(found), beats


def started(beats: Iterable[WorkerBeat]) -> float | None:
    """The time since the first of the live workers started, None without any."""
    return max((beat.at - beat.since for beat in beats if beat.since), default=None)


@contextmanager
def _noting(client: Any) -> Iterator[Any]:
    """A pipeline for what later checks compare with. A user that may only read (config/acl.py) may check too."""
    with client.pipeline() as pipe:
        yield pipe
        with suppress(NoPermissionError):
            pipe.execute()


def queues(
    queue_side: Any, client: Any, beats: Iterable[WorkerBeat], now: float, *, remember: bool = True
) -> tuple[Queue, ...]:
    """The queues in use: a worker reads them, or messages wait in them.

    Without *remember* nothing is written, for programs that read every few seconds and may not write. The age of a
    message without a date is then known from the last check that wrote.
    """
    beats = list(beats)
    names = existing.names(queue_side)
    waits = existing.heads(names, queue_side)
    seen = {field.decode(): json.loads(text) for field, text in client.hgetall(SEEN).items()}
    sent_canaries = canaries.read(client)
    later = due.counts(queue_side)
    paused = pause.paused(client)
    heads: dict[str, tuple[str, float]] = {}
    found = []
    for queue in names:
        waiting, oldest = 0, None
        for key, (length, head) in waits.get(queue, {}).items():
            waiting += length
            identity, sent = _identity(head)
            known, since = seen.get(key, ("", now))
            since = since if known == identity else now
            heads[key] = (identity, since)
            oldest = max(oldest or 0.0, now - (sent or since))
        readers = [beat for beat in beats if queue in beat.queues]
        canary = sent_canaries.get(queue)
        if not readers and not waiting and queue not in later and not (canary and canary.is_pending):
            continue
        found.append(
            Queue(
                queue,
                waiting,
                oldest,
                len(readers),
                sum(beat.processes for beat in readers),
                sum(beat.busy for beat in readers),
                canary.seconds if canary else None,
                now - canary.asked if canary and canary.is_pending else None,
                queue in paused,
                later.get(queue, 0),
            )
        )
    if remember:
        _note_heads(heads, client)
    return tuple(found)


def _note_heads(heads: dict[str, tuple[str, float]], client: Any) -> None:
    with _noting(client) as pipe:
        pipe.delete(SEEN)
        if heads:
            pipe.hset(SEEN, mapping={key: json.dumps(head) for key, head in heads.items()})
            pipe.expire(SEEN, 86400)


def _identity(raw: bytes) -> tuple[str, float | None]:
    """The id of a message, or what serves for one, and the time when it was sent, or None."""
    try:
        message = json.loads(raw)
        headers = message.get("headers") or {}
        return str(headers.get("id") or message["properties"]["delivery_tag"]), waits_since(headers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(hash(raw[:2000])), None


def held(queue_side: Any, client: Any, now: float) -> Held:
    """Messages that workers have taken and not acknowledged; the age of each is counted from the first check on."""
    with queue_side.pipeline() as pipe:  # In one instant: the two counts are compared.
        pipe.hlen(UNACKED)
        pipe.zcard(UNACKED_INDEX)
        pipe.zrange(UNACKED_INDEX, 0, AGED - 1, withscores=True)
        count, indexed, tags = pipe.execute()
    current = dict(tags)
    known = client.zrange(HELD, 0, -1, withscores=True)
    with _noting(client) as pipe:
        if gone := [tag for tag, _ in known if tag not in current]:
            pipe.zrem(HELD, *gone)
        if current:
            pipe.zadd(HELD, dict.fromkeys(current, now), nx=True)
            pipe.expire(HELD, 7 * 86400)
    return Held(
        count,
        max((now - score for score in current.values()), default=0.0),
        _longest([(tag, since) for tag, since in known if tag in current], queue_side, now),
        max(0, count - indexed),
    )


def _longest(known: list[tuple[bytes, float]], queue_side: Any, now: float) -> float:
    """How long the message that has been held for longest has been; those with an ETA are held on purpose."""
    for tag, since in known:  # The longest first.
        if now - since <= settings().hard_time_limit:
            return now - since
        raw = queue_side.hget(UNACKED, tag) or b"[{}]"
        try:
            has_eta = bool((json.loads(raw)[0].get("headers") or {}).get("eta"))
        except (ValueError, LookupError, AttributeError, TypeError):
            has_eta = False
        if not has_eta:
            return now - since
    return 0.0


def new_dead_letters(now: float) -> Pile:
    """Dead letters, and the causes of those that are new."""
    recent = dead_letters.ids(now - settings().health_window)
    top = causes(dead_letters.read(recent[-200:])) if recent else []
    shown = tuple(f"{cause.letters} x {cause.function}: {_short(cause.error)}" for cause in top[:3])
    return Pile(dead_letters.count(), len(recent), shown)


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 80 else f"{line[:79]}…"


def quarantine(queue_side: Any, client: Any, now: float) -> Pile:
    """Messages in the quarantine, and the reasons of those that are new."""
    with queue_side.pipeline(transaction=False) as pipe:
        pipe.llen(MESSAGES)
        pipe.hgetall(COUNTS)
        total, counts = pipe.execute()
    by_reason = {reason.decode(): int(count) for reason, count in counts.items()}
    before = _remember(client, PILES, by_reason, now)
    new = {reason: count - before.get(reason, 0) for reason, count in by_reason.items()}
    shown = tuple(f"{count} x {reason}" for reason, count in sorted(new.items()) if count > 0)
    return Pile(total, sum(count for count in new.values() if count > 0), shown)


def work(client: Any, now: float) -> Work:
    """Items that have run since the check that is nearest to a window ago."""
    known = function_stats.read().values()
    plain = plain_totals(client)
    totals = {
        "items": sum(one.items for one in known) + plain["items"],
        "errors": sum(one.errors for one in known) + plain["errors"],
        "retries": sum(one.retries for one in known) + plain["retries"],
    }
    before = _remember(client, WORK, totals, now)
    grown = {name: max(0, total - before.get(name, total)) for name, total in totals.items()}
    return Work(settings().health_window, grown["items"], grown["errors"], min(grown["retries"], grown["errors"]))


def _remember(client: Any, key: str, totals: dict[str, int], now: float) -> dict[str, int]:
    """Keep *totals*; return those of a window ago, or of the first check after that."""
    kept = [json.loads(text) for text in client.lrange(key, 0, -1)]
    window = settings().health_window
    inside = [entry for entry in kept if now - entry["at"] <= window]
    with _noting(client) as pipe:
        pipe.lpush(key, json.dumps({"at": now, "totals": totals}))
        pipe.ltrim(key, 0, len(inside) + 1)
        pipe.expire(key, 86400)
    before: dict[str, int] = (kept[min(len(inside), len(kept) - 1)] if kept else {"totals": totals})["totals"]
    return before
