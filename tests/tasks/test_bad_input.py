"""Everything a caller can get wrong, on real workers: a clear error for it, neighbours unharmed, workers alive."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pickle import PicklingError

import pydantic
import pytest

import graft
from graft.compat.executor import CeleryExecutor
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.errors import (
    EnvelopeError,
    PayloadTooLargeError,
    PoisonedError,
    ProcessExitError,
    RemoteTraceback,
    UnpicklableError,
    UnreferenceableError,
)
from tests import samples
from tests.people import letters
from tests.stack import run_python, wait_until

WAIT = 60.0


@pytest.fixture
def workers_survive(stack):
    """Fails when a worker (not one of its pool processes) died meanwhile, or no longer answers."""
    before = {worker.name: worker.pid for worker in stack.workers}
    yield
    assert {worker.name: worker.pid for worker in stack.workers} == before
    assert graft.submit(samples.square, [5]).collect(WAIT) == [25]
    assert graft.submit(samples.async_square, [5]).collect(WAIT) == [25]


def outcomes_of(batch: graft.Batch) -> dict[int, object]:
    """By index, the value, or the type of the error."""
    return {one.index: one.value if one.error is None else type(one.error) for one in batch.as_completed(WAIT)}


# ---- refused before anything is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"batch_size": -3}, ValueError, "batch_size=-3"),
        ({"batch_size": 2.5}, TypeError, "batch_size=2.5 must be a whole number"),
        ({"concurrency": "3"}, TypeError, "concurrency='3' must be a whole number"),
        ({"timeout": "3"}, TypeError, "timeout='3' must be a number"),
        ({"priority": "high"}, TypeError, "priority='high' must be a number"),
        ({"retry": "3"}, TypeError, "retry must be a RetryPolicy or a number of retries, not '3'"),
        ({"in_flight": 0}, ValueError, "in_flight=0"),
        ({"concurrency": -1}, ValueError, "concurrency=-1"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": -1.0}, ValueError, "timeout=-1.0"),
        ({"retry": -1}, ValueError, "retry=-1"),
        ({"queue": "nowhere"}, ValueError, "there is no queue 'nowhere'; there are maintenance, high"),
        ({"priority": float("nan")}, ValueError, "priority"),
        ({"reduce": 3}, TypeError, "reduce=3 is not callable"),
    ],
)
def test_values_that_cannot_work_are_refused(options, error, told):
    with pytest.raises(error, match=told):
        graft.submit(samples.square, [1], **options)


@pytest.mark.parametrize("items", [3, None, samples.square], ids=["int", "None", "function"])
def test_items_that_cannot_be_iterated_are_refused(items):
    with pytest.raises(TypeError, match="items must be iterable"):
        graft.submit(samples.square, items)


@pytest.mark.parametrize("items", [[(2, 3)], [((2, 3), {}), 5], ["ab"], [((2, 3),)], [(["a"], ["b"])]])
def test_items_to_be_unpacked_that_are_no_pairs_are_refused(items):
    with pytest.raises(TypeError, match=r"item [01] is .*: write \(\(2, 3\), {}\) to call func\(2, 3\)"):
        graft.submit(pow, items, unpack=True)


@pytest.mark.parametrize(
    ("func", "options", "told"),
    [
        (
            samples.add,
            {"items": [1]},
            "tests.samples:add cannot be called with an item: missing a required argument: 'b'",
        ),
        (samples.add, {"items": [((1,), {})], "unpack": True}, "item 0: missing a required argument: 'b'"),
        (samples.add, {"items": [((1, 2), {}), ((1, 2, 3), {})], "unpack": True}, "item 1: too many positional"),
        (samples.add, {"items": [((1,), {"c": 3})], "unpack": True}, "item 0: missing a required argument: 'b'"),
        (samples.square, {"items": [1], "reduce": samples.add}, "samples:add cannot be called with an item"),
        (dict.fromkeys, {"items": [((), {})], "unpack": True}, "cannot be called with item 0"),
    ],
)
def test_a_wrong_number_of_arguments_is_refused(func, options, told):
    items = options.pop("items")
    with pytest.raises(TypeError, match=told):
        graft.submit(func, items, **options)


def test_items_are_checked_against_type_hints_where_that_is_asked_for(stack):
    assert graft.submit(samples.typed, ["3", 4], validate=True).collect(WAIT) == [6, 8]
    pairs = [((3,), {"price": {"cents": "5"}}), (("4", samples.Price(cents=1)), {})]
    assert graft.submit(samples.typed, pairs, unpack=True, validate=True).collect(WAIT) == [15, 4]
    with pytest.raises(pydantic.ValidationError, match="valid integer") as refused:
        graft.submit(samples.typed, [1, "three"], validate=True)
    assert "item 1 of tests.samples:typed" in refused.value.__notes__[0]
    ends = graft.submit(samples.typed, iter([1, "three"]), validate=True)
    with pytest.raises(pydantic.ValidationError):
        ends.collect(WAIT)
    with pytest.raises(TypeError, match="validate=True takes a function with type hints"):
        graft.submit(functools.partial(samples.typed, 1), [1], validate=True)


def test_an_error_of_pydantics_keeps_its_type_on_the_way_back(stack):
    with pytest.raises(pydantic.ValidationError, match="valid integer") as raised:
        graft.submit(samples.fails_validation, [1]).collect(WAIT)
    assert raised.value.errors()[0]["loc"] == ("cents",)


def test_an_iterator_that_gives_no_pair_ends_its_own_batch(stack):
    batch = graft.submit(pow, iter([((2, 3), {}), (2, 3)]), unpack=True)
    with pytest.raises(TypeError, match="item 1 is"):
        batch.collect(WAIT)


@pytest.mark.parametrize("func", [3, None, "square"])
def test_what_cannot_be_called_is_refused(func):
    with pytest.raises(TypeError, match=r"func=.* is not callable"):
        graft.submit(func, [1])


def test_a_callable_that_holds_its_callers_state_is_refused_by_name():
    seen: list[int] = []
    with pytest.raises(UnreferenceableError, match="captures 'seen'"):
        graft.submit(lambda x: seen.append(x), [1])


def test_reducing_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        graft.submit(samples.square, [], reduce=samples.total)


# ---- items and results ----------------------------------------------------------------------------------------------


def test_an_item_that_cannot_be_pickled_costs_only_itself(workers_survive):
    batch = graft.submit(samples.identity, [1, threading.Lock(), 3])
    assert outcomes_of(batch) == {0: 1, 1: UnpicklableError, 2: 3}


def test_an_item_over_the_limit_costs_only_itself(workers_survive):
    batch = graft.submit(samples.identity, [1, b"x" * (5 << 20), 3])
    assert outcomes_of(batch) == {0: 1, 1: PayloadTooLargeError, 2: 3}


def test_an_item_whose_class_a_worker_cannot_import_costs_only_itself(workers_survive, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    assert outcomes_of(graft.submit(samples.identity, [1, only_here.Thing(), 3])) == {
        0: 1,
        1: ModuleNotFoundError,
        2: 3,
    }


def test_a_result_that_cannot_be_pickled_costs_only_itself(workers_survive):
    batch = graft.submit(lambda x: samples.return_unpicklable(x) if x == 1 else x, range(3))
    assert outcomes_of(batch) == {0: 0, 1: UnpicklableError, 2: 2}


def test_a_result_over_the_limit_is_an_error_that_names_it(workers_survive):
    with pytest.raises(PayloadTooLargeError, match="the result of item 0 takes"):
        graft.submit(samples.return_bytes, [5 << 20]).collect(WAIT)


def test_many_large_results_arrive_although_pub_sub_would_drop_them(workers_survive):
    values = graft.submit(samples.return_bytes, [900 << 10] * 60, batch_size=5).collect(WAIT)
    assert {len(value) for value in values} == {900 << 10}


@pytest.mark.parametrize("batch_size", [1, 10])
def test_unusual_values_are_ordinary_values(workers_survive, batch_size):
    assert graft.submit(samples.return_none, range(3), batch_size=batch_size).collect(WAIT) == [None] * 3
    (returned,) = graft.submit(samples.return_exception, ["x"], batch_size=batch_size).collect(WAIT)
    assert (type(returned), returned.args) == (ValueError, ("x",))


# ---- functions that misbehave ---------------------------------------------------------------------------------------


def test_an_error_is_raised_with_its_remote_traceback_as_the_cause(workers_survive):
    with pytest.raises(ValueError, match="no 1") as raised:
        graft.submit(samples.raise_value_error, [1]).collect(WAIT)
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    assert "samples.py" in str(raised.value.__cause__)
    assert "item_runner.py" not in str(raised.value.__cause__)


def test_the_chain_of_an_error_is_shown(workers_survive):
    with pytest.raises(LookupError) as raised:
        graft.submit(samples.raise_from_another, ["key"]).collect(WAIT)
    assert "KeyError: 'key'" in str(raised.value.__cause__)


def test_an_error_keeps_its_attributes(workers_survive):
    with pytest.raises(samples.Detailed) as raised:
        graft.submit(samples.raise_detailed, [7]).collect(WAIT)
    assert (raised.value.code, raised.value.reason) == (7, "as asked")


def test_an_error_that_cannot_be_pickled_arrives_as_its_base(workers_survive):
    with pytest.raises(Exception, match="no 1") as raised:
        graft.submit(samples.raise_unpicklable, [1]).collect(WAIT)
    assert type(raised.value) is Exception


def test_an_error_costs_only_its_own_item(workers_survive):
    batch = graft.submit(samples.raise_value_error_if_odd, range(6), batch_size=6)
    assert outcomes_of(batch) == {0: 0, 1: ValueError, 2: 2, 3: ValueError, 4: 4, 5: ValueError}


@pytest.mark.parametrize("func", [samples.exit_process, samples.raise_base_exception], ids=lambda func: func.__name__)
def test_a_function_that_asks_the_process_to_end_is_refused(workers_survive, func):
    with pytest.raises(ProcessExitError, match="tried to end the worker's process"):
        graft.submit(func, [3]).collect(WAIT)


ENDS = pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])


@ENDS
def test_a_pickle_that_raises_what_is_no_exception_costs_only_its_own_item(workers_survive, kind):
    """Raised on the threads that send and receive for the whole process, each ended its thread: callers hung."""
    items = [1, samples.RaisesWhenPickled(kind), 2, samples.RaisesWhenOpened(kind)]
    found = outcomes_of(graft.submit(samples.identity, items, batch_size=4))
    assert found == {0: 1, 1: UnpicklableError, 2: 2, 3: ProcessExitError}
    values = outcomes_of(graft.submit(samples.RaisesWhenOpened, [kind]))
    assert values == {0: EnvelopeError}
    values = outcomes_of(graft.submit(samples.RaisesWhenPickled, [kind]))
    assert values == {0: UnpicklableError}
    assert graft.submit(samples.identity, [3]).collect(WAIT) == [3]


@ENDS
def test_a_call_whose_pickle_raises_what_is_no_exception_ends_and_so_does_its_executor(workers_survive, kind):
    def use(executor: CeleryExecutor) -> None:
        sent = executor.submit(samples.identity, samples.RaisesWhenPickled(kind))
        received = executor.submit(samples.RaisesWhenOpened, kind)
        good = executor.submit(samples.identity, 3)
        with pytest.raises(PicklingError, match="cannot be pickled"):
            sent.result(WAIT)
        with pytest.raises(EnvelopeError, match="cannot be opened here"):
            received.result(WAIT)
        assert good.result(WAIT) == 3

    # On another thread, since Ctrl+C comes to the main thread, where it is let through.
    with CeleryExecutor(place="cluster") as executor, ThreadPoolExecutor(1) as threads:
        threads.submit(use, executor).result(3 * WAIT)


def test_endless_recursion_is_an_ordinary_error(workers_survive):
    with pytest.raises(RecursionError):
        graft.submit(samples.recurse_for_ever, [1]).collect(WAIT)


def test_an_item_that_kills_its_process_runs_thrice_and_costs_only_itself(workers_survive, tmp_path):
    ledger = tmp_path / "runs"

    def work(x: int, path: str = str(ledger)) -> int:
        with open(path, "a") as file:
            file.write(f"{x}\n")
        if x == 5:
            os._exit(3)
        return x

    before = {letter.id for letter in letters()}
    batch = graft.submit(work, range(10), batch_size=10)
    assert outcomes_of(batch) == {**{x: x for x in range(10)}, 5: PoisonedError}
    runs = ledger.read_text().split()
    assert runs.count("5") == 3
    assert max(runs.count(str(x)) for x in range(10) if x != 5) <= 2
    (letter,) = [letter for letter in letters() if letter.id not in before]
    assert (letter.reason, letter.items, letter.runs) == ("poisoned", 1, 3)


def test_a_lone_item_that_kills_its_process_runs_exactly_as_often_as_allowed(workers_survive, tmp_path):
    ledger = tmp_path / "runs"

    def work(x: int, path: str = str(ledger)) -> None:
        with open(path, "a") as file:
            file.write("run\n")
        os._exit(3)

    with pytest.raises(PoisonedError, match="3 worker processes"):
        graft.submit(work, [0]).collect(WAIT)
    assert ledger.read_text().splitlines() == ["run"] * 3


def test_items_given_up_after_their_retries_are_kept_with_the_whole_envelope(workers_survive):
    from graft.tasks.envelope import Envelope

    before = {letter.id for letter in letters()}
    policy = graft.RetryPolicy(2, on=Exception)
    batch = graft.submit(samples.raise_value_error_if_odd, range(4), batch_size=4, retry=policy)
    assert outcomes_of(batch) == {0: 0, 1: ValueError, 2: 2, 3: ValueError}
    (letter,) = [letter for letter in letters() if letter.id not in before]
    assert (letter.reason, letter.items, letter.runs) == ("retries_exhausted", 2, 2)
    kept = Envelope.open(letter.envelope, letter.id)
    assert (list(kept.positions), list(kept.items)) == ([1, 3], [1, 3])
    assert letter.function == "tests.samples:raise_value_error_if_odd"
    assert "ValueError: 1 is odd" in letter.error


def test_an_item_that_fails_after_a_process_died_with_it_has_its_retries_left(workers_survive, tmp_path):
    """Each item of a run that follows a death is recorded; what its policy runs again has not ended with that."""
    before = {letter.id for letter in letters()}
    paths = [str(tmp_path / name) for name in "ab"]
    policy = graft.RetryPolicy(3, base=0.01, on=OSError)
    batch = graft.submit(samples.die_then_fail_then_succeed, paths, batch_size=2, retry=policy)
    assert all(runs == 3 for runs in batch.collect(WAIT))
    assert {letter.id for letter in letters()} == before


# ---- workers and brokers --------------------------------------------------------------------------------------------


def test_a_worker_that_lacks_the_module_says_so(workers_survive, tmp_path, monkeypatch):
    (tmp_path / "nowhere_else.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import nowhere_else  # type: ignore[import-not-found]

    with pytest.raises(UnreferenceableError, match="a worker cannot import nowhere_else:f"):
        graft.submit(nowhere_else.f, [1, 2]).collect(WAIT)


def test_a_module_that_fails_to_import_says_so(workers_survive, tmp_path, monkeypatch):
    (tmp_path / "breaks_there.py").write_text(
        "import os\nif 'GRAFT_TEST_HERE' not in os.environ: 1 / 0\ndef f(x): return x\n"
    )
    monkeypatch.setenv("GRAFT_TEST_HERE", "1")
    monkeypatch.syspath_prepend(tmp_path)
    import breaks_there  # type: ignore[import-not-found]

    with pytest.raises(UnreferenceableError, match="breaks_there:f"):
        graft.submit(breaks_there.f, [1]).collect(WAIT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


DOWN = """
import asyncio, sys, time
import graft
from graft.tasks.errors import BrokerUnavailable
from tests import samples

