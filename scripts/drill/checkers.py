"""Decides about histories: whether what the actors saw can have happened on something that keeps its promise.

Each takes the operations on one thing and returns what is wrong, in words for people; nothing where all is right. An
operation takes effect at some instant between its call and its return. Where it is free, the checkers choose what
excuses the system: what they report cannot be explained by any choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from graft.scripts.drill.history import Operation

SLACK = 0.05  # Seconds by which the clock of Redis, which ends leases, and that of the machine may differ.


def semaphore(operations: Iterable[Operation], limit: int, lease: float) -> list[str]:
    """Flaws of a semaphore of *limit* permits, each taken back *lease* seconds after it was acquired or renewed last.

    ``acquire`` and ``renew`` have the ticket as their value, where they succeeded; ``release`` the one given back.

    A permit is certainly out from the return of its acquisition to the call of its release, or to the end of its
    lease. The history is linearizable if and only if no more than *limit* are certainly out at once: then every
    acquisition can take effect at its return, and every release at its call.
    """
    renewed: dict[str, list[Operation]] = defaultdict(list)
    released: dict[str, float] = {}
    for one in operations:
        if one.kind in ("acquire", "renew") and one.ended is not None and one.value is not None:
            renewed[str(one.value)].append(one)
        elif one.kind == "release":
            released[str(one.value)] = one.began
    changes: list[tuple[float, int, str]] = []
    for ticket, times in renewed.items():
        # Whether a renewal came in time is for Redis to say; it succeeded, so the permit was out up to then.
        last = max(times, key=lambda one: one.began)
        end = min(released.get(ticket, last.began + lease - SLACK), last.began + lease - SLACK)
        begin = min(one.ended for one in times if one.ended is not None)
        if end > begin:
            changes += [(begin, 1, ticket), (end, -1, ticket)]
    out: set[str] = set()
    flaws = []
    for at, change, ticket in sorted(changes):  # Of two at one instant the release comes first.
        if change < 0:
            out.discard(ticket)
            continue
        out.add(ticket)
        if len(out) > limit:
            flaws.append(f"{len(out)} of {limit} permits were out at {at:.3f}: {', '.join(sorted(out))}")
    return flaws


def rate(operations: Iterable[Operation], period: float, burst: int) -> list[str]:
    """Flaws of a rate limit that lets *burst* pass at once, and one more each *period* seconds.

    ``pass`` is an operation that was let through at some instant between its call and its return. Between two instants
    at most ``burst + seconds / period`` may be; the history is linearizable if that holds for those that must lie
    between the two, for any two: their calls after the first, their returns before the second.
    """
    passed = [(one.began, one.ended) for one in operations if one.kind == "pass" and one.ended is not None]
    ends = sorted(passed, key=lambda one: one[1])
    for begin in sorted({began for began, _ in passed}):
        count = 0
        for began, ended in ends:
            if began < begin:
                continue
            count += 1
            if count > burst + (ended - begin + SLACK) / period + 1e-9:
                return [
                    f"{count} passed between {begin:.3f} and {ended:.3f}, one each {period:g} s and {burst} at once"
                ]
    return []


def bound(operations: Iterable[Operation], limit: int) -> list[str]:
    """Flaws of what lets *limit* run at once: more than these certainly did.

    ``run`` is from a moment after its beginning to one before its end; one that never returned may have ended at once.
    """
    runs = [one for one in operations if one.kind == "run" and one.ended is not None]
    changes = sorted(change for one in runs for change in ((one.began, 1, one.on), (_end(one), -1, one.on)))
    inside: list[str] = []
    for at, change, name in changes:  # Of two at one instant the end comes first.
        if change < 0:
            inside.remove(name)
            continue
        inside.append(name)
        if len(inside) > limit:
            return [f"{len(inside)} ran at once at {at:.3f}, and {limit} may: {', '.join(sorted(inside))}"]
    return []


def answers(operations: Iterable[Operation]) -> list[str]:
    """Flaws of calls and their answers: each accepted call is answered once, with what a run of it has returned.

    ``send``, ``run`` and ``answer``, each on the name of its call; ``run`` and ``answer`` with what was returned. None
    is the answer that says that there is none: a call that failed, or was lost.
    """
    by_call: dict[str, dict[str, list[Operation]]] = defaultdict(lambda: defaultdict(list))
    for one in operations:
        by_call[one.on][one.kind].append(one)
    flaws = []
    for call, seen in sorted(by_call.items()):
        heard = [one for one in seen["answer"] if one.ended is not None]
        returned = [one for one in seen["run"] if one.ended is not None]
        if any(one.ended is not None for one in seen["send"]) and not heard:
            flaws.append(f"{call} was accepted and never answered")
        if len(heard) > 1:
            flaws.append(f"{call} was answered {len(heard)} times")
        flaws += [
            f"{call} was answered {one.value!r}, which no run had returned"
            for one in heard
            if one.value is not None and not any(run.value == one.value and run.began <= _end(one) for run in returned)
        ]
        sent = min((one.began for one in seen["send"]), default=None)
        if any(sent is None or run.began + SLACK < sent for run in seen["run"]):
            flaws.append(f"{call} ran before it was sent")
    return flaws


def order(operations: Iterable[Operation]) -> list[str]:
    """Flaws of a queue: what was certainly sent before another is not certainly taken after it.

    ``send`` and ``take`` with the message as their value; a message counts from its first sending to its first taking.
    """
    sent: dict[str, Operation] = {}
    taken: dict[str, Operation] = {}
    for one in operations:
        if one.ended is not None and one.kind in ("send", "take"):
            (sent if one.kind == "send" else taken).setdefault(str(one.value), one)
    flaws = [f"{message} was taken and never sent" for message in sorted(taken.keys() - sent.keys())]
    both = sorted(sent.keys() & taken.keys(), key=lambda message: _end(sent[message]))
    # Going from the last that was sent: the earliest that anything sent certainly later was certainly taken.
    for index, message in enumerate(both):
        for later in both[index + 1 :]:
            if sent[later].began > _end(sent[message]) and _end(taken[later]) < taken[message].began:
                flaws.append(f"{later} was taken before {message}, which was sent before it")
                break
    return flaws


def _end(operation: Operation) -> float:
    assert operation.ended is not None
    return operation.ended
