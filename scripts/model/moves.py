"""What may happen next, and its happening: the moves that the explorer tries in every order, and others by chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from graft.config.deployment import settings
from graft.scripts.model import independence
from graft.scripts.model.actors import Actor
from graft.scripts.model.checks import Checks
from graft.scripts.model.helpers import LOCKED
from graft.scripts.model.worker import HELPED, Worker
from graft.scripts.model.world import STOPS, World

WORK: Final = frozenset(
    {"step", "run", "begin", "send", "suicide", "operate"}
)  # The kinds of moves that somebody makes.


class Move(NamedTuple):
    """One move: its kind, and whose."""

    kind: str
    who: str = ""
    what: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def _whose(move: Move) -> str:
    """Which process or thread goes on after *move*."""
    if move.kind == "begin":
        return "helper" if move.what in HELPED else "main"
    return {"run": "pool", "send": "", "operate": ""}.get(move.kind, move.what)


def _is_at_an_end(actor: Actor) -> bool:
    """Whether *actor* stands in code that ends its process."""
    return str(actor.next).startswith("kills")


@dataclass
class Budget:
    """How much may go wrong, and what the caller has yet to send.

    ``operations``: what the operator has yet to do (People.ask_operator).
    ``switches``: how often another goes on while somebody is in the middle of something; None for without a bound.
    """

    to_send: list[str]
    deaths: int = 1
    jumps: int = 1
    switches: int | None = None
    operations: list[str] = field(default_factory=list)


class Play:
    """One history: moves on a *world*, each of which is checked.

    ``is_reduced``: a move that needs no other order is the only possible one (independence.py).
    """

    def __init__(self, world: World, budget: Budget, workers: int = 2, *, is_reduced: bool = True) -> None:
        self.world = world
        self.budget = budget
        self.moves: list[Move] = []
        self.is_reduced = is_reduced
        self.at_work: Move | None = None  # The next step of whoever has taken the last one.
        world.reset(workers)
        self.checks = Checks(world)

    # ---- possible moves ---------------------------------------------------------------------------------------------

    def ordinary(self) -> list[Move]:
        """What goes on by itself."""
        world = self.world
        found: list[Move] = []
        for worker in world.workers.values():
            if worker.is_dead or worker.is_frozen:
                continue
            found += [Move("begin", worker.name, operation) for operation in worker.help_operations()]
            if worker.at_helper is not None and not self._waits(worker.at_helper, worker):
                found.append(Move("step", worker.name, "helper"))
            if worker.at_pool is not None and not self._waits(worker.at_pool, worker):
                found.append(Move("suicide" if _is_at_an_end(worker.at_pool) else "step", worker.name, "pool"))
            elif worker.can_run():
                found.append(Move("run", worker.name))
            if worker.at_main is not None:
                found.append(Move("step", worker.name, "main"))
            else:
                found += [Move("begin", worker.name, operation) for operation in worker.operations()]
        if world.caller is not None:
            found.append(Move("step", "caller"))
        elif self.budget.to_send:
            found.append(Move("send", "caller", self.budget.to_send[0]))
        if world.operator is not None:
            found.append(Move("step", "operator"))
        elif self.budget.operations and (not world.look().is_paused or "resume" in self.budget.operations[0]):
            found.append(Move("operate", "operator", self.budget.operations[0]))
        return found

    @staticmethod
    def _waits(actor: Actor, worker: Worker) -> bool:
        """Whether *actor* waits for another of its process."""
        return actor.next == LOCKED and any(offer._sharing.is_taken for offer in worker.offers)  # type: ignore[attr-defined]

    def faults(self) -> list[Move]:
        """What may go wrong now."""
        found: list[Move] = []
        workers = [worker for worker in self.world.workers.values() if not worker.is_dead]
        if self.budget.deaths:
            for worker in workers:
                if worker.at_pool is not None:
                    found.append(Move("kill", worker.name, "pool"))
                if len(workers) > 1 and (worker.held or worker.timers or worker.at_main is not None):
                    found.append(Move("kill", worker.name, "worker"))
            found += [Move("kill", name) for name in ("caller", "operator") if getattr(self.world, name) is not None]
        if self.budget.jumps and self.world.look().leases:
            found.append(Move("jump"))
        return found

    def possible(self) -> list[Move]:
        """All moves from here; where nothing goes on by itself, time passes, until nothing is left to be done."""
        ordinary, at_work = self.ordinary(), self.under_way()
        if self.budget.switches == 0 and at_work is not None:
            return [at_work, *(fault for fault in self.faults() if fault.who in (at_work.who, ""))]
        if (alone := self._alone(ordinary)) is not None:
            return [alone, *(fault for fault in self.faults() if fault.who == alone.who)]
        if ordinary:
            return ordinary + self._faults_beside(ordinary, at_work)
        now = self.world.look()
        if now.leases or now.held:
            return [Move("pass")]
        return [Move("recover", "caller")] if now.slots and self.world.at_caller.pool is not None else []

    def _alone(self, ordinary: list[Move]) -> Move | None:
        """The move that needs no other order, if there is one."""
        world, budget = self.world, self.budget
        if not self.is_reduced or budget.switches is not None or budget.operations or world.operator is not None:
            return None
        found: list[tuple[str, Move]] = []
        for move in ordinary:
            worker = world.workers.get(move.who)
            if worker is None:
                continue
            match move.kind, move.what:
                case ("begin", "acks") | ("step", "main") if independence.acks_nothing(world, worker):
                    return move
                case ("run", _) | ("step", "pool") if independence.is_alone(world, worker, bool(budget.jumps)):
                    request = worker.running or worker.reserved[0]
                    found.append((request.message.delivery_tag, move))
        # By their deliveries: in another state of the same name the workers may have changed places.
        return min(found)[1] if found else None

    def _faults_beside(self, ordinary: list[Move], at_work: Move | None) -> list[Move]:
        """The faults that are another history here than later.

        To others a worker that is dead is as one that stands still, until they have nothing left to do. Where switches
        are counted, to stand still in the middle of something costs one.
        """
        movers = {move.who for move in ordinary}
        in_the_middle = at_work.who if at_work and self.budget.switches is not None else ""
        return [
            fault
            for fault in self.faults()
            if fault.what != "worker" or movers <= {fault.who} or fault.who == in_the_middle
        ]

    def standing(self) -> list[Actor]:
        """The actors of workers that stand before a command."""
        actors = [
            actor
            for worker in self.world.workers.values()
            for actor in (worker.at_main, worker.at_pool, worker.at_helper)
        ]
        return [each for each in actors if each is not None and each.next not in STOPS and not _is_at_an_end(each)]

    # ---- moving -----------------------------------------------------------------------------------------------------

    def do(self, move: Move) -> None:
        """Make *move*, and check what came of it."""
        self.checks.before()
        self.repeat(move)
        self.checks.after(self.world.workers.get(move.who))

    def repeat(self, move: Move) -> None:
        """Make *move*, which was checked in an earlier history."""
        self.moves.append(move)
        if move.kind in WORK:
            self._note_switch(move)
        self._do(move)
        self.world.settle_steps()

    def under_way(self) -> Move | None:
        """The next step of whoever has taken the last one and is in the middle of something."""
        return self.at_work if self.at_work and self._is_under_way(self.at_work, self.ordinary()) else None

    def _is_under_way(self, move: Move, ordinary: list[Move]) -> bool:
        """Whether *move* goes on with what somebody is in the middle of. A task that runs takes its time."""
        return move in ordinary and self._actor(move).next not in STOPS

    def _note_switch(self, move: Move) -> None:
        budget, before = self.budget, self.at_work
        self.at_work = Move("step", move.who, _whose(move))
        if budget.switches and before and before != self.at_work and self._is_under_way(before, self.ordinary()):
            budget.switches -= 1

    def _do(self, move: Move) -> None:
        world = self.world
        worker = world.workers.get(move.who)
        match move.kind, move.what:
            case "step", _:
                world.step(self._actor(move))
            case "run", _ if worker is not None:
                worker.run()
            case "begin", operation if worker is not None:
                worker.begin(operation)
            case "recover", _:
                world.recover_slots()
            case "unheard", _:
                world.step(self._actor(move), "unheard")
            case "send", label:
                self.budget.to_send.pop(0)
                world.send(label)
            case "suicide", _ if worker is not None:
                if str(self._actor(move).next).startswith("kills-worker"):
                    self._replace(move.who)
                else:
                    worker.end_pool()
            case "kill", "" if move.who == "caller":
                self.budget.deaths -= 1
                world.kill_caller()
            case "kill", "" if world.operator is not None:
                self.budget.deaths -= 1
                world.scheduler.kill(world.operator)
            case "operate", what:
                self.budget.operations.pop(0)
                world.ask_operator(what)
            case "kill", "pool" if worker is not None:
                self.budget.deaths -= 1
                worker.end_pool()
            case "kill", _ if worker is not None:
                self.budget.deaths -= 1
                worker.die()
            case "jump", _:
                self.budget.jumps -= 1
                world.jump(2 * settings().visibility_timeout)
            case "pass", _:
                world.advance(settings().visibility_timeout / 3 + 1)

    def _actor(self, move: Move) -> Actor:
        """The actor whose move it is."""
        worker = self.world.workers.get(move.who)
        if worker is None:
            found = getattr(self.world, move.who)
        else:
            found = {"main": worker.at_main, "helper": worker.at_helper}.get(move.what, worker.at_pool)
        assert isinstance(found, Actor)
        return found

    def _replace(self, name: str) -> None:
        self.world.workers[name].die()
        self.world.add_worker(name)
