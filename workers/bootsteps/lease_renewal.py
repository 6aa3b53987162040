"""Renews the leases of this worker's messages: the visibility timeout means "the worker is gone", not "a long task".

Every third of the timeout one command marks all messages that were delivered and not acknowledged: running, waiting,
prefetched, or scheduled for later. A message whose lease is not renewed for the whole timeout is abandoned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as Prefork

from graft.config.redis_client import shared
from graft.config.transport.channel import Channel
from graft.tasks.delivery import lease, run_counter
from graft.tasks.envelope import RUN_ENVELOPE

logger = logging.getLogger(__name__)

SETTLING: Final = frozenset({RUN_ENVELOPE})


class LeaseRenewal(bootsteps.StartStopStep):
    """Renews from the start of the consumer to the end of the process: draining takes as long as the tasks do.

    With prefork the worker's own timer does it, which Celery keeps running while the pool drains; a worker whose loop
    is stuck loses its messages, as it should. Other pools block the loop, or their end, for as long as a task runs:
    they get a thread, and have no children that could inherit it.
    """

    requires = ("celery.worker.consumer.tasks:Tasks", "graft.workers.bootsteps.direct_taking:DirectTaking")

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._channel: Channel | None = None
        self._timer: Any = None
        self._thread: threading.Thread | None = None
        self._is_failing = False
        self._doubtful: set[str] = set()  # Leases that may have been lost: their runs have to ask.
        self._kept: Mapping[str, Any] = {}  # Messages of the connection before this one.
        self._taken: Callable[[], Mapping[str, Any]] = dict  # Those that pool processes took themselves.

    def start(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        if not isinstance(channel, Channel):
            logger.warning(
                "leases are not renewed, so tasks longer than the visibility timeout run twice: the broker's URL did "
                "not pass through transport_url()"
            )
            return
        self._channel = channel
        every = channel.visibility_timeout / 3
        self._kept = getattr(consumer, "kept", {})
        if getattr(consumer, "promotion", None) is not None:
            self._taken = consumer.promotion.held
        self.renew()
        if isinstance(consumer.pool, Prefork):
            channel.self_acking_tasks, channel.collects_acks = SETTLING, True
            self._timer = consumer.timer.call_repeatedly(every, self.renew, priority=10)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._keep_renewing, args=(every,), name="lease", daemon=True)
            self._thread.start()

    def stop(self, consumer: Any) -> None:
        if consumer.blueprint.state == bootsteps.RUN:  # The connection was lost; start() follows.
            self._channel = None
            if self._timer is not None:
                self._timer.cancel()

    def renew(self) -> None:
        """Mark everything that this worker owns as alive, and send acknowledgements that Redis did not take before."""
        channel = self._channel
        if channel is None:
            return
        try:
            self._renew(channel)
            channel.flush_acks()
        except (
            Exception
        ) as error:  # Whatever it is, such as a channel that was closed meanwhile: the next turn may work.
            if not self._is_failing:
                logger.warning(
                    "the leases of this worker cannot be renewed; its messages run again elsewhere after the "
                    "visibility timeout: %r", error,
                )  # fmt: skip
            self._is_failing = True
        else:
            self._is_failing = False

    def _renew(self, channel: Channel) -> None:
        at, clock = lease.now(), lease.keep_clock()
        held = {**self._taken(), **self._kept, **channel.qos.outstanding()}
        gone = [tag for tag in channel.renew(held) if tag in held and tag not in self._doubtful]
        if gone:
            clock.doubt()
            self._doubtful.update(gone)
            self._pardon({tag: held[tag].headers for tag in gone})
        if not clock.is_certain:  # For too long: some of these may be with others.
            self._doubtful.update(held)
        self._doubtful.intersection_update(held)
        if not self._doubtful:
            clock.renewed(at, channel.visibility_timeout)

    def _pardon(self, gone: Mapping[str, Mapping[str, Any]]) -> None:
        """This worker lives, and others have some of its messages, whose headers these are: that is nobody's death."""
        logger.warning("%d messages of this worker went to others, who took it for lost", len(gone))
        named = {tag: each for tag, each in gone.items() if each.get("id")}  # Others are refused, and run nowhere.
        runs = [(str(each["id"]), int(each.get("retries") or 0), tag) for tag, each in named.items()]
        run_counter.pardon(runs, shared())

    def _keep_renewing(self, every: float) -> None:
        pause = threading.Event()
        while not pause.wait(every):
            self.renew()
