"""What is behind the two ends of a channel: a queue in this process, or a list in Redis."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Final, Protocol

from graft.compat.async_patterns import polling
from graft.compat.async_patterns.fair_semaphore import wake
from graft.tasks.errors import TaskQueueError
from graft.tasks.ids import new_id
from graft.tasks.shared.channel import SharedChannel, SharedClosed, Side
from graft.tasks.shared.lease_renewer import lease_renewer

END: Final = object()
"""Comes after the last value."""


class ChannelClosedError(TaskQueueError):
    """Nobody receives any more: the value was not sent."""


class Ends(Protocol):
    """What both kinds of channel do for their two ends."""

    async def send(self, value: Any) -> bool: ...
    async def receive(self) -> Any: ...
    def room(self) -> int: ...
    def sender_closed(self) -> None: ...
    def receiver_closed(self) -> None: ...


class LocalEnds:
    """A queue under a lock; whoever waits is woken through his own loop, to look again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.RLock()  # An end may be forgotten, and so closed, by the collector at any point.
        self._values: deque[Any] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._is_sent = self._is_dropped = False

    def room(self) -> int:
        return self._capacity - len(self._values)

    async def send(self, value: Any) -> bool:
        waiter: asyncio.Future[None] | None = None
        try:
            while True:
                with self._lock:
                    if self._is_dropped:
                        raise ChannelClosedError("the receiver has gone: nobody would receive the value")
                    ahead = self._senders[0] if self._senders else None
                    if self.room() > 0 and ahead in (None, waiter):
                        self._values.append(value)
                        return waiter is not None
                    if waiter is None or waiter.done():
                        fresh = asyncio.get_running_loop().create_future()
                        self._replace(waiter, fresh)
                        waiter = fresh
                        if self._is_dropped:  # By the collector, since the look at the top.
                            wake(waiter)
                await waiter
        finally:
            with self._lock:
                if waiter is not None:
                    with suppress(ValueError):
                        self._senders.remove(waiter)
                self._wake_first()

    def _replace(self, old: asyncio.Future[None] | None, fresh: asyncio.Future[None]) -> None:
        """A sender that was woken in vain keeps its place."""
        if old is not None and old in self._senders:
            self._senders[self._senders.index(old)] = fresh
        else:
            self._senders.append(fresh)

    async def receive(self) -> Any:
        waiter: asyncio.Future[None] | None = None
        try:
            while True:
                with self._lock:
                    if self._values:
                        return self._values.popleft()
                    if self._is_sent:
                        return END
                    waiter = asyncio.get_running_loop().create_future()
                    self._receivers.append(waiter)
                    if self._is_sent:
                        wake(waiter)
                await waiter
                with self._lock, suppress(ValueError):
                    self._receivers.remove(waiter)
        finally:
            with self._lock:
                if waiter is not None:
                    with suppress(ValueError):
                        self._receivers.remove(waiter)
                self._wake_first()

    def sender_closed(self) -> None:
        with self._lock:
            self._is_sent = True
            _wake_all(self._receivers)

    def receiver_closed(self) -> None:
        with self._lock:
            self._is_dropped = True
            self._values.clear()
            _wake_all(self._senders)

    def _wake_first(self) -> None:
        """Whoever is first on either side and could go on."""
        if self._values or self._is_sent:
            _wake_one(self._receivers)
        if self.room() > 0 or self._is_dropped:
            _wake_one(self._senders)


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters and not wake(waiters[0]):
        waiters.popleft()  # Its loop was closed.


def _wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        wake(waiter)


class SharedEnd:
    """One end of a channel in Redis, with the lease that says it is there."""

    def __init__(self, shared: SharedChannel) -> None:
        self._channel = shared
        self._holder = new_id()
        self._side: Side | None = None
        self._is_over = False

    def room(self) -> int:
        return self._channel.room()

    async def send(self, value: Any) -> bool:
        sealed = self._channel.seal(value)
        self._stay("sender")
        looks = 0

        def attempt() -> bool | None:
            nonlocal looks
            looks += 1
            return self._channel.send(self._holder, sealed) or None

        try:
            await polling.poll(attempt)
        except SharedClosed:
            raise ChannelClosedError(f"nobody receives from the channel {self._channel.name!r} any more") from None
        return looks > 1

    async def receive(self) -> Any:
        if self._is_over:
            return END
        self._stay("receiver")
        try:
            (value,) = await polling.poll(lambda: self._channel.receive(self._holder) or None)
        except SharedClosed:
            self._is_over = True
            self.receiver_closed()
            return END
        return value

    def _stay(self, side: Side) -> None:
        if self._side is None:
            self._side = side
            channel, holder = self._channel, self._holder  # The keeper must not keep this end from being forgotten.
            lease_renewer().keep(holder, lambda: channel.renew(side, holder), channel.lease / 3)

    def sender_closed(self) -> None:
        self._close("sender")

    def receiver_closed(self) -> None:
        self._close("receiver")

    def _close(self, side: Side) -> None:
        if self._side is not None:
            self._side = None
            polling.soon(_leave, self._channel, side, self._holder)


def _leave(channel: SharedChannel, side: Side, holder: str) -> None:
    lease_renewer().drop(holder)
    channel.close(side, holder)
