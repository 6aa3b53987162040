"""The figure for scalers, and the rules that turn it into a size. Pure: the clock is an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.monitoring.worker_load import Load, Scaler, ScalingRules, load_of, loads
from graft.tasks.monitoring.worker_registry import WorkerBeat

RULES = ScalingRules(low=2, high=10, patience=2, idle=30)


def beat(name="cpu@a", queues=("batch", "default"), processes=4, busy=0, waiting=0):
    return WorkerBeat(name, 1, "prefork", list(queues), processes, busy, waiting, 0, 0.0)


def by_lane(*args):
    return {load.lane: load for load in loads(*args)}


def test_what_waits_what_was_fetched_and_what_runs_count_together():
    found = by_lane({"batch": 10, "default": 2, "io": 5}, [beat(busy=3, waiting=1)], 4)
    assert (found["cpu"].demand, found["cpu"].slots) == (16, 4)
    assert found["cpu"].per_slot == 4.0
    assert found["io"].demand == 5
    assert found["all"].demand == 21


def test_what_a_lost_worker_holds_is_still_demand():
    assert by_lane({}, [beat(busy=1)], 7)["all"].demand == 7


def test_without_any_worker_the_figure_still_calls_for_one():
    assert by_lane({"io": 3}, [], 0)["io"].per_slot == 3.0


def test_a_worker_is_sized_by_its_lane_and_one_that_reads_both_by_everything():
    found = by_lane({"batch": 8, "io": 4}, [beat()], 0)
    assert load_of(["batch", "low"], found).lane == "cpu"
    assert load_of(["io"], found).lane == "io"
    assert load_of(["io", "batch"], found).lane == "all"


def sizes(scaler: Scaler, size: int, looks: list[tuple[float, float]]) -> list[int]:
    found = []
    for now, per_slot in looks:
        scaler, decision = scaler.decide(size, per_slot, now)
        size = decision.size
        found.append(size)
    return found


def test_it_grows_and_shrinks_as_the_old_resource_pool_did():
    high = [(float(now), 9.0) for now in range(0, 12)]
    assert sizes(Scaler(RULES), 2, high)[2::3] == [4, 8, 10, 10]
    low = [(float(now), 0.0) for now in range(0, 120)]
    assert sizes(Scaler(RULES), 10, low)[30::31] == [5, 2, 2]


def test_a_short_peak_and_a_short_lull_change_nothing():
    assert sizes(Scaler(RULES), 4, [(0, 9), (1, 9), (1.5, 1), (2, 9), (3, 9)]) == [4] * 5
    assert sizes(Scaler(RULES), 4, [(0, 0), (29, 0), (29.5, 1), (30, 0), (59, 0)]) == [4] * 5


def test_between_the_bounds_nothing_moves():
    assert set(sizes(Scaler(RULES), 4, [(now, 1.0) for now in range(500)])) == {4}


def test_the_reason_has_the_numbers():
    scaler, _ = Scaler(RULES).decide(4, 3.25, 10.0)
    _, decision = scaler.decide(4, 3.25, 12.5)
    assert decision.reason == "4 -> 8: 3.25 messages per slot for 2 s, above 1.5"


@given(
    st.integers(1, 50), st.integers(0, 50), st.floats(1, 10),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), max_size=60),
)  # fmt: skip
def test_the_size_stays_within_its_bounds(low, more, factor, steps):
    scaler, size, now = Scaler(ScalingRules(low, low + more, factor)), low, 0.0
    for wait, per_slot in steps:
        now += wait
        scaler, decision = scaler.decide(size, per_slot, now)
        assert low <= decision.size <= low + more
        assert (decision.change == "stay") == (decision.size == size)
        size = decision.size


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [({"low": 0}, "low=0"), ({"low": 11}, "high=10"), ({"factor": 0.5}, "factor"), ({"quiet": 2}, "never rests")],
)
def test_rules_that_cannot_work_are_refused(given_, complaint):
    with pytest.raises(ValueError, match=complaint):
        ScalingRules(**{"low": 2, "high": 10, **given_})


def test_the_figure_as_json_is_complete():
    assert Load("cpu", 4, 1, 1, 2, 1).as_dict() == {
        "lane": "cpu", "waiting": 4, "fetched": 1, "running": 1, "slots": 2, "workers": 1, "demand": 6, "per_slot": 3.0,
    }  # fmt: skip
