"""What guests are made of, and whether their pool still lives: one key in Redis, which the program renews.

Values that are large, arguments and results alike, are kept beside it in pieces.
"""

from __future__ import annotations

import pickle
import secrets
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.errors import EnvelopeError, PayloadTooLargeError

INLINE: Final = 512 << 10  # Bytes of a value that travels in its message.
PIECE: Final = 8 << 20

Spec = dict[str, Any]  # Plain values alone: the guest opens it without any module of ours.
Frame = bytes | tuple[str, int]  # A pickle, or the key and the number of its pieces.


def key_of(pool: str) -> str:
    return keys.GUESTS + pool


def _lease() -> int:
    return int(settings().guest_lease * 1000)


def store(pool: str, spec: Spec) -> None:
    """Keep *spec* for the guests of *pool*, for one lease."""
    sealed = codec.sealed(f"guests:{pool}", pickle.dumps(spec, codec.PROTOCOL))
    shared().set(key_of(pool), sealed, px=_lease())


def fetch(pool: str) -> Spec:
    """What guests of *pool* are made of.

    Raises:
        EnvelopeError: the pool has ended, or its program has.
        SignatureError: signed with another key.
    """
    sealed = shared().get(key_of(pool))
    if sealed is None:
        raise EnvelopeError("the pool has ended, or its program did not renew its lease")
    spec: Spec = pickle.loads(codec.unseal(f"guests:{pool}", sealed))
    return spec


def renew(pool: str) -> bool:
    """Renew the lease of *pool*; False when it was lost."""
    return bool(shared().pexpire(key_of(pool), _lease()))


def end(pool: str) -> None:
    """The pool has ended: its guests end."""
    shared().delete(key_of(pool), f"{key_of(pool)}:made")


def alive(pools: list[str]) -> list[bool]:
    """Which of *pools* have not ended."""
    with shared().pipeline(transaction=False) as pipe:
        for pool in pools:
            pipe.exists(key_of(pool))
        return [bool(found) for found in pipe.execute()]


def count_made(pool: str) -> int:
    """The number of the guest that is made now, from 0."""
    with shared().pipeline(transaction=False) as pipe:
        pipe.incr(f"{key_of(pool)}:made").expire(f"{key_of(pool)}:made", int(settings().result_ttl))
        return int(pipe.execute()[0]) - 1


def pack(pool: str, frame: bytes) -> Frame:
    """*frame* as it travels.

    Raises:
        PayloadTooLargeError: larger than ``GRAFT_GUEST_VALUE_LIMIT``.
    """
    if len(frame) <= INLINE:
        return frame
    limit = settings().guest_value_limit
    if len(frame) > limit:
        raise PayloadTooLargeError(
            f"an argument or result of a pool takes {len(frame)} bytes, the limit is {limit}; pass a reference to it "
            "(a path, a key), or raise GRAFT_GUEST_VALUE_LIMIT"
        )
    key, client = f"{key_of(pool)}:value:{secrets.token_hex(8)}", shared()
    pieces = range(0, len(frame), PIECE)
    for number, start in enumerate(pieces):
        sealed = codec.sealed(f"{key}:{number}", frame[start : start + PIECE])
        client.set(f"{key}:{number}", sealed, px=int(settings().result_ttl * 1000))
    return key, len(pieces)


def unpack(frame: Frame, *, keep: bool) -> bytes:
    """The pickle that travelled as *frame*. A worker keeps its pieces, since a call may have to run again."""
    if isinstance(frame, bytes):
        return frame
    key, count = frame
    names, client = [f"{key}:{number}" for number in range(count)], shared()
    pieces = []
    for name in names:
        piece = client.get(name)
        if piece is None:
            raise EnvelopeError("a large argument or result of a pool is no longer in Redis")
        pieces.append(codec.unseal(name, piece))
    if not keep:
        client.delete(*names)
    return b"".join(pieces)


def forget(frame: Frame) -> None:
    """Remove the pieces of *frame*."""
    if not isinstance(frame, bytes):
        shared().delete(*(f"{frame[0]}:{number}" for number in range(frame[1])))
