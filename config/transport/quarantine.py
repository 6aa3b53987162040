"""The quarantine: a list in Redis of the latest messages that could not be delivered or run, each with its reason."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any, Final

from graft.config import keys, redis_clock

logger = logging.getLogger(__name__)

MESSAGES: Final = keys.QUARANTINE
COUNTS: Final = f"{keys.QUARANTINE}:counts"
LENGTH: Final = 500
BYTES: Final = 256 << 10  # Of one message; the rest is cut off, its length is kept.


def keep(client: Any, key_prefix: str, raw: bytes, queue: str, reason: str, detail: str) -> None:
    """Keep *raw* for people to look at. Raises RedisError when Redis cannot; then it is not kept."""
    logger.error("quarantined a message of %d bytes from %s: %s (%.500s)", len(raw), queue, reason, detail)
    entry = {
        "reason": reason,
        "detail": detail[:500],
        "queue": queue,
        "first_seen": redis_clock.now(),
        "bytes": len(raw),
        "raw": base64.b64encode(raw[:BYTES]).decode(),
    }
    pipe = client.pipeline(transaction=False)
    pipe.lpush(MESSAGES, json.dumps(entry))
    # kombu's prefixing client knows LPUSH, but neither of these.
    pipe.ltrim(key_prefix + MESSAGES, 0, LENGTH - 1)
    pipe.hincrby(key_prefix + COUNTS, reason, 1)
    pipe.execute()
