"""What the standard executors cannot show: where calls run, bounds, laziness, and bad input."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import BrokenExecutor

import pytest

from graft.compat import call_report
from graft.compat.executor import BrokenClusterError, CeleryExecutor
from graft.compat.pool import Pool
from graft.config.deployment import part
from graft.tasks.errors import (
    BrokerUnavailable,
    CancelledBatchError,
    ItemTimeoutError,
    PayloadTooLargeError,
    RemoteTraceback,
    UnpicklableError,
    UnreferenceableError,
)
from graft.tasks.sending.coalescing import _Streams
from tests import samples
from tests.contract import functions
from tests.contract.conftest import Gate
from tests.stack import run_python, wait_until

pytestmark = pytest.mark.usefixtures("stack")


@pytest.fixture
def executor():
    with CeleryExecutor() as made:
        yield made


@pytest.fixture
def calls():
    call_report.calls().clear()
    yield call_report.calls()
    call_report.calls().clear()


# ---- where calls run -------------------------------------------------------------------------------------------------


def test_importable_functions_run_on_workers(executor):
    assert executor.submit(samples.process_id).result() != os.getpid()
    assert os.getpid() not in executor.map(samples.process_id, range(4))
    assert executor.submit(functools.partial(samples.add, 1), 2).result() == 3


def test_a_lambda_that_captures_nothing_travels(executor):
    assert executor.submit(lambda: __import__("os").getpid()).result() != os.getpid()


def test_what_holds_the_callers_state_stays(executor):
    seen = []
    executor.submit(seen.append, 1).result()
    list(executor.map(lambda x: seen.append(x), [2, 3]))
    list(executor.map(lambda x: seen.append(x), [4], buffersize=1))
    assert sorted(seen) == [1, 2, 3, 4]


def test_what_cannot_be_pickled_stays_and_is_the_same_object(executor, calls):
    lock = threading.Lock()
    assert executor.submit(samples.identity, lock).result() is lock
    assert next(executor.map(samples.identity, [lock])) is lock
    assert next(executor.map(samples.identity, [lock], buffersize=1)) is lock
    with Pool() as pool:
        assert pool.apply(samples.identity, (lock,)) is lock
    assert {row.where for row in calls.rows()} == {"local"}
    assert all("cannot be pickled" in row.reason for row in calls.rows())


def test_the_place_can_be_forced(calls):
    with CeleryExecutor(place="local") as executor:
        assert executor.submit(samples.process_id).result() == os.getpid()
        assert set(executor.map(samples.process_id, range(3))) == {os.getpid()}
    with CeleryExecutor(place="cluster") as executor:
        lock = threading.Lock()
        assert isinstance(executor.submit(samples.identity, lock).exception(), UnpicklableError)
        with pytest.raises(UnpicklableError):
            list(executor.map(samples.identity, [lock]))
        assert executor.submit(samples.Accumulator(1).add, 2).result() == 3
        assert isinstance(executor.submit(threading.Lock().acquire).exception(), UnreferenceableError)
    assert [row.where for row in calls.rows() if "asked for" in row.reason] == ["local"] * 2


def test_every_call_is_in_the_report(executor, calls):
    executor.submit(samples.square, 1).result()
    with pytest.raises(ValueError, match="no 1"):
        executor.submit(samples.raise_value_error, 1).result()
    list(executor.map(samples.square, range(5)))
    executor.shutdown()
    rows = {(row.call, row.func): (row.where, row.calls, row.items, row.failures) for row in calls.rows()}
    assert rows == {
        ("CeleryExecutor.submit", "tests.samples:square"): ("cluster", 1, 1, 0),
        ("CeleryExecutor.submit", "tests.samples:raise_value_error"): ("cluster", 1, 1, 1),
        ("CeleryExecutor.map", "tests.samples:square"): ("cluster", 1, 5, 0),
    }


def test_async_functions_run_on_the_loop_of_a_worker_or_here(executor):
    assert executor.submit(samples.async_square, 4).result() == 16
    assert list(executor.map(samples.async_square, range(4))) == [0, 1, 4, 9]
    with CeleryExecutor(2, place="local") as here:
        assert here.submit(samples.async_square, 4).result() == 16


def test_an_executor_works_inside_a_task(executor):
    assert executor.submit(functions.square_by_executor, 7).result(timeout=30) == [49, 49, 49]


# ---- options ---------------------------------------------------------------------------------------------------------


def test_errors_carry_the_remote_traceback(executor):
    error = executor.submit(samples.raise_from_another, 1).exception()
    assert isinstance(error, LookupError)
    assert isinstance(error.__cause__, RemoteTraceback)


def test_retries_are_asked_for(tmp_path):
    with CeleryExecutor(retry=3) as executor:
        assert executor.submit(samples.fail_until, (str(tmp_path / "there"), 2)).result() == 2
    with CeleryExecutor(retry=3, place="local") as executor:
        assert executor.submit(samples.fail_until, (str(tmp_path / "here"), 2)).result() == 2


@pytest.mark.parametrize("place", [None, "local"])
def test_a_call_has_a_time_limit(place):
    with CeleryExecutor(timeout=0.1, place=place) as executor, pytest.raises(ItemTimeoutError):
        executor.submit(samples.async_pause, 1, 30).result()


def test_what_a_dead_process_ran_is_not_run_again_where_the_workers_are_told_so(fresh_stack, tmp_path):
    stack = fresh_stack(cpu=1, GRAFT_RUN_LIMIT="1")
    program = f"""