async def awaited():
    await graft.submit(samples.square, [1])

for call in (lambda: graft.submit(samples.square, [1]).collect(30), lambda: asyncio.run(awaited())):
    began = time.monotonic()
    try:
        call()
    except BrokerUnavailable as error:
        assert isinstance(error, ConnectionError)
        print(round(time.monotonic() - began, 1), error)
"""


def test_a_broker_that_is_down_is_named_long_before_the_wait_ends(redis_stack):
    port = free_port()
    url = f"redis://:hunter2@127.0.0.1:{port}/0"
    done = run_python(redis_stack, DOWN, 60, env={"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url})
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert float(line.split()[0]) < 15  # It takes 3.5 s, and a busy machine takes its time.
        assert f"127.0.0.1:{port}" in line
        assert "CELERY_BROKER_URL" in line
    assert "hunter2" not in done.stdout + done.stderr


WRONG_KEY = """
import graft
from graft.tasks.errors import SignatureError
from tests import samples
for options in ({}, {"reduce": samples.total}):
    try:
        graft.submit(samples.square, [1, 2], **options).collect(30)
    except SignatureError as error:
        print("refused:", error)
"""


def test_a_caller_with_another_key_is_refused_and_told(stack, workers_survive, redis):
    done = run_python(stack, WRONG_KEY, 60, env={"GRAFT_SIGNING_KEY": "some-other-key-some-other-key"})
    assert done.stdout.count("refused: the signature of this envelope does not verify") == 2, done.stderr
    kept = [json.loads(entry) for entry in redis.lrange("graft:quarantine", 0, -1)]
    assert "bad_signature" in {entry["reason"] for entry in kept}


def test_a_worker_without_a_key_refuses_to_start(redis_stack):
    env = {**redis_stack.env, "GRAFT_SIGNING_KEY": ""}
    command = [sys.executable, "-m", "celery", "-A", "graft", "worker", "-c", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "GRAFT_SIGNING_KEY" in done.stdout + done.stderr


LOST = """
import sys, time
import graft
from graft.tasks.errors import BrokerUnavailable
from tests import samples

