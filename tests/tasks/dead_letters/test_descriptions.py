"""What lists show of the dead letters: read once, and true to what has come, gone and changed since."""

from __future__ import annotations

import pytest

from graft.tasks.dead_letters import descriptions, store
from graft.tasks.dead_letters.descriptions import Descriptions
from graft.tasks.dead_letters.store import DeadLetter, Reason

pytestmark = [pytest.mark.redis, pytest.mark.acl_role("worker")]


@pytest.fixture(autouse=True)
def _none_before(redis):
    redis.delete(store.LETTERS, store.INDEX, store.FAILED)


def letter(name: str, reason: Reason = "retries_exhausted", error: str = "no answer") -> DeadLetter:
    return DeadLetter.make(
        id=name, task="graft.batch", queue="batch", reason=reason, function="shop:price", error=OSError(error),
        traceback="a long one", runs=5, items=3, envelope="of a megabyte",
    )  # fmt: skip


def test_letters_are_described_without_what_makes_them_large_the_newest_first():
    for name in ("first", "second"):
        store.bury(letter(name))
    store.bury(letter("third", "failed", "half a pair: \ud800"))
    found, unread = Descriptions().look()
    assert ([one.id for one in found], unread) == (["third", "second", "first"], 0)
    assert {(one.envelope, one.traceback, one.items) for one in found} == {("", "", 3)}
    assert found[1].error == "OSError: no answer"


def test_what_comes_and_goes_is_noticed_and_nothing_else_is_read_again(monkeypatch):
    known = Descriptions()
    for name in ("kept", "gone"):
        store.bury(letter(name))
    known.look()
    read: list[str] = []
    monkeypatch.setattr(
        known, "_read", lambda ids, client, read_them=known._read: (read.extend(ids), read_them(ids, client))
    )
    store.bury(letter("new"))
    assert {one.id for one in known.look()[0]} == {"kept", "gone", "new"}
    for buried in list(store.read(["gone"])):
        store.remove(buried)
    assert {one.id for one in known.look()[0]} == {"kept", "new"}
    for buried in list(store.read(["kept"])):  # One goes and one comes: the count is the same.
        store.remove(buried)
    store.bury(letter("another"))
    assert {one.id for one in known.look()[0]} == {"new", "another"}
    assert read == ["new", "another"]


def test_a_look_ends_with_its_budget_and_the_next_one_goes_on(monkeypatch):
    monkeypatch.setattr(descriptions, "PAGE", 2)
    for number in range(7):
        store.bury(letter(str(number)))
    known = Descriptions()
    found, unread = known.look(budget=0.0)
    assert (len(found), unread) == (0, 7)
    assert known.look()[1] == 0
    assert len(known.look()[0]) == 7
