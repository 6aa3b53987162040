"""Messages that only the present holder of a lease may send: Redis compares its token in the step that takes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fence:
    """The *key* on the broker that holds the token of whoever may send, and the token of this sender."""

    key: str
    token: str


class FencedOffError(Exception):
    """Somebody else holds the lease by now: nothing was sent."""
