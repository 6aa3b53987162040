"""A cache that all processes of a deployment share, with one computation per key at a time.

``…:value`` is a sealed pickle that Redis expires. ``…:work`` names the ticket that computes it now, as a lease; the
outcome, errors included, is kept for a moment under that ticket for those who waited.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from graft.config import lua
from graft.config.deployment import settings
from graft.config.validation import seconds
from graft.tasks import codec
from graft.tasks.shared.primitive import SharedPrimitive

LEASE: Final = 30.0
OUTCOME: Final = 30.0  # Seconds for which those who waited can get the outcome.
PURPOSE: Final = "shared-cache"


class Found(NamedTuple):
    """What :meth:`SharedCache.ask` found: a ``value``, or an ``error``; or ``wait``, for the computation of the ticket
    ``owner``; or ``compute``: the asking ticket has to.
    """

    what: str
    value: Any = None
    owner: str = ""


@dataclass(frozen=True)
class SharedCache(SharedPrimitive):
    """Values under *name* and a key, for *ttl* seconds.

    Keys are texts, bytes, numbers, booleans, None, or tuples of these; values must pickle.
    """

    ttl: float
    lease: float = LEASE
    kind: str = field(default="cache", kw_only=True)

    script = lua.load(__file__, "cache")
    parts = ("value", "work", "waited")

    def __post_init__(self) -> None:
        super().__post_init__()
        seconds("ttl", self.ttl)
        seconds("lease", self.lease)

    def entry(self, key: Any) -> list[str]:
        """The keys in Redis behind *key*."""
        digest = sha256(_text(key).encode("utf-8", "surrogatepass")).hexdigest()
        return [f"{self.prefix}{digest}:{part}" for part in self.parts]

    def get(self, key: Any) -> Found | None:
        """The value of *key*, else None."""
        entry = self.entry(key)
        text = self._change("get", entry)
        return None if text is None else Found("value", self._open(entry[0], text))

    def set(self, key: Any, value: Any) -> None:
        """Keep *value*; its age starts anew.

        Raises:
            UnpicklableError, PayloadTooLargeError: it cannot be kept in Redis.
        """
        entry = self.entry(key)
        self._change("set", entry, "", codec.seal(_purpose(entry[0]), self._dump(value)), _ms(self.ttl))

    def ask(self, key: Any, ticket: str, waited_for: str = "") -> Found:
        """The value, or who computes it: this *ticket* if nobody else does.

        *waited_for* is the ticket that the last ask said to wait for; the outcome of its computation is returned even
        if it was an error, or has expired meanwhile.
        """
        entry = self.entry(key)
        what, reply = self._change("ask", entry, ticket, waited_for)
        if what == b"value":
            return Found("value", self._open(entry[0], reply))
        if what == b"outcome":
            succeeded, frame = pickle.loads(codec.unseal(_purpose(entry[0]), reply.decode()))
            return Found("value", pickle.loads(frame)) if succeeded else Found("error", codec.load_error(frame))
        return Found(what.decode(), owner=reply.decode())

    def renew(self, key: Any, ticket: str) -> bool:
        """Whether the computation is still this ticket's."""
        return bool(self._change("renew", self.entry(key), ticket))

    def finish(self, key: Any, ticket: str, value: Any) -> None:
        """The computation returned *value*: keep it and hand it to those who wait."""
        entry = self.entry(key)
        frame = self._dump(value)
        self._finish(entry, ticket, codec.seal(_purpose(entry[0]), frame), (True, frame))

    def fail(self, key: Any, ticket: str, error: BaseException) -> None:
        """The computation raised: those who wait get the error, and nothing is kept."""
        self._finish(self.entry(key), ticket, "", (False, codec.dump_error(error)))

    def give_up(self, key: Any, ticket: str) -> None:
        """The computation was cancelled: the next who asks computes."""
        self._finish(self.entry(key), ticket, "", None)

    def _finish(self, entry: list[str], ticket: str, sealed: str, outcome: tuple[bool, bytes] | None) -> None:
        text = codec.seal(_purpose(entry[0]), pickle.dumps(outcome, codec.PROTOCOL)) if outcome else ""
        self._change("finish", entry, ticket, sealed, _ms(self.ttl), text, _ms(OUTCOME))

    def _change(self, operation: str, entry: list[str], ticket: str = "", *arguments: Any) -> Any:
        return self._run(operation, _ms(self.lease), f"{self.prefix}outcome:", ticket, *arguments, keys=entry)

    def _dump(self, value: Any) -> bytes:
        return codec.dump_item(value, settings().item_limit, "the value for the cache")

    def _open(self, key: str, text: bytes) -> Any:
        return pickle.loads(codec.unseal(_purpose(key), text.decode()))


def _purpose(key: str) -> str:
    return f"{PURPOSE}:{key}"  # A value cannot be passed off as that of another key.


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _text(key: Any) -> str:
    """The same text in every process for equal keys of one type."""
    if isinstance(key, tuple):
        return f"({','.join(map(_text, key))})"
    if type(key) in (str, bytes, int, float, bool, type(None)):
        return repr(key)
    raise TypeError(
        f"the key {key!r} ({type(key).__name__}) is not the same text in every process; use str, bytes, numbers, or "
        "tuples of them"
    )
