"""Large envelopes travel beside their message, under a key of their own.

A message passes through the worker's main process, as text inside text, and down a pipe to its pool. What is large is
left out of it: the pool process that runs the envelope fetches the bytes itself, once. They stay until the envelope is
answered, so that a message that is delivered again finds them.
"""

from __future__ import annotations

from typing import Any, Final

from graft.config import keys
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.errors import EnvelopeError
from graft.tasks.messages.message_format import MESSAGE_TTL

BODY: Final = keys.BODY
BESIDE: Final = "beside"  # Stands in the message for what is kept beside it.
INLINE: Final = 48 << 10  # Bytes that travel in the message itself; as text they fill one pipe.


def argument(sealed: bytes) -> str:
    """What the message says: the whole envelope as text, or that it is kept beside it."""
    return BESIDE if len(sealed) > INLINE else codec.as_text(sealed)


def store(envelope_id: str, sealed: bytes, client: Any = None) -> str:
    """Keep *sealed* beside its message where it is large; the message's argument. Before the message is sent."""
    text = argument(sealed)
    if text == BESIDE:
        (client or shared()).set(BODY + envelope_id, sealed, ex=MESSAGE_TTL)
    return text


def fetch(argument: str, envelope_id: str) -> str | bytes:
    """The sealed envelope that a message with *argument* stands for.

    Raises:
        EnvelopeError: it was kept beside the message and is gone.
    """
    if argument != BESIDE:
        return argument
    sealed: bytes | None = shared().get(BODY + envelope_id)
    if sealed is None:
        raise EnvelopeError(
            f"the content of envelope {envelope_id} is gone from Redis ({BODY}…): it came back without its data, or "
            f"evicts keys (maxmemory-policy must be noeviction), or {MESSAGE_TTL // 86400} days have passed"
        )
    return sealed
