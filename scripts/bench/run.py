"""One run: every workload, every contender in turn, repetition by repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.field import ContenderFailedError, Field, Seat
from graft.scripts.bench.measuring import Answer, MemoryWatch, Repetition, Series, cpu_seconds, pss
from graft.scripts.bench.workloads import Workload


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Args:
        repeat: repetitions that count, after a warm-up that does not.
        budget: seconds that one repetition may take a contender; who would need more runs fewer items.
        contenders: those who take part, where installed.
        cores: worker processes of each contender.
    """

    workloads: Sequence[Workload]
    contenders: Sequence[str]
    repeat: int = 5
    budget: float = 10.0
    cores: int = 2

    def entrants(self, workload: Workload) -> list[str]:
        """The contenders that take part in *workload*."""
        return [
            name
            for name in self.contenders
            if workload.shape in CONTENDERS[name].shapes
            and workload.function in CONTENDERS[name].functions
            and (name in workload.only if workload.only else name not in BY_NAME_ONLY)
            and not CONTENDERS[name].missing()
        ]


# Those whose workers differ from everybody's, so that they only fit where they are asked for.
BY_NAME_ONLY = frozenset(
    {
        *(
            "hardened",
            "hardened-prefork",
            "graft-prefork",
            "graft-io",
            "graft-cpu",
            "graft-pool",
            "celery-1",
            "celery-solo",
            "celery-programs",
            "graft-programs",
            "graft-prefork-programs",
            "taskiq-1",
        ),
        *("arq", "one-by-one"),
    }
)
WARM_UP = 120.0  # Seconds that are patience with a contender before its first repetition, at least.


@dataclass
class Outcome:
    """The results of a run."""

    plan: Plan
    series: list[Series] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    redis_version: str = ""

    def find(self, workload: str, contender: str) -> Series | None:
        """The series of *contender* in *workload*, if it finished."""
        for each in self.series:
            if (each.workload.name, each.contender) == (workload, contender) and not each.failure and each.repetitions:
                return each
        return None

    def of(self, workload: str) -> list[Series]:
        return [each for each in self.series if each.workload.name == workload]


def run(outcome: Outcome, say: Callable[[str], None]) -> None:
    """Carry the plan of *outcome* out and put everything into it; what happens meanwhile goes to *say*."""
    plan = outcome.plan
    for name in plan.contenders:
        if missing := CONTENDERS[name].missing():
            outcome.absent[name] = f"not installed: {', '.join(missing)}"
    with Field(plan.cores) as seats:
        outcome.redis_version = seats.redis_version()
        for number, workload in enumerate(plan.workloads):
            say(f"{workload.name}: {workload.subject}")
            _workload(plan, workload, seats, outcome, say)
            rest = plan.workloads[number + 1 :]
            seats.dismiss({(name, each.concurrency) for each in rest for name in plan.entrants(each)})


def _workload(plan: Plan, workload: Workload, seats: Field, outcome: Outcome, say: Callable[[str], None]) -> None:
    running: list[tuple[Series, Seat, Workload]] = []
    for name in plan.entrants(workload):
        series = Series(workload, name)
        outcome.series.append(series)
        try:
            say(f"  {name}: starting and warming up")
            seat = seats.seat(name, workload.concurrency)
            series.memory["before"] = float(pss(seat.worker_pids))
            budget = plan.budget * workload.patience
            count = seat.ask("warm", workload, budget, timeout=max(WARM_UP, 10 * budget))
            running.append((series, seat, workload.of(count)))
        except ContenderFailedError as error:
            _give_up(series, error, say)
            if stuck := seats.find(name, workload.concurrency):
                seats.drop(stuck)
    for repetition in range(workload.repeat or plan.repeat):
        for series, seat, part in list(running):
            try:
                found = _repeat(series, seat, part, seats)
                series.repetitions.append(found)
                say(f"  {series.contender} {repetition + 1}: {found.answer.seconds:.4g} s for {found.answer.items:,}")
            except ContenderFailedError as error:
                _give_up(series, error, say)
                running = [each for each in running if each[0] is not series]
                seats.drop(seat)
    for series, seat, _ in running:
        series.memory["after"] = float(pss(seat.worker_pids))


def _give_up(series: Series, error: ContenderFailedError, say: Callable[[str], None]) -> None:
    series.failure = str(error)
    say(f"  {series.contender} failed: {error}")


def _repeat(series: Series, seat: Seat, part: Workload, seats: Field) -> Repetition:
    pids = (seat.client_pids, seat.worker_pids, seats.redis_pids)
    before = [cpu_seconds(each) for each in pids]
    match part.shape:
        case "stream":
            answer = _watched(series, seat, part)
        case "depth":
            with seat.stopped_workers() as thaw:
                held = seat.ask("hold", part)
                thaw()
                answer = seat.ask("release", part, held)
        case _:
            answer = seat.ask("run", part)
    client, workers, server = (cpu_seconds(each) - start for each, start in zip(pids, before, strict=True))
    return Repetition(answer, client, workers, server)


def _watched(series: Series, seat: Seat, part: Workload) -> Answer:
    with seat.connect() as client:
        start = float(client.info("memory")["used_memory"])
        with MemoryWatch(seat.client_pids, seat.worker_pids, client) as watch:
            answer: Answer = seat.ask("run", part)
    peak = max(used for *_, used in watch.history)
    series.history = watch.history
    return Answer(answer.items, answer.seconds, (), {**answer.extra, "redis_growth": peak - start})
