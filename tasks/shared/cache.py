"""A cache that all processes of a deployment share, with one computation per key at a time.

``…:value`` is a sealed pickle that Redis expires. ``…:work`` names the ticket that computes it now, as a lease; what it
comes to, errors included, is kept for a moment under that ticket for those who waited.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.shared import lua

LEASE: Final = 30.0
OUTCOME: Final = 30.0  # Seconds for which those who waited can hear what came of it.
PURPOSE: Final = "shared-cache"

# ARGV: ticket, lease in ms, the prefix of outcomes, the ticket waited for so far.
_ASK: Final = """
local value = redis.call('GET', KEYS[1])
if value then return {'value', value} end
if ARGV[4] ~= '' then
  local outcome = redis.call('GET', ARGV[3] .. ARGV[4])
  if outcome then return {'outcome', outcome} end
end
local owner = redis.call('GET', KEYS[2])
if not owner or owner == ARGV[1] then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  return {'compute', ARGV[1]}
end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
return {'wait', owner}
"""

# ARGV: ticket, lease in ms.
_RENEW: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

# ARGV: ticket, the prefix of outcomes, ms for which these are kept, sealed outcome, ttl in ms or 0, sealed value.
_FINISH: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if tonumber(ARGV[5]) > 0 then redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[5]) end
if ARGV[4] ~= '' and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('SET', ARGV[2] .. ARGV[1], ARGV[4], 'PX', ARGV[3])
end
return redis.call('DEL', KEYS[2], KEYS[3])
"""


class Found(NamedTuple):
    """The answer to an ask: ``value`` or ``error`` is there; or ``wait``, for the computation of the ticket ``owner``;
    or ``compute``: it is this ticket's to compute.
    """

    what: str
    value: Any = None
    owner: str = ""


@dataclass(frozen=True)
class SharedCache:
    """Values under *name* and a key, for *ttl* seconds. Every method blocks for a round trip.

    Keys are texts, bytes, numbers, booleans, None, or tuples of these; values must pickle.
    """

    name: str
    ttl: float
    lease: float = LEASE

    def __post_init__(self) -> None:
        lua.seconds("ttl", self.ttl)
        lua.seconds("lease", self.lease)
        lua.keys("cache", self.name)

    def keys(self, key: Any) -> list[str]:
        digest = sha256(_text(key).encode("utf-8", "surrogatepass")).hexdigest()
        return lua.keys("cache", self.name, f"{digest}:value", f"{digest}:work", f"{digest}:waited")

    def get(self, key: Any) -> Found | None:
        """What is there, else None."""
        names = self.keys(key)
        text = lua.run("return redis.call('GET', KEYS[1])", names[:1])
        return None if text is None else Found("value", self._open(names[0], text))

    def set(self, key: Any, value: Any) -> None:
        """Keep *value*; its age starts anew.

        Raises:
            UnpicklableError, PayloadTooLargeError: it cannot be kept in Redis.
        """
        names = self.keys(key)
        sealed = self._seal(names[0], value)
        lua.run("return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])", names[:1], sealed, self._ttl_ms)

    def ask(self, key: Any, ticket: str, waited_for: str = "") -> Found:
        """The value, or who computes it: this *ticket* if nobody else does.

        *waited_for* is the ticket that the last ask said to wait for; what came of its computation is told even if it
        was an error, or has expired meanwhile.
        """
        names = self.keys(key)
        what, answer = lua.run(_ASK, names, ticket, _ms(self.lease), self._outcomes, waited_for)
        if what == b"value":
            return Found("value", self._open(names[0], answer))
        if what == b"outcome":
            succeeded, frame = pickle.loads(codec.unseal(_purpose(names[0]), answer.decode()))
            return Found("value", pickle.loads(frame)) if succeeded else Found("error", codec.load_error(frame))
        return Found(what.decode(), owner=answer.decode())

    def renew(self, key: Any, ticket: str) -> bool:
        """Whether the computation is still this ticket's."""
        return bool(lua.run(_RENEW, self.keys(key), ticket, _ms(self.lease)))

    def finish(self, key: Any, ticket: str, value: Any) -> None:
        """The computation came to *value*: keep it and tell those who wait."""
        names = self.keys(key)
        frame = self._dump(value)
        sealed = codec.seal(_purpose(names[0]), frame)
        self._end(names, ticket, (True, frame), self._ttl_ms, sealed)

    def fail(self, key: Any, ticket: str, error: BaseException) -> None:
        """The computation raised: those who wait are told, and nothing is kept."""
        self._end(self.keys(key), ticket, (False, codec.dump_error(error)), 0, "")

    def give_up(self, key: Any, ticket: str) -> None:
        """The computation was cancelled: somebody else shall make it."""
        lua.run(_FINISH, self.keys(key), ticket, "", 1, "", 0, "")

    def _end(self, names: list[str], ticket: str, outcome: tuple[bool, bytes], ttl: int, sealed: str) -> None:
        told = codec.seal(_purpose(names[0]), pickle.dumps(outcome, codec.PROTOCOL))
        lua.run(_FINISH, names, ticket, self._outcomes, _ms(OUTCOME), told, ttl, sealed)

    @property
    def _outcomes(self) -> str:
        return lua.keys("cache", self.name, "outcome")[0] + ":"

    @property
    def _ttl_ms(self) -> int:
        return _ms(self.ttl)

    def _dump(self, value: Any) -> bytes:
        return codec.dump_item(value, settings().item_limit, "the value for the cache")

    def _seal(self, key: str, value: Any) -> str:
        return codec.seal(_purpose(key), self._dump(value))

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
