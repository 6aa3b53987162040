"""What a run of an envelope reports: outcomes as they travel, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.envelope import Child, Envelope, Report, error_frame, value_frame
from graft.tasks.running.run_outcomes import RunOutcomes

Frames = dict[int, tuple[bool, bytes]]  # Outcomes as they travel, by position.


def encode(envelope: Envelope, outcomes: RunOutcomes) -> Frames:
    """The *outcomes* of *envelope* as they travel."""
    positions, limit = envelope.positions, settings().item_limit
    frames = {positions[index]: value_frame(value, positions[index], limit) for index, value in outcomes.values.items()}
    # Two frames are ours: the loop over the items, and the call itself.
    frames.update((positions[index], error_frame(error, skip_frames=1)) for index, error in outcomes.errors.items())
    return frames


def cost(envelope: Envelope, outcomes: RunOutcomes) -> tuple[float, float]:
    """Seconds of all runs of *envelope*: those of its items, and those on the clock."""
    busy, elapsed = envelope.spent
    return busy + outcomes.busy, elapsed + outcomes.elapsed


def make(
    envelope: Envelope, outcomes: RunOutcomes, before: Mapping[int, tuple[bool, bytes]], children: tuple[Child, ...]
) -> Report:
    """The outcome of each item that none of *children* answers for; *before* has those that are encoded already."""
    paid = *cost(envelope, outcomes), envelope.reruns, outcomes.awaited, children
    if not before and not outcomes.errors and len(outcomes.values) == len(envelope.items):
        values = [outcomes.values[index] for index in range(len(envelope.items))]
        plain = codec.plain_size(values, codec.CONTAINERS)
        if plain is not None and plain <= settings().item_limit:
            return Report(envelope.positions, values, False, *paid)
    frames = dict(sorted({**before, **encode(envelope, outcomes)}.items()))
    return Report(list(frames), list(frames.values()), True, *paid)
