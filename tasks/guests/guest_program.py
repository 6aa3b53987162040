"""What guests are made of, and whether their pool still lives: one key in Redis, which the program renews."""

from __future__ import annotations

import pickle
from typing import Any

from graft.config import keys
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.errors import EnvelopeError

Spec = dict[str, Any]  # Plain values alone: the guest opens it without any module of ours.


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
