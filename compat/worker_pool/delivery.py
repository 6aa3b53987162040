"""Where the outcome of a task goes: into the mailbox, to whoever awaits it, or into the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.mailbox import Mailbox
from graft.compat.worker_pool.placement import Work
from graft.compat.worker_pool.processor import as_result
from graft.tasks.callables.importable import name_of
from graft.tasks.envelope import Outcome
from graft.tasks.errors import CancelledBatchError
from graft.tasks.sending.pool_batch import PoolTask

logger = logging.getLogger("graft.compat.worker_pool")

DROPPED = [Outcome(0, error=CancelledBatchError("dropped before it ran"))]


class Delivery:
    """Delivers what no report of a worker has delivered, for one pool in this process."""

    def __init__(self, mailbox: Mailbox, pool: str) -> None:
        self._mailbox, self._pool = mailbox, pool

    def __call__(
        self, task: PoolTask, outcomes: Sequence[Outcome], seconds: float = 0.0, slot: int = -1, worker: str = ""
    ) -> None:
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if task.future is not None:
            with suppress(InvalidStateError):  # Answered before, or given up.
                task.future.set_result((outcomes, seconds))
        elif outcomes is DROPPED:
            return
        elif task.to == "stream":
            measured = Result(task.key, None, error, seconds, slot, worker)
            self._mailbox.put(measured if error is not None else as_result(outcomes[0].value, measured))
        elif error is not None:
            where = f"{worker} in slot {slot}" if worker else "no worker"
            logger.error("%s, spawned in pool %s, failed on %s: %r", _name(task), self._pool, where, error)


def _name(task: PoolTask) -> str:
    """The callable of *task*."""
    if task.function is not None:
        return task.function.name
    work = getattr(task.call, "__self__", None)
    return name_of(work.func) if isinstance(work, Work) else repr(task.call)
