"""What a named pipeline has done so far, kept in Redis for others to see; the pipeline itself runs in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config.keys import SHARED
from graft.config.redis_client import shared
from graft.tasks.shared.primitive import KEPT, outage_is_unavailable

PIPELINES: Final = f"{SHARED}pipelines"
SILENT: Final = 10.0  # Seconds without new figures after which a pipeline that has not ended is taken for dead.


@dataclass(frozen=True)
class PipelineFigures:
    """A pipeline's figures, one for each stage. ``waits`` are sends that had to wait for room behind the stage.

    ``at`` is when it last wrote them, by its own clock; ``is_over`` says that it has ended.
    """

    name: str
    processed: Sequence[int]
    skipped: Sequence[int]
    waits: Sequence[int]
    at: float
    is_over: bool = False

    def state(self, now: float) -> str:
        """Whether it "runs", has "ended", or is "lost", where its process has gone without a word."""
        if self.is_over:
            return "ended"
        return "runs" if now - self.at < SILENT else "lost"


def keep(figures: PipelineFigures) -> None:
    """Write the figures under their name, for a day. Blocks for two round trips.

    Raises:
        BrokerUnavailable: Redis does not answer.
    """
    with outage_is_unavailable():
        client = shared()
        old = [each.name for each in read(client) if each.at < figures.at - KEPT]
        with client.pipeline(transaction=False) as pipe:
            if old:
                pipe.hdel(PIPELINES, *old)
            pipe.hset(PIPELINES, figures.name, json.dumps(asdict(figures)))
            pipe.expire(PIPELINES, KEPT)
            pipe.execute()


def read(client: Any) -> list[PipelineFigures]:
    """The figures of the last day, by name."""
    kept = client.hgetall(PIPELINES).values()
    return sorted((PipelineFigures(**json.loads(text)) for text in kept), key=lambda each: each.name)
