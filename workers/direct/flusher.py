"""Has a result stored that waits behind a run which lasts."""

from __future__ import annotations

import threading
import time
from typing import Final

from graft.workers.direct.taking import Taking

FLUSH_AFTER: Final = 0.02  # Seconds for which the result of an ended run may wait for the run behind it.


class Flusher:
    """Has results stored that wait for longer than a moment: behind short runs there may be a long one.

    The thread sleeps for good where nothing was stored for a second.
    """

    def __init__(self, taking: Taking) -> None:
        self.lock = threading.RLock()
        self._taking = taking
        self._thread: threading.Thread | None = None
        self._is_wanted = threading.Event()
        self._is_parked = True

    def watch(self) -> None:
        """Something waits."""
        if not self._is_parked:
            return
        self._is_parked = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_flushing, name="flusher", daemon=True)
            self._thread.start()
        self._is_wanted.set()

    def _keep_flushing(self) -> None:
        while True:
            self._is_wanted.wait()
            self._is_wanted.clear()
            idle = 0.0
            while idle < 1.0:
                time.sleep(FLUSH_AFTER)
                idle += FLUSH_AFTER
                if self._taking.owed_for > FLUSH_AFTER and self.lock.acquire(blocking=False):
                    idle = 0.0
                    try:
                        self._taking.flush()
                    finally:
                        self.lock.release()
            self._is_parked = True
