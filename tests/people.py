"""What people do in a deployment while the programs of the tests are at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from graft.config.celery_app import app
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.monitoring import worker_registry
from tests.roles import acting_as

WAIT = 5.0  # Seconds for the answers of all workers.
POLL = 2.0  # For a second after its answer a worker takes what it has asked for.


@contextmanager
def held(queue: str) -> Iterator[Callable[[], None]]:
    """No worker of the session's stack reads *queue* while the block lasts, or until what it gives is called.

    An operator has told them. Afterwards those read it that did before, and no other: the io lane's slots are many, and
    nothing that runs there can be ended.
    """
    with acting_as("operator"):
        answers = app.control.inspect(timeout=WAIT, limit=len(worker_registry.workers())).active_queues() or {}
        readers = [name for name, queues in answers.items() if queue in [one["name"] for one in queues]]
        assert readers, answers
        app.control.cancel_consumer(queue, destination=readers, reply=True, timeout=WAIT)
        time.sleep(POLL)

    def let_go() -> None:
        with acting_as("operator"):
            app.control.add_consumer(queue, destination=readers, reply=True, timeout=WAIT)

    try:
        yield let_go
    finally:
        let_go()


def letters() -> list[DeadLetter]:
    """The dead letters, newest first, as a viewer sees them."""
    with acting_as("viewer"):
        return dead_letters.newest()
