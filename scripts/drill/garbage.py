"""Messages that are none, of every kind that has ended, stalled or confused a worker of Celery on Redis."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, Final


def _task(payload: Any = None, **changes: Any) -> dict[str, Any]:
    """A message that asks for ``drill.work``, but for *changes*: of the envelope, and of ``headers``."""
    headers = {"task": "drill.work", "id": "some-id", "lang": "py", **changes.pop("headers", {})}
    return {
        "body": base64.b64encode(json.dumps([["bad"], {}, {}] if payload is None else payload).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {name: value for name, value in headers.items() if value != "absent"},
        "properties": {
            "delivery_tag": "some-tag", "body_encoding": "base64", "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "default"},
        },
        **changes,
    }  # fmt: skip


def _bomb() -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(b" " * (32 << 20))).decode()
    return _task(body=packed, headers={"compression": "application/x-gzip"})


_MESSAGES: Final[tuple[Any, ...]] = (
    b"\xff\xfe", b"", b"{}", b"[1]", b"[" * 100_000, b'{"body": null, "headers": {}, "properties": {}}',
    _task(properties={"delivery_info": {}}), _task(headers={"task": "absent"}), _task(headers={"task": 5}),
    _task(headers={"task": "drill.unknown"}), _task(body=None), _task(body="*"), _task(payload=[1]),
    _task(payload=[[], {}, {"args": 1}]), _task(headers={"id": "absent"}), _task(headers={"id": None}),
    _task(headers={"id": "a\nb"}), _task(headers={"id": "x" * 100_000}), _task(headers={"timelimit": "abc"}),
    _task(headers={"timelimit": [-1, None]}), _task(headers={"retries": "many"}), _task(headers={"eta": 5}),
    _task(headers={"eta": "9999-01-01T00:00:00+00:00"}), _task(**{"content-type": "application/x-python-serialize"}),
    _task(headers={"compression": "application/zstd"}), _bomb(),
)  # fmt: skip
GARBAGE: Final = tuple(one if isinstance(one, bytes) else json.dumps(one).encode() for one in _MESSAGES)
BROADCASTS: Final = (b"[1]", b"[" * 100_000, b"{}", json.dumps(_task(body="*")).encode(), b"\xff", b"")
