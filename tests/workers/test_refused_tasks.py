"""What was revoked, cancelled or came too late is accounted for, across restarts."""

from __future__ import annotations

import json
import time

import pytest

from graft.config.celery_app import app
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.ids import new_id
from tests.people import held, letters
from tests.stack import wait_until

ITEM = {"id": 1, "type": "simple", "data": 1}


@pytest.fixture
def heavy():
    """The queue ``heavy`` keeps its messages until this is called, or the test ends."""
    with held("heavy") as let_go:
        yield let_go


def state(task_id: str) -> str:
    return app.AsyncResult(task_id).state


def send(**options):
    task_id = new_id()
    app.send_task("process_item", args=(ITEM,), task_id=task_id, queue="heavy", ignore_result=False, **options)
    return task_id


def letter_of(task_id: str, reason: str) -> dead_letters.DeadLetter:
    found: list[dead_letters.DeadLetter] = []

    def is_there() -> bool:
        found[:] = [one for one in letters() if one.id == task_id]
        return bool(found)

    wait_until(is_there, what="the letter")
    assert found[0].reason == reason
    assert json.loads(found[0].envelope)["args"] == [ITEM]
    return found[0]


@pytest.mark.acl_role("operator")
def test_a_message_that_came_too_late_leaves_a_letter(stack, heavy, redis):
    task_id = send(expires=0.5)
    wait_until(lambda: redis.llen("heavy\x06\x165") == 1, what="the message")
    time.sleep(0.6)  # Nothing but the clock can make it late.
    heavy()
    assert "it expired at" in letter_of(task_id, "expired").error
    wait_until(lambda: state(task_id) == "REVOKED", what="the state")


@pytest.mark.acl_role("operator")
def test_a_revoked_message_leaves_a_letter(stack, heavy):
    task_id = send()
    app.control.revoke(task_id, reply=True, timeout=2)
    heavy()
    assert "it was revoked" in letter_of(task_id, "revoked").error


@pytest.mark.acl_role("operator")
def test_a_cancelled_task_stays_cancelled_although_its_workers_were_killed(stack, heavy):
    task_id = send()
    app.control.broadcast("graft_cancel", arguments={"task_id": task_id}, reply=True, timeout=2)
    for worker in tuple(stack.workers):
        worker.kill()
    stack.heal({"cpu": 2, "io": 50})
    wait_until(lambda: state(task_id) == "REVOKED", what="the state")
