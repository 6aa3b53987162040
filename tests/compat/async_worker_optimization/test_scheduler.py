"""A.9: AsyncTaskScheduler."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import AsyncTaskScheduler, SkippedTaskError
from graft.config.deployment import current
from graft.tasks.errors import UnreferenceableError
from graft.tasks.policy import RetryPolicy
from tests import samples
from tests.stack import run_python


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


def task(log, name):
    """A task that stays with the caller and says that it ran."""

    async def work():
        log.append(name)
        return name

    return work


async def fill(scheduler, entries):
    log = []
    for name, priority in entries:
        assert await scheduler.schedule_task(name, task(log, name), priority) is None
    return log


async def drain(scheduler):
    while scheduler.has_pending_tasks():
        await scheduler.execute_next()


# ---- one process -----------------------------------------------------------------------------------------------------


def test_tasks_run_by_priority_and_are_listed_in_the_order_of_scheduling():
    async def main():
        scheduler = AsyncTaskScheduler()
        assert scheduler.get_pending_tasks() == []
        assert not scheduler.has_pending_tasks()
        log = await fill(scheduler, [("low", -1), ("default", 0), ("high", 10), ("half", 0.5)])
        assert scheduler.get_pending_tasks() == ["low", "default", "high", "half"]
        assert scheduler.has_pending_tasks()
        assert await scheduler.execute_next() == "high"
        assert scheduler.get_pending_tasks() == ["low", "default", "half"]
        await drain(scheduler)
        assert log == ["high", "half", "default", "low"]
        assert await scheduler.execute_next() is None

    run(main())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), max_size=30))
def test_equals_keep_their_order_and_the_later_of_one_id_replaces_the_earlier(entries):
    async def main():
        scheduler = AsyncTaskScheduler()
        log = await fill(scheduler, entries)
        kept = dict(entries)
        order = sorted(kept, key=lambda name: max(n for n, entry in enumerate(entries) if entry[0] == name))
        assert scheduler.get_pending_tasks() == order
        await drain(scheduler)
        assert log == sorted(order, key=lambda name: -kept[name])

    run(main())


def test_a_cancelled_task_is_gone():
    async def main():
        scheduler = AsyncTaskScheduler()
        log = await fill(scheduler, [("a", 5), ("b", 0)])
        assert scheduler.cancel_task("a") is True
        assert scheduler.cancel_task("a") is False
        assert scheduler.cancel_task("never") is False
        await drain(scheduler)
        assert log == ["b"]
        assert scheduler.cancel_task("b") is False

    run(main())


def test_a_task_that_raises_is_gone_and_its_error_passes():
    async def main():
        attempts = []

        async def fail():
            attempts.append(1)
            raise OSError("no")

        scheduler = AsyncTaskScheduler()
        await scheduler.schedule_task("a", fail)
        with pytest.raises(OSError, match="no"):
            await scheduler.execute_next()
        assert not scheduler.has_pending_tasks()
        retrying = AsyncTaskScheduler(retry=RetryPolicy(runs=3, base=0.0))
        await retrying.schedule_task("a", fail)
        with pytest.raises(OSError, match="no"):
            await retrying.execute_next()
        assert len(attempts) == 4

    run(main())


def test_plain_functions_and_any_hashable_id_will_do():
    async def main():
        scheduler = AsyncTaskScheduler(place="local")
        for task_id in (1, "1", (1, 2), None):
            await scheduler.schedule_task(task_id, lambda: "done")
        assert scheduler.get_pending_tasks() == [1, "1", (1, 2), None]
        assert await scheduler.execute_next() == "done"

    run(main())


def test_a_task_that_can_travel_runs_on_a_worker(stack):
    async def main():
        scheduler = AsyncTaskScheduler()
        await scheduler.schedule_task("a", samples.process_id)
        await scheduler.schedule_task("b", samples.async_process_id)
        await scheduler.schedule_task("c", functools.partial(samples.raise_value_error, 1))
        assert os.getpid() not in (await scheduler.execute_next(), await scheduler.execute_next())
        with pytest.raises(ValueError, match="no 1"):
            await scheduler.execute_next()

    run(main())


@pytest.mark.parametrize("bound", [1, 3])
def test_a_runner_runs_everything_in_order_within_its_bound(bound):
    async def main():
        scheduler, log, running, most = AsyncTaskScheduler(), [], set(), 0

        def make(name):
            async def work():
                nonlocal most
                log.append(name)
                running.add(name)
                most = max(most, len(running))
                await asyncio.sleep(0)
                running.remove(name)
                if name == 3:
                    await scheduler.schedule_task("late", make("late"))
                    raise LookupError(name)
                return name

            return work

        for name in range(6):
            await scheduler.schedule_task(name, make(name), name)
        results = await scheduler.run_pending(bound)
        assert log == [5, 4, 3, 2, 1, 0, "late"]
        assert most == bound
        assert type(results.pop(3)) is LookupError
        assert results == {name: name for name in (0, 1, 2, 4, 5, "late")}
        assert await scheduler.run_pending() == {}

    run(main())


def test_a_runner_needs_room_for_one():
    with pytest.raises(ValueError, match="max_concurrent=0"):
        run(AsyncTaskScheduler().run_pending(0))


# ---- by name, in Redis -----------------------------------------------------------------------------------------------


@pytest.fixture
def name(redis):
    name = uuid4().hex
    yield name
    redis.delete(*(f"graft:compat:schedule:{name}:{part}" for part in ("order", "tasks", "number")))


SCHEDULE = """
import asyncio, sys
from graft.compat.async_worker_optimization import AsyncTaskScheduler, SkippedTaskError
from tests import samples

