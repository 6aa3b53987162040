"""multiprocessing.Pool: what holds for the standard library's holds for ours."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import queue
import threading

import pytest

from tests import samples
from tests.contract import functions
from tests.stack import wait_until

SQUARES = [i * i for i in range(10)]


def test_apply(pool):
    assert pool.apply(samples.square, (5,)) == 25
    assert pool.apply(functions.arguments, (1,), {"x": 2}) == ((1,), {"x": 2})
    with pytest.raises(ValueError, match="no 1"):
        pool.apply(samples.raise_value_error, (1,))


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_maps(pool, chunksize):
    assert pool.map(samples.square, range(10), chunksize) == SQUARES
    assert pool.map_async(samples.square, iter(range(10)), chunksize).get() == SQUARES
    assert pool.starmap(samples.add, [(i, 1) for i in range(10)], chunksize) == list(range(1, 11))
    assert pool.starmap_async(samples.add, zip(range(3), range(3), strict=True), chunksize).get() == [0, 2, 4]
    assert pool.map(samples.square, [], chunksize) == []


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_imaps(pool, chunksize):
    assert list(pool.imap(samples.square, range(10), chunksize)) == SQUARES
    assert sorted(pool.imap_unordered(samples.square, range(10), chunksize)) == SQUARES
    assert list(pool.imap(samples.square, [])) == []


def test_a_map_spreads_no_tuples(pool):
    assert pool.map(samples.identity, [(1, 2)]) == [(1, 2)]
    assert list(pool.imap(samples.identity, [(1, 2)])) == [(1, 2)]


def test_a_result_knows_how_it_went(pool, gate):
    held = pool.apply_async(functions.hold, (gate.path, "late"))
    gate.wait_begun()
    assert not held.ready()
    with pytest.raises(ValueError, match="not ready"):
        held.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        held.get(timeout=0.01)
    held.wait(0.01)
    gate.open()
    assert held.get() == "late"
    assert held.ready()
    assert held.successful()
    failed = pool.apply_async(samples.raise_detailed, (7,))
    failed.wait()
    assert not failed.successful()
    with pytest.raises(samples.Detailed):
        failed.get()


def test_an_error_of_a_map_comes_when_all_have_ended(pool):
    result = pool.map_async(samples.raise_value_error_if_odd, range(6), 1)
    result.wait()
    assert not result.successful()
    with pytest.raises(ValueError, match="is odd"):
        result.get()
    with pytest.raises(ValueError, match="is odd"):
        pool.starmap(samples.raise_value_error_if_odd, [(2,), (3,)])


def test_callbacks_have_run_when_the_result_is_ready(pool):
    good, bad = [], []
    pool.apply_async(samples.square, (3,), {}, good.append, bad.append).wait()
    pool.map_async(samples.square, range(3), callback=good.append, error_callback=bad.append).wait()
    assert (good, bad) == ([9, [0, 1, 4]], [])
    pool.apply_async(samples.raise_value_error, (3,), callback=good.append, error_callback=bad.append).wait()
    pool.map_async(samples.raise_value_error, [4], callback=good.append, error_callback=bad.append).wait()
    assert [str(error) for error in bad] == ["no 3", "no 4"]
    assert len(good) == 2


def test_an_error_of_imap_comes_in_its_place_and_the_values_go_on(pool):
    values = pool.imap(samples.raise_value_error_if_odd, range(4))
    assert next(values) == 0
    with pytest.raises(ValueError, match="1 is odd"):
        next(values)
    assert next(values) == 2
    with pytest.raises(ValueError, match="3 is odd"):
        values.next()
    with pytest.raises(StopIteration):
        next(values)
    with pytest.raises(StopIteration):
        next(values)


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_imap_can_wait_for_a_while(pool, gate, name):
    values = getattr(pool, name)(functions.hold, [gate.path])
    gate.wait_begun()
    for timeout in (0, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            values.next(timeout)
    gate.open()
    assert values.next(timeout=60) is None


def test_items_that_raise_do_so_after_what_they_gave(pool):
    def items():
        yield from range(3)
        raise LookupError("no more")

    values = pool.imap(samples.square, items())
    assert [next(values) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(LookupError, match="no more"):
        next(values)
    with pytest.raises(LookupError, match="no more"):  # In the standard library it may come before some values.
        list(pool.imap_unordered(samples.square, items()))


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_an_input_may_wait_for_what_its_reader_has_had(pool, name):
    answers = queue.SimpleQueue()

    def items():
        yield 2
        for _ in range(3):
            yield answers.get(timeout=60)

    seen = []
    for value in getattr(pool, name)(samples.square, items()):
        seen.append(value)
        answers.put(value)
    assert seen == [4, 16, 256, 65536]


def test_several_threads_may_use_one_pool(pool):
    found = {}

    def use(n):
        found[n] = (pool.map(samples.square, range(n, n + 5)), pool.apply(samples.square, (n,)))

    threads = [threading.Thread(target=use, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: ([i * i for i in range(n, n + 5)], n * n) for n in range(6)}


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_an_imap_that_nobody_reads_is_carried_out(new_pool, tmp_path, name):
    pool = new_pool(2)
    notes = str(tmp_path / "notes")
    getattr(pool, name)(samples.note, ((notes, str(i)) for i in range(1_500)), 10)
    pool.close()
    pool.join()
    assert sorted(map(int, (tmp_path / "notes").read_text().split())) == list(range(1_500))


@pytest.mark.parametrize("name", ["map", "map_async", "starmap"])
def test_a_map_raises_what_its_items_raise(pool, name):
    def items():
        yield (1,)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        getattr(pool, name)(samples.identity, items())


def test_a_closed_pool_finishes_and_takes_no_more(new_pool):
    pool = new_pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    results = [pool.apply_async(samples.pause, (i, 0.05)) for i in range(4)]
    values = pool.imap(samples.square, range(4))
    pool.close()
    pool.close()
    for call in (
        lambda: pool.apply(samples.square, (1,)),
        lambda: pool.map(samples.square, [1]),
        lambda: pool.imap(samples.square, [1]),
        lambda: pool.starmap_async(samples.add, [(1, 1)]),
        pool.__enter__,
    ):
        with pytest.raises(ValueError, match="not running"):
            call()
    pool.join()
    assert [result.get(timeout=0) for result in results] == [0, 1, 2, 3]
    assert list(values) == [0, 1, 4, 9]


def test_leaving_the_context_terminates(new_pool):
    with new_pool(2) as pool:
        assert pool.map(samples.square, range(3)) == [0, 1, 4]
    with pytest.raises(ValueError, match="not running"):
        pool.map(samples.square, range(3))
    pool.terminate()
    pool.join()


@pytest.mark.parametrize("bad", [{"processes": 0}, {"processes": -1}, {"maxtasksperchild": 0}])
def test_numbers_that_cannot_work_are_refused(new_pool, bad):
    with pytest.raises(ValueError, match=r"at least 1|positive"):
        new_pool(**bad)


def test_an_initializer_that_cannot_be_called_is_refused(new_pool):
    with pytest.raises(TypeError, match="callable"):
        new_pool(1, initializer=7)


def test_the_initializer_has_run_where_calls_run(new_pool):
    pool = new_pool(2, initializer=functions.set_state, initargs=("ready",), maxtasksperchild=50)
    assert pool.map(functions.state_and, range(20)) == [(["ready"], i) for i in range(20)]
    assert list(pool.imap(functions.state_and, range(3))) == [(["ready"], i) for i in range(3)]
    assert pool.apply(functions.state_and, (1,)) == (["ready"], 1)


def test_a_pool_does_not_travel(pool):
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_imap_of_many(pool):
    values = pool.imap_unordered(samples.square, range(3_000), chunksize=50)
    assert sorted(values) == [i * i for i in range(3_000)]
    wait_until(lambda: list(itertools.islice(values, 1)) == [])
