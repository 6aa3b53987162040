"""Dead letters in Redis."""

from __future__ import annotations

from uuid import uuid4

import pytest

from graft.tasks.dead_letters import store


@pytest.fixture
def dead_letter(redis_stack):
    made = letter(uuid4().hex)
    store.bury(made)
    yield made
    for left in store.read([made.id]):
        store.remove(left)


def letter(task_id, error="down"):
    return store.DeadLetter.make(
        id=task_id, task="graft.batch", queue="batch", reason="lost", function="m:f", error=OSError(error),
        traceback="", runs=1, items=1, envelope="",
    )  # fmt: skip


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