from graft.compat.executor import CeleryExecutor
from graft.tasks.errors import PoisonedError
from tests.contract import functions
notes = {str(tmp_path / "notes")!r}
with CeleryExecutor() as executor:
    calls = executor.map(functions.note_and_die_if, [(notes, i, 2) for i in range(4)], chunksize=4)
    try:
        list(calls)
    except PoisonedError as error:
        print("poisoned")
    print(list(executor.map(functions.note_and_die_if, [(notes, 9, 2)])))
"""
    ran = run_python(stack, program)
    assert ran.stdout.split() == ["poisoned", "[9]"], ran.stderr
    assert (tmp_path / "notes").read_text().split() == ["0", "1", "2", "9"]  # By default 0, 1 and 2 would run again.


@pytest.mark.parametrize("queue", ["low", "heavy", "io"])
def test_calls_go_to_the_queue_asked_for(queue):
    with CeleryExecutor(queue=queue, priority=3) as executor:
        assert executor.submit(samples.square, 3).result() == 9


@pytest.mark.parametrize(
    "bad",
    [{"max_workers": 0}, {"queue": "näme with\nlines"}, {"priority": float("nan")}, {"retry": -1}, {"timeout": 0}],
)
def test_options_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError):
        CeleryExecutor(**bad)
    with pytest.raises(ValueError):
        CeleryExecutor(place="moon")


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("place", ["cluster", "local"])
def test_max_workers_bounds_what_runs(tmp_path, most, place):
    log = str(tmp_path / "log")
    with CeleryExecutor(most, place=place) as executor:
        for i in range(12):
            executor.submit(functions.log_span if i % 2 else functions.log_span_too, log)
    assert functions.most_at_once(log) <= most
    with CeleryExecutor(most, place=place) as executor:
        assert list(executor.map(functions.log_span, [log] * 12)) == [None] * 12
    with Pool(most, place=place) as pool:
        assert list(pool.imap(functions.log_span, [log] * 12)) == [None] * 12
        assert pool.map(functions.log_span, [log] * 12) == [None] * 12
    assert functions.most_at_once(log) <= most


# ---- laziness --------------------------------------------------------------------------------------------------------


def test_a_buffersize_reads_no_further_ahead(executor):
    read = []
    endless = (read.append(i) or i for i in itertools.count())
    values = executor.map(samples.square, endless, buffersize=10)
    assert len(read) <= 10
    assert [next(values) for _ in range(100)] == [i * i for i in range(100)]
    assert len(read) <= 110


def test_imap_over_an_endless_input_is_bounded_and_can_be_left():
    read = []
    endless = (read.append(i) or i for i in itertools.count())
    with Pool() as pool:
        values = pool.imap(samples.square, endless)
        assert [next(values) for _ in range(10)] == [i * i for i in range(10)]
        assert len(read) < 5_000
        del values
        assert pool.apply(samples.square, (3,)) == 9


@pytest.mark.parametrize("bad", [{"buffersize": 0}, {"chunksize": 0}])
def test_sizes_that_cannot_work_are_refused(executor, bad):
    with pytest.raises(ValueError, match="at least 1"):
        executor.map(samples.square, [1], **bad)


def test_a_map_that_is_left_begins_nothing_more(tmp_path):
    log = tmp_path / "log"
    with CeleryExecutor(1) as executor:
        values = executor.map(samples.note, [(str(log), str(i)) for i in range(20_000)], chunksize=1)
        next(values)
        values.close()
    assert len(log.read_text().splitlines()) < 20_000


def test_an_imap_reads_as_far_ahead_as_was_asked():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with Pool() as pool:
        values = pool.imap(samples.square, items(), buffersize=5)
        assert next(values) == 0
        wait_until(lambda: len(taken) == 6)  # Five ahead, and the one that was handed out.
        assert pool.apply(samples.square, (3,)) == 9
        assert len(taken) == 6
        assert list(values) == [number**2 for number in range(1, 100)]
        with pytest.raises(ValueError, match="buffersize=0 must be at least 1"):
            pool.imap(samples.square, [1], buffersize=0)


def test_an_imap_that_is_left_reads_no_further():
    read = []
    endless = (read.append(i) or i for i in itertools.count())
    with Pool() as pool:
        for value in pool.imap(samples.square, endless):
            if value > 9:
                break
        wait_until(lambda: not [one for one in threading.enumerate() if one.name == "graft-imap"])
        before = len(read)
        assert pool.map(samples.square, range(5)) == [0, 1, 4, 9, 16]
        assert len(read) == before


def test_a_terminated_pool_reads_no_further():
    read = []
    endless = (read.append(i) or i for i in itertools.count())
    with Pool() as pool:
        values = pool.imap(samples.square, endless)
        assert next(values) == 0
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "graft-imap"])
    before = len(read)
    outcomes = [what_comes_next(values) for _ in range(5_000)]
    assert outcomes.count(CancelledBatchError) > 0
    assert outcomes[-1] is StopIteration
    assert len(read) == before


def what_comes_next(values):
    try:
        next(values)
    except (StopIteration, CancelledBatchError) as error:
        return type(error)


def test_a_buffered_map_makes_no_calls_after_the_shutdown():
    executor = CeleryExecutor()
    values = executor.map(samples.square, itertools.count(), buffersize=3)
    assert next(values) == 0
    executor.shutdown()
    assert [next(values) for _ in range(3)] == [1, 4, 9]  # They had been made.
    with pytest.raises(RuntimeError, match="shutdown"):
        next(values)


def test_items_of_a_buffered_map_that_raise_do_so_after_what_they_gave(executor):
    def items():
        yield from range(5)
        raise LookupError("no more")

    values = executor.map(samples.square, items(), buffersize=2)
    assert [next(values) for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(LookupError, match="no more"):
        next(values)


def test_no_iterator_takes_a_call_s_stop_iteration_for_its_end(executor):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(executor.map(functions.stop_iteration, range(3), buffersize=2))
    with Pool() as pool, pytest.raises(RuntimeError, match="StopIteration"):
        list(pool.imap(functions.stop_iteration, range(3)))


def test_several_threads_may_read_one_imap():
    """That of multiprocessing raises TimeoutError when one thread takes what another was woken for."""
    found: list[int] = []
    with Pool() as pool:
        values = pool.imap_unordered(samples.square, range(200))
        threads = [threading.Thread(target=lambda: found.extend(values)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [i * i for i in range(200)]


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_one_item_that_is_too_large_costs_only_itself():
    big = b"x" * (5 << 20)
    with Pool() as pool:
        values = pool.imap(samples.identity, [1, big, 3])
        assert next(values) == 1
        with pytest.raises(PayloadTooLargeError):
            next(values)
        assert next(values) == 3
        with pytest.raises(PayloadTooLargeError):
            pool.map(samples.identity, [(1,), big])
    with CeleryExecutor(1) as executor:  # Each fails at once, and none of them through the one before.
        futures = [executor.submit(samples.identity, big) for _ in range(3)]
        assert {type(future.exception()) for future in futures} == {PayloadTooLargeError}


def test_results_dropped_unread_are_forgotten(executor):
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    done = executor.submit(samples.identity, value)
    concurrent.futures.wait([done])
    values = executor.map(samples.identity, [value])
    futures = concurrent.futures.wait([executor.submit(samples.square, i) for i in range(500)])
    del value, done, values, futures

    def is_gone():
        gc.collect()
        return gone() is None

    wait_until(is_gone, what="the executor still holds a result")


def test_results_of_a_pool_dropped_unread_are_forgotten():
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    with Pool() as pool:
        pool.apply_async(samples.identity, (value,)).wait()
        pool.map_async(samples.identity, [value]).wait()
        next(pool.imap(samples.identity, iter([value, 1])))
        pool.imap_unordered(samples.identity, iter([value]))
        del value

        def is_gone():
            gc.collect()
            return gone() is None

        wait_until(is_gone, what="the pool still holds a result")


def test_nothing_grows_in_redis(executor, redis):
    def lasting():
        return {key for key in redis.scan_iter(count=1000) if redis.ttl(key) == -1}

    def use():
        list(executor.map(samples.identity, range(50)))
        executor.map(samples.identity, range(50))
        next(executor.map(samples.identity, range(50)))
        [executor.submit(samples.identity, i) for i in range(20)]
        with Pool() as pool:
            next(pool.imap(samples.identity, range(50)))
            pool.map_async(samples.identity, range(50))
        concurrent.futures.wait([executor.submit(samples.identity, i) for i in range(20)])

    use()  # What is kept for each function is there now.
    before = lasting()
    for _ in range(5):
        use()
    # Messages of calls that were let go may still be under way.
    wait_until(lambda: not lasting() - before, what="keys that never expire were added")


def test_names_may_have_any_letters(executor):
    assert executor.submit(functions.größe_als_名前, 3).result() == 9
    assert list(executor.map(functions.größe_als_名前, range(3))) == [0, 1, 4]
    assert executor.submit(functions.arguments, **{"größe 名\n": 1}).result() == ((), {"größe 名\n": 1})


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_asks_for_the_end_silences_nobody(executor, caplog, stop):
    def fail(_):
        raise stop

    executor.submit(samples.pause, 1, 0.1).add_done_callback(fail)
    assert executor.submit(samples.pause, 2, 0.2).result(timeout=60) == 2
    with Pool() as pool:
        assert pool.apply_async(samples.square, (3,), callback=fail).get(timeout=60) == 9
        assert pool.apply_async(samples.square, (4,)).get(timeout=60) == 16
    assert "callback" in caplog.text


def test_threads_end_with_the_executor():
    with CeleryExecutor(place="local") as executor:
        assert executor.submit(threading.current_thread).result().name.startswith("graft-local")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("graft-local")]
    with Pool(place="local") as pool:
        pool.map(samples.square, range(50))
    wait_until(lambda: not [one for one in threading.enumerate() if one.name.startswith("graft-local")])


def test_a_terminated_pool_says_so_to_who_waits(gate: Gate):
    pool = Pool(1)
    held = pool.apply_async(functions.hold, (gate.path, "held"))
    gate.wait_begun()
    waiting = pool.apply_async(samples.square, (1,))
    values = pool.imap(functions.hold, [gate.path] * 50)
    mapped = pool.map_async(functions.hold, [gate.path] * 3)
    pool.terminate()
    pool.join()  # What runs is let go.
    for result in (held, waiting, mapped):
        with pytest.raises(CancelledBatchError, match="terminated"):
            result.get(timeout=60)
    with pytest.raises(CancelledBatchError, match="terminated"):
        list(values)


def test_a_callback_of_a_pool_that_raises_keeps_no_result(caplog):
    def fail(_):
        raise ValueError("in a callback")

    with Pool() as pool:
        assert pool.apply_async(samples.square, (3,), callback=fail).get(timeout=60) == 9
    assert "in a callback" in caplog.text


def test_an_initializer_with_a_lock_runs_here_once():
    seen = []
    with Pool(2, initializer=seen.append, initargs=(threading.Lock(),)) as pool:
        assert pool.map(samples.process_id, range(10)) == [os.getpid()] * 10
    assert len(seen) == 1


def test_an_initializer_that_fails_fails_the_calls():
    with Pool(2, initializer=samples.raise_value_error, initargs=(1,)) as pool, pytest.raises(ValueError, match="no 1"):
        pool.map(samples.square, range(3))


def test_a_cancelled_coroutine_cancels_its_call(gate):
    with CeleryExecutor(1) as executor:
        held = executor.submit(functions.hold, gate.path)

        async def main():
            waiting = asyncio.get_running_loop().run_in_executor(executor, samples.square, 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        asyncio.run(main())
        gate.open()
        held.result()


def test_a_forked_child_goes_on_with_the_executor(stack):
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Forking with threads: that is the point.
from graft.compat.executor import CeleryExecutor
from tests import samples
executor = CeleryExecutor(2)
executor.submit(samples.square, 2).result()
left = [executor.submit(samples.pause, i, 0.5) for i in range(4)]
pid = os.fork()
if pid == 0:
    good = executor.submit(samples.square, 3).result(30) == 9 and list(executor.map(samples.square, [4])) == [16]
    executor.shutdown()
    os._exit(0 if good else 1)
status = os.waitpid(pid, 0)[1]
print(os.waitstatus_to_exitcode(status), [future.result(30) for future in left])
"""
    ran = run_python(stack, program)
    assert (ran.returncode, ran.stdout.strip()) == (0, "0 [0, 1, 2, 3]"), ran.stderr


