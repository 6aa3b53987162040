"""Chords that always end: finds those whose parts are done and whose body has not run, and those that lost a part.

Celery counts a part after its result was stored, in the process that ran it; a process that dies in between leaves a
chord that nobody completes. Here each chord is on record from its first part on. A periodic look asks Redis what
Celery's own bookkeeping says, and takes the missing step through Celery's own code, whose scripts let only one do it::

    part sent ─► on record ─► every look ─┬─ body answered, waiting or running ─► nothing to do
                                          ├─ a part is done and was not counted ─► count it; the last one sends the body
                                          ├─ all counted, and nobody sends the body ─► send it
                                          └─ a part or the body is nowhere, twice ─► body fails, dead letter
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.states import READY_STATES

from graft.config import redis_clock
from graft.config.deployment import app
from graft.config.redis_client import broker, shared
from graft.tasks import codec
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery.chord_records import CHORD, CHORDS, forget
from graft.tasks.errors import SignatureError
from graft.tasks.queues import locate
from graft.tasks.results.backend import results_backend

logger = logging.getLogger(__name__)

PATIENCE: Final = 10.0  # Seconds that a chord is left alone after its first part was sent.
AT_ONCE: Final = 200  # Chords for one look; the next one goes on.
MISSES: Final = 2

Step = Literal["settled", "wait", "count", "lost"]


@dataclass(frozen=True)
class ChordState:
    """What is known of one chord. ``uncounted`` maps the parts that Celery has not counted to their states.

    ``is_watched``: whoever sends the parts, a few at a time, looks after them, and sends lost ones again or gives up.
    """

    size: int | None
    parts: int
    claim: str | None
    body_state: str | None
    body_is_somewhere: bool
    uncounted: Mapping[int, str | None] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    is_watched: bool = False

    def step(self) -> Step:
        """What the chord needs."""
        if self.body_state in READY_STATES:
            return "settled"
        if self.body_is_somewhere:
            return "wait"
        if self.claim == "done" or self.size is None:
            return "lost"  # The body was sent, or the count is gone; and the body is nowhere.
        if self.claim is not None or self.parts < self.size:
            return "wait"  # Somebody is sending the body just now, or the parts are still being sent.
        if self.missing and not self.is_watched:
            return "lost"
        return "count" if self.countable or not self.uncounted else "wait"

    @property
    def countable(self) -> list[int]:
        """Parts that are done and were not counted."""
        return [index for index, state in self.uncounted.items() if state in READY_STATES]


def finish_chords() -> int:
    """Take the missing step of every chord on record that stands still; how many were ended or failed."""
    client = shared()
    before = redis_clock.now() - PATIENCE
    chords = client.zrangebyscore(CHORDS, 0, before, start=0, num=AT_ONCE)
    moved = 0
    with broker() as queue_side:
        for chord in chords:
            # The next look takes those that were not looked at for longest.
            client.zadd(CHORDS, {chord: redis_clock.now() - PATIENCE / 2}, xx=True)
            moved += finish(chord.decode(), queue_side) in ("count", "lost")
    return moved


def finish(chord: str, broker: Any) -> Step:
    """Take the missing step of *chord*, if it stands still."""
    record = shared().hgetall(CHORD + chord)
    if b"body" not in record:
        forget(chord)
        return "settled"
    try:
        body = json.loads(bytes(codec.unseal(f"chord:{chord}", record[b"body"].decode())))
    except SignatureError:
        logger.warning("the record of chord %s was not written by this deployment; it is dropped", chord)
        forget(chord)
        return "settled"
    parts = {int(name[5:]): part.decode() for name, part in record.items() if name.startswith(b"part:")}
    state = _look(chord, body, parts, b"watched" in record, broker)
    step = state.step()
    if step == "count":
        _count(chord, body, parts, state)
    elif step == "lost":
        if shared().hincrby(CHORD + chord, "missed", 1) < MISSES:
            return "wait"  # It may have been on its way from one place to another.
        _fail(chord, body, parts, state)
    elif b"missed" in record:
        shared().hdel(CHORD + chord, "missed")
    if step in ("settled", "lost"):
        forget(chord)
    return step


def _look(chord: str, body: Mapping[str, Any], parts: Mapping[int, str], is_watched: bool, broker: Any) -> ChordState:
    backend = results_backend()
    body_id = body["options"]["task_id"]
    counted, size, more, claim = (backend.get_key_for_group(chord, suffix) for suffix in (".d", ".s", ".t", ".c"))
    with backend.client.pipeline(transaction=False) as pipe:
        for key in (size, more, claim):
            pipe.get(key)
        pipe.smembers(counted)
        found, added, claimed, members = pipe.execute()
    done = {member.rpartition(b":")[0].decode() for member in members}
    uncounted = {index: part for index, part in parts.items() if part not in done}
    states = _states([body_id, *uncounted.values()])
    unknown = [part for part in (body_id, *uncounted.values()) if states[part] not in READY_STATES]
    missing = locate.missing(unknown, broker) if unknown else set()
    if missing:  # Whoever answered meanwhile has left the queues, but not without a result.
        states |= _states(list(missing))
    return ChordState(
        size=None if found is None else int(found) + int(added or 0),
        parts=len(parts),
        claim=None if claimed is None else claimed.decode(),
        body_state=states[body_id],
        body_is_somewhere=body_id not in missing,
        uncounted={index: states[part] for index, part in uncounted.items()},
        missing=frozenset(
            index for index, part in uncounted.items() if part in missing and states[part] not in READY_STATES
        ),
        is_watched=is_watched,
    )


def _states(ids: Sequence[str]) -> dict[str, str | None]:
    found = results_backend().mget([results_backend().get_key_for_task(task_id) for task_id in ids])
    return {
        task_id: results_backend().decode_result(payload)["status"] if payload else None
        for task_id, payload in zip(ids, found, strict=True)
    }


def _count(chord: str, body: Mapping[str, Any], parts: Mapping[int, str], state: ChordState) -> None:
    """What the processes that ran the parts would have done next."""
    # When all are counted, counting any of them again changes nothing but sends the body.
    for index in state.countable or [min(parts)]:
        meta = results_backend().get_task_meta(parts[index], cache=False)
        request = Context(id=parts[index], group=chord, group_index=index, chord=body)
        logger.warning("part %d of chord %s was done and not counted, or not followed up; it is now", index, chord)
        results_backend().on_chord_part_return(request, meta["status"], meta["result"])


def _fail(chord: str, body: Mapping[str, Any], parts: Mapping[int, str], state: ChordState) -> None:
    lost = ", ".join(f"{index} ({parts[index]})" for index in sorted(state.missing)[:5])
    error = ChordError(f"part {lost} of chord {chord} is lost" if lost else f"the body of chord {chord} is lost")
    logger.error("%s; its body fails", error)
    callback = maybe_signature(dict(body), app=app())
    dead_letters.bury(
        dead_letters.DeadLetter.make(
            id=body["options"]["task_id"],
            task=body["task"],
            queue=str(body["options"].get("queue") or ""),
            reason="lost",
            function=body["task"],
            error=error,
            traceback="",
            runs=0,
            items=1,
            envelope=json.dumps({"args": body.get("args"), "kwargs": body.get("kwargs")}, default=repr),
        )
    )
    try:
        raise error
    except ChordError:  # Celery takes the traceback from the stack.
        results_backend().chord_error_from_stack(callback, error)
    backend = results_backend()
    backend.client.delete(*(backend.get_key_for_group(chord, suffix) for suffix in (".s", ".j", ".t", ".d")))
