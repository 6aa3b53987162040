"""Shares the items that a long envelope has not begun with processes that have nothing to do.

Sizes are learnt, so an envelope may turn out to hold far more work than it was meant to. One thread of this process
checks the envelopes that run here. When one takes long, has items left, and nothing else waits in its queue, these
items are sent on as new envelopes, its children; the item that runs goes on undisturbed. Of an envelope that takes long
the thread also tells what has ended, so that nobody waits for a long neighbour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from graft.config import redis_clock
from graft.config.deployment import app, part
from graft.tasks.envelope import Child, Envelope
from graft.tasks.ids import sibling_of
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.monitoring.worker_registry import slots

logger = logging.getLogger(__name__)

MOST: Final = 16  # Envelopes made of one; each can be divided again.
TELL_EVERY: Final = 0.25  # Seconds between early outcomes of one envelope.
IDLE_AFTER: Final = 40  # Checks without any envelope, after which the thread sleeps until the next one.

Share = Callable[[list[int]], bool]  # Sends the items at these indexes on; whether others will run them.
Tell = Callable[[], None]  # Publishes what has ended.


class Offer:
    """The items of one envelope that have not begun: the runner takes them from the left, others from the right."""

    def __init__(self, todo: deque[int], share: Share | None, tell: Tell | None = None) -> None:
        self._todo = todo
        self._share = share
        self._tell = tell
        self._sharing = threading.Lock()
        self.began = time.monotonic()

    def share(self) -> None:
        """Send what has not begun to others; what nobody takes comes back."""
        if self._share is None:
            return
        with self._sharing:
            indexes = drained(self._todo)
            if not indexes:
                return
            try:
                taken = self._share(indexes)
            except Exception as error:  # Such as a lost broker: the runner does it all, as it would have anyway.
                logger.warning("an envelope's items could not be shared: %r", error)
                taken = False
            if not taken:
                self._todo.extend(indexes)

    def tell(self) -> None:
        """Publish what has ended."""
        if self._tell is None:
            return
        try:
            self._tell()
        except Exception as error:  # The report has it again.
            logger.warning("outcomes of an envelope that still runs could not be published: %r", error)

    def is_exhausted(self) -> bool:
        """Whether nothing is left to run, now that nothing is on its way out either."""
        with self._sharing:
            return not self._todo


def drained(todo: deque[int]) -> list[int]:
    """Take everything out of *todo*, in its order."""
    indexes: list[int] = []
    while True:
        try:
            indexes.append(todo.pop())
        except IndexError:
            return indexes[::-1]


class Sharer:
    """The thread that checks the envelopes of this process."""

    def __init__(self) -> None:
        self._offers: dict[int, Offer] = {}
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._after = 1.0

    @contextmanager
    def offered(self, todo: deque[int], share: Share | None, after: float, tell: Tell | None = None) -> Iterator[Offer]:
        """*tell* what has ended once the runner has been at *todo* for *after* seconds; after twice that, share it."""
        offer = Offer(todo, share, tell)
        key = id(offer)
        self._after = after
        self._offers[key] = offer
        self._begun.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="graft-sharing", daemon=True)
            self._thread.start()
        try:
            yield offer
        finally:
            del self._offers[key]

    def _watch(self) -> None:
        idle = 0
        while True:
            time.sleep(min(self._after / 2, TELL_EVERY))
            now = time.monotonic()
            offers: Sequence[Offer] = list(self._offers.values())
            for offer in offers:
                if offer.began < now - self._after:
                    offer.tell()
                if offer.began < now - 2 * self._after:
                    offer.share()
            idle = 0 if offers else idle + 1
            if idle > IDLE_AFTER:
                self._begun.clear()
                if not self._offers:
                    self._begun.wait()
                idle = 0


def sharer() -> Sharer:
    """The sharer of this process."""
    return part(Sharer)


def send_children(envelope: Envelope, indexes: Sequence[int], task: str, request: Any) -> tuple[Child, ...]:
    """Send the items at *indexes* to the queue that *request* came from; nothing while others wait there.

    The ids of the children begin like that of *envelope*, so their results reach the process that waits for it.
    """
    route = request.delivery_info or {}
    queue, priority = str(route.get("routing_key")), route.get("priority")
    found = slots(queue)
    if found < 2:
        return ()
    with app().producer_pool.acquire(block=True) as producer:
        if producer.channel._size(queue):
            return ()
        size = -(-len(indexes) // min(found, MOST))
        made = [_child(envelope, indexes[at : at + size]) for at in range(0, len(indexes), size)]
        with producer.batch() as batch:
            for child in made:
                argument = payloads.store(child.id, child.sealed())
                message = app().amqp.as_task_v2(
                    child.id, task, args=(argument,), kwargs={}, group_id=child.batch, root_id=child.batch,
                    parent_id=envelope.id, kwargsrepr="{}",
                    argsrepr=f"({child.function.name}, {len(child.items)} items from {child.positions[0]})",
                )  # fmt: skip
                app().amqp.send_task_message(
                    producer, task, message, queue=queue, priority=priority, declare=[], retry=False,
                    headers={SENT_AT: redis_clock.now()},
                )  # fmt: skip
            batch.flush()
    return tuple((child.id, tuple(child.positions)) for child in made)


def _child(envelope: Envelope, indexes: Sequence[int]) -> Envelope:
    return replace(
        envelope,
        id=sibling_of(envelope.id),
        positions=[envelope.positions[index] for index in indexes],
        items=[envelope.items[index] for index in indexes],
        carried={},
        children=(),
        spent=(0.0, 0.0),
    )
