"""Measurements -> verdicts. Pure: the rules and sentences of every check but those of Redis (redis_server.py).

A value above its limit is degraded, above ``FAILING`` times the limit failing, unless a check says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from graft.config.deployment import app_name
from graft.config.settings import Settings
from graft.config.words import several
from graft.tasks.health import measurements, redis_server
from graft.tasks.health.measurements import Measurements
from graft.tasks.health.verdicts import FAILING, HealthState, Verdict, grade, worst
from graft.tasks.leaks.findings import Finding
from graft.tasks.monitoring.worker_registry import BEAT_TTL
from graft.tasks.shared.limit_states import LimitState

SWEPT_WITHIN: Final = 10.0  # Seconds after which an expired lease has been noticed.
FEW_ITEMS: Final = 20  # Rates of fewer items than this say nothing.
MOVED_WITHIN: Final = 15.0  # Seconds after which a message that is due has been moved to its queue.
FED_WITHIN: Final = 15.0  # Seconds within which another worker feeds the durable batches.
WANTED_WITHIN: Final = 600.0  # Seconds after its last item for which an open breaker matters.


def judge(found: Measurements, limits: Settings) -> tuple[Verdict, ...]:
    """A verdict for everything that was measured; those of one check stand together."""
    return (
        *workers(found, limits),
        beat(found.beat, limits, found.started),
        *(one for queue in found.queues for one in (depth(queue, limits), age(queue, limits))),
        *(one for queue in found.queues for one in round_trip(queue, limits)),
        held(found.held, limits),
        dead_letters(found.dead_letters, limits),
        quarantine(found.quarantine),
        *rates(found.work, limits),
        *(one for server in found.servers for one in redis_server.judge(server, limits)),
        *lag(found, limits),
        *(leak(one) for one in found.leaks),
        *limits_of_functions(found.limits),
        overlaps(found.overlaps),
        *later(found),
        *feeder(found),
    )


def workers(found: Measurements, limits: Settings) -> Iterator[Verdict]:
    count = sum(not worker.is_lost for worker in found.workers)
    ready = sum(not worker.is_lost and not worker.idle for worker in found.workers)
    yield alive(count)
    for worker in found.workers:
        if worker.is_lost and count and worker.silent > limits.visibility_timeout + SWEPT_WITHIN:
            yield Verdict(
                "worker", worker.name, "ok",
                f"vanished without a stop {worker.silent:.0f} s ago; what it held has gone to others since",
                worker.silent, BEAT_TTL, "s",
            )  # fmt: skip
            continue
        if worker.is_lost:
            yield Verdict(
                "worker", worker.name, "degraded" if count else "failing",
                f"vanished without a stop; its last heartbeat came {worker.silent:.0f} s ago", worker.silent, BEAT_TTL,
                "s", "read its log and the kernel's (out of memory?); this is history once others have its messages",
            )  # fmt: skip
            continue
        detail = f"its last heartbeat came {worker.silent:.0f} s ago"
        if worker.idle and (found.held.count or any(queue.waiting for queue in found.queues)):
            yield Verdict(
                "worker", worker.name, "degraded" if ready else "failing",
                f"alive, and runs nothing while work waits: {worker.idle}", worker.silent, BEAT_TTL, "s",
                f"resume its queues (celery -A {app_name()} queue resume), add them (control add_consumer), send "
                "SIGCONT to its processes, or restart it",
            )  # fmt: skip
            continue
        yield Verdict("worker", worker.name, "ok", detail, worker.silent, BEAT_TTL, "s")
        if worker.clock is not None:
            off = abs(worker.clock)
            state = grade(off, limits.health_clock)
            side = "ahead of" if worker.clock > 0 else "behind"
            yield Verdict(
                "clock", worker.name, state, f"its clock is {off:.1f} s {side} Redis's", off, limits.health_clock, "s",
                "run chrony or ntpd there: leases and ages are computed from wall time",
            )  # fmt: skip


def alive(count: int) -> Verdict:
    """The verdict on *count* live workers."""
    return Verdict(
        "workers", "", "ok" if count else "failing", f"{count} alive", float(count), 1.0, "workers",
        f"start one: celery -A {app_name()} worker",
    )  # fmt: skip


def beat(silent: float | None, limits: Settings, started: float | None = None) -> Verdict:
    """Beat may still be starting where the workers have started only now."""
    if (silent is None or silent > limits.health_silence) and is_starting(started, limits):
        detail = f"has sent nothing yet; the workers started {started:.0f} s ago"
        return Verdict("beat", "", "ok", detail, started, limits.health_silence, "s")
    if silent is None:
        return Verdict(
            "beat", "", "failing", "has never sent anything here", None, limits.health_silence, "s",
            f"start exactly one: celery -A {app_name()} beat",
        )  # fmt: skip
    state: HealthState = "failing" if silent > limits.health_silence else "ok"
    return Verdict(
        "beat", "", state, f"last sent something {silent:.0f} s ago", silent, limits.health_silence, "s",
        f"start it again: celery -A {app_name()} beat. Without it no periodic task runs",
    )  # fmt: skip


def is_starting(started: float | None, limits: Settings) -> bool:
    """Whether the first worker started so recently that Beat and its checks may be on their way."""
    return started is not None and started <= limits.health_silence


def depth(queue: measurements.Queue, limits: Settings) -> Verdict:
    state = grade(queue.waiting, limits.health_depth)
    detail = several(queue.waiting, "message", "wait")
    remedy = f"add workers, or slow the callers down (celery -A {app_name()} top shows both rates)"
    if queue.waiting and queue.is_paused:
        state = worst([state, "degraded"])
        detail += ", and the queue is paused"
        remedy = f"resume it: celery -A {app_name()} queue resume {queue.name}"
    elif queue.waiting and not queue.readers:
        state = "failing"
        detail += ", and no worker reads the queue"
        remedy = f"start one: celery -A {app_name()} worker -Q {queue.name}"
    return Verdict("depth", queue.name, state, detail, queue.waiting, limits.health_depth, "messages", remedy)


def age(queue: measurements.Queue, limits: Settings) -> Verdict:
    limit = limits.health_age
    if queue.oldest is None:
        return Verdict("age", queue.name, "ok", "no message waits", 0.0, limit, "s")
    state = grade(queue.oldest, limit)
    remedy = f"add workers that read {queue.name}, or find what keeps its workers busy: top"
    detail = f"the oldest message has waited {queue.oldest:.0f} s"
    return Verdict("age", queue.name, state, detail, queue.oldest, limit, "s", remedy)


def round_trip(queue: measurements.Queue, limits: Settings) -> Iterator[Verdict]:
    """A canary that stays away is a failure only where a reader of its queue had a free slot."""
    limit = limits.health_round_trip
    if queue.unanswered is not None and queue.unanswered > limit and not queue.is_paused:
        is_full = queue.slots > 0 and queue.busy >= queue.slots
        detail = f"a canary message has waited {queue.unanswered:.0f} s to be run"
        if is_full:
            detail += f"; all {queue.slots} slots of the queue's workers are busy"
            remedy = "add workers, or give long tasks a queue of their own"
        elif queue.readers:
            remedy = "the queue's worker takes messages and does not run them: read its log, restart it"
        else:
            remedy = f"start a worker: celery -A {app_name()} worker -Q {queue.name}"
        state: HealthState = "degraded" if is_full else "failing"
        yield Verdict("round trip", queue.name, state, detail, queue.unanswered, limit, "s", remedy)
    elif queue.round_trip is not None:
        state = grade(queue.round_trip, limit)
        detail = f"the last canary message was run after {queue.round_trip * 1000:.0f} ms"
        remedy = "add workers, or give long tasks a queue of their own"
        yield Verdict("round trip", queue.name, state, detail, queue.round_trip, limit, "s", remedy)


def held(found: measurements.Held, limits: Settings) -> Verdict:
    check = "unacknowledged"
    abandoned = 3 * limits.visibility_timeout
    too_long = limits.hard_time_limit + limits.visibility_timeout
    if found.unindexed:
        missing = f"{found.unindexed} {'is' if found.unindexed == 1 else 'are'} missing"
        return Verdict(
            check, "", "degraded",
            f"of {several(found.count, 'message')} {missing} from the index of leases, and nobody returns those",
            found.unindexed, 0.0, "messages", "another program writes there; give the deployment a Redis of its own",
        )  # fmt: skip
    if found.abandoned > abandoned:
        return Verdict(
            check, "", "failing", f"a message has lost its worker {found.abandoned:.0f} s ago and is in no queue yet",
            found.abandoned, abandoned, "s", "workers return such messages and none does: start or restart one",
        )  # fmt: skip
    state: HealthState = "degraded" if found.longest > too_long else "ok"
    return Verdict(
        check, "", state, f"workers hold {several(found.count, 'message')}, the longest for {found.longest:.0f} s",
        found.longest, too_long, "s", "a worker holds a message beyond the hard time limit: "
        f"find it with celery -A {app_name()} inspect active, restart it",
    )  # fmt: skip


def _pile(found: measurements.Pile, noun: str) -> str:
    causes = f": {'; '.join(found.causes)}" if found.causes else ""
    return f"{found.recent} new, {several(found.total, noun)} in all{causes}"


def dead_letters(found: measurements.Pile, limits: Settings) -> Verdict:
    limit = limits.health_dead_letters
    state = grade(found.recent, limit, max(100.0, FAILING * limit))
    remedy = f"read why: celery -A {app_name()} dead-letters list"
    return Verdict("dead letters", "", state, _pile(found, "dead letter"), found.recent, limit, "dead letters", remedy)


def quarantine(found: measurements.Pile) -> Verdict:
    state: HealthState = "degraded" if found.recent else "ok"
    remedy = f"read what they are and why: celery -A {app_name()} quarantine list"
    return Verdict("quarantine", "", state, _pile(found, "message"), found.recent, 0.0, "messages", remedy)


def rates(found: measurements.Work, limits: Settings) -> Iterator[Verdict]:
    limit = limits.health_error_rate
    for name, what, count, remedy in (
        (
            "errors", "failed", found.errors - found.retries,
            f"see which callables: celery -A {app_name()} top; and why: celery -A {app_name()} dead-letters list",
        ),
        (
            "retries", "failed and run again", found.retries,
            "check the services that the callables depend on; see their errors in the workers' logs",
        ),
    ):  # fmt: skip
        rate = count / found.items if found.items else 0.0
        state = grade(rate, limit) if found.items >= FEW_ITEMS else "ok"
        detail = f"{rate:.1%} of {several(found.items, 'item')} {what} in the last {found.seconds / 60:.0f} min"
        yield Verdict(name, "", state, detail, rate, limit, "share", remedy)


def lag(found: Measurements, limits: Settings) -> Iterator[Verdict]:
    """One verdict for all event loops, that of the slowest."""
    if not found.loops:
        return
    slowest = max(found.loops, key=lambda loop: loop.lag)
    state = grade(slowest.lag, limits.loop_lag)
    detail = f"the slowest of {len(found.loops)}, in {slowest.process}, was {slowest.lag * 1000:.0f} ms late"
    if slowest.blocked_by:
        detail += f", blocked by {slowest.blocked_by}"
    remedy = "a coroutine computes or blocks there: use asyncio.to_thread, or make it a plain function"
    yield Verdict("event loop", "", state, detail, slowest.lag, limits.loop_lag, "s", remedy)


def leak(found: Finding) -> Verdict:
    state: HealthState = "failing" if found.verdict == "leaking" else "degraded"
    return Verdict("leak", f"{found.subject} {found.measure}", state, found.detail, remedy=found.remedy)


def limits_of_functions(found: Iterable[LimitState]) -> Iterator[Verdict]:
    """One verdict for all limits, and one for each breaker that keeps items waiting."""
    limits = tuple(found)
    if not limits:
        return
    waiting = sum(limit.waiting for limit in limits)
    detail = f"functions have {several(len(limits), 'limit')}; in line for one: {several(waiting, 'message')}"
    yield Verdict("limits", "", "ok", detail, waiting, None, "items")
    for limit in limits:
        for breaker in limit.open:
            if breaker.asked > WANTED_WITHIN:
                continue  # Nobody has called since: nothing waits.
            state = breaker.state.replace("_", "-")
            why = f"; the last failure: {limit.error}" if limit.error else ""
            yield Verdict(
                "breaker", breaker.label, "degraded",
                f"{state}: {several(breaker.failures, 'failure')} in a row, the last {breaker.since:.0f} s ago{why}. "
                "Its items wait in the queue", breaker.since, None, "s",
                "see to the service that the function calls; the breaker tries it by itself, and closes",
            )  # fmt: skip


def later(found: Measurements) -> Iterator[Verdict]:
    """Where messages wait for their time: whether somebody moves those that are due."""
    count = sum(queue.later for queue in found.queues)
    if count or found.overdue:
        yield Verdict(
            "due", "", grade(found.overdue, MOVED_WITHIN),
            f"{several(count, 'message', 'wait')} for later; the first was due {found.overdue:.0f} s ago"
            if found.overdue else f"{several(count, 'message', 'wait')} for later",
            found.overdue, MOVED_WITHIN, "s",
            f"a hardened worker moves them to their queues: start one (celery -A {app_name()} worker), and look into "
            "its log; where stock workers alone read the queues, set GRAFT_DUE_AFTER=0 for those who send",
        )  # fmt: skip


def feeder(found: Measurements) -> Iterator[Verdict]:
    """Where durable batches are open: whether somebody feeds them."""
    count, silent = found.unfed
    if count:
        yield Verdict(
            "feeder", "", grade(silent, FED_WITHIN),
            f"open: {several(count, 'durable batch')}; nobody has fed them for {silent:.0f} s"
            if silent else f"open: {several(count, 'durable batch')}; a worker feeds them",
            silent, FED_WITHIN, "s",
            f"one of the workers feeds them: start one (celery -A {app_name()} worker), and look into its log for "
            "'the feeder of durable batches failed'; a batch goes on where it was",
        )  # fmt: skip


def overlaps(count: int) -> Verdict:
    state: HealthState = "degraded" if count else "ok"
    detail = f"{several(count, 'check', 'were')} skipped because the one before still ran"
    remedy = "Redis is slow, or GRAFT_HEALTH_EVERY is too short"
    return Verdict("checks", "", state, detail, count, 0.0, "runs", remedy)
