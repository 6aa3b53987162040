"""What counts as a difference, without a cluster."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from typing import Any

import pytest

from graft.compat.shadow.compare import Comparison, Run, shown
from graft.compat.shadow.folders import CannotCompareError, Folder, guarded, moved
from graft.compat.shadow.plan import Plan, draw, never_shadow
from graft.compat.shadow.record import ENOUGH, Record

NAN = float("nan")
NO_ARGUMENTS = pickle.dumps(((), {}))


class Plain:
    def __init__(self, content: Any) -> None:
        self.content = content


@dataclass
class Point:
    x: float


def kinds(old: Any, new: Any, **rules: Any) -> list[str]:
    runs = (Run(0.0, value=pickle.dumps(each)) for each in (old, new))
    return [one.kind for one in Comparison(Plan(**rules)).differences(NO_ARGUMENTS, *runs)]


def same_parity(old: int, new: int) -> bool:
    return old % 2 == new % 2


@pytest.mark.parametrize("value", [1, NAN, [NAN, {"a": (NAN,)}], Point(NAN), Plain([NAN]), {1, 2}, None, b"x", "x"])
def test_a_value_equals_its_copy(value: Any) -> None:
    assert kinds(value, pickle.loads(pickle.dumps(value))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [(1, 2), ([1], (1,)), ({"a": 1}, {"b": 1}), (NAN, 1.0), (1.0, None), (Point(1), Point(2)), (Plain(1), Plain(2))],
)
def test_values_that_are_not_equal_differ(old: Any, new: Any) -> None:
    assert kinds(old, new) == ["value"]


def test_another_order_is_told_apart_from_another_value() -> None:
    assert kinds([1, 2, 3], [3, 1, 2]) == ["order"]
    assert kinds([1, 2, 3], [3, 1, 1]) == ["value"]
    assert kinds([1, 2, 3], [3, 1, 2], ignore=frozenset({"order"})) == []


def test_arguments_that_are_pickled_differently_are_not_changed() -> None:
    def kinds_of(*changed: Any) -> list[str]:
        runs = [Run(0.0, value=pickle.dumps(1), changed=each and pickle.dumps(((each,), {}))) for each in changed]
        return [one.kind for one in Comparison(Plan()).differences(pickle.dumps((([1, NAN],), {})), *runs)]

    assert kinds_of([1, NAN], None) == []
    assert kinds_of(None, [1, NAN, 2]) == ["arguments"]
    assert kinds_of([1], None) == ["arguments"]


def test_floats_may_have_a_tolerance() -> None:
    old, new = {"a": [1.0]}, {"a": [1.0 + 1e-9]}
    assert kinds(old, new) == ["value"]
    assert kinds(old, new, tolerance=1e-8) == []


def test_values_may_be_compared_by_their_pickles_or_by_a_function() -> None:
    assert kinds(1, 1.0) == []
    assert kinds(1, 1.0, equal="pickle") == ["value"]
    parity = f"{__name__}:same_parity"
    assert kinds(1, 3, equal=parity) == []
    assert kinds(1, 2, equal=parity) == ["value"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shadow": 2}, "shadow=2 must be a share from 0 to 1"),
        ({"canary": -0.1}, "canary=-0.1 must be a share"),
        ({"tolerance": -1}, "must not be negative"),
        ({"equal": "no_such:thing"}, "equal='no_such:thing' must be ==, pickle, or module:function"),
        ({"ignore": frozenset({"colour"})}, "ignore=colour is no kind of difference"),
        ({"program": "a b"}, "must be a name without spaces"),
        ({"outstanding": 0}, "outstanding=0 must be at least 1"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**asked)


def test_the_same_seed_chooses_the_same_calls_and_a_larger_share_chooses_more() -> None:
    def chosen(seed: str, share: float) -> set[int]:
        return {number for number in range(10_000) if draw(seed, "shadow", "m:f", number) < share}

    assert chosen("0", 0.1) == chosen("0", 0.1)
    assert chosen("0", 0.1) < chosen("0", 0.2)
    assert chosen("0", 0.1) != chosen("1", 0.1)
    assert 900 < len(chosen("0", 0.1)) < 1100
    assert not chosen("0", 0.0)
    assert len(chosen("0", 1.0)) == 10_000


def test_patterns_and_marks_decide_who_is_left_out() -> None:
    plan = Plan(only=("acme.*:price*", "plain"), leave_out=("*_paid",))
    assert plan.why_not(len, "acme.shop:price") == ""
    assert plan.why_not(len, "other:plain") == ""
    assert "--only" in plan.why_not(len, "other:price")
    assert "--except" in plan.why_not(len, "acme.shop:price_paid")
    assert "marked" in plan.why_not(never_shadow(lambda: None), "acme.shop:price")


def test_a_way_back_needs_enough_calls_and_does_not_blame_errors_that_are_usual() -> None:
    record = Record("m:f")
    for _ in range(ENOUGH):
        record.note_old(0.1, failed=True)
        assert record.beyond(0.1) == ""
        record.note_canary(failed=True)
    assert record.beyond(0.1) == ""
    other = Record("m:g")
    for _ in range(ENOUGH):
        assert other.beyond(0.1) == ""
        other.note_old(0.1, failed=False)
        other.note_canary(failed=True)
    assert "10 of 10 calls failed in the cluster" in other.beyond(0.1)
    other.go_back("why")
    other.go_back("")
    assert other.beyond(0.1) == ""


def test_a_long_value_is_shown_with_its_ends() -> None:
    assert len(shown("x" * 10_000)) < 400
    assert shown([1]) == "[1]"


def test_a_folder_is_copied_compared_and_guarded(tmp_path) -> None:
    real = tmp_path / "data"
    real.mkdir()
    for name in ("kept", "removed"):
        (real / name).write_text(name)
    folder = Folder.copied(str(real))
    (real / "made").write_text("x")
    (real / "removed").unlink()
    written = folder.written(str(real))
    assert written.keys() == {"made", "removed"}
    assert not written["removed"]
    assert folder.written(folder.copy) == {}
    assert moved([str(real / "a"), {"b": real}], [(str(real), "/c")]) == ["/c/a", {"b": type(real)("/c")}]
    os.symlink(real, tmp_path / "link")
    with guarded([str(real)]):
        assert (real / "kept").read_text() == "kept"
        (tmp_path / "beside").write_text("x")
        for write in (
            lambda: (real / "kept").write_text("x"),
            lambda: (tmp_path / "link" / "new").touch(),
            lambda: (real / "kept").unlink(),
            lambda: os.rename(tmp_path / "beside", real / "beside"),
        ):
            with pytest.raises(CannotCompareError, match="stopped before it wrote"):
                write()
    (real / "kept").write_text("again")
    folder.remove()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["beside", "data", "link"]
