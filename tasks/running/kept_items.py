"""Keeps items of an envelope that do not run again: as dead letters, one for each cause."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from graft.config.deployment import settings
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import lease
from graft.tasks.envelope import RUN_ENVELOPE, Envelope
from graft.tasks.queues import unique
from graft.tasks.running.failure_causes import by_cause


def keep_failures(request: Any, envelope: Envelope, errors: Mapping[int, BaseException]) -> None:
    """Keep the items of *errors*, by index, which their policy runs no more."""
    reason: dead_letters.Reason = "retries_exhausted" if envelope.policy.runs > 1 else "failed"
    if not errors or (reason == "failed" and not settings().failed_kept):
        return
    for indexes in by_cause(errors):
        keep(request, envelope, indexes, errors[indexes[0]], reason, suffix=f":{envelope.positions[indexes[0]]}")


def keep(
    request: Any, envelope: Envelope, indexes: Sequence[int], error: BaseException, reason: dead_letters.Reason, *,
    runs: int | None = None, suffix: str = "",
) -> None:  # fmt: skip
    """Keep the items at *indexes* as one letter, under the envelope's id or, for some of its items, *suffix*.

    Raises:
        LeaseLost: another worker has the message of *request*.
    """
    own = envelope.id.partition(":")[0] if suffix else envelope.id  # What is replayed may have a suffix already.
    is_kept = dead_letters.bury(
        dead_letters.DeadLetter.make(
            id=own + suffix,
            task=RUN_ENVELOPE,
            queue=(request.delivery_info or {}).get("routing_key", ""),
            reason=reason,
            function=envelope.function.name,
            error=error,
            traceback="".join(traceback.format_exception(error)),
            runs=runs or envelope.run_of(indexes[0]),
            items=len(indexes),
            envelope=replace(envelope.part(indexes), id=own, carried={}, postponed={}, spent=(0.0, 0.0)).seal(),
            unique=unique.header_of(request),
        ),
        delivery=lease.fence_of(request),
    )
    if not is_kept:
        lease.warn_of_loss(request.id)
        raise lease.LeaseLost("another worker has this envelope")
