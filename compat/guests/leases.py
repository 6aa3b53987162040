"""The leases of this program's pools: while they are renewed, guests live."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

import redis

from graft.config.deployment import settings
from graft.tasks.guests import guest_program

logger = logging.getLogger(__name__)


class Pool(Protocol):
    """Whoever has guests."""

    def lose(self) -> None:
        """The lease was lost, and the guests have ended."""

    def interrupt(self) -> None:
        """End what runs: Ctrl-C."""


class Leases:
    """Renews the leases of pools, four times in each, from before their first guest is made."""

    def __init__(self) -> None:
        self.interrupts = 0  # How often Ctrl-C was pressed.
        self._pools: dict[str, Pool | None] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, pool: str, owner: Pool | None = None) -> None:
        """Renew the lease of *pool*, and tell its *owner* should it be lost."""
        with self._lock:
            self._pools[pool] = owner
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._renew, name="graft-leases", daemon=True)
                self._thread.start()

    def remove(self, pool: str) -> None:
        """Renew it no more."""
        with self._lock:
            self._pools.pop(pool, None)

    def owners(self) -> list[Pool]:
        """The pools that have guests."""
        with self._lock:
            return [owner for owner in self._pools.values() if owner is not None]

    def _renew(self) -> None:
        while True:
            time.sleep(settings().guest_lease / 4)
            for pool, owner in list(self._pools.items()):
                try:
                    is_lost = not guest_program.renew(pool)
                except (redis.RedisError, OSError) as error:
                    logger.warning("the lease of a pool could not be renewed: %s", error)
                    continue
                if is_lost and pool in self._pools:
                    self.remove(pool)
                    if owner is not None:
                        owner.lose()