batch = graft.submit(samples.pause, range(100), batch_size=1)
while batch.progress().done < 3:
    time.sleep(0.01)
print("running", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    print(batch.collect(60) == list(range(100)))
except BrokerUnavailable as error:
    print(round(time.monotonic() - began, 1), error)
"""


def client_of(stack, code: str, **env: str):
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**stack.env, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_broker_that_goes_away_half_way_is_named_and_the_workers_live_on(fresh_stack):
    stack = fresh_stack(cpu=2)
    pid = stack.worker.pid
    with client_of(stack, LOST, GRAFT_OUTAGE_GRACE="2") as client:
        assert client.stdout.readline() == "running\n"
        stack.kill_redis()
        answer, _ = client.communicate("\n", timeout=60)
    assert float(answer.split()[0]) < 10
    assert "was lost, and did not come back within 2 s" in answer
    stack.start_redis()
    stack.wait_ready()
    assert stack.worker.pid == pid
    done = run_python(
        stack, "import graft; from tests import samples; print(graft.submit(samples.square, [4]).collect(60))"
    )
    assert done.stdout == "[16]\n", done.stderr


def test_a_broker_that_comes_back_in_time_costs_no_result(fresh_stack):
    stack = fresh_stack(cpu=2)
    pid = stack.worker.pid
    with client_of(stack, LOST, GRAFT_OUTAGE_GRACE="30") as client:
        assert client.stdout.readline() == "running\n"
        stack.restart_redis()
        answer, _ = client.communicate("\n", timeout=90)
    assert answer == "True\n"
    assert stack.worker.pid == pid


def test_a_killed_worker_loses_no_item(stack):
    with stack.another_worker() as worker:
        batch = graft.submit(samples.pause, range(20), batch_size=1)
        wait_until(lambda: batch.progress().done >= 2, what="work in progress")
        worker.kill()
        assert batch.collect(WAIT) == list(range(20))


def test_a_caller_that_dies_leaves_workers_and_queue_in_order(stack, workers_survive, redis):
    with client_of(stack, LOST) as client:
        assert client.stdout.readline() == "running\n"
        client.kill()
    wait_until(lambda: redis.hlen("graft:unacked") == 0, what="the workers to finish what was sent")
    began = time.monotonic()
    assert graft.submit(samples.square, [3]).collect(WAIT) == [9]
    assert time.monotonic() - began < WAIT


TOO_LONG = """
import graft
from tests import samples
batch = graft.submit(samples.sleep, [0.0, 60.0, 0.0, 0.0], batch_size=4)
print([type(one.error).__name__ for one in sorted(batch.as_completed(30), key=lambda one: one.index)])
batch = graft.submit(samples.sleep_through_everything, [60.0])
print([type(one.error).__name__ for one in batch.as_completed(30)])
"""


def test_an_envelope_over_the_deployments_limits_gives_back_what_it_has_not_begun_or_is_buried(fresh_stack):
    stack = fresh_stack(cpu=2, GRAFT_SOFT_TIME_LIMIT="1", GRAFT_HARD_TIME_LIMIT="3")
    done = run_python(stack, TOO_LONG, 60)
    assert done.stdout.splitlines() == [
        "['NoneType', 'SoftTimeLimitExceeded', 'NoneType', 'NoneType']",
        "['ItemTimeoutError']",
    ], done.stderr
    with stack.connect() as client:  # The worker itself buries, after it has answered.
        wait_until(lambda: client.hlen(dead_letters.LETTERS) == 2, what="the letters")
        kept = {letter["reason"]: letter["items"] for letter in map(json.loads, client.hvals(dead_letters.LETTERS))}
    assert kept == {"failed": 1, "time_limit": 1}


LEFT = """
import itertools, sys, threading, time
import graft
from tests import samples

for _ in zip(range(100), graft.submit(samples.square, itertools.count())):
    pass
deadline = time.monotonic() + 20
while "graft-source" in {thread.name for thread in threading.enumerate()} and time.monotonic() < deadline:
    time.sleep(0.01)
print([thread.name for thread in threading.enumerate() if thread.name == "graft-source"])
graft.submit(samples.pause, range(5000), batch_size=1)
"""


def test_leaving_a_stream_ends_its_reader_and_leaving_a_batch_unsent_is_said(stack):
    done = run_python(stack, LEFT, 60)
    assert done.stdout == "[]\n", done.stderr
    assert "items of a batch of tests.samples:pause were not sent when the process ended" in done.stderr
