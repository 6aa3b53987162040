"""Percentiles from counts are close to those of the durations themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.monitoring.durations import Durations, bucket, packed, percentile


@given(times=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), percent=st.sampled_from([50, 95, 99]))
def test_a_percentile_is_within_five_percent_of_what_was_measured(times, percent):
    found = Durations()
    for seconds in times:
        found.add(seconds)
    exact = sorted(times)[max(0, math.ceil(percent / 100 * len(times)) - 1)]
    assert found.percentile(percent) == pytest.approx(exact, rel=0.05)


def test_nothing_has_no_percentile_and_what_is_too_short_is_counted():
    assert percentile({}, 50) == 0.0
    assert bucket(0.0) == bucket(-1.0) == 0
    assert packed([]) == ""
    assert packed([1e-6, 1e-6, 2e-6]) == "0:2 8:1"
