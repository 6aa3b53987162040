"""A name for a state of the model, the same for all states that go on in the same ways.

Workers are alike: a state in which they have changed places is the same. So is one whose deliveries have other tags.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import permutations
from typing import Final

from graft.config.deployment import settings
from graft.scripts.model.actors import Actor
from graft.scripts.model.worker import Worker
from graft.scripts.model.world import World

TAG: Final = re.compile(r"\b(w\d+)(?:-\d+)+\b")
NAME: Final = re.compile(r"\bw\d+\b")
TIME: Final = re.compile(r"\b1[67]\d{8}(?:\.\d+)?\b")


def of(world: World, *also: object) -> str:
    """The name of the state of *world*, and of what *also* decides about what may follow."""
    names = sorted(world.workers)
    # Workers that differ in a clock are not alike.
    orders = permutations(names) if not world.wrong_clocks else [tuple(names)]
    texts = [_text(world, also, dict(zip(names, order, strict=True))) for order in orders]
    return hashlib.sha1(min(texts).encode(), usedforsecurity=False).hexdigest()


def _text(world: World, also: object, names: Mapping[str, str]) -> str:
    """The state in words, in which workers have other *names*."""

    def renamed(what: object) -> str:
        told = TAG.sub(lambda tag: f"{tag[1]} {world.tags.get(tag[0], ('', '?'))[1]}", str(what))
        told = TIME.sub(lambda time: f"{float(time[0]) - now:.3f}", told)
        return NAME.sub(lambda name: names.get(name[0], name[0]), told)

    now, seen = world.now, world.look()
    leases = sorted(((now - at, tag) for tag, at in seen.leases.items()), reverse=True)  # In which they are swept.
    expired = settings().visibility_timeout + max([0.0, *world.wrong_clocks.values()])
    parts: list[object] = [
        renamed(also),
        seen.queue,
        sorted((renamed(tag), one) for tag, one in seen.held.items()),
        [(renamed(tag), round(min(age, expired), 3)) for age, tag in leases],
        sorted(seen.results.items()),
        sorted(seen.letters.items()), sorted(seen.item_letters.items()),
        sorted(seen.slots.items()), sorted(seen.parked), seen.places,
        sorted(seen.quarantined),
        renamed(seen.runs),
        seen.is_swept,
        sorted(world.accepted), sorted(world.begun.items()), sorted(world.deaths.items()),
        sorted(world.arrived.items()),
        sorted([renamed(name), *map(renamed, _worker(world, worker))] for name, worker in world.workers.items()),
        [renamed(_trace(actor)) for actor in (world.caller, world.operator)],
        [(batch.outcomes._done, sorted(batch.sender._in_flight._envelopes)) for batch in world.batches.values()],
        [batch.caller.is_dead for batch in world.batches.values()], sorted(world.cancelled), sorted(seen.cancelled),
        seen.is_paused, seen.key_of, sorted(world.replayed.items()),
    ]  # fmt: skip
    return repr(parts)


def _worker(world: World, worker: Worker) -> list[object]:
    return [
        worker.is_dead, worker.main.is_cut, worker.is_stopping, len(worker.timers),
        [request.id for request in worker.reserved],
        [(request.id, _told(answer)) for request, answer in worker.ended],
        sorted(() if worker.is_dead else worker.held), worker.channel.unsent_acks,
        not worker.is_dead and worker.may_renew(), worker.is_certain_for(),
        [_trace(actor) for actor in (worker.at_main, worker.at_pool, worker.at_helper)],
        worker.is_paused, worker.is_dead or worker.knows_all_cancelled(world.look().cancelled),
        sorted(world.inside_of.get(worker.name, ())), [list(offer._todo) for offer in worker.offers],
    ]  # fmt: skip


def _told(answer: object) -> str:
    """What a pool process says, without the seconds that it took."""
    return str(answer[:2] if isinstance(answer, tuple) else answer)[:40]


def _trace(actor: Actor | None) -> object:
    return None if actor is None else (actor.next, actor.heard)
