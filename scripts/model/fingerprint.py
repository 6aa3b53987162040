"""A name for a state of the model, the same for all states that go on in the same ways.

Workers are alike: a state in which they have changed places is the same. So is one whose deliveries have other tags,
one that differs in what happened to a task that is over, and one in which somebody was told what it needs no more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import settings
from graft.scripts.model.actors import Actor
from graft.scripts.model.items import FAILS_FIRST
from graft.scripts.model.people import READY
from graft.scripts.model.worker import Worker
from graft.scripts.model.world import TAGGED, World

TAG: Final = re.compile(rf"\b{TAGGED}\d+\b")
NAME: Final = re.compile(r"\bw\d+\b")
TIME: Final = re.compile(r"\b1[67]\d{8}(?:\.\d+)?\b")


def of(world: World, *also: object, may_come_back: bool) -> str:
    """The name of the state of *world*, and of what *also* decides about what may follow.

    Args:
        may_come_back: somebody may replay what is over.
    """
    names = sorted(world.workers)
    # Workers that differ in a clock are not alike.
    orders = permutations(names) if not world.wrong_clocks else [tuple(names)]
    over = frozenset[str]() if may_come_back else _over(world)
    tags = _numbered(world, _text(world, also, over, {}, {}))
    texts = [_text(world, also, over, dict(zip(names, order, strict=True)), tags) for order in orders]
    return hashlib.sha1(min(texts).encode(), usedforsecurity=False).hexdigest()


def _over(world: World) -> frozenset[str]:
    """Tasks that are concluded, and of which nobody has anything any more."""
    seen = world.look()
    under_way = {*seen.copies, *seen.parked, *world.batches}
    for worker in world.workers.values():
        if not worker.is_dead:
            under_way |= {request.id for request in _requests(worker)} | {*worker.held.values()}
    return frozenset(name for name, (state, _) in seen.results.items() if state in READY and name not in under_way)


def _requests(worker: Worker) -> Iterator[Any]:
    yield from worker.reserved
    yield from (request for request, _ in worker.ended)
    if worker.running is not None:
        yield worker.running


def _numbered(world: World, text: str) -> dict[str, str]:
    """Names for the deliveries in *text*: their workers', and numbers in their order."""
    return {tag: f"{world.owners[tag]} {number}" for number, tag in enumerate(sorted(set(TAG.findall(text))), 1)}


def _text(
    world: World, also: object, over: frozenset[str], names: Mapping[str, str], tags: Mapping[str, str]
) -> str:  # fmt: skip
    """The state in words, in which workers and deliveries have other *names* and *tags*."""

    def renamed(what: object) -> str:
        told = TAG.sub(lambda tag: tags.get(tag[0], tag[0]), str(what))
        told = TIME.sub(lambda time: f"{float(time[0]) - now:.3f}", told)
        return NAME.sub(lambda name: names.get(name[0], name[0]), told)

    def left(counted: Mapping[str, int]) -> list[tuple[str, int]]:
        return sorted((name, number) for name, number in counted.items() if name not in over)

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
        sorted((name, sorted(map(renamed, record))) for name, record in seen.runs.items() if _task(name) not in over),
        sorted(world.accepted), sorted(_begun(world) - over), left(world.deaths), left(world.arrived),
        sorted([renamed(name), *map(renamed, _worker(world, worker))] for name, worker in world.workers.items()),
        [renamed(_trace(actor)) for actor in (world.caller, world.operator)],
        [(batch.outcomes._done, sorted(batch.sender._in_flight._envelopes)) for batch in world.batches.values()],
        [batch.caller.is_dead for batch in world.batches.values()], sorted(world.cancelled), sorted(seen.cancelled),
        seen.is_paused, seen.key_of, sorted(world.replayed.items()),
    ]  # fmt: skip
    return repr(parts)


def _task(record: str) -> str:
    """Whose runs a *record* is of."""
    return record.removeprefix(keys.RUN).partition(":")[0]


def _begun(world: World) -> set[str]:
    """What has begun before, where that decides about something."""
    return {name for name in world.begun if world.batches or name.startswith(FAILS_FIRST)}


def _worker(world: World, worker: Worker) -> list[object]:
    if worker.is_dead:
        return ["dead"]
    return [
        worker.main.is_cut, worker.is_stopping, len(worker.timers),
        [getattr(worker.channel._fetcher, name) for name in ("waits_next", "_next_limit", "_is_script_known")],
        [_delivery(request) for request in worker.reserved],
        [(_delivery(request), _told(answer)) for request, answer in worker.ended],
        None if worker.running is None else _delivery(worker.running),
        sorted(worker.held), worker.channel.unsent_acks, sorted(worker.channel.pending_acks.items()),
        worker.may_renew(), worker.is_certain_for(),
        [_trace(actor) for actor in (worker.at_main, worker.at_pool, worker.at_helper)],
        worker.is_paused, worker.knows_all_cancelled(world.look().cancelled),
        sorted(world.inside_of.get(worker.name, ())), [list(offer._todo) for offer in worker.offers],
    ]  # fmt: skip


def _delivery(request: Any) -> object:
    return request.id, request.message.delivery_tag, request.message.properties.get("delivery_info")


def _told(answer: object) -> str:
    """What a pool process says, without the seconds that it took."""
    return str(answer[:2] if isinstance(answer, tuple) else answer)[:40]


def _trace(actor: Actor | None) -> object:
    """What *actor* does next, and what it goes by."""
    return None if actor is None else (actor.next, actor.heard)
