"""What ends a run and waits for its process's next round trip to Redis, where a process makes one after every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from redis.commands.core import Script

from graft.config.deployment import part

LOST: Final = -1  # The script's reply where the message went back.


class Ending(Protocol):
    """A script that stores the result of a run and acknowledges its message."""

    @property
    def script(self) -> Script: ...

    @property
    def keys(self) -> list[str]: ...

    @property
    def arguments(self) -> list[Any]: ...

    @property
    def key(self) -> str:
        """Where the result is stored."""

    def hand_over(self) -> None:
        """Somebody else runs the script, later."""

    def told(self, reply: int) -> None:
        """The script said *reply*."""


class _Taker:
    """Whoever stores results with what is sent to Redis next; nobody, in most processes."""

    def __init__(self) -> None:
        self.take: Callable[[Ending], None] | None = None


def store_later(take: Callable[[Ending], None]) -> None:
    """Have *take* given what ends a run here, instead of storing it at once."""
    part(_Taker).take = take


def leave(ending: Ending) -> bool:
    """Leave *ending* to the process's next round trip; False where it makes none."""
    take = part(_Taker).take
    if take is None:
        return False
    ending.hand_over()
    take(ending)
    return True
