"""A worker's way in, for fuzzing: everything that bytes meet between a Redis list and the pool, in this process.

The functions are the worker's own (``decode``, ``forgery``, ``refusal``) and Celery's strategy behind them, which
builds the request; only Redis is absent. What raises here that the transport does not quarantine would end a worker.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, Final

from celery import Celery
from celery.worker import state as worker_state
from celery.worker.strategy import default as strategy_of
from kombu.transport.virtual import Message
from kombu.utils.json import dumps

from graft.config.deployment import settings
from graft.config.transport import signing
from graft.config.transport.message_validation import BadMessage, checked, decode
from graft.config.transport.task_validation import forgery, refusal

LIMIT: Final = 1 << 16
PLACE: Final = signing.target("", "default")

GOOD: Final[dict[str, Any]] = {
    "body": base64.b64encode(json.dumps([["x"], {}, {"chord": None}]).encode()).decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {
        "task": "sample.note", "id": "some-id", "lang": "py", "eta": None, "expires": None, "timelimit": [None, None],
        "retries": 0, "stamps": {}, "stamped_headers": [], "compression": None,
    },
    "properties": {
        "delivery_tag": "tag", "body_encoding": "base64", "priority": 0, "correlation_id": "some-id",
        "delivery_info": {"exchange": "", "routing_key": "default"},
    },
}  # fmt: skip

# What has broken readers before: wrong kinds, ends of ranges, names that mean something, text that is not.
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "0", "x",
    "\0", "\ud800", "\u202e", "\n", "a" * 256, "é" * 300, [], {}, [None], [[]], [1, 2], [-1, None], ["x", "y"],
    {"a": {}}, {"": None}, "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "2024-02-30", "1970-01-01T00:00:00Z",
    "2030-01-01T00:00:00+23:59", "2031-05-05", "application/json", "application/x-python-serialize",
    "application/x-yaml", "application/data", "text/plain", "application/x-gzip", "application/x-bz2",
    "application/x-lzma", "gzip", "application/zstd", "utf-8", "binary", "utf-16", "idna", "base64", "rot13",
    "sample.note", "celery.chord",
    "celery.backend_cleanup", "reply.celery.pidbox", "celery.pidbox", {"exchange": "", "routing_key": "default"},
    {"exchange": None}, {"__type__": "datetime", "__value__": "no"}, {"__type__": "bytes", "__value__": 5},
    {"__type__": "decimal", "__value__": "x"}, {"__type__": ["uuid", 1], "__value__": "x"}, [["x"], {}, {}],
    {"callbacks": [{"task": None}]}, {"args": []}, [{"method": "ping"}],
)  # fmt: skip
NAMES: Final = (
    "task", "id", "lang", "eta", "expires", "timelimit", "retries", "stamps", "stamped_headers", "compression", "group",
    "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "shadow", "ignore_result", "replaced_task_nesting",
    "group_index", "redelivered", "reply_to", "x-death", signing.HEADER, signing.MADE_AT, "delivery_tag",
    "delivery_info", "body_encoding", "priority", "correlation_id", "reply_to", "exchange", "routing_key", "body",
    "content-type", "content-encoding", "headers", "properties", "method", "arguments", "destination", "ticket",
    "pattern", "matcher", "args", "kwargs", "chord", "callbacks", "errbacks", "chain", "__type__", "__value__",
)  # fmt: skip


def _headers(message: dict[str, Any]) -> dict[str, Any]:
    found = message.get("headers")
    return found if isinstance(found, dict) else {}


class Channel:
    """What a message asks of the channel that it came by."""

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        return base64.b64decode(body) if encoding == "base64" else body


def _note(label: str) -> None:
    """The task that good messages ask for; never run."""


def _settled(*_: Any) -> None:
    """What acknowledges and rejects a message."""


class _Consumer(SimpleNamespace):
    """As much of a consumer as the strategy asks for; signals keep their senders in a table."""

    __hash__ = object.__hash__


class Reader:
    """Reads messages as a worker does, up to its pool; ``seen`` counts what became of them."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.pooled: list[Any] = []
        app = Celery("fuzz", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(accept_content=["json"], task_acks_late=True)
        task = app.task(name="sample.note")(_note)
        consumer = _Consumer(
            hostname="fuzz@test", connection_errors=(OSError,), event_dispatcher=None, disable_rate_limits=True,
            timer=SimpleNamespace(call_at=lambda when, function, args, **_: float(when)), task_buckets={},
            apply_eta_task=self.pooled.append, on_task_request=self.pooled.append, _limit_task=None,
            _limit_post_eta=None, pool=SimpleNamespace(signal_safe=True, apply_async=None), app=app,
            qos=SimpleNamespace(increment_eventually=lambda: None),
            controller=SimpleNamespace(state=worker_state),
        )  # fmt: skip
        self._start = strategy_of(task, app, consumer)
        self._accept = {"application/json"}

    def read(self, raw: bytes) -> str:
        """What becomes of *raw* on a queue."""
        try:
            message = decode(raw, LIMIT)
        except BadMessage as error:
            return self._note(error.reason)
        message["properties"]["delivery_tag"] = "ours"
        dumps(message)  # It can be put back.
        try:
            delivered = Message(message, channel=Channel(), accept=self._accept)
        except (ValueError, TypeError):  # The transport quarantines these (Channel._take).
            return self._note("undeliverable")
        refused = forgery(delivered) or refusal(delivered)
        if refused is not None:
            return self._note(refused.reason)
        if message["headers"]["task"] != "sample.note":
            return self._note("unknown_task")
        self._start(delivered, None, _settled, _settled, [])
        self.pooled.clear()
        worker_state.requests.clear()
        return self._note("run")

    def hear(self, raw: bytes) -> str:
        """What becomes of *raw* on the channel of control commands."""
        try:
            message = checked(json.loads(raw), LIMIT)
        except (BadMessage, ValueError, RecursionError):
            return self._note("dropped")
        if signing.is_harmless(message):
            body = json.loads(base64.b64decode(message["body"]))
            assert body["method"] in signing.HARMLESS
            assert body.get("reply_to") is None or body["reply_to"]["exchange"] == signing.REPLIES
            return self._note("answered")
        flaw = signing.flaw(message, PLACE, settings().signing_keys, signing.COMMAND_AGE)
        return self._note("obeyed" if flaw is None else "refused")

    def _note(self, what: str) -> str:
        self.seen[what] += 1
        return what


class Mutants:
    """Endless messages that are nearly good; the same ones for the same *seed*."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._good = json.dumps(GOOD)
        self._bytes = self._signed(json.loads(self._good)).encode()
        self._before = self._bytes

    def __iter__(self) -> Iterator[bytes]:
        kinds = (
            self._garbled,
            self._spliced,
            self._twisted,
            self._twisted,
            self._twisted_body,
            self._packed,
            self._command,
        )
        while True:
            try:
                raw = self._random.choice(kinds)()
            except RecursionError:  # Twisted so deep that nobody could have sent it.
                continue
            yield raw
            if len(raw) < 4096 and self._random.random() < 0.1:
                self._before = raw

    def _signed(self, message: Any) -> str:
        """*message* as text, signed as a caller's own bug would have it, or not."""
        try:
            if self._random.random() < 0.8:
                signing.sign(message, PLACE, settings().signing_keys)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
            pass  # No caller could have sent it signed.
        return json.dumps(message)

    def _garbled(self) -> bytes:
        """A few bytes changed, doubled or cut out."""
        chance = self._random
        raw = bytearray(self._bytes)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(raw) + 1)
            match chance.randrange(4):
                case 0 if at < len(raw):
                    raw[at] ^= 1 << chance.randrange(8)
                case 1:
                    raw[at:at] = chance.randbytes(chance.randint(1, 8))
                case 2:
                    del raw[at : at + chance.randint(1, 40)]
                case _:
                    raw[at:at] = raw[at : at + chance.randint(1, 40)]
        return bytes(raw)

    def _spliced(self) -> bytes:
        """The beginning of one, the end of another."""
        one, other = self._bytes, self._before
        return one[: self._random.randrange(len(one) + 1)] + other[self._random.randrange(len(other) + 1) :]

    def _twisted(self) -> bytes:
        """Wrong values in a place or two."""
        message = json.loads(self._good)
        for _ in range(self._random.randint(1, 3)):
            if self._random.random() < 0.3:
                _headers(message)[self._random.choice(NAMES)] = self._odd()
            else:
                self._twist(message)
        return self._signed(message).encode("utf-8", "surrogatepass")

    def _twisted_body(self) -> bytes:
        body: Any = [["x"], {}, {"chord": None, "callbacks": None, "errbacks": None, "chain": None}]
        for _ in range(self._random.randint(0, 3)):
            body = self._odd() if self._random.random() < 0.1 else body
            self._twist(body)
        return self._with_body(json.dumps(body).encode())

    def _packed(self) -> bytes:
        """A compressed body, whole or broken; some unpack to more than they may."""
        chance = self._random
        content = json.dumps([["x"], {}, {}]).encode() if chance.random() < 0.5 else b"[" * chance.randint(0, 1 << 17)
        kind, pack = chance.choice((("application/x-gzip", gzip.compress), ("application/x-bz2", bz2.compress)))
        packed = bytearray(pack(content, 1))
        if chance.random() < 0.5:
            packed[chance.randrange(len(packed))] ^= 1 << chance.randrange(8)
        return self._with_body(bytes(packed), compression=kind)

    def _command(self) -> bytes:
        body: Any = {
            "method": "ping",
            "arguments": {},
            "reply_to": {"exchange": "x", "routing_key": "y"},
            "ticket": "t",
        }
        for _ in range(self._random.randint(0, 3)):
            self._twist(body)
        return self._with_body(json.dumps(body).encode())

    def _with_body(self, body: bytes, **headers: Any) -> bytes:
        message = json.loads(self._good)
        message["body"] = base64.b64encode(body).decode()
        message["headers"] |= headers
        return self._signed(message).encode()

    def _twist(self, tree: Any) -> None:
        """Change, drop or add something at a random depth of *tree*."""
        chance = self._random
        here = tree
        while isinstance(here, dict | list) and here:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = chance.choice(keys)
            inner = here[key]
            if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
                here = inner
                continue
            match chance.randrange(4):
                case 0:
                    del here[key]
                case 1 if isinstance(here, dict):
                    here[chance.choice(NAMES)] = self._odd()
                case _:
                    here[key] = self._odd()
            return

    def _odd(self) -> Any:
        found = deepcopy(self._random.choice(ODD))
        for _ in range(self._random.choice((0, 0, 0, 1, 3, 500))):
            found = [found] if self._random.random() < 0.5 else {"a": found}
        return found
