"""Gives the items that a long envelope has not begun to processes that have nothing to do.

Sizes are learnt, so an envelope may turn out to hold far more work than it was meant to. One thread of this process
looks at the envelopes that run here. When one takes long, has items left, and nobody else's work waits in its queue,
what is left is sent on as new envelopes; its own item goes on undisturbed.
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

from graft.config.deployment import app, part
from graft.tasks.envelope import Envelope, Given
from graft.tasks.ids import sibling_of
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.monitoring.worker_registry import slots

logger = logging.getLogger(__name__)

MOST: Final = 16  # Envelopes made of one; each can be divided again.
IDLE_AFTER: Final = 20  # Looks without any envelope, after which the thread sleeps until the next one.

Give = Callable[[list[int]], bool]


class Offer:
    """The items of one envelope that have not begun: its runner takes them from the left, this from the right."""

    def __init__(self, todo: deque[int], give: Give) -> None:
        self._todo = todo
        self._give = give
        self._giving = threading.Lock()
        self.began = time.monotonic()

    def share(self) -> None:
        """Give away what has not begun; what nobody took comes back."""
        with self._giving:
            places = drained(self._todo)
            if not places:
                return
            try:
                taken = self._give(places)
            except Exception as error:  # Such as a lost broker: the runner does it all, as it would have anyway.
                logger.warning("an envelope's items could not be shared: %r", error)
                taken = False
            if not taken:
                self._todo.extend(places)

    def is_exhausted(self) -> bool:
        """Whether nothing is left to run, now that nothing is on its way out either."""
        with self._giving:
            return not self._todo


def drained(todo: deque[int]) -> list[int]:
    """What was left in *todo*, which is empty now."""
    places: list[int] = []
    while True:
        try:
            places.append(todo.pop())
        except IndexError:
            return places[::-1]


class Sharer:
    """The thread that looks at the envelopes of this process."""

    def __init__(self) -> None:
        self._offers: dict[int, Offer] = {}
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._after = 1.0

    @contextmanager
    def offered(self, todo: deque[int], give: Give, after: float) -> Iterator[Offer]:
        """Offer *todo* to others once its runner has been at it for *after* seconds."""
        offer = Offer(todo, give)
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
            time.sleep(self._after / 2)
            due = time.monotonic() - self._after
            offers: Sequence[Offer] = list(self._offers.values())
            for offer in offers:
                if offer.began < due:
                    offer.share()
            idle = 0 if offers else idle + 1
            if idle > IDLE_AFTER:
                self._begun.clear()
                if not self._offers:
                    self._begun.wait()
                idle = 0


def sharer() -> Sharer:
    """This process's sharer."""
    return part(Sharer)


def give(envelope: Envelope, places: Sequence[int], task: str, request: Any) -> tuple[Given, ...]:
    """Send the items at *places* to the queue that *request* came from; nothing while others wait there.

    The envelopes' ids begin like that of *envelope*, so their answers reach the process that waits for it.
    """
    route = request.delivery_info or {}
    queue, priority = str(route.get("routing_key")), route.get("priority")
    lanes = slots(queue)
    if lanes < 2:
        return ()
    with app().producer_pool.acquire(block=True) as producer:
        if producer.channel._size(queue):
            return ()
        size = -(-len(places) // min(lanes, MOST))
        made = [_part(envelope, places[at : at + size]) for at in range(0, len(places), size)]
        with producer.batch() as batch:
            for part in made:
                argument = payloads.store(part.id, part.sealed())
                message = app().amqp.as_task_v2(
                    part.id, task, args=(argument,), kwargs={}, group_id=part.batch, root_id=part.batch,
                    parent_id=envelope.id, kwargsrepr="{}",
                    argsrepr=f"({part.function.name}, {len(part.items)} items from {part.positions[0]})",
                )  # fmt: skip
                app().amqp.send_task_message(
                    producer, task, message, queue=queue, priority=priority, declare=[], retry=False,
                    headers={SENT_AT: time.time()},
                )  # fmt: skip
            batch.flush()
    return tuple((part.id, tuple(part.positions)) for part in made)


def _part(envelope: Envelope, places: Sequence[int]) -> Envelope:
    return replace(
        envelope,
        id=sibling_of(envelope.id),
        positions=[envelope.positions[place] for place in places],
        items=[envelope.items[place] for place in places],
        carried={},
        given=(),
    )
