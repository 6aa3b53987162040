"""A.10, A.11, A.12: MemoryOptimizer, the compact forms, MemoryPool."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest

import graft.compat.async_worker_optimization as mirror
from graft.compat.async_worker_optimization import MemoryOptimizer, MemoryPool, _RepeatedString, _SparseList, memory


@pytest.fixture
def detecting():
    optimizer = MemoryOptimizer()
    optimizer.start_leak_detection()
    return optimizer


def test_an_analysis_measures_values_shallowly():
    data = {"a": [1, 2], "b": "text", 3: {"deep": [0] * 1000}}
    analysis = MemoryOptimizer().analyze_memory_usage(data)
    assert list(analysis) == ["total_size", "breakdown", "optimization_suggestions"]
    assert analysis["breakdown"] == {key: sys.getsizeof(value) for key, value in data.items()}
    assert analysis["total_size"] == sum(analysis["breakdown"].values())
    assert analysis["optimization_suggestions"] == []


@pytest.mark.parametrize(
    ("value", "suggestions"),
    [
        ([0] * 10_000, []),
        ([0] * 10_001, ["Consider using generator for 'key'"]),
        ((0,) * 10_001, []),
        ("x" * 1_000_000, []),
        ("x" * 1_000_001, ["Consider streaming or chunking for 'key'"]),
        (b"x" * 1_000_001, []),
    ],
)
def test_suggestions_begin_beyond_their_limits(value, suggestions):
    assert MemoryOptimizer().analyze_memory_usage({"key": value})["optimization_suggestions"] == suggestions


def test_data_without_items_is_refused():
    with pytest.raises(AttributeError):
        MemoryOptimizer().analyze_memory_usage([1])


@pytest.mark.parametrize(
    ("key", "value", "form"),
    [
        ("duplicated_strings", ["a"] * 50, _RepeatedString),
        ("duplicated_strings", ["a"], _RepeatedString),
        ("duplicated_strings", ["a", "b"], list),
        ("duplicated_strings", [], list),
        ("duplicated_strings", ("a", "a"), tuple),
        ("other", ["a"] * 50, list),
        ("sparse_list", [None] * 51 + [1] * 49, _SparseList),
        ("sparse_list", [None, 1], list),
        ("sparse_list", [None, None, 1], _SparseList),
        ("sparse_list", [0, False, ""], list),
        ("sparse_list", [], list),
        ("sparse_list", "none", str),
    ],
)
def test_only_two_keys_are_compacted(key, value, form):
    optimized = MemoryOptimizer().optimize_data_structures({key: value})["optimized_data"][key]
    assert type(optimized) is form
    assert list(optimized) == list(value)
    assert optimized is value or form in (_RepeatedString, _SparseList)


def test_optimizing_keeps_keys_and_counts_what_was_saved():
    data = {"z": object(), "sparse_list": [None] * 1000, "a": [1], "duplicated_strings": ["x"] * 1000}
    answer = MemoryOptimizer().optimize_data_structures(data)
    optimized = answer["optimized_data"]
    assert list(answer) == ["optimized_data", "memory_saved"]
    assert list(optimized) == list(data)
    assert optimized["z"] is data["z"]
    assert optimized["a"] is data["a"]
    assert answer["memory_saved"] == sum(
        sys.getsizeof(data[key]) - sys.getsizeof(optimized[key]) for key in ("sparse_list", "duplicated_strings")
    )
    assert MemoryOptimizer().optimize_data_structures({"a": [1]})["memory_saved"] == 0


def test_elements_that_cannot_be_hashed_are_refused():
    with pytest.raises(TypeError):
        MemoryOptimizer().optimize_data_structures({"duplicated_strings": [[], []]})


@pytest.mark.parametrize(
    ("compact", "entries"),
    [
        (_RepeatedString("ab", 3), ["ab", "ab", "ab"]),
        (_SparseList(4, {1: "x", 3: 0}), [None, "x", None, 0]),
    ],
)
def test_a_compact_form_reads_like_its_list_from_the_front(compact, entries):
    assert len(compact) == len(entries)
    assert [compact[index] for index in range(len(entries))] == list(compact) == list(iter(compact)) == entries
    assert compact != entries
    for index in (len(entries), -1, -len(entries)):
        with pytest.raises(IndexError):
            compact[index]
    with pytest.raises(TypeError):
        compact[0:1]


def test_compact_forms_show_what_they_hold():
    repeated, sparse = _RepeatedString("a", 2), _SparseList(3, {0: 1})
    assert (repeated.string, repeated.count) == ("a", 2)
    assert (sparse.size, sparse.data) == (3, {0: 1})


def test_a_memory_pool_hands_out_zeroed_bytes_whatever_its_size():
    pool = MemoryOptimizer().setup_memory_pool(10)
    assert type(pool) is MemoryPool
    assert pool.size == 10
    assert pool.allocate(64) == bytearray(64)
    assert pool.allocate(0) is not None
    assert pool.allocate(8) is not pool.allocate(8)
    with pytest.raises(ValueError):
        pool.allocate(-1)


def test_nothing_leaks_before_detection_is_armed():
    leak_storage = [1]
    assert MemoryOptimizer().detect_memory_leaks() == []
    assert leak_storage


def test_an_idle_program_leaks_nothing(detecting):
    assert detecting.start_leak_detection() is None
    assert detecting.detect_memory_leaks() == []


@pytest.mark.parametrize(("count", "severity"), [(1, "medium"), (100, "medium"), (101, "high")])
def test_a_callers_leak_storage_is_found(detecting, count, severity):
    leak_storage = [0] * count
    expected = {
        "location": "leak_storage", "type": "global_accumulation", "size": sys.getsizeof(leak_storage),
        "severity": severity,
    }  # fmt: skip
    assert detecting.detect_memory_leaks() == [expected]
    assert detecting.detect_leaks() == [expected]


def test_storages_come_innermost_first_and_the_modules_own_last(detecting, monkeypatch):
    def inner():
        leak_storage = [0] * 101
        return detecting.detect_memory_leaks(), leak_storage

    leak_storage = [0]
    monkeypatch.setattr(mirror, "leak_storage", [0, 0], raising=False)
    found, storage = inner()
    assert [leak["size"] for leak in found] == [
        sys.getsizeof(storage), sys.getsizeof(leak_storage), sys.getsizeof(mirror.leak_storage),
    ]  # fmt: skip
    assert [leak["severity"] for leak in found] == ["high", "medium", "medium"]


@pytest.mark.parametrize("storage", [[], (1, 2), "text", {1: 2}])
def test_only_lists_with_something_in_them_count(detecting, storage):
    leak_storage = storage
    assert detecting.detect_memory_leaks() == []
    assert leak_storage is storage


def test_observed_growth_is_reported_under_types_of_its_own(monkeypatch):
    tracemalloc.start()
    try:
        optimizer = MemoryOptimizer()
        optimizer.start_leak_detection()
        monkeypatch.setattr(memory, "OBJECT_GROWTH", 1000)
        monkeypatch.setattr(memory, "TRACED_GROWTH", 100_000)
        grown = [[] for _ in range(5000)]
        found = {leak["type"]: leak for leak in optimizer.detect_memory_leaks()}
        assert found.keys() == {"object_growth", "traced_memory_growth"}
        assert found["object_growth"]["size"] >= len(grown)
        assert found["object_growth"]["severity"] == "high"
        del grown
        assert optimizer.detect_memory_leaks() == []
    finally:
        tracemalloc.stop()


class Session:
    pass


def test_what_should_have_gone_and_lives_is_reported_until_it_goes(detecting):
    held, gone, circle = Session(), Session(), Session()
    circle.itself = circle
    for value in (held, gone, circle):
        detecting.expect_release(value)
    detecting.expect_release(held, "the held one")
    del gone, circle, value
    expected = {"type": "still_referenced", "size": sys.getsizeof(held), "severity": "medium"}
    assert detecting.detect_memory_leaks() == [
        {"location": "Session", **expected},
        {"location": "the held one", **expected},
    ]
    del held
    assert detecting.detect_memory_leaks() == []


@pytest.mark.parametrize("value", [[1], {}, "text", (1,), 7])
def test_what_cannot_be_weakly_referenced_is_refused_by_name(value):
    with pytest.raises(TypeError, match=f"a {type(value).__name__} cannot be weakly referenced; pass the object"):
        MemoryOptimizer().expect_release(value)


def test_garbage_is_no_leak(monkeypatch, detecting):
    monkeypatch.setattr(memory, "OBJECT_GROWTH", 2000)
    gc.disable()
    try:
        for _ in range(4000):
            circle = []
            circle.append(circle)
        assert detecting.detect_memory_leaks() == []
    finally:
        gc.enable()


def test_profiling_memory_is_the_analysis_or_the_process():
    optimizer = MemoryOptimizer()
    assert optimizer.profile_memory({"a": 1}) == optimizer.analyze_memory_usage({"a": 1})
    whole = optimizer.profile_memory()
    assert list(whole) == ["total_size", "breakdown", "optimization_suggestions"]
    assert whole["total_size"] == sum(whole["breakdown"].values()) > 1_000_000


def test_growth_of_a_workers_memory_is_reported_by_its_name(stack, monkeypatch):
    """A worker keeps 64 MiB; the limit is lowered for the test, the figures are the worker's own."""
    import graft
    from graft.compat import worker_admin
    from graft.compat.async_worker_optimization import memory
    from tests import samples
    from tests.stack import wait_until

    monkeypatch.setattr(memory, "WORKER_GROWTH", 40 << 20)
    wait_until(worker_admin.worker_memory, what="a heartbeat")
    optimizer = memory.MemoryOptimizer()
    optimizer.start_leak_detection()
    graft.submit(samples.keep_memory, [64 << 20]).collect(30)
    wait_until(optimizer.detect_memory_leaks, what="the growth to be seen")
    (found,) = optimizer.detect_memory_leaks()
    assert found["type"] == "worker_memory_growth"
    assert found["location"] in worker_admin.worker_memory()
    assert found["size"] > 40 << 20
