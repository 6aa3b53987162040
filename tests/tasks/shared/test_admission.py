"""What happens at the edges of an admission: other limits elsewhere, nobody left to hold what was given."""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid4

import pytest

from graft import BreakerRules, PermanentError, limit
from graft.tasks.errors import CancelledBatchError
from graft.tasks.shared import admission
from graft.tasks.shared.admission import DISPUTE
from graft.tasks.shared.circuit_breaker import SharedBreaker
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.shared.turns import turns_of


def limited(**options):
    @limit(name=str(uuid4()), **options)
    def call(x=0):
        return x

    return call


def turns(func, ticket):
    return turns_of(func).turns((), {}, ticket)


def name(func):
    return func.__graft_limits__[0].name


def test_workers_of_another_release_with_another_limit_are_waited_for(redis_stack, caplog):
    func = limited(rate="2/minute")
    theirs = limit(rate="3/minute", name="theirs")(lambda: 1)
    older = turns_of(theirs).turns((), {}, "older")
    older = [type(turn)(type(turn.primitive)(name(func), turn.primitive.rate), turn.ticket) for turn in older]
    assert admission.enter(older) is None
    refusal = admission.enter(turns(func, "mine"))
    assert refusal.wait == DISPUTE
    assert "in use with 3/minute, and this process asks for 2/minute" in caplog.text


def test_who_is_refused_by_one_limit_holds_none_of_the_others(redis_stack):
    func = limited(rate="1/hour", semaphore=1)
    semaphore = SharedSemaphore(name(func), 1)
    first = turns(func, "first")
    assert admission.enter(first) is None
    assert semaphore.available() == 0
    admission.leave(first, None)
    refusal = admission.enter(turns(func, "second"))
    assert str(refusal.turn) == f"the rate {name(func)!r}"
    assert semaphore.available() == 1


def test_a_permit_that_comes_for_a_coroutine_that_was_cancelled_is_given_back(redis_stack):
    func = limited(semaphore=1)

    async def main():
        asking = asyncio.ensure_future(admission.enter_on_loop(turns(func, "gone")))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        for _ in range(100):
            await asyncio.sleep(0.05)
            refusal = await admission.enter_on_loop(turns(func, "next"))
            if refusal is None:
                return
        raise AssertionError("the permit is still out")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "failures"),
    [(ValueError("x"), 1), (PermanentError("bad input"), 0), (CancelledBatchError("x"), 0), (None, 0)],
)
def test_a_breaker_counts_errors_but_those_that_say_nothing_of_the_service(redis_stack, error, failures):
    func = limited(breaker=3)
    held = turns(func, "one")
    assert admission.enter(held) is None
    admission.leave(held, error)
    assert SharedBreaker(name(func), BreakerRules(3, 1, 30.0, 1)).circuit().failures == failures


def test_a_hook_that_fails_is_logged_and_harms_nobody(redis_stack, caplog):
    def hook(event):
        raise RuntimeError("the pager is down")

    func = limited(breaker=1, on_event=hook)
    held = turns(func, "one")
    assert admission.enter(held) is None
    with caplog.at_level(logging.WARNING):
        admission.leave(held, OSError("no"))
    assert "has opened after OSError('no')" in caplog.text
    assert "the pager is down" in caplog.text
