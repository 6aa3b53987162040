"""The benchmark measures what it says and leaves nothing behind. No time is asserted anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.contenders.base import Contender, ContenderSetup
from graft.scripts.bench.contenders.sweep import best, sizes
from graft.scripts.bench.measuring import Answer, Repetition, Series, Spread, quantile
from graft.scripts.bench.report import KEPT_TIMES, thinned
from graft.scripts.bench.run import Outcome, Plan
from graft.scripts.bench.runner import Runner, WrongResultError
from graft.scripts.bench.targets import TARGETS, Target, TargetVerdict, verdicts
from graft.scripts.bench.workloads import Items, Kind, Workload, catalogue, choose
from graft.scripts.commands.bench import command
from tests.scripts.sandbox import Sandbox

KINDS: tuple[Kind, ...] = ("numbers", "same", "lognormal", "rare", "text")


def workload(name: str) -> Workload:
    return next(each for each in catalogue() if each.name == name)


def series(name: str, contender: str, *seconds: float, items: int = 0, **extra: float) -> Series:
    found = workload(name)
    answers = [Answer(items or found.items.count, each, (), extra) for each in seconds]
    return Series(found, contender, [Repetition(answer, 0.0, 0.0, 0.0) for answer in answers])


def outcome(*found: Series) -> Outcome:
    return Outcome(Plan([], [], cores=2), list(found))


def verdict(promise: str, *found: Series) -> TargetVerdict:
    return next(each for each in verdicts(outcome(*found)) if each.target.promise == promise)


# ---- statistics ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_among_the_values_and_grows_with_the_share(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert min(values) <= found <= max(values)
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)
    assert quantile(values, share / 2) <= found


def test_a_quantile_between_two_values_is_in_proportion() -> None:
    assert quantile([0.0, 10.0], 0.9) == 9.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
    with pytest.raises(ValueError, match="share=2"):
        quantile([1.0], 2)


def test_the_spread_of_repetitions_is_least_median_and_p90() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, pytest.approx(2.8))


def test_a_contender_that_ran_a_part_is_scaled_to_the_whole_and_says_so() -> None:
    part = series("noop", "rq", 10.0, items=2_000)
    assert part.is_scaled
    assert part.seconds.median == 100.0
    assert part.rate == 200.0
    assert not series("noop", "graft", 1.0).is_scaled


def test_thinned_times_keep_their_extremes() -> None:
    times = [float(value) for value in range(10_000)]
    few = thinned(times, KEPT_TIMES)
    assert (len(few), few[0], few[-1]) == (KEPT_TIMES, 0.0, 9_999.0)
    assert thinned([2.0, 1.0], KEPT_TIMES) == [1.0, 2.0]


# ---- promises --------------------------------------------------------------------------------------------------------


def test_a_ratio_is_of_contenders_of_the_same_run() -> None:
    ours, theirs = series("noop", "graft", 0.1), series("noop", "celery", 40)
    found = verdict("no-op batch against a stock Celery group", ours, theirs)
    assert found.found == pytest.approx(400)
    assert found.words == "reached"


def test_a_missed_promise_says_by_how_much() -> None:
    ours, theirs = series("singles", "graft", 2), series("singles", "celery", 20)
    found = verdict("single calls against stock delay + get", ours, theirs)
    assert found.found == pytest.approx(10)
    assert found.words == "missed by a factor of 2.50"


def test_the_best_peer_is_the_quickest_other_queue_and_no_pool_of_processes() -> None:
    found = verdict(
        "no-op batch against the best other queue",
        series("noop", "graft", 0.1), series("noop", "huey", 5), series("noop", "rq", 99), series("noop", "ppe", 0.01),
    )  # fmt: skip
    assert found.found == pytest.approx(50)


def test_efficiency_counts_the_work_that_ran_against_all_cores() -> None:
    found = verdict("items of 1 ms: efficiency", series("cpu-1ms", "graft", 1.25, work=2.0))
    assert found.found == pytest.approx(80.0)
    half = verdict("items of 1 ms: efficiency", series("cpu-1ms", "graft", 1.25, items=1_000, work=2.0))
    assert half.found == pytest.approx(80.0)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert all(each.is_reached is None and each.words == "not measured" for each in verdicts(outcome()))


def test_a_contender_that_failed_counts_for_nothing() -> None:
    failed = replace(series("noop", "celery", 40), failure="broke")
    assert verdict("no-op batch against a stock Celery group", series("noop", "graft", 0.1), failed).found is None


@given(st.floats(0.001, 1000), st.floats(0.001, 1000), st.sampled_from(["at least", "at most"]))
def test_a_promise_is_missed_exactly_when_a_factor_is_lacking(found: float, limit: float, sense: Any) -> None:
    judged = TargetVerdict(Target("", lambda _: found, sense, limit), found)
    assert bool(judged.is_reached) == (judged.missed_by <= 1)


EXTRAS = ("work", "idle_tail", "caller_growth", "redis_growth", "cpu", "idle_memory")


def test_every_promise_is_about_workloads_and_contenders_that_exist() -> None:
    everything = [series(each.name, name, 1.0, **dict.fromkeys(EXTRAS, 1.0))
                  for each in catalogue() for name in CONTENDERS]  # fmt: skip
    for each in everything:
        each.memory.update(before=1.0, after=1.0)
        each.repetitions[0] = replace(each.repetitions[0], answer=replace(each.repetitions[0].answer, times=(1.0,)))
    missing = [each.target.promise for each in verdicts(outcome(*everything)) if each.found is None]
    assert not missing
    assert len({target.promise for target in TARGETS}) == len(TARGETS)


# ---- workloads -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(10, 200))
def test_items_are_the_same_in_every_process(kind: Kind, count: int, unit: int) -> None:
    items = Items(kind, count, unit)
    assert items.make() == items.make() == list(items.stream())
    assert len(items.make()) == count
    if kind == "text":
        assert {len(item) for item in items.make()} == {unit}


def test_one_item_in_a_hundred_is_a_thousand_times_longer() -> None:
    values = Items("rare", 2_000, 0.25).make()
    assert sorted(set(values)) == [0.25, 250.0]
    assert values.count(250.0) == 20


def test_names_choose_workloads_and_groups_in_their_own_order() -> None:
    found = choose(catalogue(cores=2), ["scaling", "noop"])
    assert [each.name for each in found] == ["noop", "workers-1", "workers-2"]
    assert choose(catalogue(), []) == catalogue()
    with pytest.raises(ValueError, match="there is no workload 'nope'"):
        choose(catalogue(), ["nope"])


def test_every_workload_has_contenders_that_exist_and_can_run_it() -> None:
    plan = Plan(catalogue(), list(CONTENDERS))
    for each in plan.workloads:
        assert set(each.only) <= set(CONTENDERS)
        for name in each.only:
            assert each.shape in CONTENDERS[name].shapes
            assert each.function in CONTENDERS[name].functions
        assert {"graft", "graft-io", "graft-pool", "graft-programs", "hardened"} & set(plan.entrants(each))


def test_quick_workloads_are_the_full_ones_in_small() -> None:
    full, quick = ({each.group for each in catalogue(small)} for small in (False, True))
    assert full == quick


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_swept_sizes_are_possible_ones(count: int, processes: int) -> None:
    assert sizes(count, processes)
    assert all(1 <= size <= count for size in sizes(count, processes))


def test_a_sweep_keeps_what_was_quickest() -> None:
    assert best([1, 2, 3], lambda size: time.sleep(0 if size == 2 else 0.05)) == 2


# ---- the runner ------------------------------------------------------------------------------------------------------


class Swapping(Contender):
    """Gives the right results in the wrong order."""

    name = "swapping"
    title = "swapping"
    shapes = frozenset({"batch", "latency"})

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return [*items[1:], items[0]]

    def one(self, function: str, item: Any) -> Any:
        return str(item)


@pytest.mark.parametrize(("shape", "message"), [("noop", "item 0 came back as '1'"), ("latency", "item 0 came back")])
def test_a_contender_with_wrong_results_fails_and_has_no_time(shape: str, message: str) -> None:
    with pytest.raises(WrongResultError, match=message):
        Runner(Swapping(ContenderSetup("", 1))).do_run(workload(shape).of(10))


def test_missing_results_are_noticed() -> None:
    assert workload("noop").check([1, 2], [1]) == "1 results for 2 items"
    assert workload("cpu-1ms").check([0.1], [(0.1, 4711, 3.0)]) == ""


def test_a_repetition_has_its_work_and_the_wait_for_the_last_worker() -> None:
    runner = Runner(CONTENDERS["ppe"](ContenderSetup("", 2)))
    runner.do_open()
    try:
        answer = runner.do_run(replace(workload("cpu-1ms"), items=Items("same", 8, 0.001)))
    finally:
        runner.do_close()
    assert answer.items == 8
    assert answer.extra["work"] == pytest.approx(0.008)
    assert 0 <= answer.extra["idle_tail"] <= 1


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_list_names_every_workload_and_contender() -> None:
    done = CliRunner().invoke(command, ["--list"])
    assert done.exit_code == 0
    for name in (*(each.name for each in catalogue()), *CONTENDERS):
        assert name in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nope"], "there is no workload 'nope'"),
        (["--contenders", "nope"], "there is no contender 'nope'"),
        (["--json", "/nowhere/at/all.json"], "the directory /nowhere/at does not exist"),
        (["--repeat", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert message in done.output


def bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "graft", "bench", "--quick", "--repeat", "2", *arguments]


def test_contenders_run_side_by_side_and_the_run_is_written_down(sandbox: Sandbox, tmp_path: Path) -> None:
    report = tmp_path / "run.json"
    workloads = "noop,latency,cpu-1ms,stream,depth-1000,start-help"
    contenders = ["graft", "celery", "loop-batched", "ppe", "asyncio"]
    programs = ["graft-programs", "celery-programs"]
    argv = bench("--only", workloads, "--contenders", ",".join(contenders + programs), "--json", str(report))
    done = subprocess.run(argv, env=sandbox.env, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sandbox.check_clean(0)
    run = json.loads(report.read_text())
    assert run["machine"]["versions"]["celery"]
    results = {(each["workload"], each["contender"]): each for each in run["results"]}
    assert {name for where, name in results if where == "noop"} == set(contenders)
    assert {name for where, name in results if where == "latency"} == {"graft", "celery", "ppe"}
    assert {name for where, name in results if where == "stream"} == {"graft"}
    for each in results.values():
        assert each["failure"] == ""
        assert all(seconds > 0 for seconds in each["seconds"])
        assert each["items_run"] == each["items"]
    assert len(results["noop", "graft"]["seconds"]) == 2
    assert len(results["latency", "graft"]["times"]) == 2 * 20
    assert results["cpu-1ms", "graft"]["extra"]["work"] > 0
    assert results["noop", "graft"]["memory"]["after"] > 0
    assert results["stream", "graft"]["history"]
    assert {name for where, name in results if where == "start-help"} == set(programs)
    assert all(results["start-help", name]["extra"]["cpu"] > 0 for name in programs)
    judged = {each["promise"]: each["verdict"] for each in run["targets"]}
    assert judged["no-op batch against a stock Celery group"] != "not measured"
    assert "celery-graft" in done.stdout
    assert "what is promised" in done.stdout


def test_a_contender_that_breaks_costs_only_itself(sandbox: Sandbox) -> None:
    # Workers of ours refuse to start with such a key; the pool of processes has never heard of it.
    argv = bench("--only", "noop", "--contenders", "ppe,graft", "--repeat", "1")
    breaker = (
        "import graft.scripts.bench.contenders.ours as ours, runpy, sys; ours.Graft.environ = property("
        "lambda self: {**Contender.environ.fget(self), 'GRAFT_SIGNING_KEY': 'short'})"
    )
    code = f"from graft.scripts.bench.contenders.base import Contender; {breaker}; " \
        f"from graft.scripts.commands.bench import command; command({argv[6:]!r})"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=sandbox.env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "ProcessPoolExecutor" in done.stdout
    assert "failed" in done.stdout
    assert "GRAFT_SIGNING_KEY" in done.stderr
    sandbox.check_clean(0)


def test_an_interrupted_run_leaves_nothing_behind(sandbox: Sandbox) -> None:
    argv = bench("--only", "latency", "--contenders", "graft,celery,ppe", "--repeat", "1000")
    with subprocess.Popen(argv, env=sandbox.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr
        for line in program.stderr:
            if "ppe 1:" in line:
                break
        else:
            pytest.fail("it ended before it was interrupted")
        program.send_signal(signal.SIGINT)
        said = program.stderr.read()
        assert program.wait(60) == 130, said
    assert "interrupted" in said
    sandbox.check_clean()
