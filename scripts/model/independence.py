"""Steps that need no other order: nobody can notice them, or change what comes of them, before they are made.

Where there is such a step nothing else is tried, but that its worker dies there. Which ends there are, and what is
broken on the way, stays the same; a test compares.
"""

from __future__ import annotations

from typing import Any, Final

from graft.config import keys
from graft.config.deployment import settings
from graft.scripts.model.actors import INSIDE, Actor
from graft.scripts.model.items import FAILS_FIRST
from graft.scripts.model.worker import QUEUE, Worker
from graft.scripts.model.world import World

RECORDS: Final = (keys.UNACKED.encode(), keys.UNACKED_INDEX.encode())
HARMLESS: Final = frozenset({"acks", "renew", "obey"})  # In one step, and no other of its worker's is another for it.


def acks_nothing(world: World, worker: Worker) -> bool:
    """Whether *worker* acknowledges, now or next, what nobody has on record any more."""
    if worker.at_main is None:
        return bool(worker.timers) and not _on_record(world, worker.channel.unsent_acks)
    commands = worker.at_main.commands
    return bool(commands) and all(
        command[0] in (b"HDEL", b"ZREM")
        and command[1] in RECORDS
        and not _on_record(world, [tag.decode() for tag in command[2:]])
        for command in commands
    )


def _on_record(world: World, tags: list[str]) -> bool:
    seen = world.look()
    return any(tag in seen.held or tag in seen.leases for tag in tags)


def is_alone(world: World, worker: Worker, may_jump: bool) -> bool:
    """Whether what the pool process of *worker* does next is nobody else's business.

    The code of a task is not, nor what comes before a run asks Redis anything, while the worker takes its leases for
    certain. What a run does about a task that no other can have is not, unless a jump of the clock may end its lease.
    """
    actor = worker.at_pool
    request = worker.reserved[0] if actor is None else worker.running
    if world.batches or request is None:
        return False
    if worker.is_certain_for() and (
        not request.id.startswith(FAILS_FIRST) if actor is None else actor.next == INSIDE
    ):  # Which run of one that fails first is the first, is told when its code begins.
        return True
    if may_jump or not _has_no_other(world, request):
        return False
    return actor is None or actor.next == INSIDE or (_waits(worker) and not _sends(actor))


def _has_no_other(world: World, request: Any) -> bool:
    """Whether nobody but its worker has the task of *request*, or can have it before time passes."""
    seen, tag, name = world.look(), request.message.delivery_tag, request.id
    workers = [worker for worker in world.workers.values() if not worker.is_dead]
    if seen.copies[name] > 1 or [one.id for worker in workers for one in worker.requests()].count(name) > 1:
        return False
    if any(tag.encode() in word for one in workers if one.at_main is not None for word in one.at_main.heard):
        return False  # Who sweeps has read of it.
    latest = world.now + max(world.wrong_clocks.values(), default=0.0) - settings().visibility_timeout
    return not seen.copies[name] or (seen.held.get(tag) == name and seen.leases.get(tag, 0.0) > latest)


def _waits(worker: Worker) -> bool:
    """Whether the main process takes up the end of a run at once, and can begin nothing else that others let it do."""
    return worker.at_main is None and not worker.channel.qos.can_consume() and HARMLESS.issuperset(worker.operations())


def _sends(actor: Actor) -> bool:
    """Whether *actor* is about to put something on a queue."""
    return any(word.startswith(QUEUE.encode()) for command in actor.commands for word in command[1:])
