"""Whether bytes from a queue are a message that kombu can deliver, decided before kombu sees them."""

from __future__ import annotations

import base64
import bz2
import logging
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

logger = logging.getLogger(__name__)

MESSAGE_LIMIT: Final = 16 << 20  # Bytes on the wire, and after decompression; the option "message_limit" changes it.

# kombu's other compressions cannot stop at a limit.
_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class BadMessage(ValueError):
    """A message that cannot be delivered; *reason* is the code it is quarantined under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(raw: bytes, limit: int) -> dict[str, Any]:
    """The message in *raw*, fit for delivery; raises BadMessage when it is not."""
    if len(raw) > limit:
        raise BadMessage("too_large", f"{len(raw)} bytes, the limit is {limit}")
    try:
        message = loads(bytes_to_str(raw))
    except Exception as error:
        raise BadMessage("malformed_json", repr(error)) from error
    return checked(message, limit)


def checked(message: Any, limit: int) -> dict[str, Any]:
    """*message* with everything in place that kombu looks up unasked; raises BadMessage when something is not."""
    match message:
        case {
            "properties": {"delivery_tag": str(), "delivery_info": {"exchange": str(), "routing_key": str()}},
            "content-type": str(),
        } if isinstance(message.get("headers"), dict | None):
            envelope: dict[str, Any] = message
        case _:
            raise BadMessage("malformed_envelope", "properties, headers or content-type are not as kombu sends them")
    properties, headers = envelope["properties"], envelope.get("headers") or {}
    body, encoding = envelope.get("body"), properties.get("body_encoding")
    if not isinstance(body, str) or not body or encoding not in ("base64", "utf-8", None):
        raise BadMessage("malformed_body", f"a {type(body).__name__} with the encoding {encoding!r}")
    if headers.get("compression"):
        _check_unpacked_size(headers["compression"], body, encoding, limit)
    priority = properties.get("priority", 0)
    if not isinstance(priority, int) or not 0 <= priority <= 9:
        # kombu fails on Infinity when it puts the message back.
        properties["priority"] = min(max(priority, 0), 9) if isinstance(priority, int) else 0
        logger.warning("the priority of a message was %.50r, now it is %d", priority, properties["priority"])
    return envelope


def _check_unpacked_size(compression: Any, body: str, encoding: str | None, limit: int) -> None:
    if not isinstance(compression, str) or compression not in _DECOMPRESSORS:
        raise BadMessage("malformed_headers", f"compression {compression!r} is not one of {', '.join(_DECOMPRESSORS)}")
    try:
        packed = base64.b64decode(body) if encoding == "base64" else body.encode()
        unpacked = _DECOMPRESSORS[compression]().decompress(packed, limit + 1)
    except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise BadMessage("malformed_body", repr(error)) from error
    if len(unpacked) > limit:
        raise BadMessage("too_large", f"{len(packed)} bytes unpack to more than {limit}")
