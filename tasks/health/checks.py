"""Measured values -> verdicts. Pure: every rule and every sentence that people read is here.

A value above its limit is degraded, above ``FAILING`` times the limit failing, unless a check says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from graft.tasks.health import measurements, redis_checks
from graft.tasks.health.limits import FAILING, Limits
from graft.tasks.health.measurements import Measured
from graft.tasks.health.verdicts import State, Verdict, grade, worst

FEW_ITEMS: Final = 20  # Rates of fewer items than this say nothing.


def judge(found: Measured, limits: Limits) -> tuple[Verdict, ...]:
    """A verdict for everything that was measured; those of one check stand together."""
    return (
        *workers(found, limits),
        beat(found.beat, limits),
        *(one for queue in found.queues for one in (depth(queue, limits), age(queue, limits))),
        *(one for queue in found.queues for one in round_trip(queue, limits)),
        held(found.held, limits),
        letters(found.letters, limits),
        quarantine(found.quarantine),
        *rates(found.work, limits),
        *(one for server in found.servers for one in redis_checks.judge(server, limits)),
        *lag(found, limits),
        *(growth(one) for one in found.growths),
        overlaps(found.overlaps),
    )


def workers(found: Measured, limits: Limits) -> Iterator[Verdict]:
    alive = [worker for worker in found.workers if not worker.is_lost]
    start = "start one: celery -A graft worker"
    yield Verdict(
        "workers", "", "ok" if alive else "failing", f"{len(alive)} alive", float(len(alive)), 1.0, "workers",
        "" if alive else start,
    )  # fmt: skip
    for worker in found.workers:
        if worker.is_lost:
            yield Verdict(
                "worker", worker.name, "degraded" if alive else "failing",
                f"vanished without taking leave, last heard of {worker.silent:.0f} s ago", worker.silent, 15.0, "s",
                "look at its log and at the kernel's (out of memory?); forgotten after five minutes",
            )  # fmt: skip
            continue
        yield Verdict("worker", worker.name, "ok", f"heard of {worker.silent:.0f} s ago", worker.silent, 15.0, "s")
        if worker.clock is not None:
            off = abs(worker.clock)
            state = grade(off, limits.clock, FAILING * limits.clock)
            side = "ahead of" if worker.clock > 0 else "behind"
            yield Verdict(
                "clock", worker.name, state, f"{off:.1f} s {side} Redis's", off, limits.clock, "s",
                "" if state == "ok" else "run chrony or ntpd there: leases and ages are reckoned in wall time",
            )  # fmt: skip


def beat(silent: float | None, limits: Limits) -> Verdict:
    if silent is None:
        return Verdict(
            "beat", "", "failing", "has never sent anything here", None, limits.silence, "s",
            "start exactly one: celery -A graft beat",
        )  # fmt: skip
    state: State = "failing" if silent > limits.silence else "ok"
    return Verdict(
        "beat", "", state, f"last tick {silent:.0f} s ago", silent, limits.silence, "s",
        "" if state == "ok" else "start it again: celery -A graft beat; until then nothing is checked or tidied",
    )  # fmt: skip


def depth(queue: measurements.Queue, limits: Limits) -> Verdict:
    state = grade(queue.waiting, limits.depth, FAILING * limits.depth)
    remedy = "" if state == "ok" else "add workers, or slow the callers down (celery -A graft top shows both rates)"
    detail = f"{queue.waiting} messages wait"
    if queue.waiting and queue.is_paused:
        state, remedy = worst([state, "degraded"]), f"it is paused; celery -A graft queue resume {queue.name}"
        detail += ", the queue is paused"
    elif queue.waiting and not queue.readers:
        state = "failing"
        detail += ", no worker reads the queue"
        remedy = f"start one: celery -A graft worker -Q {queue.name}"
    return Verdict("depth", queue.name, state, detail, queue.waiting, limits.depth, "messages", remedy)


def age(queue: measurements.Queue, limits: Limits) -> Verdict:
    if queue.oldest is None:
        return Verdict("age", queue.name, "ok", "nothing waits", 0.0, limits.age, "s")
    state = grade(queue.oldest, limits.age, FAILING * limits.age)
    remedy = "" if state == "ok" else f"add workers that read {queue.name}, or look at what keeps theirs busy"
    return Verdict(
        "age", queue.name, state, f"the oldest message has waited {queue.oldest:.0f} s", queue.oldest, limits.age, "s",
        remedy,
    )  # fmt: skip


def round_trip(queue: measurements.Queue, limits: Limits) -> Iterator[Verdict]:
    """An echo that stays away is only a failure where somebody had a hand free to answer it."""
    if queue.unanswered is not None and queue.unanswered > limits.round_trip and not queue.is_paused:
        is_full = queue.slots > 0 and queue.busy >= queue.slots
        state: State = "degraded" if is_full else "failing"
        detail = f"an echo has been on its way for {queue.unanswered:.0f} s"
        if is_full:
            detail += f", all {queue.slots} places of its readers are busy"
            remedy = "add workers, or keep long work on a queue of its own"
        elif queue.readers:
            remedy = "its worker takes messages and does not run them: look at its log, restart it"
        else:
            remedy = f"start a worker: celery -A graft worker -Q {queue.name}"
        yield Verdict("round trip", queue.name, state, detail, queue.unanswered, limits.round_trip, "s", remedy)
    elif queue.round_trip is not None:
        state = grade(queue.round_trip, limits.round_trip, FAILING * limits.round_trip)
        yield Verdict(
            "round trip", queue.name, state, f"the last echo took {queue.round_trip * 1000:.0f} ms", queue.round_trip,
            limits.round_trip, "s", "" if state == "ok" else "add workers, or keep long work on a queue of its own",
        )  # fmt: skip


def held(found: measurements.Held, limits: Limits) -> Verdict:
    abandoned = 3 * limits.visibility_timeout
    too_long = limits.hard_time_limit + limits.visibility_timeout
    if found.unindexed:
        return Verdict(
            "unacknowledged", "", "degraded", f"{found.unindexed} of {found.count} are in no index and never come back",
            found.unindexed, 0.0, "messages", "something else writes to this Redis; give the deployment one of its own",
        )  # fmt: skip
    if found.abandoned > abandoned:
        return Verdict(
            "unacknowledged", "", "failing", f"an abandoned message has not come back for {found.abandoned:.0f} s",
            found.abandoned, abandoned, "s", "no worker gives abandoned messages back: start or restart one",
        )  # fmt: skip
    state: State = "degraded" if found.longest > too_long else "ok"
    return Verdict(
        "unacknowledged", "", state, f"{found.count} are with workers, the longest for {found.longest:.0f} s",
        found.longest, too_long, "s", "" if state == "ok" else "a worker keeps a message beyond the hard time limit: "
        "find it with celery -A graft inspect active, restart it",
    )  # fmt: skip


def letters(found: measurements.Pile, limits: Limits) -> Verdict:
    state = grade(found.recent, limits.dead_letters, max(100.0, FAILING * limits.dead_letters))
    detail = f"{found.total} are kept, {found.recent} of them new"
    if found.causes:
        detail += ": " + "; ".join(found.causes)
    remedy = "" if state == "ok" else "see why: celery -A graft dead-letters list"
    return Verdict("dead letters", "", state, detail, found.recent, limits.dead_letters, "letters", remedy)


def quarantine(found: measurements.Pile) -> Verdict:
    state: State = "degraded" if found.recent else "ok"
    detail = f"{found.total} are kept, {found.recent} of them new"
    if found.causes:
        detail += ": " + "; ".join(found.causes)
    remedy = "" if state == "ok" else "somebody sends what is no task: look at the Redis list graft:quarantine"
    return Verdict("quarantine", "", state, detail, found.recent, 0.0, "messages", remedy)


def rates(found: measurements.Work, limits: Limits) -> Iterator[Verdict]:
    for name, count, remedy in (
        (
            "errors",
            found.errors - found.retries,
            "see which callables: celery -A graft top; dead-letters list says why",
        ),
        ("retries", found.retries, "something that the callables depend on is unwell; see their errors"),
    ):
        rate = count / found.items if found.items else 0.0
        state = grade(rate, limits.error_rate, FAILING * limits.error_rate) if found.items >= FEW_ITEMS else "ok"
        yield Verdict(
            name, "", state, f"{rate:.1%} of {found.items} items in the last {found.seconds / 60:.0f} min", rate,
            limits.error_rate, "share", "" if state == "ok" else remedy,
        )  # fmt: skip


def lag(found: Measured, limits: Limits) -> Iterator[Verdict]:
    """One verdict for all event loops, that of the slowest."""
    if not found.loops:
        return
    slowest = max(found.loops, key=lambda loop: loop.lag)
    state = grade(slowest.lag, limits.lag, FAILING * limits.lag)
    yield Verdict(
        "event loop", "", state, f"the slowest of {len(found.loops)} was {slowest.lag * 1000:.0f} ms late: "
        + slowest.process + (f", kept by {slowest.blocked_by}" if slowest.blocked_by else ""),
        slowest.lag, limits.lag, "s",
        "" if state == "ok" else "a coroutine computes or blocks there: asyncio.to_thread, or a plain function",
    )  # fmt: skip


def growth(found: measurements.Growth) -> Verdict:
    state: State = "failing" if found.verdict == "leaking" else "degraded"
    return Verdict("leak", found.subject, state, found.detail, remedy=found.remedy)


def overlaps(count: int) -> Verdict:
    state: State = "degraded" if count else "ok"
    return Verdict(
        "checks", "", state, f"{count} were skipped because the one before still ran", count, 0.0, "runs",
        "" if not count else "Redis is slow, or GRAFT_HEALTH_EVERY too short",
    )  # fmt: skip
