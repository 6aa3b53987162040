"""D.4 and D.6: pauses, jitters, what is retried; time limits."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_patterns import (
    BodyTimeoutError,
    JitterStrategy,
    RequestTimeoutError,
    RetryConfig,
    batch_with_timeout,
    is_retryable,
    on_workers,
    request_with_timeouts,
    retry_with_backoff,
    retry_with_jitter,
    smart_retry,
)
from graft.compat.async_patterns.retry import delays
from graft.tasks.errors import PermanentError
from tests import samples


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, without their waiting."""
    made = []
    sleep = asyncio.sleep

    async def note(seconds, result=None):
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr("graft.compat.async_patterns.retry.asyncio.sleep", note)
    return made


class Failing:
    """Fails so often, then gives "value"."""

    def __init__(self, failures, text="timeout {}"):
        self.calls = 0
        self.failures = failures
        self.text = text

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.text.format(self.calls))
        return "value"

    async def later(self):
        return self()


def test_delays_double_up_to_thirty_seconds():
    assert list(itertools.islice(delays(0.5), 9)) == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert list(itertools.islice(delays(45), 3)) == [45, 30, 30]


def test_backoff_pauses_between_calls_and_not_after_the_last(pauses):
    operation = Failing(99)
    with pytest.raises(OSError, match="timeout 4"):
        run(retry_with_backoff(operation, 3, 0.5))
    assert operation.calls == 4
    assert [pause for pause in pauses if pause] == [0.5, 1, 2]


def test_the_chapters_line_can_be_had(pauses, capsys):
    run(retry_with_backoff(Failing(1), 3, 0.5, on_retry=print))
    assert "run 1 of 4 of" in capsys.readouterr().out
    seen = []
    run(retry_with_jitter(Failing(2), on_retry=seen.append))
    run(smart_retry(Failing(1), 1, on_retry=seen.append))
    assert [(failed.run, failed.runs) for failed in seen] == [(1, 4), (2, 4), (1, 2)]


def test_an_operation_may_be_plain_or_async(pauses):
    assert run(retry_with_backoff(Failing(2), 3, 0.5)) == "value"
    assert run(retry_with_backoff(Failing(2).later, 3, 0.5)) == "value"
    assert run(retry_with_jitter(Failing(2).later, RetryConfig())) == "value"
    assert run(smart_retry(Failing(2), 2)) == "value"
    with pytest.raises(OSError):
        run(retry_with_backoff(Failing(1), 0, 0.5))


def test_the_defaults_of_the_config():
    config = RetryConfig()
    assert (config.max_retries, config.initial_delay, config.max_delay, config.multiplier) == (3, 0.5, 30.0, 2.0)
    assert config.jitter_strategy is JitterStrategy.FULL


BOUNDS = {
    JitterStrategy.FULL: lambda d, i: (0, d),
    JitterStrategy.EQUAL: lambda d, i: (d / 2, d),
    JitterStrategy.DECORRELATED: lambda d, i: (i, min(3 * d, 30)),
}


@given(st.sampled_from(JitterStrategy), st.integers(1, 30), st.integers(1, 20_000))
def test_a_pause_lies_within_its_strategy_and_in_whole_milliseconds(strategy, failures, initial_ms):
    initial = initial_ms / 1000
    config = RetryConfig(initial_delay=initial, jitter_strategy=strategy)
    low, high = BOUNDS[strategy](config.base_delay(failures), initial)
    pause = config.pause(failures)
    assert low - 0.0006 <= pause <= high + 0.0006
    assert pause * 1000 == pytest.approx(round(pause * 1000))


def test_the_base_delay_grows_whatever_was_drawn(pauses):
    config = RetryConfig(max_retries=8, jitter_strategy=JitterStrategy.EQUAL)
    with pytest.raises(OSError):
        run(retry_with_jitter(Failing(99), config))
    made = [pause for pause in pauses if pause]
    for pause, base in zip(made, [0.5, 1, 2, 4, 8, 16, 30, 30], strict=True):
        assert base / 2 <= pause <= base


