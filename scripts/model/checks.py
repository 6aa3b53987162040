"""The guarantees, checked after every step. Each raises Broken with what it saw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from celery.states import REVOKED, SUCCESS

from graft.config.deployment import settings
from graft.scripts.model.batches import POOL_SLOTS, POOLED, UNIQUE, Batch
from graft.scripts.model.items import CHAINED, ExpectedError, follower
from graft.scripts.model.people import READY
from graft.scripts.model.snapshot import Snapshot
from graft.scripts.model.worker import PREFETCH, Worker
from graft.scripts.model.world import Broken, World
from graft.tasks.errors import CancelledBatchError, PoisonedError

CONCLUDED: Final = frozenset({"poisoned", "retries_exhausted", "lost", "revoked"})


def set_of(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Each of *batches* once: several envelopes may be of one."""
    return {id(batch): batch for batch in batches}.values()


class Checks:
    """What has to hold in *world*. Call ``before`` a step of somebody, ``after`` it, and ``at_rest`` in the end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._before = world.look()

    def before(self) -> None:
        self._before = self.world.look()

    def after(self, who: Worker | None) -> None:
        """Check everything, after a step of worker *who*, or of somebody else."""
        world, now = self.world, self.world.look()
        self._what_follows_comes_once(now)
        self._each_message_is_there_once(now)
        somewhere = {*now.waiting, *now.held.values(), *now.results, *now.letters, *now.quarantined, *now.parked}
        self._nothing_is_lost(somewhere)
        self._live_leases_stay(now.held, who)
        self._the_most_urgent_goes_first(now.held)
        self._one_answer(now.results)
        self._deaths_are_bounded_and_nobody_is_buried_without(now.letters)
        if world.wrong:
            raise Broken(world.wrong)
        self._each_item_is_answered_once(now)
        self._the_pool_keeps_its_bound(now)
        self._envelopes_end_in_one_step(now)
        self._a_unique_call_keeps_its_key(now)
        for worker in world.workers.values():
            if len(worker.channel.qos.outstanding()) > PREFETCH + 1:
                raise Broken(f"{worker.name} holds {len(worker.held)} messages")

    def _nothing_is_lost(self, somewhere: set[str]) -> None:
        if lost := self.world.accepted - somewhere:
            raise Broken(f"{', '.join(sorted(lost))}: neither waiting nor held, and neither answered nor kept")

    def _each_message_is_there_once(self, now: Snapshot) -> None:
        for task_id, copies in now.copies.items():
            batch = self.world.batches.get(task_id)
            if batch is not None and batch.label.startswith(POOLED):
                continue  # One that had to wait is published again, before what it came with is acknowledged.
            if copies > 1 + self.world.doubled[task_id] + self.world.replayed[task_id]:
                raise Broken(f"the message of {task_id} is there {copies} times")

    def _what_follows_comes_once(self, now: Snapshot) -> None:
        """A task that follows another is accepted when that has succeeded, and not before."""
        world = self.world
        before, copies = self._before.copies, now.copies
        for label in [label for label in world.accepted if label.startswith(CHAINED)]:
            name = follower(label)
            world.arrived[name] += max(0, copies[name] - before[name])
            if now.results.get(label, ("",))[0] == "SUCCESS":
                world.accepted.add(name)
            elif world.arrived[name]:
                raise Broken(f"{name} was sent, and {label} has not succeeded")
            if world.arrived[name] > 1 + world.doubled[label] + world.replayed[name]:
                raise Broken(f"{name} was sent {world.arrived[name]} times")

    def _live_leases_stay(self, held: dict[str, str], who: Worker | None) -> None:
        world = self.world
        for tag, task_id in self._before.held.items():
            owner = world.workers.get(world.tags.get(tag, ("", ""))[0])
            if tag in held or owner is None or owner.is_dead or owner is who:
                continue
            age = world.now - self._before.leases.get(tag, world.now)
            if age < settings().visibility_timeout:
                raise Broken(f"{task_id} was taken from {owner.name}, whose lease was {age:g} s old")
            world.lost[task_id] += 1

    def _the_most_urgent_goes_first(self, held: dict[str, str]) -> None:
        taken = [held[tag] for tag in held if tag not in self._before.held]
        waiting = self._before.waiting
        if len(taken) == 1 and waiting and taken[0] != waiting[0]:
            raise Broken(f"{taken[0]} was taken while {waiting[0]} waited before it")

    def _one_answer(self, results: dict[str, tuple[str, str]]) -> None:
        for task_id, known in self._before.results.items():
            if task_id in self.world.batches:
                continue  # Its items are answered once (below); a report may be stored again.
            answer = results.get(task_id, known)
            if self.world.doubled[task_id] and (known[0], answer[0]) == (REVOKED, SUCCESS):
                continue  # One of its runs had begun before it was cancelled. A success stands, as in Celery.
            if known[0] in READY and answer != known and not self.world.replayed[task_id]:
                raise Broken(f"{task_id} was answered {known[0]} and then {answer[0]}: {known[1]}, {answer[1]}")

    def _deaths_are_bounded_and_nobody_is_buried_without(self, letters: dict[str, str]) -> None:
        world, limit = self.world, settings().run_limit
        for task_id, deaths in world.deaths.items():
            names = [task_id, *(name for name, batch in world.batches.items() if task_id in batch.items)]
            most = limit * (1 + world.replayed[task_id]) + sum(
                world.restarts[each] + world.lost[each] for each in names
            )
            if deaths > most:
                raise Broken(f"{task_id} was running when {deaths} processes died, and {most} were allowed")
        for task_id, reason in letters.items():
            if reason == "poisoned" and not world.deaths[task_id]:
                raise Broken(f"{task_id} was given up as poisoned, and no process died while it ran")

    def _each_item_is_answered_once(self, now: Snapshot) -> None:
        """A caller hears of each item once, what a run of it came to, and no letter says otherwise."""
        world = self.world
        for batch in set_of(world.batches.values()):
            outcomes = batch.outcomes
            if outcomes._done > len(batch.items):
                raise Broken(f"the caller of {batch.label} heard of {outcomes._done} of {len(batch.items)} items")
            for index, value in outcomes._values.items():
                if value != batch.items[index] or not world.finished[value]:
                    raise Broken(f"{batch.items[index]} was answered {value!r}, which no run of it had returned")
            for name, reason in now.item_letters.items():
                envelope_id, _, position = name.partition(":")
                if world.batches.get(envelope_id) is not batch or not position.isdecimal():
                    continue
                item = batch.items[int(position)]
                if reason == "poisoned" and not world.deaths[item]:
                    raise Broken(f"{item} was given up as poisoned, and no process died while it ran")
                if int(position) in outcomes._values and not world.replayed[envelope_id]:
                    raise Broken(f"{item} succeeded, and is kept as a dead letter: {reason}")

    def _the_pool_keeps_its_bound(self, now: Snapshot) -> None:
        """Of the pool's tasks no more run than it has slots, of those whose worker has their message."""
        world = self.world
        if len(now.slots) > POOL_SLOTS:
            raise Broken(f"{len(now.slots)} envelopes have a slot of {POOL_SLOTS}: {', '.join(sorted(now.slots))}")
        running = []
        for name, items in world.inside_of.items():
            worker = world.workers.get(name)
            request = None if worker is None else worker.running
            if items and request is not None and POOLED in items[0] and request.message.delivery_tag in now.held:
                running.append(items[0])
        if len(running) > POOL_SLOTS:
            raise Broken(f"{', '.join(sorted(running))} run at once, and the pool has {POOL_SLOTS} slot")

    def _envelopes_end_in_one_step(self, now: Snapshot) -> None:
        """Whoever stores what came of an envelope settles its message: nobody else has it any more."""
        for task_id in now.results.keys() - self._before.results.keys():
            batch = self.world.batches.get(task_id)
            if batch is None or batch.label.startswith(POOLED) or self.world.replayed[task_id]:
                continue
            if now.copies[task_id]:
                raise Broken(f"{task_id} was answered by a run whose message another has")

    def _a_unique_call_keeps_its_key(self, now: Snapshot) -> None:
        """While its message waits or is held, a call with a unique key has it."""
        world = self.world
        for task_id, batch in world.batches.items():
            if not batch.label.startswith(UNIQUE) or not now.copies[task_id]:
                continue
            if task_id in world.replaced and set(batch.items) & set(world.begun):
                raise Broken(f"{task_id} has begun, and another has taken its place")
            if task_id not in world.replaced and now.key_of != task_id:
                raise Broken(f"{task_id} is under way, and its unique key is {now.key_of or 'nobody'}'s")

    def at_rest(self) -> None:
        """Nothing is under way any more, and nothing left to do: each task is concluded, in one way."""
        world = self.world
        if world.batches:
            world.hear()
        now = world.look()
        self._each_item_is_answered_once(now)
        is_whole = not any(batch.caller.is_dead for batch in world.batches.values())
        if is_whole and (now.slots or now.parked):
            raise Broken(f"at rest with slots {now.slots} and parked {sorted(now.parked)}")
        for batch in set_of(world.batches.values()):
            heard = batch.outcomes
            if heard._done != len(batch.items) and not batch.caller.is_dead:
                raise Broken(f"the caller of {batch.label} heard of {heard._done} of {len(batch.items)} items")
            for index, error in heard._errors.items():
                if not isinstance(error, PoisonedError | ExpectedError | CancelledBatchError):
                    raise Broken(f"{batch.items[index]} ended with {error!r}")
        if is_whole and now.places:
            raise Broken(f"at rest with {now.places} places of the pool taken")
        if now.key_of:
            raise Broken(f"at rest, and {now.key_of} has the unique key")
        if now.waiting or now.held:
            raise Broken(f"at rest with {now.waiting} waiting and {now.held} held")
        for task_id in world.accepted - now.quarantined:
            state = now.results.get(task_id, ("nothing", ""))[0]
            letter = now.letters.get(task_id)
            if state not in READY:
                raise Broken(f"{task_id} is at rest with {state} and letter {letter}")
            if task_id in world.batches:
                continue
            if state == "SUCCESS" and letter in CONCLUDED:
                raise Broken(f"{task_id} succeeded, and is kept as a dead letter: {letter}")
            if state == "FAILURE" and letter is None:
                raise Broken(f"{task_id} failed, and no letter says so")
