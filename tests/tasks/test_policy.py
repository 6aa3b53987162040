from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.errors import PermanentError
from graft.tasks.policy import ONCE, RetryPolicy, as_policy


@given(run=st.integers(1, 10_000), base=st.floats(0.001, 60), ceiling=st.floats(0.001, 3600))
def test_a_wait_stays_within_the_ceiling(run, base, ceiling):
    assert 0 <= RetryPolicy(10_001, base, ceiling).wait_after(run, OSError()) <= ceiling


@given(runs=st.integers(1, 50))
def test_an_item_runs_as_often_as_the_policy_says(runs):
    policy = RetryPolicy(runs)
    assert sum(policy.wait_after(run, OSError()) is not None for run in range(1, runs + 5)) == runs - 1


def test_some_errors_are_never_retried():
    policy = RetryPolicy(5)
    assert policy.wait_after(1, PermanentError()) is None
    assert policy.wait_after(1, KeyboardInterrupt()) is None


def test_callers_may_write_a_number_of_retries():
    assert as_policy(None) == ONCE
    assert as_policy(2) == RetryPolicy(runs=3)
    assert as_policy(RetryPolicy(7)) == RetryPolicy(7)


@pytest.mark.parametrize(("wrong", "error"), [(-1, ValueError), (True, TypeError), (1.5, TypeError), ("3", TypeError)])
def test_what_is_no_policy_is_refused(wrong, error):
    with pytest.raises(error, match="retry"):
        as_policy(wrong)


def test_a_policy_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="runs=0"):
        RetryPolicy(runs=0)
    with pytest.raises(ValueError, match="negative"):
        RetryPolicy(base=-1)