def test_a_forked_child_goes_on_with_the_pool(stack):
    program = """
import itertools, os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Forking with threads: that is the point.
from graft.compat.pool import Pool
from tests import samples
pool = Pool(2)
left = pool.imap(samples.square, itertools.count())
result = pool.apply_async(samples.pause, (7, 0.5))
assert next(left) == 0
pid = os.fork()
if pid == 0:
    good = pool.map(samples.square, [3, 4]) == [9, 16] and list(pool.imap(samples.square, [5])) == [25]
    pool.close()
    pool.join()
    os._exit(0 if good else 1)
status = os.waitpid(pid, 0)[1]
print(os.waitstatus_to_exitcode(status), result.get(30), next(left))
pool.terminate()
"""
    ran = run_python(stack, program)
    assert (ran.returncode, ran.stdout.strip()) == (0, "0 7 1"), ran.stderr


def test_a_program_ends_although_an_imap_does_not(stack):
    program = """
import itertools, threading
from graft.compat.pool import Pool
from tests import samples
never = threading.Event()
def items():
    yield 1
    never.wait()
pool = Pool()
endless, waiting = pool.imap(samples.square, itertools.count()), pool.imap(samples.square, items())
print(next(endless), next(waiting))
pool.imap(samples.square, itertools.count())
"""
    ran = run_python(stack, program)
    assert (ran.returncode, ran.stdout.strip()) == (0, "0 1"), ran.stderr


