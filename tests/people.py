"""What people do in a deployment while the programs of the tests are at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from graft.config.celery_app import app
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.store import DeadLetter
from tests.roles import acting_as


@contextmanager
def held(queue: str) -> Iterator[str]:
    """No worker of the session's stack reads *queue* while the block lasts; an operator has told them."""
    with acting_as("operator"):
        app.control.cancel_consumer(queue, reply=True, timeout=2)
    try:
        yield queue
    finally:
        with acting_as("operator"):
            app.control.add_consumer(queue, reply=True, timeout=2)


def letters() -> list[DeadLetter]:
    """The dead letters, newest first, as a viewer sees them."""
    with acting_as("viewer"):
        return dead_letters.newest()
