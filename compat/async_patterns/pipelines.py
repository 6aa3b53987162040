"""Stages joined by bounded channels, so that a slow stage slows those before it instead of filling the memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from graft.compat.async_patterns.channel_ends import ChannelClosedError
from graft.compat.async_patterns.channels import Receiver, Sender, channel
from graft.compat.async_patterns.streams import Source, Stream
from graft.compat.local import awaited
from graft.compat.placement import shared_name
from graft.config.validation import at_least_one
from graft.tasks import blocking_threads
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.shared import pipeline_figures
from graft.tasks.shared.pipeline_figures import PipelineFigures

logger = logging.getLogger("graft.compat.async_patterns")

REPORT_EVERY: Final = 1.0

Stage = Callable[[Any], Any]


class PipelineMetrics:
    """Counts of a running pipeline; stages count from 1.

    ``stage1_processed`` … count the items that a stage has finished, ``stage1_skipped`` … those it could not read, and
    ``stage1_backpressure`` … the sends that had to wait for room behind it.

    Source: the chapter's ``PipelineMetrics``. Differences: every channel is counted, and a send counts if it waited,
    not if it left the channel full.
    """

    def __init__(self, stages: int = 3) -> None:
        self.processed = [0] * stages
        self.skipped = [0] * stages
        self.backpressure = [0] * stages

    def __getattr__(self, name: str) -> int:
        stage, _, what = name.removeprefix("stage").partition("_")
        if name.startswith("stage") and stage.isdecimal() and what in ("processed", "skipped", "backpressure"):
            counts: list[int] = getattr(self, what)
            if 1 <= int(stage) <= len(counts):
                return counts[int(stage) - 1]
        raise AttributeError(f"there is no {name!r} in a pipeline of {len(self.processed)} stages")

    def report(self) -> str:
        """One line: what each stage has processed, then the waits between two stages."""
        stages = [f"S{number}: {count}" for number, count in enumerate(self.processed, 1)]
        joints = [f"BP{number}: {count}" for number, count in enumerate(self.backpressure[:-1], 1)]
        return " | ".join([*stages, *joints])


class BoundedPipeline:
    """Stages, each one worker, with a bounded channel behind each. May be run again, under any loop."""

    def __init__(
        self,
        stages: Sequence[Stage],
        capacities: Sequence[int],
        *,
        skip: tuple[type[Exception], ...],
        report: Callable[[str], object],
        name: str | None = None,
    ) -> None:
        if not stages:
            raise ValueError("a pipeline needs at least one stage")
        if len(capacities) != len(stages):
            raise ValueError(f"{len(stages)} stages need {len(stages)} capacities, not {len(capacities)}")
        self.stages = list(stages)
        self.capacities = [at_least_one("capacity", capacity) for capacity in capacities]
        self.metrics = PipelineMetrics(len(stages))
        self._skip = skip
        self._report = report
        self._name = shared_name(name)

    async def run(self, items: Source) -> list[Any]:
        """The last stage's output for all *items*, in their order."""
        return await self.stream(items).collect()

    def stream(self, items: Source) -> Stream:
        """The same as a stream; leaving it early stops every stage."""
        return Stream(self._results(items))

    async def _results(self, items: Source) -> AsyncIterator[Any]:
        source: AsyncIterator[Any] = Stream(items)
        workers: list[asyncio.Task[None]] = []
        for index, stage in enumerate(self.stages):
            sender, receiver = channel(self.capacities[index])
            workers.append(asyncio.ensure_future(self._work(index, stage, source, sender)))
            source = receiver
        reporting = asyncio.ensure_future(self._keep_reporting())
        try:
            async for value in source:
                yield value
            await asyncio.gather(*workers)  # The first error of a stage, if any.
        finally:
            for task in (*workers, reporting):
                task.cancel()
            await asyncio.gather(*workers, reporting, return_exceptions=True)
            self._tell(is_over=True)

    async def _work(self, index: int, stage: Stage, source: AsyncIterator[Any], sender: Sender) -> None:
        metrics = self.metrics
        try:
            async for item in source:
                try:
                    value = await awaited(stage(item))
                except self._skip as error:
                    metrics.skipped[index] += 1
                    logger.debug("stage %d skips an item: %s", index + 1, error)
                    continue
                metrics.processed[index] += 1
                waits = sender.waits
                await sender.send(value)
                metrics.backpressure[index] += sender.waits - waits
        except ChannelClosedError:
            pass  # The receiver is closed: this stage stops, and with it those before it.
        finally:
            sender.close()
            if isinstance(source, Receiver):
                source.close()

    async def _keep_reporting(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            self._tell()

    def _tell(self, *, is_over: bool = False) -> None:
        self._report(self.metrics.report())
        if self._name is not None:
            counts = self.metrics
            figures = PipelineFigures(
                self._name, [*counts.processed], [*counts.skipped], counts.backpressure[:-1], time.time(), is_over
            )
            blocking_threads.soon(_keep, figures)


def _keep(figures: PipelineFigures) -> None:
    try:
        pipeline_figures.keep(figures)
    except BrokerUnavailable as error:
        logger.debug("the figures of the pipeline %r are not kept: %s", figures.name, error)


def bounded_pipeline(
    stages: Sequence[Stage],
    capacities: Sequence[int],
    *,
    skip: tuple[type[Exception], ...] = (ValueError,),
    report: Callable[[str], object] = logger.info,
    name: str | None = None,
) -> BoundedPipeline:
    """A pipeline to :meth:`~BoundedPipeline.run` over items, with one capacity per stage, for the channel behind it.

    Args:
        stages: functions of one item, plain or async; ``on_workers(func)`` runs in the cluster.
        capacities: at least 1 each; a good value is peak rate x delay x 2.
        skip: errors that mean an item cannot be read: it is skipped and counted. Any other error of a stage ends the
            pipeline and is raised.
        report: called with a line of figures every second, and at the end.
        name: show the same figures to others under this name, with ``celery -A graft queue channels`` and in the
            exporter, for a day. The pipeline runs on without them while Redis does not answer. Ignored in local mode.

    Source: the chapter's ``bounded_pipeline``. Differences: skipped items are counted; the reporter ends.
    """
    return BoundedPipeline(stages, capacities, skip=skip, report=report, name=name)
