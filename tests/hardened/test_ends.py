"""What follows from a run is sent once, wherever the process of that run dies."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.stack import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

WAIT = 60.0
SENT = """
from celery import chain, chord
def steps(point):
    return chain(step.s(0, name=point, dies=point), *[step.s(name=point, dies=point) for _ in range(3)])
sent = [steps("before_store"), steps("after_store")]
sent.append(step.si(0, name="linking", dies="before_store").set(link=[
    step.s(name="link one"), step.s(name="link two"), chain(step.s(name="link three"), step.s(name="link three")),
]))
sent.append(chain(
    step.s(0, name="first", dies="before_store"),
    chord([step.s(name="part", dies="before_store"), step.s(name="part")],
          total.s(name="body", dies="before_store")),
    step.s(name="behind", dies="before_store"),
))
sent.append(chain(twice.si("retry", dies="after_retry"), step.s(name="after the retry")))
sent.append(chain(become.si("replace", dies="after_replace"), step.s(name="after the replacement")))
results = [each.delay() for each in sent]
for _ in range(2):  # On purpose: a task that is sent twice goes on twice.
    step.s(0, name="again").apply_async(task_id="again", link=write.si("after again"))
step.s(0, name="ignored", dies="before_store").apply_async(ignore_result=True, link=write.si("after ignored"))
break_down.s("error", dies="after_errbacks").on_error(write.si("error is told")).delay()
"""
COLLECTED = "\nprint([result.get(timeout=60) for result in results])"
ONCE = {
    "linking 0": 2, "link one 1": 1, "link two 1": 1, "link three 1": 1, "link three 2": 1,
    "first 0": 2, "part 1": 3, "body of 2": 2, "behind 4": 2,
    "retry 0": 2, "retry 1": 1, "after the retry 0": 1,
    "replace before": 2, "replace after 0": 1, "after the replacement 1": 1,
    "error breaks": 2, "error is told": 1,
    "again 0": 2, "after again": 2, "ignored 0": 1, "after ignored": 1,
    **{f"before_store {number}": 2 for number in range(4)},
    **{f"after_store {number}": 1 for number in range(4)},
}  # fmt: skip


def is_over(shop) -> bool:
    with shop.redis() as client:
        return not client.exists("celery", "graft:unacked", "unacked")


def test_a_run_that_dies_runs_again_and_whatever_follows_from_it_once(shop):
    shop.worker(SHOP_FAILPOINTS="1", GRAFT_POOL="prefork")
    assert shop.run(SENT + COLLECTED) == "[4, 4, 1, 5, 1, 2]"
    wait_until(lambda: shop.lines()["error is told"] and is_over(shop), WAIT, "everything to be done")
    assert shop.lines() == ONCE


def test_the_same_where_results_go_to_another_server(shop):
    """A result is stored before its message is settled there: who dies in between runs again."""
    elsewhere = {"SHOP_RESULTS": shop.url.rpartition("/")[0] + "/1"}
    shop.worker(SHOP_FAILPOINTS="1", **elsewhere)
    assert shop.run(SENT + COLLECTED, **elsewhere) == "[4, 4, 1, 5, 1, 2]"
    wait_until(lambda: shop.lines()["error is told"] and is_over(shop), WAIT, "everything to be done")
    again = {f"after_store {number}": 2 for number in range(3)}  # Nothing follows from the last one.
    assert shop.lines() == {**ONCE, **again}


def test_the_same_in_the_pool_direct(shop):
    """A result is stored with the next round trip there: who dies before runs again."""
    shop.worker(pool="direct", SHOP_FAILPOINTS="1")
    assert shop.run(SENT + COLLECTED) == "[4, 4, 1, 5, 1, 2]"
    wait_until(lambda: shop.lines()["error is told"] and is_over(shop), WAIT, "everything to be done")
    assert shop.lines() == {**ONCE, **{f"after_store {number}": 2 for number in range(4)}}


def test_negative_control_in_stock_celery_a_chain_goes_on_twice_from_each_death(shop):
    shop.worker(stock=True, SHOP_FAILPOINTS="1", SHOP_LATE="1")
    shop.run(SENT, stock=True)

    def is_doubled() -> bool:
        found: Counter[str] = shop.lines()
        return found["before_store 3"] >= 4 and found["link one 1"] == found["after the retry 0"] == 2

    wait_until(is_doubled, WAIT, "each death to have doubled what follows")
