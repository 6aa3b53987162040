"""The checkers find what a history shows to be wrong, and let pass whatever can have happened."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.scripts.drill import checkers, history
from graft.scripts.drill.history import Operation
from graft.tasks.ids import new_id
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore


def op(kind, began, ended, value=None, on="thing", actor="1"):
    return Operation(actor, kind, on, began, ended, value)


def held(ticket, acquired, released, until=None):
    return [op("acquire", *acquired, ticket), op("release", released, until or released + 1, ticket)]


# ---- semaphores -----------------------------------------------------------------------------------------------------


def test_two_permits_that_may_not_have_overlapped_pass():
    assert not checkers.semaphore([*held("a", (0, 1), 5), *held("b", (4, 6), 8)], limit=1, lease=60)


def test_two_permits_of_one_that_certainly_overlap_are_found():
    (flaw,) = checkers.semaphore([*held("a", (0, 1), 5), *held("b", (2, 3), 8)], limit=1, lease=60)
    assert flaw == "2 of 1 permits were out at 3.000: a, b"
    assert not checkers.semaphore([*held("a", (0, 1), 5), *held("b", (2, 3), 8)], limit=2, lease=60)


def test_the_permit_of_a_dead_holder_is_out_until_its_lease_has_ended():
    dead = op("acquire", 0, 1, "dead")
    assert checkers.semaphore([dead, *held("b", (8, 9), 12)], limit=1, lease=10)
    assert not checkers.semaphore([dead, *held("b", (9, 11), 12)], limit=1, lease=10)
    assert checkers.semaphore([dead, op("renew", 5, 6, "dead"), *held("b", (9, 11), 12)], limit=1, lease=10)


def test_an_acquisition_that_did_not_return_or_failed_took_nothing_for_certain():
    assert not checkers.semaphore(
        [op("acquire", 0, None, "a"), op("acquire", 0, 1, None), *held("b", (2, 3), 4)], limit=1, lease=60
    )


def can_be_explained(intervals, limit):
    """Whether some choice of instants keeps the limit: every one is tried."""
    choices = [
        [(at + 0.5 * late, end) for at in range(a, b + 1) for late in (0, 1) for end in range(c, d + 1)]
        for a, b, c, d in intervals
    ]  # fmt: skip
    for chosen in itertools.product(*choices):
        spans = [(begin, end) for begin, end in chosen if begin < end]
        if all(sum(begin <= at < end for begin, end in spans) <= limit for at, _ in spans):
            return True
    return False


@given(intervals=st.lists(st.tuples(*[st.integers(0, 5)] * 4).map(sorted), min_size=1, max_size=3))
def test_the_checker_of_semaphores_decides_as_trying_every_choice_does(intervals):
    operations = [one for n, (a, b, c, d) in enumerate(intervals) for one in held(str(n), (a, b), c, d)]
    assert bool(checkers.semaphore(operations, 1, lease=1000)) == (not can_be_explained(intervals, 1))


# ---- bounds ---------------------------------------------------------------------------------------------------------


def run_of(name, began, ended):
    return op("run", began, ended, name, on=name)


def test_no_more_run_at_once_than_may():
    one_after_the_other = [run_of("a", 0, 2), run_of("b", 2, 4)]
    assert not checkers.bound([*one_after_the_other, run_of("c", 1, 3)], 2)
    assert not checkers.bound([*one_after_the_other, run_of("died", 0, None)], 1)
    (flaw,) = checkers.bound([*one_after_the_other, run_of("c", 1, 3)], 1)
    assert flaw == "2 ran at once at 1.000, and 1 may: a, c"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=12))
def test_a_bound_is_found_broken_where_counting_at_every_moment_finds_it(spans):
    runs = [run_of(f"r{number}", began, began + lasts) for number, (began, lasts) in enumerate(spans)]
    most = max((sum(one.began <= at < one.ended for one in runs) for at in range(30)), default=0)
    for limit in range(1, len(runs) + 2):
        assert bool(checkers.bound(runs, limit)) == (most > limit)


# ---- rate limits ----------------------------------------------------------------------------------------------------


def test_a_burst_and_one_each_period_pass():
    passes = [op("pass", at, at) for at in (0, 0, 0, 1, 2, 3)]
    assert not checkers.rate(passes, period=1.0, burst=3)
    assert not checkers.rate([op("pass", at, at) for at in (0, 60)], period=1.0, burst=3)


def test_one_more_than_the_limit_lets_pass_is_found():
    passes = [op("pass", at, at) for at in (0, 0, 0, 0.2, 1, 2)]
    assert checkers.rate(passes, period=1.0, burst=3)
    assert not checkers.rate([op("pass", 0, 0)] * 3 + [op("pass", 0.2, 1.5)], period=1.0, burst=3)


# ---- answers and order ----------------------------------------------------------------------------------------------


def call(name="c", sent=(0, 1), runs=((2, 3, "v"),), answers=((4, 4, "v"),)):
    return [
        op("send", *sent, name, on=name),
        *(op("run", *run, on=name) for run in runs),
        *(op("answer", *answer, on=name) for answer in answers),
    ]


def test_a_call_that_is_answered_once_with_what_it_returned_passes():
    assert not checkers.answers(call())
    assert not checkers.answers(call(runs=((2, None, None), (3, 4, "v"))))  # The first died.
    assert not checkers.answers(call(runs=(), answers=((9, 9, None),)))  # It was lost, and said to be.
    assert not checkers.answers(call(sent=(0, None), runs=(), answers=()))  # It was never accepted.


@pytest.mark.parametrize(
    ("planted", "flaw"),
    [
        (call(answers=()), "c was accepted and never answered"),
        (call(answers=((4, 4, "v"), (5, 5, "v"))), "c was answered 2 times"),
        (call(answers=((4, 4, "w"),)), "c was answered 'w', which no run had returned"),
        (call(answers=((1.5, 1.5, "v"),)), "c was answered 'v', which no run had returned"),
        (call(sent=(2.5, 2.6)), "c ran before it was sent"),
    ],
)
def test_a_planted_mistake_in_answers_is_found(planted, flaw):
    assert flaw in checkers.answers(planted)


def test_what_was_certainly_sent_before_is_not_certainly_taken_after():
    sent = [op("send", 0, 1, "a"), op("send", 2, 3, "b")]
    assert not checkers.order([*sent, op("take", 4, 5, "a"), op("take", 6, 7, "b")])
    assert not checkers.order([*sent, op("take", 4, 6, "a"), op("take", 5, 7, "b")])  # Nobody knows.
    (flaw,) = checkers.order([*sent, op("take", 6, 7, "a"), op("take", 4, 5, "b")])
    assert flaw == "b was taken before a, which was sent before it"
    assert not checkers.order([op("send", 0, 3, "a"), *sent[1:], op("take", 6, 7, "a"), op("take", 4, 5, "b")])
    assert checkers.order([op("take", 0, 1, "x")]) == ["x was taken and never sent"]


# ---- histories ------------------------------------------------------------------------------------------------------


def test_an_operation_is_read_back_and_one_that_never_returned_has_no_end(tmp_path, monkeypatch):
    monkeypatch.setenv("DRILL_HISTORY", str(tmp_path / "history"))
    with history.operation("acquire", "s") as returned:
        returned.value = "ticket"
    with pytest.raises(OSError, match="gone"), history.operation("release", "s", "ticket"):
        raise OSError("gone")
    with (tmp_path / "history").open("a") as file:
        file.write('{"half a li')
    first, second = history.read(tmp_path / "history")
    assert (first.kind, first.value) == ("acquire", "ticket")
    assert first.began <= first.ended
    assert (second.kind, second.ended) == ("release", None)


def test_the_ledger_of_a_drill_is_a_history(tmp_path):
    ledger = tmp_path / "ledger"
    ledger.write_text("sent a 1 1.0\nunsure b 1 2.0\nstart a 7 3.0\nend a 7 4.0\nanswered a 1 5.0\nsent .c 1 1.0\nhalf")
    assert not checkers.answers(history.of_ledger(ledger))
    ledger.write_text(ledger.read_text() + "\nanswered a 1 6.0\n")
    assert checkers.answers(history.of_ledger(ledger)) == ["a was answered 2 times"]


@pytest.mark.redis
def test_the_shared_semaphore_and_rate_limiter_keep_their_promises(redis_stack, tmp_path, monkeypatch):
    monkeypatch.setenv("DRILL_HISTORY", str(tmp_path / "history"))
    name = new_id()
    semaphore, limiter = SharedSemaphore(name, 2), SharedRateLimiter(name, 20)

    def work():
        for _ in range(4):
            ticket = new_id()
            while True:
                with history.operation("acquire", "semaphore") as returned:
                    returned.value = ticket if semaphore.acquire(ticket, 30).slot else None
                if returned.value:
                    break
                time.sleep(0.002)
            time.sleep(limiter.book(ticket))
            with history.operation("pass", "rate"):
                pass
            with history.operation("release", "semaphore", ticket):
                semaphore.release(ticket)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = history.read(tmp_path / "history")
    permits = [one for one in seen if one.on == "semaphore"]
    assert len([one for one in permits if one.kind == "release"]) == 24
    assert not checkers.semaphore(permits, 2, lease=30)
    assert checkers.semaphore(permits, 0, lease=30)
    assert not checkers.rate([one for one in seen if one.on == "rate"], 1 / 20, 20)
