"""A name for a state of the model, the same for all states that go on in the same ways.

Workers are alike: a state in which they have changed places is the same; so are tasks that do the same. So is one whose
deliveries have other tags, one that differs in what happened to a task that is over, and one in which somebody was told
what it needs no more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, permutations, product
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import settings
from graft.scripts.model.actors import Actor
from graft.scripts.model.batches import is_batch
from graft.scripts.model.items import CHAINED, FAILS_FIRST, GARBLED
from graft.scripts.model.people import READY
from graft.scripts.model.worker import Worker
from graft.scripts.model.world import TAGGED, World

TAG: Final = re.compile(rf"\b{TAGGED}\d+\b")
# Tasks whose names begin so are alike.
KINDS: Final = ("plain", "raises", FAILS_FIRST, "retries", CHAINED, GARBLED, "kills-process", "kills-worker")
# What differs between alike states: a delivery's tag, a worker, a time, a task.
WORD: Final = re.compile(
    rf"{TAG.pattern}|\bw\d+\b|\b(?P<time>1[67]\d{{8}}(?:\.\d+)?)\b|\b(?:{'|'.join(KINDS)})-[a-z]\b"
)


def of(world: World, unsent: Sequence[str], *also: object, may_come_back: bool) -> str:
    """The name of the state of *world*, and of what *also* decides about what may follow.

    Args:
        unsent: tasks that the caller has yet to send.
        may_come_back: somebody may replay what is over.
    """
    names = sorted(world.workers)
    # Workers that differ in a clock are not alike.
    orders = permutations(names) if not world.wrong_clocks else [tuple(names)]
    over = frozenset[str]() if may_come_back else _over(world)
    also = (unsent, *also)
    tags = sorted(set(TAG.findall(_text(world, also, over, {}))))
    alike, texts = _alike([*world.accepted, *unsent]), []
    for order in orders:
        workers = dict(zip(names, order, strict=True))
        # A delivery by its worker and its place among all.
        told = {tag: f"{workers.get(world.owners[tag], '?')} {number}" for number, tag in enumerate(tags, 1)}
        texts += [_text(world, also, over, workers | told | tasks) for tasks in alike]
    return hashlib.sha1(min(texts).encode(), usedforsecurity=False).hexdigest()


def _alike(tasks: Sequence[str]) -> list[dict[str, str]]:
    """The ways in which *tasks* that do the same can change places. Batches have envelopes of other names."""
    if any(map(is_batch, tasks)):
        return [{}]
    kinds: dict[str, list[str]] = {}
    for task in sorted(tasks):
        if (kind := task.rpartition("-")[0]) in KINDS:
            kinds.setdefault(kind, []).append(task)
    ways = product(*(permutations(group) for group in kinds.values()))
    return [dict(zip(chain(*kinds.values()), chain(*way), strict=True)) for way in ways]


def _over(world: World) -> frozenset[str]:
    """Tasks that are concluded, and of which nobody has anything any more."""
    seen = world.look()
    under_way = {*seen.copies, *seen.parked, *world.batches}
    for worker in world.workers.values():
        if not worker.is_dead:
            under_way |= {request.id for request in worker.requests()} | {*worker.held.values()}
    return frozenset(name for name, (state, _) in seen.results.items() if state in READY and name not in under_way)


def _text(world: World, also: object, over: frozenset[str], names: Mapping[str, str]) -> str:
    """The state in words, in which workers, tasks and deliveries have other *names*."""

    def renamed(what: object) -> str:
        return WORD.sub(word, str(what))

    def word(found: re.Match[str]) -> str:
        if found["time"]:
            return f"{float(found['time']) - now:.3f}"
        return names.get(found[0], found[0])

    def each(things: Iterable[object]) -> list[str]:
        return sorted(map(renamed, things))

    def left(counted: Mapping[str, int]) -> list[str]:
        return each(item for item in counted.items() if item[0] not in over)

    now, seen = world.now, world.look()
    leases = sorted(((now - at, tag) for tag, at in seen.leases.items()), reverse=True)  # In which they are swept.
    expired = settings().visibility_timeout + max([0.0, *world.wrong_clocks.values()])
    parts: list[object] = [
        renamed((also, seen.queue)),
        each(seen.held.items()),
        [renamed((tag, round(min(age, expired), 3))) for age, tag in leases],
        each(seen.results.items()), each(seen.letters.items()), each(seen.item_letters.items()),
        sorted(seen.slots.items()), sorted(seen.parked), seen.places,
        each(seen.quarantined),
        sorted((renamed(name), each(record)) for name, record in seen.runs.items() if _task(name) not in over),
        each(world.accepted), each(_begun(world) - over), left(world.deaths), left(world.arrived),
        sorted([renamed(name), *map(renamed, _worker(world, worker))] for name, worker in world.workers.items()),
        [renamed(_trace(actor)) for actor in (world.caller, world.operator)],
        [(batch.outcomes._done, sorted(batch.sender._in_flight._envelopes)) for batch in world.batches.values()],
        [batch.caller.is_dead for batch in world.batches.values()], each(world.cancelled), each(seen.cancelled),
        seen.is_paused, seen.key_of, each(world.replayed.items()),
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
