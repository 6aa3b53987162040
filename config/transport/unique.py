"""Calls of which there is one at a time: who has the key of a call is decided in the step that puts it on its queue.

    push ── the key is free ──► key taken, message on its list
        └── another has it ──► HeldError, nothing sent; or it waits, and gives way to a call that replaces it

The key follows the call through retries and redeliveries, and is given back in the step that stores its result. A key
whose call is nowhere in Redis is anybody's (tasks/queues/unique.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast, get_args

from graft.config import keys, lua, redis_clock
from graft.config.deployment import settings
from graft.config.transport.due import NAMES, Placed

HEADER: Final = "graft_unique"
LONGEST_KEY: Final = 500
GIVE_KEY_BACK: Final = lua.text(__file__, "give_key_back")  # A function for the scripts that do so.
UNIQUE: Final = lua.load(__file__, "unique", functions=GIVE_KEY_BACK)

IfRunning = Literal["attach", "drop", "replace"]


class HeldError(Exception):
    """Another call has the key: nothing was sent. ``silent`` seconds ago it was last seen alive."""

    def __init__(self, terms: Terms, holder: str, state: str, silent: float) -> None:
        super().__init__(f"the call {holder} has the unique key {terms.key!r} ({state})")
        self.terms, self.holder, self.state, self.silent = terms, holder, state, silent


@dataclass(frozen=True, slots=True)
class Terms:
    """What a call is unique by: its *key*, what becomes of it where another has that, seconds that it keeps it then."""

    key: str
    if_running: IfRunning = "attach"
    unique_for: float = 0.0

    @classmethod
    def checked(cls, key: Any, if_running: Any, unique_for: Any) -> Terms:
        """The terms that a caller has given.

        Raises:
            TypeError, ValueError: they are none.
        """
        if not isinstance(key, str):
            raise TypeError(f"unique={key!r} must be a text: what the call is about, such as 'invoice 17'")
        if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
            raise ValueError(f"unique={key!r:.250} must be 1 to {LONGEST_KEY} printable characters")
        if if_running not in get_args(IfRunning):
            raise ValueError(f"if_running={if_running!r} must be one of {', '.join(map(repr, get_args(IfRunning)))}")
        longest = settings().batch_ttl
        if isinstance(unique_for, bool) or not isinstance(unique_for, int | float) or not 0 <= unique_for <= longest:
            raise ValueError(
                f"unique_for={unique_for!r} must be 0 to {longest:g} seconds after the end (GRAFT_BATCH_TTL)"
            )
        return cls(key, if_running, float(unique_for))

    @classmethod
    def of(cls, headers: Any) -> Terms | None:
        """Those in the *headers* of a message, or of a request; None where there are none."""
        found = headers.get(HEADER) if hasattr(headers, "get") else getattr(headers, HEADER, None)
        if not isinstance(found, list | tuple) or len(found) != 3:
            return None
        return cls(str(found[0]), cast(IfRunning, found[1]), float(found[2]))

    def of_callable(self, name: str) -> Terms:
        """The same for the callable or task *name* alone."""
        return replace(self, key=f"{name} {self.key}")

    @property
    def header(self) -> list[Any]:
        """As it travels in a message."""
        return [self.key, self.if_running, self.unique_for]

    @property
    def name(self) -> str:
        """The key in Redis."""
        return keys.UNIQUE + self.key

    @property
    def keep_ms(self) -> int:
        """How long the key stays when the call has ended."""
        return int(self.unique_for * 1000)

    def push(self, message: Placed, due: float | None, wakeup_ms: int, client: Any) -> None:
        """Put *message* in its place, and wake a reader, if the call has the key then. *due*: it waits until then.

        Raises:
            HeldError: another has it.
        """
        hold = hold_ms() + (0 if due is None else max(0, int((due - redis_clock.now()) * 1000)))
        arguments: list[str | int | float] = ["push", message.id, self.if_running, hold, wakeup_ms, message.text]
        arguments += [message.queue, *([] if due is None else [due])]
        found = UNIQUE([self.name, message.list, message.wakeups, *NAMES], arguments, client)
        if found is not None:
            holder, state, silent = (part.decode() for part in found)
            raise HeldError(self, holder, state, float(silent))


def hold_ms() -> int:
    """How long a key stays whose call shows no sign of life."""
    return int(settings().batch_ttl * 1000)
