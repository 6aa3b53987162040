"""Signs messages as a whole: whoever has only Redis's address cannot run, stop or reconfigure anything.

What a signature covers: the body, the headers, the id, where the message goes and when it was made. It leaves out what
Redis and kombu change on the way (delivery tag, priority, the redelivered flag).
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from kombu.utils.json import dumps

from graft.config import redis_clock

HEADER: Final = "graft_signature"
MADE_AT: Final = "graft_made_at"
PURPOSE: Final = b"message"
AHEAD: Final = 300.0  # Seconds by which the clock of a sender may be ahead.
MESSAGE_AGE: Final = 31 * 86400.0  # A message may wait for its time for thirty days.
COMMAND_AGE: Final = 300.0
COMMANDS: Final = "celery.pidbox"
REPLIES: Final = "reply.celery.pidbox"
UNSIGNED: Final = ("celeryev", REPLIES)  # Nobody acts upon events and replies.
KNOWN_CHANGES: Final = (HEADER, "redelivered")  # The latter is kombu's, made when a message is given back.
# Commands that tell and change nothing, and tell no settings: they may be asked by anybody who can reach Redis.
HARMLESS: Final = frozenset(
    {
        "ping",
        "stats",
        "active",
        "reserved",
        "scheduled",
        "registered",
        "active_queues",
        "query_task",
        "revoked",
        "clock",
    }
)


def sign(message: dict[str, Any], target: str, keys: Sequence[bytes], now: float | None = None) -> None:
    """Put the time and the signature for *target* into the headers of *message* (kombu's, not yet sent)."""
    headers = message["headers"]
    headers[MADE_AT] = round(redis_clock.now() if now is None else now, 3)
    headers[HEADER] = _digest(message, target, keys[0])


def flaw(
    message: Mapping[str, Any], target: str, keys: Sequence[bytes], age: float, now: float | None = None
) -> str | None:
    """What is wrong with the signature of *message*, or None when it was made for *target* with one of *keys*."""
    headers = message.get("headers") or {}
    given, made = headers.get(HEADER), headers.get(MADE_AT)
    if not isinstance(given, str) or not isinstance(made, int | float):
        return "it is not signed"
    # Only texts of ASCII can be compared in constant time.
    if not given.isascii() or not any(hmac.compare_digest(given, _digest(message, target, key)) for key in keys):
        return "its signature does not verify: altered, meant for another place, or signed with another key"
    passed = (redis_clock.now() if now is None else now) - made
    if passed > age:
        return f"it was made {passed:.0f} s ago, and messages are accepted for {age:.0f} s"
    return f"it was made {-passed:.0f} s from now" if passed < -AHEAD else None


def is_harmless(message: Mapping[str, Any]) -> bool:
    """Whether *message*, a broadcast, is a command that changes nothing and is answered where replies go.

    A worker signs what it sends: an answer must not be addressed to a queue or to the other workers.
    """
    try:
        command = json.loads(b64decode(message["body"]))
        if not isinstance(command, dict) or command.get("method") not in HARMLESS:
            return False
        reply_to = command.get("reply_to")
        return reply_to is None or (isinstance(reply_to, dict) and reply_to.get("exchange") == REPLIES)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return False


def target(exchange: str, routing_key: str) -> str:
    """Where a message goes, as its signature covers it."""
    return f"{exchange}/{routing_key}"


def _digest(message: Mapping[str, Any], target: str, key: bytes) -> str:
    headers = message["headers"].copy()
    for name in KNOWN_CHANGES:
        headers.pop(name, None)
    properties = message.get("properties") or {}
    covered = [
        target,
        properties.get("correlation_id"),
        properties.get("reply_to"),
        message.get("content-type"),
        message.get("content-encoding"),
        headers,
    ]
    body = message.get("body") or b""
    # A lone surrogate can be written in JSON, though no caller of ours does.
    raw = body if isinstance(body, bytes) else str(body).encode("utf-8", "surrogatepass")
    text = _as_text(covered).encode("ascii") + b"\0"
    digest = hashlib.blake2b(text, key=_derived(key), digest_size=32)
    digest.update(raw)
    return b64encode(digest.digest()).decode("ascii")


@cache
def _derived(key: bytes) -> bytes:
    """The key for this purpose alone."""
    return hmac.digest(key, PURPOSE, "sha256")


_encode: Final = json.JSONEncoder(sort_keys=True, check_circular=False).encode


def _as_text(value: Any) -> str:
    """One text for one value, before its journey as JSON and after it."""
    try:
        return _encode(value)
    except TypeError:  # Dates and the like, which kombu turns into JSON and back.
        return str(dumps(value, sort_keys=True))
