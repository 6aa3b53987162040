"""Decides which task messages no worker runs; the hardened consumer moves those to the quarantine.

The transport has checked the outer form already (message_validation.py). Here are the rules for the parts that only a
worker reads: each stands for something that ends, blocks or confuses a worker of Celery 5.7. :func:`flaw` applies all
rules to a message that still waits.
"""

from __future__ import annotations

import math
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

from graft.config import redis_clock
from graft.config.deployment import app, settings
from graft.config.transport import signing
from graft.config.transport.message_validation import MESSAGE_LIMIT, BadMessage, decode

ID_LENGTH: Final = 255
FURTHEST_ETA: Final = timedelta(days=30)  # Until then the message stays in the memory of one worker.

CALLBACKS: Final[dict[Any, type]] = {"callbacks": list, "errbacks": list, "chain": list, "chord": dict}


class Refusal(NamedTuple):
    """Why a message is not run: a code to count by, and the particulars."""

    reason: str
    detail: str


class _Channel:
    """The part of a channel that a message needs when it is made."""

    @staticmethod
    def decode_body(body: str, encoding: str | None = None) -> Any:
        return b64decode(body) if encoding == "base64" else body


def flaw(raw: bytes) -> str:
    """``reason: particulars`` of the refusal with which workers would quarantine the message in *raw*, else "".

    Nothing of its content is unpickled. Signatures are checked only where :func:`can_verify`.
    """
    conf = app().conf
    limit = (conf.broker_transport_options or {}).get("message_limit", MESSAGE_LIMIT)
    try:
        message = message_in(raw, limit, prepare_accept_content(conf.accept_content))
    except BadMessage as error:
        return str(error)
    except ValueError as error:  # A body that is not base64.
        return f"malformed_body: {error!r}"
    found = forgery(message) or refusal(message)
    return f"{found.reason}: {found.detail}" if found else ""


def message_in(raw: bytes, limit: int, accept: Any) -> Message:
    """The message in *raw*, of at most *limit* bytes, whose content is of the types in *accept*.

    Raises:
        ValueError: there is none; a BadMessage says why.
    """
    return Message(decode(raw, limit), channel=_Channel(), accept=accept)


def can_verify() -> bool:
    """Whether this process can tell a signed message from a forged one."""
    return bool(settings().signing_keys) or settings().signing != "require"


def forgery(message: Any) -> Refusal | None:
    """Why *message* (of kombu) was not sent by somebody with the deployment's key, or None when it was."""
    config = settings()
    if not config.refuses_unsigned:
        return None
    info = message.delivery_info
    target = signing.target(str(info.get("exchange")), str(info.get("routing_key")))
    found = signing.flaw(message._raw, target, config.signing_keys, signing.MESSAGE_AGE)
    return None if found is None else Refusal("bad_signature", found)


def refusal(message: Any, now: datetime | None = None) -> Refusal | None:
    """Why *message* (of kombu) must not reach Celery's strategies, or None when it may."""
    headers: dict[str, Any] = message.headers
    if "task" not in headers:
        return _refused_old_message(message, now or redis_clock.today())
    if not isinstance(headers["task"], str) or not headers["task"]:
        return Refusal("unknown_task", f"the task's name is {headers['task']!r:.100}")
    return _refused_id(headers) or _refused_header(headers, now or redis_clock.today()) or _refused_payload(message)


def _refused_old_message(message: Any, now: datetime) -> Refusal | None:
    """The same for a message of task protocol 1, which says everything in its body."""
    try:
        body = message.payload
    except ContentDisallowed as error:
        return Refusal("disallowed_content_type", str(error))
    except (DecodeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return Refusal("malformed_body", repr(error))
    if not isinstance(body, dict) or not isinstance(body.get("task"), str) or not body["task"]:
        return Refusal("no_task_header", "not a task message")
    parts = {"args": list | tuple, "kwargs": dict, "callbacks": list, "errbacks": list, "chord": dict}
    wrong = next((name for name, kind in parts.items() if not isinstance(body.get(name), kind | None)), None)
    if wrong is not None:
        return Refusal("malformed_body", f"{wrong} is {body[wrong]!r:.100}")
    return _refused_id(body) or _refused_header(body, now)


def _refused_id(headers: dict[str, Any]) -> Refusal | None:
    task_id = headers.get("id")
    if task_id is None or task_id == "":
        return Refusal("missing_id", "a task message has an id")
    if not isinstance(task_id, str) or len(task_id) > ID_LENGTH or not task_id.isprintable():
        return Refusal("bad_id", f"an id is printable text of up to {ID_LENGTH} characters, not {task_id!r:.100}")
    return None


def _refused_header(headers: dict[str, Any], now: datetime) -> Refusal | None:
    limits = headers.get("timelimit")
    if limits is not None and not (isinstance(limits, list) and len(limits) == 2 and all(map(_is_limit, limits))):
        return Refusal("bad_timelimit", f"timelimit is {limits!r:.100}, not two positive numbers or nulls")
    if type(headers.get("retries") or 0) is not int:
        return Refusal("malformed_headers", f"retries is {headers['retries']!r:.100}")
    # Ids that Celery looks up in the result backend.
    if not all(isinstance(headers.get(name), str | None) for name in ("group", "root_id", "parent_id")):
        return Refusal("malformed_headers", "group, root_id and parent_id are ids or null")
    if not isinstance(headers.get("stamps") or {}, dict) or not _are_names(headers.get("stamped_headers") or []):
        return Refusal("malformed_headers", "stamps or stamped_headers are not as Celery sends them")
    for name in ("eta", "expires"):
        try:
            when = _instant(headers.get(name))
        except (TypeError, ValueError, OverflowError):
            return Refusal("malformed_headers", f"{name} is {headers[name]!r:.100}")
        if name == "eta" and when is not None and when - now > FURTHEST_ETA:
            return Refusal("eta_too_far", f"{when} is more than {FURTHEST_ETA.days} days away")
    return None


def _refused_payload(message: Any) -> Refusal | None:
    try:
        _args, _kwargs, embed = message.payload
    except ContentDisallowed as error:
        return Refusal("disallowed_content_type", str(error))
    except (DecodeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return Refusal("malformed_body", repr(error))
    # Celery merges these into its own record of the task, where every other name means something else.
    if embed is not None and not (isinstance(embed, dict) and all(_is_callback(*item) for item in embed.items())):
        return Refusal("malformed_body", "the third part of the body is not a mapping of callbacks")
    return None


def _is_callback(name: Any, value: Any) -> bool:
    return (value is None and name in CALLBACKS) or isinstance(value, CALLBACKS.get(name, ()))


def _is_limit(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < math.inf)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _instant(value: str | None) -> datetime | None:
    if value is None:
        return None
    when = datetime.fromisoformat(value)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
