"""Whether workers would quarantine a waiting message: the rules of the workers, without unpickling anything."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

from graft.config.deployment import app, settings
from graft.config.transport.channel import MESSAGE_LIMIT
from graft.config.transport.message_validation import BadMessage, decode
from graft.config.transport.task_validation import forgery, refusal


class _Channel:
    """As much of a channel as a message asks for when it is made."""

    @staticmethod
    def decode_body(body: str, encoding: str | None = None) -> Any:
        return b64decode(body) if encoding == "base64" else body


def flaw(raw: bytes) -> str:
    """``reason: particulars`` of the refusal with which workers would quarantine the message in *raw*, else ""."""
    try:
        limit = (app().conf.broker_transport_options or {}).get("message_limit", MESSAGE_LIMIT)
        message = Message(
            decode(raw, limit), channel=_Channel(), accept=prepare_accept_content(app().conf.accept_content)
        )
    except BadMessage as error:
        return str(error)
    except ValueError as error:  # A body that is not base64.
        return f"malformed_body: {error!r}"
    found = forgery(message) or refusal(message)
    return f"{found.reason}: {found.detail}" if found else ""


def can_verify() -> bool:
    """Whether this process can verify signatures, or accepts messages without any."""
    return bool(settings().signing_keys) or settings().unsigned_messages == "accept"
