"""A bounded channel between processes: a list in Redis, and leases that say who is there on both sides.

The receiver is at the end once every sender has closed, or died, and the list is empty; a sender is refused once every
receiver has gone. A value that was received by a process that then died is lost, as it would be
inside one process.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from graft.config import lua
from graft.config.deployment import settings
from graft.config.keys import SHARED
from graft.config.redis_client import server_time
from graft.config.validation import at_least_one
from graft.tasks import codec
from graft.tasks.shared.primitive import SharedPrimitive

LEASE: Final = 30.0
CHANNELS: Final = f"{SHARED}channels"
Side = Literal["sender", "receiver"]


class SharedClosed(Exception):
    """Nobody is left on the other side."""


@dataclass(frozen=True)
class SharedChannel(SharedPrimitive):
    """The channel *name*, for at most *capacity* values."""

    capacity: int
    lease: float = LEASE
    kind: str = field(default="channel", kw_only=True)

    script = lua.load(__file__, "channel")
    parts = ("items", "senders", "receivers", "state")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("capacity", self.capacity)

    def seal(self, value: Any) -> str:
        """*value* as it travels.

        Raises:
            UnpicklableError, PayloadTooLargeError: it cannot.
        """
        return codec.seal(self._purpose, codec.dump_item(value, settings().item_limit, "the value to send"))

    def send(self, sender: str, sealed: str) -> bool:
        """Whether there was room for the value.

        Raises:
            SharedClosed: every receiver has gone.
            DifferentLimitsError: the channel is in use with another capacity.
        """
        sent, theirs = self._run("send", sender, sealed)
        if sent == -1:
            raise SharedClosed
        if sent == -2:
            raise self._refuse_difference(b"capacity " + theirs, f"capacity {self.capacity}")
        return bool(sent)

    def receive(self, receiver: str) -> list[Any]:
        """The next value in a list of one; [] when there is none yet.

        Raises:
            SharedClosed: every sender has closed, and nothing is left.
        """
        received, text = self._run("receive", receiver)
        if received == -1:
            raise SharedClosed
        return [pickle.loads(codec.unseal(self._purpose, text.decode()))] if received else []

    def renew(self, side: Side, holder: str) -> bool:
        """This sender or receiver is still there."""
        return bool(self._run(f"renew_{side}", holder))

    def close(self, side: Side, holder: str) -> None:
        """This sender or receiver has gone."""
        self._run(f"close_{side}", holder)

    def room(self) -> int:
        """How many values fit in now."""
        return max(0, self.capacity - int(self._run("length", "")))

    @property
    def _purpose(self) -> str:
        return f"channel:{self.name}"

    def _run(self, operation: str, *arguments: Any, **options: Any) -> Any:
        return super()._run(
            operation, self.capacity, self.lease, self.name, *arguments, keys=[*self.keys, CHANNELS], **options
        )


@dataclass(frozen=True)
class ChannelState:
    """A channel as others see it: values that wait in it, and the living ends on either side."""

    name: str
    waiting: int
    capacity: int
    senders: int
    receivers: int


def channels(client: Any) -> list[ChannelState]:
    """The channels in which something waits or somebody takes part, by name."""
    names = sorted(name.decode() for name in client.zrange(CHANNELS, 0, -1))
    now = server_time(client)
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            items, senders, receivers, state = SharedChannel(name, 1).keys
            pipe.llen(items)
            pipe.hget(state, "capacity")
            pipe.zcount(senders, f"({now}", "+inf")
            pipe.zcount(receivers, f"({now}", "+inf")
        replies = pipe.execute()
    states = [
        ChannelState(name, waiting, int(capacity or 0), senders, receivers)
        for name, waiting, capacity, senders, receivers in zip(
            names, replies[::4], replies[1::4], replies[2::4], replies[3::4], strict=True
        )
    ]
    return [state for state in states if state.waiting or state.senders or state.receivers]
