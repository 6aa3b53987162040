"""Random histories of a larger deployment: three workers, any faults in any order, chosen and shrunk by hypothesis.

What is drawn are moves; whatever they do is the real code. In the end everybody is well again, and all that was
accepted has to come to rest.
"""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from graft.config.deployment import settings
from graft.scripts.model.moves import Budget, Move, Play
from graft.scripts.model.worker import QUEUE, Worker
from graft.scripts.model.world import Broken, World
from graft.tasks.queues import pause

WORKERS = ("w1", "w2", "w3")
REST = 3000  # Moves after which a deployment that nobody disturbs should have come to rest.
names = st.sampled_from(WORKERS)


class Peaceful(RuleBasedStateMachine):
    """Clocks jump, workers are frozen, cut off, and told to stop; no process dies by itself.

    Before a clock jumps once more, every worker that can has renewed its leases; and fewer workers than it takes deaths
    are away at once. Nobody may be given up.
    """

    world: ClassVar[World]
    labels: ClassVar[tuple[str, ...]] = (
        "plain", "raises", "fails-first", "retries", "chained", "garbled", "items", "itemfail", "itemdead", "pooled",
        "unique",
    )  # fmt: skip

    @initialize()
    def begin(self) -> None:
        self.world.tick = 1e-6
        self.play = Play(self.world, Budget([], 0, 0), len(WORKERS))
        self.sent = 0

    # ---- what goes on -----------------------------------------------------------------------------------------------

    def move(self, move: Move) -> None:
        self.play.do(move)

    @rule(choices=st.lists(st.integers(0, 11), min_size=1, max_size=12))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            possible = self.play.ordinary()
            if not possible:
                return
            self.move(possible[choice % len(possible)])

    @precondition(lambda self: self.world.caller is None and self.sent < 8)
    @rule(data=st.data(), priority=st.integers(0, 9))
    def send(self, data: st.DataObject, priority: int) -> None:
        label = f"{data.draw(st.sampled_from(self.labels))}-{self.sent}"
        self.sent += 1
        self.world.priorities[label] = priority
        self.play.budget.to_send.append(label)
        self.move(Move("send", "caller", label))

    @precondition(lambda self: self.world.caller is None)
    @rule()
    def search(self) -> None:
        self.check(self.world.search)

    @rule(data=st.data())
    def double(self, data: st.DataObject) -> None:
        waiting = [name for name in self.world.look().waiting if name.startswith("plain")]
        if waiting:
            name = data.draw(st.sampled_from(waiting))
            self.check(lambda: self.world.duplicate(name))

    # ---- the operator -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.operator is None)
    @rule(what=st.sampled_from(["replay", "cancel", "pause", "resume"]), data=st.data())
    def operate(self, what: str, data: st.DataObject) -> None:
        world = self.world
        if what == "cancel":
            if not world.accepted:
                return
            what = f"cancel={data.draw(st.sampled_from(sorted(world.accepted)))}"
        self.check(lambda: world.ask_operator(what))

    @rule(name=names, what=st.sampled_from(["tell", "look"]))
    def help(self, name: str, what: str) -> None:
        """A thread of the pool process tells of what has ended, or looks whether it is cancelled."""
        worker = self.world.workers[name]
        if worker.at_pool is not None and worker.at_helper is None and not (worker.is_frozen or worker.main.is_cut):
            self.check(lambda: worker.begin(what), worker)

    @rule()
    def deafen_or_hear(self) -> None:
        """The caller loses its subscription, or has it back: what was announced meanwhile it never hears."""
        self.world.at_caller.is_deaf = not self.world.at_caller.is_deaf

    @precondition(lambda self: self.world.caller is None and self.world.at_caller.pool is not None)
    @rule()
    def recover(self) -> None:
        self.check(self.world.recover_slots)

    @rule(name=names)
    def obey(self, name: str) -> None:
        worker = self.world.workers[name]
        if worker.operations() or self.is_idle(worker):
            self.check(lambda: worker.begin("obey"), worker)

    # ---- faults -----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 21.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        if seconds > settings().visibility_timeout / 3 + 2:
            self.renew_all()
        self.check(lambda: self.world.advance(seconds))

    @rule(seconds=st.sampled_from([59.0, 120.0, 86400.0]))
    def redis_clock_jumps(self, seconds: float) -> None:
        self.renew_all()
        self.check(lambda: self.world.jump(seconds))

    @rule(name=names, seconds=st.sampled_from([-86400.0, -120.0, 120.0, 86400.0]))
    def local_clock_jumps(self, name: str, seconds: float) -> None:
        self.world.skew[name] = self.world.skew.get(name, 0.0) + seconds

    @rule(name=names)
    def freeze_or_thaw(self, name: str) -> None:
        worker = self.world.workers[name]
        if worker.is_frozen:
            worker.is_frozen = False
        elif self.may_leave(worker):
            worker.is_frozen = True

    @rule(name=names)
    def cut_or_heal(self, name: str) -> None:
        worker = self.world.workers[name]
        if worker.main.is_cut:
            worker.main.is_cut = worker.pool.is_cut = False
        elif self.may_leave(worker):
            worker.main.is_cut = worker.pool.is_cut = True

    @rule(name=names, where=st.sampled_from(["main", "pool"]))
    def lose_a_reply(self, name: str, where: str) -> None:
        worker = self.world.workers[name]
        actor = worker.at_main if where == "main" else worker.at_pool
        if actor in self.play.standing() and not worker.is_frozen:
            self.move(Move("unheard", name, where))

    @rule(name=names)
    def restart(self, name: str) -> None:
        worker = self.world.workers[name]
        if worker.is_frozen or worker.main.is_cut or not self.is_idle(worker):
            return
        self.check(lambda: worker.begin("stop"), worker)
        self.run_out(worker)
        self.check(lambda: self.world.add_worker(name))

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def check(self, act: Any, worker: Worker | None = None) -> None:
        """Do *act* as a move."""
        self.play.checks.before()
        act()
        self.world.settle_steps()
        self.play.checks.after(worker)

    @staticmethod
    def is_idle(worker: Worker) -> bool:
        return not worker.is_dead and not worker.is_stopping and worker.at_main is None

    def may_leave(self, worker: Worker) -> bool:
        """Whether *worker* may be away: fewer than it takes deaths, and those that stay have said that they live."""
        away = sum(other.is_frozen or other.main.is_cut for other in self.world.workers.values() if other is not worker)
        return away + 1 < settings().run_limit - 1

    def run_out(self, worker: Worker) -> None:
        """Let the main process end what it is about."""
        while worker.at_main is not None:
            self.move(Move("step", worker.name, "main"))

    def renew_all(self) -> None:
        for worker in self.world.workers.values():
            if worker.is_frozen or worker.main.is_cut or worker.is_dead:
                continue
            self.run_out(worker)
            if "renew" in worker.operations():
                self.move(Move("begin", worker.name, "renew"))
                self.run_out(worker)

    def teardown(self) -> None:
        """Everybody is well again; then all comes to rest."""
        if not hasattr(self, "play"):
            return
        world = self.world
        for worker in world.workers.values():
            worker.is_frozen = worker.main.is_cut = worker.pool.is_cut = False
        world.at_caller.is_deaf = False
        for turn in range(REST):
            ordinary = self.play.ordinary()
            if ordinary:
                self.move(ordinary[turn % len(ordinary)])
                continue
            if any(worker.is_paused for worker in world.workers.values()):
                pause.resume(QUEUE)
                for worker in world.workers.values():
                    self.check(lambda worker=worker: worker.begin("obey"), worker)
                    self.run_out(worker)
                continue
            if not world.look().held and not world.look().queue and not world.look().leases:
                if world.look().slots and world.at_caller.pool is not None:
                    self.check(world.recover_slots)
                    continue
                self.play.checks.at_rest()
                return
            self.move(Move("pass"))
        raise Broken(f"no rest after {REST} moves: {world.look()}")


