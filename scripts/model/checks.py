"""The guarantees, checked after every step. Each raises Broken with what it saw."""

from __future__ import annotations

from typing import Final

from graft.config.deployment import settings
from graft.scripts.model.items import CHAINED, follower
from graft.scripts.model.people import READY
from graft.scripts.model.snapshot import Snapshot
from graft.scripts.model.worker import PREFETCH, Worker
from graft.scripts.model.world import Broken, World

CONCLUDED: Final = frozenset({"poisoned", "retries_exhausted", "lost", "revoked"})


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
        self._nothing_is_lost({*now.waiting, *now.held.values(), *now.results, *now.letters, *now.quarantined})
        self._live_leases_stay(now.held, who)
        self._the_most_urgent_goes_first(now.held)
        self._one_answer(now.results)
        self._deaths_are_bounded_and_nobody_is_buried_without(now.letters)
        for worker in world.workers.values():
            if len(worker.channel.qos.outstanding()) > PREFETCH + 1:
                raise Broken(f"{worker.name} holds {len(worker.held)} messages")

    def _nothing_is_lost(self, somewhere: set[str]) -> None:
        if lost := self.world.accepted - somewhere:
            raise Broken(f"{', '.join(sorted(lost))}: neither waiting nor held, and neither answered nor kept")

    def _each_message_is_there_once(self, now: Snapshot) -> None:
        for task_id, copies in now.copies.items():
            if copies > 1 + self.world.doubled[task_id]:
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
            answer = results.get(task_id, known)
            if known[0] in READY and answer != known and not self.world.replayed[task_id]:
                raise Broken(f"{task_id} was answered {known[0]} and then {answer[0]}: {known[1]}, {answer[1]}")

    def _deaths_are_bounded_and_nobody_is_buried_without(self, letters: dict[str, str]) -> None:
        world, limit = self.world, settings().run_limit
        for task_id, deaths in world.deaths.items():
            most = limit * (1 + world.replayed[task_id]) + world.restarts[task_id] + world.lost[task_id]
            if deaths > most:
                raise Broken(f"{task_id} was running when {deaths} processes died, and {most} were allowed")
        for task_id, reason in letters.items():
            if reason == "poisoned" and not world.deaths[task_id]:
                raise Broken(f"{task_id} was given up as poisoned, and no process died while it ran")

    def at_rest(self) -> None:
        """Nothing is under way any more, and nothing left to do: each task is concluded, in one way."""
        world = self.world
        now = world.look()
        if now.waiting or now.held:
            raise Broken(f"at rest with {now.waiting} waiting and {now.held} held")
        for task_id in world.accepted - now.quarantined:
            state = now.results.get(task_id, ("nothing", ""))[0]
            letter = now.letters.get(task_id)
            if state not in READY:
                raise Broken(f"{task_id} is at rest with {state} and letter {letter}")
            if state == "SUCCESS" and letter in CONCLUDED:
                raise Broken(f"{task_id} succeeded, and is kept as a dead letter: {letter}")
            if state == "FAILURE" and letter is None:
                raise Broken(f"{task_id} failed, and no letter says so")
