"""A worker that was asked to stop (SIGTERM) finishes what it runs for a while, then gives the rest back.

Celery's warm shutdown has no end of its own: whoever stops the process kills it in the middle, and what it ran is
delivered again only when its lease has run out. So after ``drain_timeout`` seconds the warm shutdown becomes a cold one
(Celery's own, as by SIGQUIT): running tasks are cancelled and their messages are back in their queues at once. Threads
cannot be cancelled: such a worker ends with them, and what they ran comes back when its lease runs out.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any, Final

from celery.signals import worker_shutting_down

from graft.config.deployment import settings

logger = logging.getLogger(__name__)

COLD: Final = 8.0  # Seconds that a cold shutdown may take; killing pool processes takes two.


@worker_shutting_down.connect
def _set_deadline(how: str = "", **_: Any) -> None:
    seconds = settings().drain_timeout
    if how != "Warm" or not seconds:
        return
    deadline = threading.Timer(seconds, _give_back, (seconds,))
    deadline.name = "drain"
    deadline.daemon = True  # The usual case: everything is finished long before.
    deadline.start()


def _give_back(seconds: float) -> None:
    logger.warning("not finished %g s after SIGTERM: giving back what still runs", seconds)
    os.kill(os.getpid(), signal.SIGQUIT)
    time.sleep(COLD)
    logger.error("still here %g s after giving back: what runs cannot be cancelled, ending with it", COLD)
    os._exit(1)
