"""The shared semaphore, its leases, and who renews them."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.primitive import DifferentLimitsError
from graft.tasks.shared.semaphore import SharedSemaphore
from tests.stack import wait_until

pytestmark = pytest.mark.usefixtures("redis_stack")


def fresh(limit, lease=30.0):
    return SharedSemaphore(str(uuid4()), limit, lease)


def test_permits_have_the_lowest_free_number_and_the_rest_stands_in_line():
    semaphore = fresh(2)
    assert [semaphore.acquire(ticket, 60).slot for ticket in "abc"] == [1, 2, 0]
    assert semaphore.acquire("d", 60).ahead == 2
    assert semaphore.available() == 0
    semaphore.release("a")
    assert semaphore.acquire("d", 60).slot == 0  # c was there before.
    assert semaphore.acquire("c", 60).slot == 1
    semaphore.release("b")
    assert semaphore.acquire("d", 60).slot == 2


def test_asking_again_gives_the_same_permit():
    semaphore = fresh(2)
    assert [semaphore.acquire("a", 60).slot for _ in range(3)] == [1, 1, 1]
    assert semaphore.available() == 1


def test_what_is_not_renewed_is_given_to_the_next():
    semaphore = fresh(1, lease=0.2)
    assert semaphore.acquire("a", 60).slot == 1
    assert semaphore.acquire("b", 60).slot == 0
    wait_until(lambda: semaphore.acquire("b", 60).slot == 1)
    assert not semaphore.renew("a")
    assert semaphore.renew("b")


def test_who_is_not_heard_of_loses_the_place_in_line():
    semaphore = fresh(1)
    semaphore.acquire("a", 60)
    semaphore.acquire("dead", 0.1)
    semaphore.acquire("c", 60)
    semaphore.release("a")
    wait_until(lambda: semaphore.acquire("c", 60).slot == 1)


def test_withdrawing_gives_up_a_place_and_no_permit():
    semaphore = fresh(1)
    semaphore.acquire("a", 60)
    semaphore.acquire("b", 60)
    semaphore.withdraw("a")
    semaphore.withdraw("b")
    assert semaphore.available() == 0
    semaphore.release("a")
    assert semaphore.acquire("c", 60).slot == 1


def test_a_holder_takes_back_what_redis_has_lost_and_nobody_comes_before_it(redis):
    semaphore = fresh(1)
    semaphore.acquire("a", 60)
    redis.delete(*semaphore.keys)
    assert semaphore.renew("a")
    assert semaphore.acquire("b", 60).slot == 0


def test_another_limit_is_refused_while_the_name_is_in_use(redis):
    semaphore = fresh(2)
    semaphore.acquire("a", 60)
    other = SharedSemaphore(semaphore.name, 3)
    with pytest.raises(DifferentLimitsError, match="another name"):
        other.acquire("b", 60)
    semaphore.release("a")
    with pytest.raises(DifferentLimitsError):
        other.acquire("b", 60)
    redis.hset(semaphore.keys[-1], "used", 0)  # A minute later.
    assert other.acquire("b", 60).slot == 1


def test_everything_in_redis_expires(redis):
    semaphore = fresh(1)
    semaphore.acquire("a", 60)
    semaphore.acquire("b", 60)
    assert all(redis.ttl(key) > 0 for key in semaphore.keys)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_text(name):
    with pytest.raises(ValueError, match="name"):
        SharedSemaphore(name, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from(["take", "leave"]), st.integers(0, 5)), max_size=25))
def test_never_more_than_the_limit_and_in_the_order_of_asking(limit, steps):
    semaphore = fresh(limit)
    held, line = {}, []
    for what, number in steps:
        ticket = str(number)
        if what == "leave":
            semaphore.release(ticket)
            held.pop(ticket, None)
            line = [other for other in line if other != ticket]
            continue
        slot = semaphore.acquire(ticket, 60).slot
        if ticket in held:
            assert slot == held[ticket]
            continue
        if ticket not in line:
            line.append(ticket)
        if line.index(ticket) < limit - len(held):
            assert slot == min(set(range(1, limit + 1)) - set(held.values()))
            held[ticket] = slot
            line.remove(ticket)
        else:
            assert slot == 0
    assert semaphore.available() == limit - len(held)


# ---- the keeper ------------------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_until_it_is_dropped():
    renewed = []
    lease_renewer().keep("t", lambda: renewed.append(1) or True, 0.01)
    wait_until(lambda: len(renewed) >= 3)
    assert lease_renewer().drop("t")
    count, later = len(renewed), []
    assert not lease_renewer().drop("t")
    lease_renewer().keep("other", lambda: later.append(1) or True, 0.01)
    wait_until(lambda: len(later) >= 3)
    lease_renewer().drop("other")
    assert len(renewed) == count


def test_a_renewal_that_fails_is_tried_again_and_one_that_is_refused_ends(caplog):
    answers = [OSError("away"), True, False]

    def renew():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lease_renewer().keep("u", renew, 0.01)
    wait_until(lambda: not answers)
    wait_until(lambda: "somebody else has it" in caplog.text)
    assert "away" in caplog.text
    assert not lease_renewer().drop("u")


def test_a_permit_is_not_renewed_after_it_was_given_back():
    entered, go_on = threading.Event(), threading.Event()

    def renew():
        entered.set()
        go_on.wait(10)
        return True

    lease_renewer().keep("v", renew, 0.01)
    entered.wait(10)
    dropping = threading.Thread(target=lease_renewer().drop, args=("v",))
    dropping.start()
    dropping.join(0.1)
    assert dropping.is_alive()
    go_on.set()
    dropping.join(10)
    assert not dropping.is_alive()
