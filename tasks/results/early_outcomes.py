"""Publishes outcomes of an envelope on the event loop while its other items still run; no key keeps them.

The report at the end has every outcome again, so early outcomes that get lost are only late.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks.envelope import Envelope, Report, error_frame, value_frame
from graft.tasks.errors import NotYet
from graft.tasks.results.backend import results_backend

logger = logging.getLogger(__name__)

EARLY: Final = "EARLY"  # The state in the record; a caller that does not know it waits on for the result.


class EarlyPublisher:
    """Publishes early outcomes of one envelope."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def __call__(self, values: Mapping[int, Any], errors: Mapping[int, BaseException], indexes: Sequence[int]) -> None:
        """Publish the outcomes of the items at *indexes*, as many as one message of pub/sub holds."""
        room = settings().pubsub_limit
        frames: dict[int, tuple[bool, bytes]] = {}
        for index in indexes:
            frame = self._value(values, index) if index in values else self._error(errors.get(index))
            if frame is None or len(frame[1]) > room:
                continue
            room -= len(frame[1])
            frames[self._envelope.positions[index]] = frame
        if not frames:
            return
        report = Report(list(frames), list(frames.values()), True, 0.0, 0.0, 0)
        publish(self._envelope.id, report)

    def _value(self, values: Mapping[int, Any], index: int) -> tuple[bool, bytes]:
        return value_frame(values[index], self._envelope.positions[index], settings().item_limit)

    def _error(self, error: BaseException | None) -> tuple[bool, bytes] | None:
        # What may run again has not ended, and the dead letter of what may not comes before its outcome.
        if error is None or self._envelope.policy.runs > 1 or isinstance(error, NotYet):
            return None
        return error_frame(error, skip_frames=1)


def publish(envelope_id: str, report: Report) -> None:
    """Publish *report* of an envelope that still runs."""
    meta = {"task_id": envelope_id, "status": EARLY, "result": report.seal(_purpose(envelope_id))}
    try:
        shared().publish(results_backend().get_key_for_task(envelope_id), results_backend().encode(meta))
    except redis.RedisError as error:
        logger.debug("an early report of envelope %s could not be published: %s", envelope_id, error)


def read(meta: Mapping[str, Any], envelope_id: str) -> Report:
    """The early report in a record.

    Raises:
        SignatureError: the record was not made by a worker of this deployment, for this envelope.
    """
    return Report.open(str(meta["result"]), _purpose(envelope_id))


def _purpose(envelope_id: str) -> str:
    return f"{envelope_id}:early"
