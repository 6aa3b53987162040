"""Moves messages whose time has come to their queues, in one of the deployment's workers."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.redis_client import broker
from graft.config.transport import due
from graft.config.transport.sending_channel import WAKEUP_MS
from graft.workers.bootsteps.periodic import PeriodicStep

BUSY: Final = 0.2  # Seconds of one tick: a worker's loop does nothing else meanwhile.


class DueMover(PeriodicStep):
    """Looks twice a second whether something is due, and whether somebody else moves it."""

    every = 0.5
    patience = 1.0
    is_beside_tasks = True

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._holder = uuid.uuid4().hex
        self._broker: Any = None

    def tick(self, consumer: Any) -> None:
        if self._broker is None:
            is_one = settings().backend_url == settings().broker_url  # Then a connection of its own is one too many.
            self._broker = self._client if is_one else broker(client_name="graft-due", socket_timeout=self.patience)
        began = time.monotonic()
        while due.move(self._holder, WAKEUP_MS, self._broker)[0] == due.AT_ONCE and time.monotonic() - began < BUSY:
            pass
