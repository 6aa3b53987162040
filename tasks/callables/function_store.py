"""Callables by value: stored once under their digest, and kept by each worker process that has run them."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from graft.config import keys
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, resolve
from graft.tasks.envelope import WireFunction
from graft.tasks.errors import EnvelopeError, EnvelopeLostError, UnreferenceableError

KEY: Final = keys.FUNCTION
TTL: Final = 7 * 86400  # Longer than any envelope waits; renewed by every process that sends the callable again.
RENEWAL: Final = 3600.0
CACHED: Final = 256
MOST_STORED: Final = 4096  # Digests that a process remembers to have stored.

_stored: OrderedDict[str, float] = OrderedDict()  # By digest, the newest last.
_resolved: OrderedDict[tuple[str, str, bytes], Callable[..., Any]] = OrderedDict()


def store(ref: FunctionRef) -> WireFunction:
    """The wire form of *ref*; a callable by value is in Redis when this returns. Blocks for one round trip then."""
    if ref.how == "import":
        return WireFunction(ref.how, ref.name, ref.payload, ref.is_async)
    digest = hashlib.sha256(ref.payload).hexdigest()
    if time.monotonic() - _stored.get(digest, float("-inf")) > RENEWAL:
        shared().set(KEY + digest, codec.seal("function", ref.payload), ex=TTL)
        _stored[digest] = time.monotonic()
        _stored.move_to_end(digest)
        while len(_stored) > MOST_STORED:  # It is only stored again.
            _stored.popitem(last=False)
    return WireFunction(ref.how, ref.name, digest.encode(), ref.is_async)


def forget_stored() -> None:
    """Redis may have come back without its data: what was stored is stored again before it is sent."""
    _stored.clear()


def is_stored(function: WireFunction) -> bool:
    """Whether workers can get at it, as far as this process knows."""
    return function.how == "import" or function.payload.decode() in _stored


def load(function: WireFunction) -> Callable[..., Any]:
    """The callable itself, looked up once per process.

    Raises:
        UnreferenceableError: this process cannot import it.
        EnvelopeError: a callable by value that is no longer stored.
    """
    key = (function.how, function.name, function.payload)
    if key in _resolved:
        _resolved.move_to_end(key)
        return _resolved[key]
    payload = function.payload
    if function.how == "value":
        text = shared().get(KEY + payload.decode())
        if text is None:
            raise EnvelopeLostError(f"{function.name} was sent by value and is no longer stored; submit it again")
        payload = codec.unseal("function", text.decode() if isinstance(text, bytes) else str(text))
    try:
        found = resolve(FunctionRef(function.how, function.name, payload, function.is_async))
    except EnvelopeError:
        raise
    except Exception as error:  # The user's module may raise anything while it is imported.
        raise UnreferenceableError(f"a worker could not load {function.name}: {error!r}") from error
    _resolved[key] = found
    if len(_resolved) > CACHED:
        _resolved.popitem(last=False)
    return found
