"""When an answer is asked after, and when it is given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.results.lost_messages import MOMENT, RAREST, LostMessages


def test_an_answer_is_not_asked_after_before_its_time():
    overdue = LostMessages(30)
    overdue.add("a", 100)
    assert overdue.due(129) == []
    assert overdue.due(131) == ["a"]


def test_what_is_found_is_asked_after_ever_more_rarely():
    overdue, now, gaps = LostMessages(30), 0.0, []
    overdue.add("a", now)
    for _ in range(8):
        due = next(later for later in range(int(now), 10_000) if overdue.due(later))
        gaps.append(due - now)
        now = due
        assert overdue.searched(["a"], [], now) == []
    assert gaps == sorted(gaps)
    assert gaps[-1] == RAREST


def test_only_what_is_missed_twice_in_a_row_is_lost():
    overdue = LostMessages(30)
    overdue.add("a", 0)
    assert overdue.searched(["a"], {"a"}, 31) == []
    assert overdue.due(31 + MOMENT) == ["a"]
    assert overdue.searched(["a"], [], 34) == []
    assert overdue.searched(["a"], {"a"}, 99) == []
    assert overdue.searched(["a"], {"a"}, 102) == ["a"]
    assert overdue.due(10_000) == []


@given(events=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_what_was_answered_is_never_lost(events):
    overdue, now = LostMessages(1), 0.0
    for name in "abc":
        overdue.add(name, now)
    overdue.drop("b")
    lost = []
    for name, is_missing in events:
        now += 1
        lost += overdue.searched([name], [name] if is_missing else [], now)
    assert "b" not in lost
    assert len(lost) == len(set(lost))
