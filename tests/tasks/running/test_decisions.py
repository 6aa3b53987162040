"""What a run begins, and what follows from it, is decided without Redis or Celery."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.delivery.cancellation import Cancelled
from graft.tasks.delivery.run_counter import Delivery
from graft.tasks.envelope import Envelope, WireFunction
from graft.tasks.errors import CancelledBatchError, NotYet, PermanentError
from graft.tasks.policy import RetryPolicy
from graft.tasks.running.envelope_run import RunPlan
from graft.tasks.running.run_outcomes import AfterRun, RunOutcomes

ERRORS = st.sampled_from([ValueError("no"), PermanentError("never"), CancelledBatchError("cancelled")])
POSITIONS = range(100, 120)


def envelope() -> Envelope:
    function = WireFunction("import", "tests.samples:square", b"", False)
    return Envelope("id", "batch", function, POSITIONS, list(POSITIONS), packed=False)


@given(
    errors=st.dictionaries(st.integers(0, 19), ERRORS),
    left=st.lists(st.integers(20, 39), unique=True),
    runs=st.integers(1, 5),
    run=st.integers(1, 6),
)
def test_an_item_that_failed_runs_again_or_is_buried_or_was_cancelled(errors, left, runs, run):
    after = AfterRun.decide(RunOutcomes(errors=errors, left=left), RetryPolicy(runs), lambda index: run)
    cancelled = {index for index, error in errors.items() if isinstance(error, CancelledBatchError)}
    assert set(after.again) == {*after.waits, *left}
    assert not cancelled & {*after.again, *after.exhausted}
    assert (after.failed, after.retried) == (len(errors), len(after.waits))
    if run >= runs:
        assert not after.waits
    # One letter for all that the policy gave up, by the run after which nothing is left to run; others by cause.
    ended = errors.keys() - cancelled - after.waits.keys()
    is_last = runs > 1 and not after.again
    assert (set(after.exhausted), set(after.unkept)) == ((ended, set()) if is_last else (set(), ended))


def test_waiting_for_a_turn_is_no_failure():
    after = AfterRun.decide(RunOutcomes(errors={3: NotYet(2.0), 4: NotYet(1.0)}), RetryPolicy(1), lambda index: 1)
    assert (after.waits, after.again, after.failed, after.retried) == ({3: 2.0, 4: 1.0}, (3, 4), 0, 0)
    assert (after.postponed, after.countdown) == ((3, 4), 1.0)


def test_an_item_has_runs_of_its_own_and_a_retry_waits_as_long_as_its_policy_says():
    outcomes = RunOutcomes(errors={0: OSError(), 1: OSError(), 2: NotYet(0.5)})
    policy = RetryPolicy(3, waits=(5.0, 7.0))
    after = AfterRun.decide(outcomes, policy, {0: 3, 1: 2}.__getitem__)
    assert (after.waits, after.again, after.failed, after.retried) == ({1: 7.0, 2: 0.5}, (1, 2), 2, 1)
    assert after.countdown == 7.0
    assert after.unkept == (0,)


@given(known=st.sets(st.sampled_from(POSITIONS)), starts=st.dictionaries(st.sampled_from(POSITIONS), st.integers(1, 4)))
def test_a_run_begins_what_has_no_outcome_and_has_not_used_up_its_runs(known: Any, starts: Any):
    first = RunPlan.decide(envelope(), Delivery(1), known, run_limit=3)
    assert [POSITIONS[index] for index in first.begin] == [position for position in POSITIONS if position not in known]
    assert not first.poisoned
    assert not first.is_recorded
    later = RunPlan.decide(envelope(), Delivery(3, starts=starts), known, run_limit=3)
    assert sorted([*later.begin, *later.poisoned]) == sorted(first.begin)
    assert {POSITIONS[index] for index in later.poisoned} == {at for at in starts if starts[at] >= 3} - known
    assert later.is_recorded


@given(known=st.sets(st.sampled_from(POSITIONS)), unwanted=st.sets(st.sampled_from(POSITIONS)), whole=st.booleans())
def test_a_cancelled_item_neither_begins_nor_counts_as_a_killer(known: Any, unwanted: Any, whole: bool):
    starts = dict.fromkeys(POSITIONS, 9)
    delivery = Delivery(3, Cancelled(whole, positions=frozenset(unwanted)), starts)
    plan = RunPlan.decide(envelope(), delivery, known, run_limit=3)
    left = set(POSITIONS) - known
    assert {POSITIONS[index] for index in plan.cancelled} == (left if whole else left & unwanted)
    assert {POSITIONS[index] for index in plan.poisoned} == (set() if whole else left - unwanted)