@pytest.mark.parametrize(
    ("text", "retryable"),
    [
        ("timeout", True),
        ("connection reset by peer", True),
        ("HTTP 503", True),
        ("HTTP 429", True),
        ("temporary failure", True),
        ("HTTP 404", False),
        ("HTTP 401", False),
        ("1400 items", False),
        ("invalid", False),
        ("Invalid", True),
        ("404 timeout", True),
        ("whatever", True),
    ],
)
def test_what_is_retryable(text, retryable):
    assert is_retryable(OSError(text)) is retryable
    assert is_retryable(text) is retryable


def test_smart_retry_raises_at_once_what_is_not_retryable(pauses):
    operation = Failing(99, "404")
    with pytest.raises(OSError, match="404"):
        run(smart_retry(operation, 5))
    assert operation.calls == 1
    operation = Failing(99, "503 {}")
    with pytest.raises(OSError, match="503 4"):
        run(smart_retry(operation, 3))
    assert [pause for pause in pauses if pause] == [0.1, 0.2, 0.4]
    operation = Failing(2, "404")
    assert run(smart_retry(operation, 5, is_retryable=lambda error: True)) == "value"


@pytest.mark.parametrize("wrong", [lambda: RetryConfig(-1), lambda: RetryConfig(initial_delay=-1)])
def test_figures_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match="negative"):
        wrong()
    with pytest.raises(ValueError, match="negative"):
        run(retry_with_backoff(Failing(0), -1, 0.5))
    with pytest.raises(TypeError, match="whole number"):
        run(retry_with_backoff(Failing(0), 1.5, 0.5))


def test_a_config_is_a_policy_for_tasks(stack, tmp_path):
    policy = RetryConfig(max_retries=2, initial_delay=0.01).policy()
    assert policy.runs == 3
    assert policy.wait_after(3, OSError()) is None
    assert policy.wait_after(1, PermanentError()) is None
    assert 0 <= policy.wait_after(1, OSError()) <= 0.01
    call = on_workers(samples.fail_until, retry=policy)
    assert run(call((str(tmp_path / "runs"), 3))) == 3


# ---- time limits -----------------------------------------------------------------------------------------------------


def test_an_error_or_a_timeout_is_an_entry_and_the_batch_goes_on():
    async def work(item):
        if item == 1:
            raise ValueError("one")
        await asyncio.sleep(60 if item == 2 else 0)
        return item

    entries = run(batch_with_timeout(range(4), work, 30, item_timeout=0.05, place="local"))
    assert [entries[0], entries[3]] == [0, 3]
    assert isinstance(entries[1], ValueError)
    assert isinstance(entries[2], TimeoutError)


def test_a_batch_that_runs_out_is_a_single_error_unless_partial():
    async def work(item):
        await asyncio.sleep(60 if item == 2 else 0)
        return item

    (only,) = run(batch_with_timeout(range(5), work, 0.1, place="local"))
    assert isinstance(only, TimeoutError)
    *finished, late = run(batch_with_timeout(range(5), work, 0.1, partial=True, place="local"))
    assert finished == [0, 1]
    assert isinstance(late, TimeoutError)
    with pytest.raises(ValueError, match="total_timeout"):
        run(batch_with_timeout([], work, 0))


def test_on_a_worker_the_limit_ends_a_plain_function(stack):
    entries = run(batch_with_timeout([0.0, 30.0, 0.01], samples.sleep, 60, item_timeout=0.3))
    assert [entries[0], entries[2]] == [0.0, 0.01]
    assert isinstance(entries[1], TimeoutError)


def test_a_request_and_its_body_have_limits_and_errors_of_their_own():
    async def main():
        async def slow(*_):
            await asyncio.sleep(60)

        async def quick(*_):
            return "answer"

        assert await request_with_timeouts(quick, lambda answer: answer.upper()) == "ANSWER"
        with pytest.raises(RequestTimeoutError):
            await request_with_timeouts(slow, quick, request_timeout=0.02)
        with pytest.raises(BodyTimeoutError):
            await request_with_timeouts(quick, slow, body_timeout=0.02)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="own"):
            await request_with_timeouts(lambda: _raise(TimeoutError("own")), quick)
        assert time.monotonic() - began < 60

    def _raise(error):
        raise error

    run(main())