class Violent(Peaceful):
    """The same, and processes die: killed from outside, or by what they run, alone or with their worker."""

    labels = (*Peaceful.labels, "kills-process", "kills-worker", "itemkill")

    @rule(name=names)
    def kill_process(self, name: str) -> None:
        worker = self.world.workers[name]
        if worker.at_pool is not None:
            self.play.budget.deaths = 1
            self.move(Move("kill", name, "pool"))

    @rule(who=st.sampled_from(["caller", "operator"]))
    def kill_a_person(self, who: str) -> None:
        if getattr(self.world, who) is not None:
            self.play.budget.deaths = 1
            self.move(Move("kill", who))

    @rule(name=names)
    def kill_worker(self, name: str) -> None:
        self.play.budget.deaths = 1
        self.move(Move("kill", name, "worker"))
        self.check(lambda: self.world.add_worker(name))


def play(
    world: World, kind: type[Peaceful], *, examples: int, steps: int = 60, seed: int | None = None, shrinks: bool = True
) -> None:
    """Play *examples* random histories of *kind*, each of up to *steps* rules. Raises Broken."""
    kind.world = world
    wanted = hypothesis_settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
        derandomize=seed is None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
    )  # fmt: skip
    if seed is not None:
        from hypothesis import seed as seeded

        seeded(seed)(kind)
    run_state_machine_as_test(kind, settings=wanted)