async def main():
    scheduler = AsyncTaskScheduler(name=sys.argv[1])
    await scheduler.schedule_task("first", samples.process_id, 1)
    await scheduler.schedule_task("urgent", samples.async_process_id, 9.5)
    await scheduler.schedule_task(3, samples.process_id, -1)
    await scheduler.schedule_task("replaced", samples.process_id, 100)
    await scheduler.schedule_task("replaced", samples.process_id, 1)
    await scheduler.schedule_task("cancelled", samples.process_id, 50)

asyncio.run(main())
"""


def test_importable_tasks_outlive_their_process_in_one_strict_order(stack, name):
    run_python(stack, SCHEDULE, 60, name).check_returncode()

    async def main():
        scheduler, another = AsyncTaskScheduler(name=name), AsyncTaskScheduler(name=name)
        assert scheduler.get_pending_tasks() == ["first", "urgent", 3, "replaced", "cancelled"]
        assert another.cancel_task("cancelled") is True
        assert scheduler.cancel_task("cancelled") is False
        ran = []
        while another.has_pending_tasks():
            before = scheduler.get_pending_tasks()
            assert await scheduler.execute_next() != os.getpid()
            ran += set(before) - set(another.get_pending_tasks())
        assert ran == ["urgent", "first", "replaced", 3]
        assert await scheduler.execute_next() is None

    run(main())


def test_tasks_that_cannot_travel_keep_their_place_among_those_that_do(stack, name):
    async def main():
        scheduler = AsyncTaskScheduler(name=name)
        log = []
        await scheduler.schedule_task("shared", samples.process_id, 1)
        await scheduler.schedule_task("own", task(log, "own"), 1)
        await scheduler.schedule_task("own first", task(log, "own first"), 2)
        await scheduler.schedule_task("shared first", samples.process_id, 2)
        await scheduler.schedule_task("came home", samples.process_id, 5)
        await scheduler.schedule_task("came home", task(log, "came home"), 0)
        await scheduler.schedule_task("left", task(log, "never"), 0)
        await scheduler.schedule_task("left", samples.process_id, 0)
        names = ["shared", "own", "own first", "shared first", "came home", "left"]
        assert scheduler.get_pending_tasks() == names
        assert AsyncTaskScheduler(name=name).get_pending_tasks() == ["shared", "shared first", "left"]
        ran = []
        while pending := scheduler.get_pending_tasks():
            await scheduler.execute_next()
            ran += set(pending) - set(scheduler.get_pending_tasks())
        assert ran == ["own first", "shared first", "shared", "own", "came home", "left"]
        assert log == ["own first", "own", "came home"]

    run(main())


def test_every_task_is_taken_by_exactly_one_of_many_runners(stack, name, tmp_path):
    path = str(tmp_path / "log")

    async def main():
        runners = [AsyncTaskScheduler(name=name) for _ in range(4)]
        for number in range(40):
            await runners[number % 4].schedule_task(
                number, functools.partial(samples.note, (path, str(number))), number % 5
            )
        results = await asyncio.gather(*(runner.run_pending(2) for runner in runners))
        assert sorted(itertools.chain.from_iterable(results)) == list(range(40))

    run(main())
    with open(path) as lines:
        assert sorted(map(int, lines)) == list(range(40))


def test_a_single_runner_starts_tasks_in_strict_order_on_the_cluster(stack, name, tmp_path):
    path = str(tmp_path / "log")

    async def main():
        scheduler = AsyncTaskScheduler(name=name)
        for number in range(20):
            note = functools.partial(samples.note, (path, str(number)))
            await scheduler.schedule_task(number, note, number % 4)
        await scheduler.run_pending()

    run(main())
    with open(path) as lines:
        assert [int(line) for line in lines] == sorted(range(20), key=lambda number: -(number % 4))


def test_a_task_that_this_process_cannot_import_stays_pending(name, redis, monkeypatch):
    async def main():
        scheduler = AsyncTaskScheduler(name=name)
        await scheduler.schedule_task("a", samples.square, 1)
        await scheduler.schedule_task("b", samples.process_id, 1)
        monkeypatch.delattr(samples, "square")
        for _ in range(2):
            with pytest.raises(UnreferenceableError, match="square"):
                await scheduler.execute_next()
        assert scheduler.get_pending_tasks() == ["a", "b"]

    run(main())


def test_only_texts_and_integers_are_ids_in_redis(name):
    with pytest.raises(TypeError, match="cannot be kept in Redis"):
        run(AsyncTaskScheduler(name=name).schedule_task((1, 2), samples.process_id))


def test_local_mode_keeps_named_tasks_in_memory(monkeypatch, redis):
    monkeypatch.setenv("GRAFT_MODE", "local")
    current.reread_settings()
    try:
        scheduler = AsyncTaskScheduler(name="here")
        run(scheduler.schedule_task("a", samples.process_id))
        assert not redis.exists("graft:compat:schedule:here:tasks")
        assert run(scheduler.execute_next()) == os.getpid()
    finally:
        monkeypatch.undo()
        current.reread_settings()


# ---- schedules -------------------------------------------------------------------------------------------------------


def entry(task_id, *dependencies, **more):
    return {"id": task_id, **({"dependencies": list(dependencies)} if dependencies else {}), **more}


def order(*tasks):
    return [task["id"] for task in AsyncTaskScheduler().optimize_schedule(list(tasks))]


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([], []),
        ([entry("b"), entry("a")], ["b", "a"]),
        ([entry("c", "b"), entry("b", "a"), entry("a")], ["a", "b", "c"]),
        ([entry("d", "b", "c"), entry("a"), entry("c", "a"), entry("b", "a")], ["a", "c", "b", "d"]),
        ([entry("low", priority=1), entry("high", priority=9, duration=1)], ["low", "high"]),
        ([entry("a"), entry("b", "a", "a")], ["a", "b"]),
        ([{"id": "a", "dependencies": []}], ["a"]),
    ],
)
def test_a_schedule_is_topological_and_breadth_first(tasks, expected):
    assert order(*tasks) == expected


@pytest.mark.parametrize(
    ("tasks", "kept", "lost"),
    [
        ([entry("a", "b"), entry("b", "a"), entry("c"), entry("d", "a")], ["c"], ["a", "b", "d"]),
        ([entry("a", "a"), entry("b")], ["b"], ["a"]),
        ([entry("a", "nobody"), entry("b", "a")], [], ["a", "b"]),
    ],
)
def test_what_can_never_start_is_left_out_with_a_warning(caplog, tasks, kept, lost):
    assert order(*tasks) == kept
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(lost) in record.getMessage()


def test_a_schedule_holds_the_same_dicts_and_changes_nothing():
    tasks = [entry("b", "a"), entry("a", duration=3)]
    before = [dict(task) for task in tasks]
    schedule = AsyncTaskScheduler().optimize_schedule(tasks)
    assert schedule[0] is tasks[1]
    assert schedule[1] is tasks[0]
    assert tasks == before
    with pytest.raises(KeyError, match="id"):
        AsyncTaskScheduler().optimize_schedule([{"dependencies": []}])


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, n)), min_size=n, max_size=n)))
def test_a_schedule_places_exactly_what_can_run_after_its_dependencies(edges):
    tasks = [{"id": place, "dependencies": sorted(needs)} for place, needs in enumerate(edges)]
    placed = [task["id"] for task in AsyncTaskScheduler().optimize_schedule(tasks)]
    possible: set[int] = set()
    while more := {place for place, needs in enumerate(edges) if needs <= possible} - possible:
        possible |= more
    assert sorted(placed) == sorted(possible)
    for position, place in enumerate(placed):
        assert edges[place] <= set(placed[:position])


@pytest.mark.parametrize(
    ("durations", "total"),
    [([], 0.0), ([1, 2.5], 3.5), ([None, 2], 2.0), ([5, -3, 1], 5.0), ([-1, -2], 0.0), ([-5, 10], 5.0)],
)
def test_the_total_time_is_the_highest_running_sum(durations, total):
    schedule = [{} if duration is None else {"duration": duration} for duration in durations]
    found = AsyncTaskScheduler().calculate_total_time(schedule)
    assert found == total
    assert type(found) is float


# ---- graphs that run -------------------------------------------------------------------------------------------------


def job(task_id, log, *dependencies, fails=None, **more):
    async def work():
        log.append(f"{task_id} begins")
        await asyncio.sleep(0)
        log.append(f"{task_id} ends")
        if fails:
            raise fails
        return task_id.upper()

    return entry(task_id, *dependencies, task_func=work, **more)


@pytest.mark.parametrize("bound", [None, 1, 2])
def test_a_graph_runs_every_task_after_those_that_it_depends_on(bound):
    log = []
    tasks = [job("d", log, "b", "c"), job("b", log, "a"), job("c", log, "a", "a"), job("a", log), job("e", log)]
    results = run(AsyncTaskScheduler().run_schedule(tasks, bound))
    assert list(results) == ["d", "b", "c", "a", "e"]
    assert results == {task_id: task_id.upper() for task_id in results}
    for task in tasks:
        for dependency in task.get("dependencies", ()):
            assert log.index(f"{dependency} ends") < log.index(f"{task['id']} begins")


def test_among_the_tasks_that_may_begin_the_larger_priority_goes_first():
    log = []
    tasks = [job("low", log, priority=-1), job("first", log), job("second", log), job("high", log, "low", priority=9)]
    run(AsyncTaskScheduler().run_schedule(tasks, 1))
    assert [line.partition(" ")[0] for line in log[::2]] == ["first", "second", "low", "high"]


def test_a_failed_task_skips_what_depends_on_it_and_nothing_else():
    log = []
    error = LookupError("no")
    tasks = [job("a", log, fails=error), job("b", log, "a"), job("c", log, "b", "d"), job("d", log), job("e", log, "d")]
    results = run(AsyncTaskScheduler().run_schedule(tasks))
    assert results["a"] is error
    for task_id in "bc":
        skipped = results[task_id]
        assert type(skipped) is SkippedTaskError
        assert (skipped.failed, skipped.__cause__) == ("a", error)
        assert str(skipped) == f"the task {task_id!r} did not run: it depends on 'a', which failed"
        assert f"{task_id} begins" not in log
    assert (results["d"], results["e"]) == ("D", "E")


@pytest.mark.parametrize(
    ("edges", "text"),
    [
        ({"a": "c", "b": "a", "c": "b", "d": ""}, "a cycle: 'a' -> 'c' -> 'b' -> 'a'"),
        ({"a": "a"}, "a cycle: 'a' -> 'a'"),
        ({"x": "ya", "y": "?", "a": "b", "b": "a"}, "'y' depends on '?', which is no task; a cycle: 'a' -> 'b' -> 'a'"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_before_anything_runs(edges, text, caplog):
    log = []
    tasks = [job(task_id, log, *needs) for task_id, needs in edges.items()]
    with pytest.raises(ValueError, match="cannot run") as refused:
        run(AsyncTaskScheduler().run_schedule(tasks))
    assert str(refused.value) == f"the tasks cannot run: {text}"
    assert log == []
    AsyncTaskScheduler().optimize_schedule(tasks)
    assert text in caplog.text


def test_an_id_twice_no_function_and_no_room_are_refused():
    log = []
    with pytest.raises(ValueError, match="the id 'a' is given twice"):
        run(AsyncTaskScheduler().run_schedule([job("a", log), job("a", log)]))
    with pytest.raises(KeyError, match="task_func"):
        run(AsyncTaskScheduler().run_schedule([job("a", log), entry("b")]))
    with pytest.raises(ValueError, match="max_concurrent=0"):
        run(AsyncTaskScheduler().run_schedule([job("a", log)], 0))
    assert run(AsyncTaskScheduler().run_schedule([])) == {}
    assert log == []


def test_leaving_a_graph_ends_what_runs_and_begins_nothing_more():
    log = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            log.append("ended")

    async def main():
        tasks = [entry("a", task_func=forever), job("b", log, "a")]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(AsyncTaskScheduler().run_schedule(tasks), 0.05)

    run(main())
    assert log == ["ended"]


def test_a_graph_runs_on_the_workers(stack, tmp_path):
    path = str(tmp_path / "log")
    numbers = range(12)  # Each depends on its two predecessors.
    tasks = [
        entry(n, *range(max(0, n - 2), n), task_func=functools.partial(samples.note, (path, str(n)))) for n in numbers
    ]
    tasks.append(entry("pid", 11, task_func=samples.process_id))
    results = run(AsyncTaskScheduler().run_schedule(tasks[::-1]))
    assert results["pid"] != os.getpid()
    with open(path) as lines:
        assert [int(line) for line in lines] == list(numbers)
