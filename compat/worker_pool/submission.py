"""The way into a pool: a task is accepted here at once, in a place that was reserved, and written to Redis soon after.

A submission that had to ask Redis first would cost a round trip each. So this process reserves a share of the queue
while tasks keep coming, and gives back what it did not use within milliseconds of the last one. Reserved places count
as taken for everybody, which is what keeps the bound.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from graft.compat.worker_pool.errors import PoolClosedError
from graft.config.deployment import settings
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.monitoring import worker_registry
from graft.tasks.pools.state import Entry, Ledger, RedisLedger, State
from graft.tasks.pools.worker import QUEUE, send_tickets

logger = logging.getLogger("graft.compat.worker_pool")

FLUSH: Final = 64  # Entries in one write: more would keep the interpreter's lock from whoever submits.
IDLE: Final = 0.003  # Seconds without a submission after which unused places go back.
TEND_EVERY: Final = 1.0
PATIENCE: Final = 0.02  # Seconds to wait for places that others have reserved and will not use.


class Intake:
    """One process's way into one pool. ``written`` hears of every entry that is in the ledger, or was lost."""

    def __init__(
        self,
        ledger: Ledger,
        client: str,
        written: Callable[[Sequence[Entry], BaseException | None], None],
        closed: Callable[[], None],
        *,
        is_strict: bool = False,
    ) -> None:
        self.ledger = ledger
        self.client = client
        self._written = written
        self._closed = closed
        self._is_strict = is_strict or not isinstance(ledger, RedisLedger)
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._pending: deque[Entry] = deque()
        self._places = 0
        self._flushing = 0
        self._batch = 0
        self._is_closed = self._is_stopped = False
        self._last = 0.0
        self._thread: threading.Thread | None = None

    # ---- on the caller's thread ----------------------------------------------------------------------------------

    def accept_now(self, entry: Entry) -> bool:
        """Accept *entry* if a place is reserved; never waits, and False says nothing about the queue."""
        with self._changed:
            if self._is_closed:
                raise PoolClosedError
            if self._is_strict or not self._places:
                return False
            self._places -= 1
            self._add(entry)
            return True

    def accept(self, entry: Entry) -> bool:
        """Accept *entry*; False when the queue is full. One round trip where no place is reserved.

        Raises:
            PoolClosedError: a shutdown has begun, here or in another process.
            BrokerUnavailable: Redis does not answer.
        """
        with self._asking:
            deadline = time.monotonic() + PATIENCE
            while True:
                if self.accept_now(entry):
                    return True
                # Only a process that submits in quick succession is given more than it asks for.
                more = time.monotonic() - self._last < IDLE and not self._is_strict
                state, places, others = self.ledger.reserve(self.client, self._ready(entry), more=more)
                if state not in ("new", "running"):
                    self.refuse()
                    raise PoolClosedError
                if places:
                    break
                if not others or time.monotonic() > deadline:
                    return False
                time.sleep(0.002)
            if self._is_strict:
                self._write_now(entry)
                return True
            with self._changed:
                self._places += places - 1
                self._add(entry)
            return True

    def _write_now(self, entry: Entry) -> None:
        """In a pool with an order, a task that is accepted must be seen by the next worker that becomes free."""
        self._batch += 1
        try:
            state, tickets = self.ledger.add(self.client, self._batch, 0, [entry])
        except BrokerUnavailable:
            self._unfilled(1)
            raise
        self._heed(state, tickets)
        self._written([entry], None)

    def _ready(self, entry: Entry) -> int:
        """Slots that something is there to run: threads of ours, or pool processes of live workers."""
        return 1_000_000 if entry.owner else worker_registry.slots(QUEUE)

    def _add(self, entry: Entry) -> None:
        self._last = time.monotonic()
        self._pending.append(entry)
        if len(self._pending) == 1:
            self._changed.notify_all()

    def refuse(self) -> None:
        """Accept nothing from now on; what has been accepted is still written."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def unwritten(self) -> int:
        """Tasks that were accepted and are not in the ledger yet."""
        return len(self._pending) + self._flushing

    @property
    def is_settled(self) -> bool:
        return not (self.unwritten or self._places)

    # ---- on a thread of its own ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Start writing, and tending the pool, until :meth:`stop`."""
        with self._changed:
            if self._thread is None and isinstance(self.ledger, RedisLedger):
                self._thread = threading.Thread(target=self._work, name="graft-pool", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = self._is_closed = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Stop, once what was accepted has been written; for a pool that nobody holds any more."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _work(self) -> None:
        tended = time.monotonic() - TEND_EVERY
        while True:
            entries, unused = self._next(tended + TEND_EVERY)
            if entries or unused:
                self._write(entries, unused)
            elif self._is_stopped:
                return
            if time.monotonic() >= tended + TEND_EVERY:
                tended = time.monotonic()
                self._tend()

    def _next(self, until: float) -> tuple[list[Entry], int]:
        """What to write now, and the places to give back; nothing when it is time for something else."""
        with self._changed:
            while not self._pending:
                now = time.monotonic()
                if self._places and (now - self._last >= IDLE or self._is_closed):
                    unused, self._places = self._places, 0
                    return [], unused
                if self._is_stopped or now >= until:
                    return [], 0
                self._changed.wait(IDLE if self._places else until - now)
            entries = [self._pending.popleft() for _ in range(min(FLUSH, len(self._pending)))]
            self._flushing = len(entries)
            return entries, 0

    def _write(self, entries: list[Entry], unused: int) -> None:
        self._batch += 1
        give_up = time.monotonic() + settings().outage_grace
        wait = 0.05
        error: BaseException | None = None
        while True:
            try:
                state, tickets = self.ledger.add(self.client, self._batch, unused, entries)
                self._heed(state, tickets)
                break
            except BrokerUnavailable as outage:
                if time.monotonic() > give_up:
                    logger.error("%d tasks that were accepted could not be sent: %s", len(entries), outage)
                    error = outage
                    self._unfilled(len(entries) + unused)
                    break
                time.sleep(wait)
                wait = min(2 * wait, 1.0)
        self._written(entries, error)
        self._flushing = 0

    def _unfilled(self, places: int) -> None:
        """Nothing was written into so many places: give them back when Redis answers again."""
        with self._changed:
            self._places += places
            self._changed.notify_all()

    def _tend(self) -> None:
        try:
            self._heed(*self.ledger.tend(self.client))
        except BrokerUnavailable as error:
            logger.debug("the pool cannot be tended: %s", error)

    def _heed(self, state: State, tickets: Sequence[str]) -> None:
        send(self.ledger, tickets)
        if state not in ("new", "running"):
            self.refuse()
        if state in ("closed", "gone"):
            self._closed()


def send(ledger: Ledger, tickets: Sequence[str]) -> None:
    """Publish tickets; those that do not get out are replaced when the pool is tended."""
    if not tickets or not isinstance(ledger, RedisLedger):
        return
    try:
        send_tickets(ledger.name, ledger.generation, tickets)
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("%d tickets of a pool could not be sent, and will be again: %s", len(tickets), error)
