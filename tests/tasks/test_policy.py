from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.errors import ItemTimeoutError, PermanentError
from graft.tasks.policy import ONCE, ExactWaits, FailedRun, RetryPolicy, as_policy


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
    with pytest.raises(ValueError, match="base=-1 s must not be negative"):
        RetryPolicy(base=-1)
    with pytest.raises(ValueError, match="jitter='some' must be one of none, full, equal, decorrelated"):
        RetryPolicy(jitter="some")
    with pytest.raises(TypeError, match="runs='3' must be a whole number"):
        RetryPolicy(runs="3")
    with pytest.raises(TypeError, match="on='OSError' must be a class of errors"):
        RetryPolicy(on="OSError")
    with pytest.raises(TypeError, match="on_retry=3 is not callable"):
        RetryPolicy(on_retry=3)


class ConnectError(Exception):
    """As a library has it."""


ConnectError.__name__ = "TransportError"
TRANSIENT = [ConnectionResetError(), TimeoutError(), OSError(), ItemTimeoutError("late"), ConnectError()]
MISTAKES = [TypeError(), ValueError(), KeyError(), AssertionError(), Exception()]


@pytest.mark.parametrize("error", [*TRANSIENT, *MISTAKES], ids=repr)
def test_by_default_an_outage_is_retried_and_a_mistake_is_not(error):
    assert RetryPolicy().retries(error) is (error in TRANSIENT)
    assert (as_policy(3).wait_after(1, error) is not None) is (error in TRANSIENT)
    assert RetryPolicy(on=Exception).retries(error)
    assert not RetryPolicy(on=Exception, give_up_on=(type(error),)).retries(error)


def test_the_errors_that_are_retried_can_be_named():
    policy = RetryPolicy(on=(LookupError, OSError), give_up_on=FileNotFoundError)
    assert policy.retries(KeyError())
    assert policy.retries(OSError())
    assert not policy.retries(FileNotFoundError())
    assert not policy.retries(ValueError())
    assert hash(policy) == hash(RetryPolicy(on=[LookupError, OSError], give_up_on=[FileNotFoundError]))


@given(run=st.integers(1, 200), base=st.floats(0.01, 10), factor=st.floats(0, 10), ceiling=st.floats(0.01, 100))
def test_each_jitter_draws_from_its_own_range(run, base, factor, ceiling):
    longest = min(ceiling, base * factor ** (run - 1)) if factor**300 < 1e300 else None

    def wait(jitter):
        return RetryPolicy(1000, base, ceiling, factor, jitter=jitter).wait_after(run, OSError())

    drawn = {jitter: wait(jitter) for jitter in ("none", "full", "equal", "decorrelated")}
    assert all(0 <= each <= ceiling for each in drawn.values())
    if longest is not None:
        assert drawn["none"] == pytest.approx(longest)
        assert 0 <= drawn["full"] <= longest
        assert longest / 2 - 1e-9 <= drawn["equal"] <= longest
        assert min(base, ceiling) <= drawn["decorrelated"] <= min(ceiling, max(3 * longest, base))


def test_waits_can_be_fixed():
    policy = RetryPolicy(runs=6, waits=[1, 5, 30])
    assert [policy.wait_after(run, OSError()) for run in range(1, 7)] == [1, 5, 30, 30, 30, None]
    assert 2.5 <= RetryPolicy(waits=(5,), jitter="equal").wait_after(1, OSError()) <= 5
    assert [ExactWaits(4, 60, factor=2).wait_after(run, OSError()) for run in (1, 2, 3, 4)] == [60, 120, 240, None]


def test_no_run_begins_after_the_seconds_that_a_policy_has():
    policy = RetryPolicy(runs=9, waits=(4,), max_seconds=10)
    assert policy.next_wait(1, OSError(), elapsed=6) == 4
    assert policy.next_wait(1, OSError(), elapsed=6.1) is None
    assert RetryPolicy(runs=9, waits=(4,)).next_wait(1, OSError(), elapsed=1e6) == 4


def test_each_retry_is_logged_and_a_hook_that_fails_harms_nothing(caplog):
    seen = []
    failed = FailedRun("shop:price", 1, 4, ConnectionError("no route"), 0.25, "id", 7)
    RetryPolicy(on_retry=seen.append).note(failed)
    assert seen == [failed]
    line = "run 1 of 4 of item 7 of shop:price failed: ConnectionError('no route'). It runs again in 0.25 s"
    assert line in caplog.text
    RetryPolicy(on_retry=lambda _: 1 / 0).note(failed)
    assert "on_retry of a RetryPolicy failed" in caplog.text
