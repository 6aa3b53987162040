"""Under shadow and canary, with real workers: what callers get, and what is found."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from graft.compat import shadow
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer
from graft.compat.executor import CeleryExecutor
from graft.compat.pool import Pool
from graft.compat.shadow import switch
from graft.compat.shadow.verdicts import CallableVerdict
from graft.compat.worker_pool import Task, WorkerPool
from graft.scripts.commands.shadow import command
from tests.compat.shadow import samples
from tests.stack import Stack, wait_until

HERE = "tests.compat.shadow.samples:"
WAIT = 60.0

pytestmark = pytest.mark.acl_role("admin")  # Operator and program in one process.


@pytest.fixture(autouse=True)
def ends(redis: Any) -> Iterator[None]:
    yield
    shadow.uninstall()
    redis.delete(switch.ANSWERS, switch.BACK, switch.VERDICTS)


def optimise(func: Callable[..., Any], items: list[Any]) -> list[Any]:
    return asyncio.run(AsyncWorkerOptimizer().optimize_batch_processing(items, func))


def found() -> dict[str, CallableVerdict]:
    return {one.callable.removeprefix(HERE): one for one in shadow.verdict(wait=WAIT).callables}


def test_each_kind_of_difference_is_found_and_the_old_way_answers(stack: Stack, monkeypatch) -> None:
    monkeypatch.setattr(samples, "planted", 1.0)
    shadow.install(1.0, tolerance=1e-6, only=["tests.*"], leave_out=["left*"])
    assert optimise(samples.steady, list(range(5)))[4][0] == 4
    assert optimise(samples.value, [10, 1, 100]) == [11.0, 2.0, 101.0]
    assert optimise(samples.order, [1]) == [[3, 2, 1]]
    assert optimise(samples.awaited, [1]) == [2.0]
    optimise(samples.almost, [3])
    for fails, kind in ((samples.text, ValueError), (samples.raises, KeyError)):
        with pytest.raises(kind):
            optimise(fails, [1])
    given = {"x": 1}
    optimise(samples.arguments, [given])
    assert given == {"x": 1, "seen": 1}
    optimise(samples.unpicklable, [1])
    optimise(samples.marked, [1])
    kept: list[int] = []
    optimise(lambda x: kept.append(x), [1])
    verdicts = found()
    assert {name: one.verdict for name, one in verdicts.items()} == {
        "value": "differs", "order": "differs", "awaited": "differs", "text": "differs", "raises": "differs",
        "arguments": "differs", "unpicklable": "cannot", "marked": "cannot", "steady": "safe", "almost": "safe",
        f"{__name__}:test_each_kind_of_difference_is_found_and_the_old_way_answers.<locals>.<lambda>": "stays",
    }  # fmt: skip
    (example,) = verdicts["value"].examples
    assert (example.kind, example.arguments, example.old, example.cluster) == ("value", "10", "11.0", "10.0")
    assert [one.kind for one in verdicts["order"].examples] == ["order"]
    (example,) = verdicts["text"].examples
    assert (example.old, example.cluster) == ("ValueError: no 1, 1.0", "ValueError: no 1, 0.0")
    (example,) = verdicts["raises"].examples
    assert (example.old, example.cluster, example.remark) == ("KeyError: 1", "1", "only one of them raised")
    (example,) = verdicts["arguments"].examples
    assert (example.kind, example.old) == ("arguments", "{'x': 1, 'seen': 1}")
    assert "in the cluster the call fails: the value" in verdicts["unpicklable"].reason
    assert "graft_never_shadow" in verdicts["marked"].reason
    assert verdicts["steady"].overhead_ms > 0
    whole = shadow.verdict()
    assert whole.verdict == "differs"
    assert json.loads(whole.as_json())["callables"][0]["verdict"] == "differs"
    assert "<code>11.0</code><td><code>10.0</code>" in whole.page()
    assert not Path(f"{os.getcwd()}.graft-shadow").exists()


def test_calls_of_every_pool_are_shadowed_and_answered_in_this_process(stack: Stack) -> None:
    shadow.install(1.0)
    with CeleryExecutor() as executor:
        assert executor.submit(samples.process).result() == os.getpid()
        assert list(executor.map(samples.value, range(10))) == list(range(10))
    with Pool(2) as pool:
        assert list(pool.imap(samples.value, range(10))) == list(range(10))
        assert pool.starmap(samples.value, [(1,), (2,)]) == [1, 2]
    with WorkerPool(2, 20) as workers:
        for number in range(5):
            workers.submit_task(Task(number, samples.process))
        assert {workers.get_result().get().output for _ in range(5)} == {os.getpid()}
        assert asyncio.run(workers.spawn_parallel_batch([1, 2, 3], samples.value)) == [1, 2, 3]
    verdicts = found()
    assert (verdicts["process"].compared, verdicts["process"].verdict) == (6, "differs")
    assert (verdicts["value"].calls, verdicts["value"].compared, verdicts["value"].verdict) == (25, 25, "safe")


def test_written_files_are_compared_and_the_cluster_writes_into_a_copy(stack: Stack, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "input").write_text("in")
    monkeypatch.setenv("SHADOW_TEST_FOLDER", str(folder))
    shadow.install(1.0, files=[str(folder)])
    with CeleryExecutor(max_workers=1) as executor:
        assert executor.submit(samples.write, folder / "a", "x").result() == f"{folder}/a"
        monkeypatch.setattr(samples, "planted", 1.0)
        executor.submit(samples.write, folder / "long-name", "y").result()
        executor.submit(samples.write, folder / "b", "y").result()
        with ThreadPoolExecutor() as threads, CeleryExecutor(max_workers=2) as two:
            for future in [two.submit(samples.slowly, 0.3), two.submit(samples.slowly, 0.3)]:
                threads.submit(future.result).result()
    verdicts = found()
    assert (folder / "b").read_text() == "y 1.0"
    assert verdicts["write"].compared == 3
    (example,) = verdicts["write"].examples
    assert example.kind == "files"
    assert example.old.startswith(f"{folder}/b: written, digest ")
    assert example.old != example.cluster
    assert verdicts["write"].differ == 2
    assert verdicts["slowly"].reason.startswith("others ran at the same time")
    assert not list(tmp_path.glob("*.graft-shadow"))


def test_a_write_whose_path_is_not_an_argument_is_stopped_and_cannot_be_compared(fresh_stack, tmp_path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    stack = fresh_stack(cpu=1, SHADOW_TEST_FOLDER=str(folder))
    ended = run_program(
        stack,
        f"""
        os.environ["SHADOW_TEST_FOLDER"] = {str(folder)!r}
        shadow.install(1.0, files=[{str(folder)!r}])
        with CeleryExecutor() as executor:
            executor.submit(samples.write_elsewhere, "a").result()
        os.unlink({str(folder / "a")!r})
        (one,) = shadow.verdict(wait=60).callables
        print(one.verdict, one.reason)
        """,
    )
    assert ended.startswith("cannot the cluster's run was stopped before it wrote ")
    assert not list(folder.iterdir())


def test_a_canary_is_chosen_by_seed_goes_back_by_itself_and_an_operator_sends_it_again(
    stack: Stack, redis: Any, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(samples, "planted", 1.0)
    answered = []
    for seed in ("a", "a", "b"):
        shadow.install(canary=0.5, program="nightly", seed=seed)
        answered.append([each == os.getpid() for each in optimise(samples.process, list(range(40)))])
        answered[-1] += [each == os.getpid() for each in optimise(samples.process_async, list(range(40)))]
        with CeleryExecutor() as executor:
            answered[-1] += [each == os.getpid() for each in executor.map(samples.process, range(40))]
        assert 30 < found()["process"].canaries < 50
        shadow.uninstall()
    assert answered[0] == answered[1] != answered[2]
    assert 40 < sum(answered[0]) < 80

    shadow.install(canary=1.0, program="nightly")
    failed = 0
    for number in range(30):
        try:
            optimise(samples.fails_on_a_worker, [number])
        except OSError:
            failed += 1
    assert failed == 10
    assert "fails_on_a_worker goes back to the old way" in caplog.text
    assert found()["fails_on_a_worker"].back.startswith("10 of 10 calls failed in the cluster")
    wait_until(lambda: switch.ways_back(redis))
    shown = CliRunner().invoke(command, ["show", "--json"])
    assert json.loads(shown.output)["callable"] == f"{HERE}fails_on_a_worker"

    asked = ["verdict", "nightly"]
    wait_until(lambda: "no canary is sent: 10 of 10" in CliRunner().invoke(command, asked).output, 20)
    assert json.loads(CliRunner().invoke(command, [*asked, "--json"]).output)["program"] == "nightly"

    # Another process of this program follows, until an operator says otherwise; what is set counts at once.
    shadow.uninstall()
    shadow.install(canary=1.0, program="nightly")
    assert optimise(samples.fails_on_a_worker, [1]) == [1]
    assert CliRunner().invoke(command, ["set", "nightly", "--canary", "1"]).exit_code == 0
    wait_until(lambda: not found()["fails_on_a_worker"].back)
    with pytest.raises(OSError, match="no such table"):
        optimise(samples.fails_on_a_worker, [1])
    assert CliRunner().invoke(command, ["set", "*"]).exit_code == 0
    live = shadow.installed()
    assert live is not None
    wait_until(lambda: live.switch.shares() == switch.Shares())
    assert optimise(samples.process, [1]) == [os.getpid()]
    assert CliRunner().invoke(command, ["clear", "*"]).exit_code == 0
    wait_until(lambda: live.switch.shares() == switch.Shares(canary=1.0))


PROGRAM = """
import asyncio, os, sys, threading, time
from graft.compat import shadow
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer
from graft.compat.executor import CeleryExecutor
from tests.compat.shadow import samples
"""


def run_program(stack: Stack, code: str) -> str:
    from textwrap import dedent

    from tests.stack import run_python

    ended = run_python(stack, PROGRAM + dedent(code))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_cluster_that_stops_midway_costs_the_caller_nothing(fresh_stack) -> None:
    stack = fresh_stack(cpu=1)
    from subprocess import PIPE, Popen
    from sys import executable

    code = (
        PROGRAM
        + """
shadow.install(1.0, outstanding=5, timeout=1)
optimizer = AsyncWorkerOptimizer()
def calls(count):
    assert asyncio.run(optimizer.optimize_batch_processing(list(range(count)), samples.value)) == list(range(count))
calls(5)
assert shadow.verdict(wait=60).verdict == "safe"
for _ in range(2):
    print("ready", flush=True)
    input()
    began = time.monotonic()
    calls(200)
    assert time.monotonic() - began < 3
    if not _:
        shadow.verdict(wait=60)
assert len(threading.enumerate()) < 12, threading.enumerate()
(one,) = shadow.verdict(wait=60).callables
print(one.calls, one.compared, one.shadowed + one.missed, one.dropped > 150, one.verdict)
print(*one.cannot)
"""
    )
    with Popen([executable, "-c", code], env=stack.env, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            stack.worker.kill()
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "ready\n"
            stack.kill_redis()
            output, errors = program.communicate("\n", timeout=60)
        finally:
            program.kill()
    assert program.returncode == 0, errors
    counts, reasons = output.splitlines()
    assert counts == "405 5 405 True cannot"
    assert "the cluster had no answer in time" in reasons
