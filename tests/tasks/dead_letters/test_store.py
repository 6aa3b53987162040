"""Dead letters in Redis."""

from __future__ import annotations

from uuid import uuid4

import pytest

from graft.config.deployment import current
from graft.tasks.dead_letters import store


@pytest.fixture
def dead_letter(redis_stack):
    made = letter(uuid4().hex)
    store.bury(made)
    yield made
    for left in store.read([made.id]):
        store.remove(left)


def letter(task_id, error="down", reason="lost", envelope=""):
    return store.DeadLetter.make(
        id=task_id, task="graft.batch", queue="batch", reason=reason, function="m:f", error=OSError(error),
        traceback="", runs=1, items=1, envelope=envelope,
    )  # fmt: skip


@pytest.fixture
def failed(redis):
    names = (store.LETTERS, store.INDEX, store.FAILED, store.FAILED_SIZE)
    redis.delete(*names)
    yield redis
    redis.delete(*names)


def test_of_failures_the_newest_are_kept_so_many_of_one_cause_and_so_many_in_all(failed, monkeypatch):
    monkeypatch.setenv("GRAFT_FAILED_KEPT", "20")
    current.reread_settings()
    try:
        for number in range(5):
            store.bury(letter(f"one:{number}", "the same", "failed"))
        assert store.ids(failed=True) == ["one:3", "one:4"]
        for letters in "abcdefghijklmnopqrstuvwxyz":
            store.bury(letter(letters, letters * 3, "failed"))
        assert store.ids(failed=True) == list("ghijklmnopqrstuvwxyz")
        assert store.ids() == []
        assert failed.hlen(store.LETTERS) == store.failed_count() == 20
        sizes = sum(len(text) for text in failed.hvals(store.LETTERS))
        assert int(failed.get(store.FAILED_SIZE)) == sizes
        assert all(store.remove(each) for each in store.read(store.ids(failed=True)))
        assert int(failed.get(store.FAILED_SIZE)) == 0
    finally:
        current.reread_settings()


def test_failures_are_kept_up_to_a_size_and_a_large_one_without_its_items(failed, monkeypatch):
    monkeypatch.setattr(store, "FAILED_BYTES", 3000)
    for number in range(10):
        store.bury(letter(f"x{number}", "abcdefghij"[number] * 3, "failed", envelope="e" * 500))
    assert 1 <= store.failed_count() <= 5
    assert store.ids(failed=True)[-1] == "x9"
    monkeypatch.setattr(store, "FAILED_LARGEST", 100)
    store.bury(letter("large", "zzz", "failed", envelope="e" * 500))
    (kept,) = store.read(["large"])
    assert kept.envelope == ""


def test_a_failure_that_is_given_up_later_is_an_ordinary_letter(failed):
    store.bury(letter("one", reason="failed"))
    store.bury(letter("one"))
    assert (store.count(), store.failed_count()) == (1, 0)
    store.bury(letter("one", reason="failed"))
    assert (store.count(), store.failed_count()) == (0, 1)


def test_a_dead_letter_that_was_written_anew_meanwhile_is_not_removed(dead_letter):
    later = letter(dead_letter.id, "down again")
    store.bury(later)
    assert not store.remove(dead_letter)
    assert list(store.read([dead_letter.id])) == [later]
    assert store.remove(later)
    assert not store.remove(later)
    assert dead_letter.id not in store.ids()


def test_one_process_at_a_time_replays_a_dead_letter(dead_letter):
    assert store.lock(dead_letter.id)
    assert not store.lock(dead_letter.id)
    store.unlock(dead_letter.id)
    assert store.lock(dead_letter.id)
    store.remove(dead_letter)
    assert store.lock(dead_letter.id)
    store.unlock(dead_letter.id)


def test_the_letters_of_a_call_are_its_own_and_those_of_its_items(failed):
    for name in ("call[1]", "call[1]:7", "call[1]2", "other"):
        store.bury(letter(name))
    store.bury(letter("call[1]:8", reason="failed"))
    assert store.of_call("call[1]") == ["call[1]", "call[1]:7", "call[1]:8"]
