"""Posts changes to a webhook: signed, several in one call, again until it has taken them, and not too often.

Changes wait in a bounded outbox in Redis. A call that fails leaves them there for the next check. The receiver checks
``X-Graft-Signature: t=SECONDS,v1=HEX``, where HEX is HMAC-SHA256 of ``SECONDS.BODY`` under GRAFT_WEBHOOK_KEY, and
refuses calls whose SECONDS are long past.
"""

from __future__ import annotations

import hmac
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.settings import Settings
from graft.tasks.health.verdicts import Change, HealthReport

logger = logging.getLogger(__name__)

OUTBOX: Final = "graft:health:outbox"
CALLED: Final = "graft:health:called"
OUTBOX_LENGTH: Final = 1000
AT_ONCE: Final = 100
PATIENCE: Final = 5.0
HEADER: Final = "X-Graft-Signature"


def post(report: HealthReport, changes: Sequence[Change], client: Any) -> None:
    """Put *changes* into the outbox, if there is a webhook."""
    if changes and settings().webhook_url:
        entries = [json.dumps({"at": report.at, "state": report.state, **asdict(change)}) for change in changes]
        with client.pipeline() as pipe:
            pipe.rpush(OUTBOX, *entries)
            pipe.ltrim(OUTBOX, -OUTBOX_LENGTH, -1)
            pipe.execute()


def deliver(report: HealthReport, client: Any) -> int:
    """Send what is in the outbox, unless the last call was too recent; how many changes it took."""
    config = settings()
    entries = client.lrange(OUTBOX, 0, AT_ONCE - 1) if config.webhook_url else []
    if not entries or not client.set(CALLED, 1, nx=True, px=int(config.webhook_every * 1000)):
        return 0
    message = {
        "deployment": config.broker_name,
        "state": report.state,
        "changes": [json.loads(each) for each in entries],
    }
    try:
        call(config, json.dumps(message).encode(), int(report.at))
    except (urllib.error.URLError, OSError, ValueError) as error:
        logger.warning(
            "the webhook did not take %d changes, which are sent again with the next check: %s", len(entries), error
        )
        return 0
    client.ltrim(OUTBOX, len(entries), -1)
    return len(entries)


def call(config: Settings, body: bytes, at: int) -> None:
    """POST *body*; a status other than 2xx is an error."""
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked with the settings
        config.webhook_url,
        data=body,
        headers={
            "Content-Type": "application/json",
            HEADER: signature(config.webhook_key.get_secret_value(), body, at),
        },
    )
    with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310 - likewise
        pass


def signature(key: str, body: bytes, at: int) -> str:
    return f"t={at},v1={hmac.digest(key.encode(), f'{at}.'.encode() + body, 'sha256').hex()}"