def test_a_program_ends_after_its_calls(stack, tmp_path):
    program = f"""
from graft.compat.executor import CeleryExecutor
from tests import samples
executor = CeleryExecutor(1)
for i in range(5):
    executor.submit(samples.note, ({str(tmp_path / "notes")!r}, str(i)))
"""
    ran = run_python(stack, program)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "notes").read_text().split() == list("01234")


def test_a_broker_out_of_reach_breaks_the_call(stack):
    program = """
from concurrent.futures import BrokenExecutor
from graft.compat.executor import CeleryExecutor
from graft.compat.pool import Pool
from tests import samples
errors = []
with CeleryExecutor() as executor:
    for attempt in (
        lambda: executor.submit(samples.square, 1).result(),
        lambda: list(executor.map(samples.square, [1])),
        lambda: list(executor.map(samples.square, [1], buffersize=1)),
        lambda: Pool().map(samples.square, [1]),
    ):
        try:
            attempt()
        except ConnectionError as error:
            errors.append((isinstance(error, BrokenExecutor), "redis://127.0.0.1:1/" in str(error)))
print(errors)
"""
    address = "redis://127.0.0.1:1/0"
    ran = run_python(
        stack,
        program,
        env={"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address, "GRAFT_CONNECT_TIMEOUT": "0.3"},
    )
    assert ran.stdout.strip() == str([(True, True)] * 3 + [(False, True)]), ran.stderr


WITHIN = """
import sys, time
from graft.compat.executor import CeleryExecutor
from tests import samples
with CeleryExecutor(**eval(sys.argv[2])) as executor:
    futures = [executor.submit(samples.note_and_sleep, (sys.argv[1], 0.5), ) for _ in range(40)]
    print("ready", flush=True)
    while True:  # CPython sleeps on through a signal that comes in the instant before.
        time.sleep(0.1)
"""
WITHOUT = WITHIN.replace(
    "with CeleryExecutor(**eval(sys.argv[2])) as executor:", "executor = CeleryExecutor(**eval(sys.argv[2]))\nif 1:"
)


@pytest.mark.parametrize("program", [WITHIN, WITHOUT], ids=["with", "without"])
@pytest.mark.parametrize("options", [{"queue": "nobody-reads"}, {}, {"max_workers": 2}], ids=repr)
def test_the_first_ctrl_c_cancels_what_has_not_begun(stack, tmp_path, program, options):
    ledger = tmp_path / "ran"
    argv = [sys.executable, "-c", program, str(ledger), repr(options)]
    env = {**stack.env, "GRAFT_QUEUES": "nobody-reads"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if "queue" not in options:
            wait_until(lambda: ledger.exists(), 60, "a call to begin")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert told.count("interrupted: of ") == 1
    assert process.returncode == -signal.SIGINT
    ran = len(ledger.read_text().splitlines()) if ledger.exists() else 0
    assert ran < 20  # Of forty.
    if "queue" in options:
        assert ran == 0


def test_a_bound_costs_no_message_for_each_call():
    with CeleryExecutor(max_workers=2) as executor:
        executor.submit(samples.square, 1).result()
        calls = [executor.submit(func, number) for number in range(400) for func in (samples.square, samples.identity)]
        assert sum(call.result() for call in calls) == sum(n * n + n for n in range(400))
        bound = executor._dispatcher._routes.bound
        senders = [
            stream.sender for stream in part(_Streams).by_options.values() if stream.sender.options.bound is bound
        ]
        assert len(senders) == 2
        assert sum(sender._envelopes for sender in senders) < 200  # Of 801 calls.
        assert bound._taken == 0


def test_one_outage_fails_every_call_that_waits(stack):
    program = """
import concurrent.futures, time
from graft.compat.executor import CeleryExecutor
from tests import samples
began = time.monotonic()
with CeleryExecutor(max_workers=2) as executor:
    futures = [executor.submit(samples.square, n) for n in range(50)]
    concurrent.futures.wait(futures)
    print({type(future.exception()).__name__ for future in futures}, time.monotonic() - began < 12.5)
"""
    address = "redis://127.0.0.1:1/0"
    env = {"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address, "GRAFT_CONNECT_TIMEOUT": "1.5"}
    ran = run_python(stack, program, env=env)  # One after the other they took 25 times two seconds.
    assert ran.stdout.strip() == "{'BrokenClusterError'} True", ran.stderr


def test_a_broken_executor_is_caught_by_all_its_names():
    assert issubclass(BrokenClusterError, BrokenExecutor)
    assert issubclass(BrokenClusterError, BrokerUnavailable)
    assert issubclass(BrokenClusterError, ConnectionError)
    assert str(BrokenClusterError("gone")) == "gone"


def test_local_mode_sends_nothing(stack):
    program = """
import os
from graft.compat.executor import CeleryExecutor
from graft.compat.pool import Pool
from tests import samples
with CeleryExecutor(2) as executor, Pool() as pool:
    pids = {executor.submit(samples.process_id).result(), *executor.map(samples.process_id, range(3)),
            *pool.map(samples.process_id, range(3)), *pool.imap(samples.process_id, range(3))}
print(pids == {os.getpid()})
"""
    ran = run_python(stack, program, env={"GRAFT_MODE": "local", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert (ran.stdout.strip(), ran.stderr) == ("True", "")


def test_a_fork_in_the_middle_of_a_report_leaves_the_child_able_to_report(stack):
    program = """
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from graft.compat.executor import CeleryExecutor
from graft.compat.call_report import calls
from tests import samples
executor = CeleryExecutor()
executor.submit(samples.square, 2).result()
with calls()._lock:  # As another thread might hold it.
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(executor.submit(samples.square, 3).result())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    ran = run_python(stack, program)
    assert ran.stdout.strip() == "9", ran.stderr
