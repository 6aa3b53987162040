"""A pool on the worker's side: an envelope takes a slot before it runs, and leaves its outcomes when it has ended.

    begins ──► a slot is free, and none that waits goes first ──► runs ──► its slot goes to the best that waits,
         └───► else it waits in the pool's index, and its message is done         whose message is published

The order is decided at this moment. So nothing that the broker or the worker has fetched ahead can invert it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from celery.exceptions import Ignore
from redis.exceptions import NoScriptError

from graft.tasks import codec
from graft.tasks.envelope import Envelope, PoolRef, Report
from graft.tasks.errors import CancelledBatchError
from graft.tasks.pools import due_messages
from graft.tasks.pools.state import HAS_TO_WAIT, MUST_NOT, RedisPool, Waiting

logger = logging.getLogger(__name__)

RESULTS: Final = "pool-results"  # What the pieces of a pool's stream are signed for.
Row = tuple[Any, float, bool, Any]  # A result: the task's id or its item's position, seconds, success, content.


def identity(value: Any) -> Any:
    """What a pool without a processor does with plain data."""
    return value


class Slot:
    """The slot in which *envelope* runs, of the pool *ref*."""

    def __init__(self, envelope: Envelope, ref: PoolRef, argument: str, hostname: str) -> None:
        """Take the slot.

        Raises:
            Ignore: the envelope has to wait. The pool has its message and publishes it in its turn.
        """
        self.envelope, self.ref, self.hostname = envelope, ref, hostname
        self.pool = RedisPool(ref.name, ref.generation)
        self.member = ref.since + envelope.id
        self.refusal: BaseException | None = None  # Why no item may run, though all have to be answered for.
        self.number = self.pool.begin(self.member, ref.score, tasks=1 if ref.is_unit else len(envelope.items))
        if self.number == HAS_TO_WAIT:
            label = f"({envelope.function.name}, {len(envelope.items)} items from {envelope.positions[0]})"
            message = due_messages.kept(envelope.id, envelope.batch, argument, label)
            due = self.pool.park([Waiting(self.member, ref.score, message)])
            if due is not None:
                due_messages.publish(due)
                raise Ignore("its pool has no free slot, or a better task waits")
            self.number = MUST_NOT
        if self.number == MUST_NOT:
            self.refusal = CancelledBatchError("its worker pool was shut down, or it was withdrawn, before it ran")

    def step_back(self) -> None:
        """The envelope goes back to its queue and keeps its slot."""
        self.pool.step_back(self.member, self.number)

    def finish_on(
        self, pipe: Any, report: Report, seconds: dict[int, float], *, is_cut_short: bool, delivery: str
    ) -> Report:  # fmt: skip
        """Give the slot back, on the caller's pipeline, and leave what came of the items in the pool's stream.

        Returns what to announce: *report*, or where its outcomes go elsewhere the number of those that failed.
        Nothing is given back where the message of *delivery* went back to its queue: another run has the slot by now.
        *is_cut_short*: items were cancelled. Those that a shutdown has dropped leave no result.
        """
        ref, outcomes = self.ref, _outcomes(report)
        all_failed = sum(not succeeded for _, succeeded, _ in outcomes)
        if is_cut_short and self.pool.status().state in ("closed", "gone"):
            outcomes = [outcome for outcome in outcomes if outcome[0] in seconds]
        tasks = 1 if ref.is_unit else len(outcomes)
        failed = min(tasks, sum(not succeeded for _, succeeded, _ in outcomes))
        rows = [(at, seconds.get(at, 0.0), succeeded, content) for at, succeeded, content in outcomes]
        pieces = self._pieces(rows) if ref.to == "stream" else ()
        total: Literal["completed", "abandoned"] = "abandoned" if self.number == MUST_NOT else "completed"
        failed = 0 if self.number == MUST_NOT else failed
        took = [report.busy] if ref.is_unit and seconds else [seconds[at] for at, *_ in outcomes if at in seconds]
        self._finish = self.pool.finish_on(
            pipe, self.member, ref.client, total, tasks, failed, report.busy, took, pieces, delivery=delivery
        )
        if ref.to == "caller":
            return report
        if ref.to == "nobody":
            self._log(report)
        results = [(self.number, self.hostname, rows)] if ref.to == "report" else []
        return replace(report, values=[all_failed, *results], packed=False)

    def execute(self, pipe: Any) -> None:
        """Execute the pipeline on which the slot was given back, and publish what is due then."""
        try:
            due = pipe.execute()[0]
        except NoScriptError:  # All else has been done.
            due = self._finish()
        due_messages.publish(due)

    def _pieces(self, rows: Sequence[Row]) -> list[bytes]:
        keyed = [(self.number, self.hostname, [(self.ref.keys.get(at), *row)]) for at, *row in rows]
        return [codec.sealed(RESULTS, pickle.dumps(piece, codec.PROTOCOL)) for piece in keyed]

    def _log(self, report: Report) -> None:
        for outcome in report.outcomes():
            if outcome.error is not None:
                logger.error(
                    "%s (task %s, item %d), spawned in pool %s, failed on worker %s in slot %d: %r",
                    self.envelope.function.name, self.envelope.id, outcome.index, self.ref.name, self.hostname,
                    self.number, outcome.error,
                )  # fmt: skip


def _outcomes(report: Report) -> list[tuple[int, bool, Any]]:
    """Position, success and content: the frame of a value or an error, or the plain value in a list of its own."""
    if report.packed:
        return [(position, *frame) for position, frame in zip(report.positions, report.values, strict=True)]
    return [(position, True, [value]) for position, value in zip(report.positions, report.values, strict=True)]
