"""concurrent.futures: what holds for threads and processes of the standard library holds for CeleryExecutor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from tests import samples
from tests.contract import functions
from tests.stack import wait_until

# ---- submit and its futures ------------------------------------------------------------------------------------------


def test_a_call_gives_its_value(executor):
    assert executor.submit(pow, 2, 10).result() == 1024


@pytest.mark.parametrize("name", ["fn", "self", "func", "call", "order", "args"])
def test_any_keyword_goes_to_the_function(executor, name):
    assert executor.submit(functions.arguments, 1, **{name: 2}).result() == ((1,), {name: 2})


def test_values_keep_their_types(executor):
    value = ((1, 2), {3: {4}}, b"5", 10**30, float("inf"), None)
    assert executor.submit(samples.identity, value).result() == value


def test_an_error_keeps_type_arguments_and_attributes(executor):
    error = executor.submit(samples.raise_detailed, 7).exception()
    assert (type(error), error.code, error.reason) == (samples.Detailed, 7, "as asked")


def test_a_returned_error_is_a_value(executor):
    assert repr(executor.submit(samples.return_exception, 1).result()) == "ValueError(1)"


def test_what_cannot_be_called_fails_in_its_future(executor):
    assert isinstance(executor.submit(7, 1).exception(), TypeError)


def test_wrong_arguments_fail_in_their_future(executor):
    assert isinstance(executor.submit(samples.square).exception(), TypeError)


def test_a_result_can_be_had_again_after_a_timeout(executor, gate):
    future = executor.submit(functions.hold, gate.path, "late")
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.01)
    assert not future.done()
    gate.open()
    assert future.result() == "late"


def test_a_call_that_has_begun_is_running_and_cannot_be_cancelled(executor, gate):
    future = executor.submit(functions.hold, gate.path)
    gate.wait_begun()
    assert future.running()
    assert not future.cancel()
    gate.open()
    future.result()
    assert future.done()
    assert not future.running()
    assert not future.cancel()


def test_threads_may_submit_at_once(executor):
    found = {}

    def submit(name):
        found[name] = [future.result() for future in [executor.submit(samples.add, name, i) for i in range(25)]]

    threads = [threading.Thread(target=submit, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name + i for i in range(25)] for name in range(8)}


# ---- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_get_the_future_in_the_order_in_which_they_were_added(executor, gate):
    seen = []
    future = executor.submit(functions.hold, gate.path, 1)
    for name in "abc":
        future.add_done_callback(lambda done, name=name: seen.append((name, done.result())))
    gate.open()
    wait_until(lambda: len(seen) == 3)
    assert seen == [("a", 1), ("b", 1), ("c", 1)]


def test_a_callback_after_the_end_is_called_at_once(executor):
    seen = []
    future = executor.submit(samples.square, 3)
    future.result()
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_a_callback_that_raises_is_logged_and_spares_the_others(executor, gate, caplog):
    seen = []

    def fail(_):
        raise ValueError("in a callback")

    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future = executor.submit(functions.hold, gate.path)
        future.add_done_callback(fail)
        future.add_done_callback(seen.append)
        gate.open()
        wait_until(lambda: seen)
    assert "in a callback" in caplog.text


# ---- several futures -------------------------------------------------------------------------------------------------


def test_wait_for_the_first(executor, gate):
    held = executor.submit(functions.hold, gate.path)
    gate.wait_begun()
    quick = executor.submit(samples.add, 1, 1)
    done, not_done = concurrent.futures.wait([held, quick], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {held})


def test_wait_for_the_first_error(executor, gate):
    held = executor.submit(functions.hold, gate.path)
    gate.wait_begun()
    bad = executor.submit(samples.raise_value_error, 1)
    done, not_done = concurrent.futures.wait([held, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert bad in done
    assert not_done == {held}


def test_wait_for_all_gives_up_after_its_timeout(executor, gate):
    held = executor.submit(functions.hold, gate.path)
    done, not_done = concurrent.futures.wait([held], timeout=0.01)
    assert (done, not_done) == (set(), {held})


def test_as_completed_gives_each_future_once(executor):
    futures = [executor.submit(samples.square, i) for i in range(10)]
    futures[0].result()
    assert sorted(future.result() for future in concurrent.futures.as_completed(futures * 2)) == [
        i * i for i in range(10)
    ]


def test_as_completed_times_out(executor, gate):
    held = executor.submit(functions.hold, gate.path)
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed([held], timeout=0))


# ---- map -------------------------------------------------------------------------------------------------------------


def test_map_keeps_the_order_of_its_input(executor):
    assert list(executor.map(samples.square_slowly_if_even, range(6))) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_stops_at_the_shortest_input(executor, chunksize):
    assert list(executor.map(pow, range(10), itertools.repeat(2), chunksize=chunksize)) == [i * i for i in range(10)]
    assert list(executor.map(pow, [2, 3], [1, 2, 3], chunksize=chunksize)) == [2, 9]


def test_map_of_nothing(executor):
    assert list(executor.map(samples.square, [])) == []
    assert list(executor.map(samples.square)) == []


def test_map_spreads_no_tuples(executor):
    assert list(executor.map(samples.identity, [(1, 2), (3,)])) == [(1, 2), (3,)]


def test_map_raises_an_error_in_its_place(executor):
    values = executor.map(functions.divide, [4, 9, 1, 8], [2, 3, 0, 1])
    assert [next(values), next(values)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert list(values) == []


def test_map_keeps_no_value_that_its_reader_has_dropped(executor):
    for value in executor.map(functions.weakly_referable, range(5)):
        kept = weakref.ref(value)
        del value
        gc.collect()
        assert kept() is None


def test_map_times_out(executor, gate):
    values = executor.map(functions.hold, [gate.path], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)


def test_map_reads_its_input_at_once_and_raises_what_it_raises(executor):
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        executor.map(samples.square, items())


def test_a_call_that_raises_stop_iteration_does_not_end_a_map_in_silence(executor):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(executor.map(functions.stop_iteration, range(3)))
    assert isinstance(executor.submit(functions.stop_iteration, 1).exception(), StopIteration)


def test_a_map_nobody_reads_is_carried_out(new_executor, tmp_path):
    with new_executor() as executor:
        executor.map(samples.note, [(str(tmp_path / "notes"), str(i)) for i in range(20)])
    assert sorted((tmp_path / "notes").read_text().split(), key=int) == [str(i) for i in range(20)]


# ---- cancellation and the end ----------------------------------------------------------------------------------------


def test_a_call_that_waits_can_be_cancelled(new_executor, gate):
    executor = new_executor(1)
    held = executor.submit(functions.hold, gate.path, "held")
    gate.wait_begun()
    waiting = [executor.submit(samples.square, i) for i in range(4)]
    seen = []
    waiting[-1].add_done_callback(seen.append)
    assert waiting[-1].cancel()
    assert waiting[-1].cancel()
    assert waiting[-1].cancelled()
    assert seen == [waiting[-1]]
    with pytest.raises(CancelledError):
        waiting[-1].result()
    gate.open()
    assert held.result() == "held"
    done, not_done = concurrent.futures.wait(waiting)
    assert (len(done), not_done) == (4, set())
    assert [future.result() for future in waiting[:-1]] == [0, 1, 4]


def test_the_context_waits_for_its_calls(new_executor):
    with new_executor() as executor:
        futures = [executor.submit(samples.pause, i, 0.05) for i in range(6)]
    assert [future.result(timeout=0) for future in futures] == list(range(6))


def test_nothing_is_accepted_after_shutdown(new_executor):
    executor = new_executor()
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(samples.square, 1)
    with pytest.raises(RuntimeError, match="shutdown"):
        list(executor.map(samples.square, [1]))


def test_shutdown_without_waiting_still_finishes(new_executor, gate):
    executor = new_executor(1)
    futures = [executor.submit(functions.hold, gate.path, i) for i in range(3)]
    executor.shutdown(wait=False)
    gate.open()
    assert [future.result() for future in futures] == [0, 1, 2]


def test_shutdown_can_cancel_what_waits(new_executor, gate):
    executor = new_executor(1)
    held = executor.submit(functions.hold, gate.path, "held")
    gate.wait_begun()
    waiting = [executor.submit(samples.square, i) for i in range(20)]
    ending = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    ending.start()
    wait_until(waiting[-1].cancelled)
    gate.open()
    ending.join()
    assert held.result() == "held"
    assert all(future.done() for future in waiting)


# ---- asyncio ---------------------------------------------------------------------------------------------------------


def test_an_event_loop_may_use_it(executor):
    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, samples.square, i) for i in range(10)]
        with pytest.raises(ValueError, match="no 1"):
            await loop.run_in_executor(executor, samples.raise_value_error, 1)
        return await asyncio.gather(*calls)

    for _ in range(2):  # Loops come and go.
        assert asyncio.run(main()) == [i * i for i in range(10)]


def test_several_event_loops_may_use_it_at_once(executor):
    async def main(base):
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, samples.add, base, i) for i in range(20)))

    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: asyncio.run(main(n))})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n + i for i in range(20)] for n in range(4)}
