"""The way into a pool: a task is accepted here at once, in a place that was reserved.

A submission that had to ask Redis first would cost a round trip each. So this process reserves a share of the queue
while tasks keep coming, and gives back what it did not use within milliseconds of the last one. Reserved places count
as taken for everybody, which is what keeps the bound.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.local_state import LocalPool
from graft.config.queues import table
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.monitoring import worker_registry
from graft.tasks.pools import due_messages
from graft.tasks.pools.lost_slots import LostSlots
from graft.tasks.pools.state import RedisPool, State

logger = logging.getLogger("graft.compat.worker_pool")

Pool = RedisPool | LocalPool

AHEAD: Final = 512  # Places that a process reserves at once while it submits in quick succession.
IDLE: Final = 0.003  # Seconds without a submission after which unused places go back.
LOOK_EVERY: Final = 0.05  # Seconds after which a full queue is asked again, though nothing of ours has ended,
LOOK_SOONER: Final = 0.01  # where others may have made the room.
TEND_EVERY: Final = 1.0
SEARCH_EVERY: Final = 5.0  # Seconds between two searches for messages that were due and got lost.
PATIENCE: Final = 0.02  # Seconds to wait for places that others may have reserved and will not use.


class Submission:
    """One process's places in one pool. A thread gives unused ones back, and tells the pool that this client lives.

    Args:
        noted: hears the state of the pool and the number of its slots, once a second.
        is_strict: no place is reserved ahead: every task has to be in Redis before it is accepted.
    """

    def __init__(self, pool: Pool, client: str, noted: Callable[[State, int], None], *, is_strict: bool) -> None:
        self.pool, self.client = pool, client
        self._noted = noted
        self._is_strict = is_strict or isinstance(pool, LocalPool)
        self._lock = threading.Lock()  # Entered for each task: as a condition it would cost five times as much.
        self._changed = threading.Condition(self._lock)
        self._asking = threading.Lock()
        self._places = 0
        self._was_full = False
        self._is_closed = self._is_stopped = self._is_resting = False
        self._last = self._full = 0.0
        self._look_every = LOOK_EVERY
        self._room = threading.Condition()
        self.thread: threading.Thread | None = None
        if isinstance(pool, RedisPool):
            self.thread = threading.Thread(target=self._tend, name="graft-pool", daemon=True)
            self.thread.start()

    @property
    def unused(self) -> int:
        """Places that are reserved and not in use."""
        return self._places

    def take_now(self) -> bool:
        """Take a place that is reserved; never waits, and False says nothing about the queue."""
        with self._lock:
            if self._is_closed:
                raise PoolClosedError
            if not self._places:
                return False
            self._places -= 1
            self._last = time.monotonic()
            return True

    def take(self, *, is_local: bool) -> bool:
        """Take a place; False when the queue is full. One round trip where no place is reserved.

        Raises:
            PoolClosedError: a shutdown has begun, here or in another process.
            BrokerUnavailable: Redis does not answer.
        """
        with self._asking:
            deadline = time.monotonic() + PATIENCE
            while not self.take_now():
                is_quick = (self._was_full or time.monotonic() - self._last < IDLE) and not self._is_strict
                if time.monotonic() - self._full < LOOK_EVERY:
                    return False
                # What could begin it: a thread of ours, or a pool process of a live worker.
                ready = 1_000_000 if is_local else worker_registry.slots(table().batch)
                wanted = AHEAD if is_quick else 1
                state, granted, others = self.pool.reserve(self.client, wanted, ready)
                self._full = time.monotonic() if granted < wanted and not others else 0.0
                self._look_every = LOOK_SOONER if others else LOOK_EVERY
                if state not in ("new", "running"):
                    self.refuse()
                    raise PoolClosedError
                self._was_full = not granted
                if granted:
                    with self._changed:
                        self._places += granted - 1
                        self._last = time.monotonic()
                        if self._is_resting:
                            self._changed.notify_all()
                    return True
                if not others or time.monotonic() > deadline:
                    return False
                time.sleep(0.002)
            return True

    def note_room(self, is_much: bool = True) -> None:
        """A task of this client has ended: a full queue has room again; *is_much*: who waits for it should look now."""
        self._full = 0.0
        if is_much:
            with self._room:
                self._room.notify_all()

    def wait_for_room(self, seconds: float) -> None:
        """Until there may be room, and *seconds* at most."""
        with self._room:
            self._room.wait(min(seconds, self._look_every))

    def refuse(self) -> None:
        """Accept nothing from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def give_up(self) -> int:
        """The places that were reserved and are not used, which the caller gives back."""
        with self._changed:
            unused, self._places = self._places, 0
            return unused

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = self._is_closed = True
            self._changed.notify_all()

    def _tend(self) -> None:
        due = time.monotonic() + TEND_EVERY
        search, lost = due, LostSlots(self.pool) if isinstance(self.pool, RedisPool) else None
        while True:
            with self._changed:
                now = time.monotonic()
                is_idle = self._places and now - self._last >= IDLE
                if not (self._is_stopped or is_idle or now >= due):
                    self._is_resting = not self._places
                    self._changed.wait(due - now if self._is_resting else self._last + IDLE - now)
                    continue
            due = time.monotonic() + TEND_EVERY
            try:
                with self._asking:  # Whoever finds no place must not ask before these are back.
                    unused = self.give_up()
                    state, limit, messages = self.pool.tend(self.client, unused)
                due_messages.publish(messages)
                self._noted(state, limit)
                if lost is not None and now >= search:
                    search = now + SEARCH_EVERY
                    lost.recover()
            except BrokerUnavailable as error:
                with self._changed:
                    self._places += unused
                logger.debug("the pool cannot be tended: %s", error)
            if self._is_stopped:
                return
