"""Replays dead letters.

The message is sent first, the dead letter removed afterwards: where a process is killed in between, items may run
twice, and none is lost. The message keeps its id, so that its caller finds the result, and begins anew: earlier runs
and retries do not count.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from kombu.utils.json import loads

from graft.config import keys, redis_clock
from graft.config.deployment import app, settings
from graft.config.queues import MIDDLE_PRIORITY, table
from graft.config.redis_client import shared
from graft.config.transport.unique import HEADER, HeldError
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.store import FAILED_TASK, DeadLetter
from graft.tasks.delivery.run_counter import Runs
from graft.tasks.envelope import REDUCE, RUN_ENVELOPE, Envelope
from graft.tasks.errors import EnvelopeError, TaskQueueError
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import SENT_AT


class NotReplayable(TaskQueueError):
    """The dead letter cannot be replayed."""


@dataclass(frozen=True)
class Message:
    """The message that replays a dead letter."""

    id: str
    task: str
    queue: str
    args: list[Any]
    kwargs: dict[str, Any]
    group: str | None = None
    label: str | None = None  # Flower and `queue peek` show it for the arguments.
    embed: dict[str, Any] = field(default_factory=dict)
    unique: list[Any] | None = None


def message_of(letter: DeadLetter, queue: str | None = None) -> Message:
    """*letter* as a message, to *queue* or to the queue that it came from.

    Raises:
        NotReplayable: its arguments were not kept, or its envelope cannot be opened with this deployment's key.
    """
    if letter.task == REDUCE and not letter.envelope.startswith("{"):
        raise NotReplayable("the results to reduce are not kept in a dead letter; submit the batch again")
    if not letter.envelope:
        raise NotReplayable("its items were not kept: they took more than 1 MiB; submit them again")
    wire: str | bytes
    if letter.envelope.startswith("{"):
        kept = loads(letter.envelope)
        if kept.get("lossy"):
            raise NotReplayable("its arguments were not JSON and are kept as text only; call the task again")
        args, kwargs = list(kept["args"] or ()), dict(kept["kwargs"] or {})
        if letter.task != RUN_ENVELOPE:
            embed = dict(kept.get("embed") or {})
            task_id = letter.id.removesuffix(FAILED_TASK)
            lane = queue or letter.queue or table().default
            return Message(task_id, letter.task, lane, args, kwargs, embed=embed, unique=letter.unique)
        try:
            wire = payloads.fetch(str(args[0]), letter.id)
        except EnvelopeError as error:
            raise NotReplayable(str(error)) from error
    else:
        wire = letter.envelope
    envelope = open_envelope(letter, wire)
    lane = "io" if envelope.function.is_async else "batch"
    # Its pool may be long gone.
    fresh = replace(envelope, retries=0, reruns=0, carried={}, pool=None, postponed={}, spent=(0.0, 0.0))
    if letter.reason == "failed":  # Its caller has the outcome; others of its envelope may be replayed beside it.
        fresh = replace(fresh, id=letter.id)
    label = f"({fresh.function.name}, {len(fresh.items)} items from {fresh.positions[0]})"
    return Message(
        fresh.id, RUN_ENVELOPE, queue or letter.queue or lane, [fresh.seal()], {}, fresh.batch, label,
        unique=letter.unique,
    )  # fmt: skip


def open_envelope(letter: DeadLetter, wire: str | bytes) -> Envelope:
    """The envelope in *letter*. A poisonous item has a dead letter of its own: ``<id of its envelope>:<index>``."""
    try:
        return Envelope.open(wire, letter.id.partition(":")[0])
    except EnvelopeError as error:
        with suppress(EnvelopeError):  # A replayed one that failed as a whole.
            return Envelope.open(wire, letter.id)
        raise NotReplayable(f"its envelope cannot be opened: {error}") from error


def replay(letter: DeadLetter, queue: str | None = None) -> bool:
    """Send *letter* again and remove it; False when another process has locked it for its own replay.

    Raises:
        NotReplayable: see :func:`message_of`, or another call has its unique key; the dead letter stays.
    """
    if queue is not None:
        table().checked(queue)
    message = message_of(letter, queue)
    if not dead_letters.lock(letter.id):
        return False
    # Whoever is attached to the call from now on is to wait for its next result.
    key = keys.RESULT + message.id if message.unique else ""
    before = shared().getdel(key) if key else None
    try:
        Runs(message.id, 0).forget(shared())  # Also an item that killed its processes gets all its runs again.
        publish(message)
    except HeldError as held:
        dead_letters.unlock(letter.id)
        if before:
            shared().set(key, before, ex=int(settings().result_ttl))
        raise NotReplayable(
            f"{held}: only one of them is to run at a time; replay this one when that has ended"
        ) from held
    except BaseException:
        dead_letters.unlock(letter.id)
        raise
    dead_letters.note_replay(letter.id)
    dead_letters.remove(letter)
    return True


def publish(message: Message) -> None:
    """Put *message* on its queue; it is there when this returns."""
    # Not send_task, which would subscribe this process to the result.
    with app().producer_or_acquire() as producer:
        app().amqp.send_task_message(
            producer,
            message.task,
            app().amqp.as_task_v2(
                message.id, message.task, args=message.args, kwargs=message.kwargs, group_id=message.group,
                root_id=message.group or message.id, argsrepr=message.label,
                # Not its chord, which has gone on with the failure.
                **{name: message.embed.get(name) for name in ("callbacks", "errbacks", "chain")},
            ),
            queue=message.queue,
            priority=MIDDLE_PRIORITY,
            declare=[],
            retry=False,
            headers={SENT_AT: redis_clock.now()} | ({HEADER: message.unique} if message.unique else {}),
        )  # fmt: skip
