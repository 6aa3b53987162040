"""Tells the caller what has come of items while their envelope still runs: an announcement of its own, kept nowhere.

The report at the end has every outcome again, so one that gets lost is only late.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from graft.config.deployment import app, settings
from graft.config.redis_client import shared
from graft.tasks.envelope import Envelope, Outcome, Report, error_frame, value_frame
from graft.tasks.errors import NotYet
from graft.tasks.running.item_runner import Ran

logger = logging.getLogger(__name__)

PART: Final = "PART"  # The state in the announcement; whoever does not know it waits on for the result.


class Teller:
    """Announces outcomes of one envelope."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._key = app().backend.get_key_for_task(envelope.id)

    def __call__(self, ran: Ran, places: Sequence[int]) -> None:
        """Announce the outcomes at *places*, as many as one announcement holds."""
        room = settings().pubsub_limit
        frames: dict[int, tuple[bool, bytes]] = {}
        for place in places:
            frame = self._frame(ran, place)
            if frame is None or len(frame[1]) > room:
                continue
            room -= len(frame[1])
            frames[self._envelope.positions[place]] = frame
        if not frames:
            return
        report = Report(list(frames), list(frames.values()), True, 0.0, 0.0, 0)
        meta = {"task_id": self._envelope.id, "status": PART, "result": report.seal(_purpose(self._envelope.id))}
        try:
            shared().publish(self._key, app().backend.encode(meta))
        except redis.RedisError as error:
            logger.debug("outcomes of envelope %s could not be told early: %s", self._envelope.id, error)

    def _frame(self, ran: Ran, place: int) -> tuple[bool, bytes] | None:
        if place in ran.values:
            return value_frame(ran.values[place], self._envelope.positions[place], settings().item_limit)
        error = ran.errors.get(place)
        # What may run again has not ended, and the dead letter of what may not comes before its outcome.
        if error is None or self._envelope.policy.runs > 1 or isinstance(error, NotYet):
            return None
        return error_frame(error, skip_frames=1)


def told(meta: Mapping[str, Any], envelope_id: str) -> list[Outcome]:
    """The outcomes in an announcement.

    Raises:
        SignatureError: it was not made by a worker of this deployment, for this envelope.
    """
    return list(Report.open(str(meta["result"]), _purpose(envelope_id)).outcomes())


def _purpose(envelope_id: str) -> str:
    return f"{envelope_id}:part"
