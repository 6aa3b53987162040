"""No bytes whatever, on a queue or on a control channel, end the reader or pass for a message that they are not."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.transport.virtual import Message

from graft.config.messages import BadMessage, checked, decode
from graft.tasks import codec
from graft.tasks.envelope import Envelope, Report
from graft.tasks.errors import EnvelopeError
from graft.workers.quarantine import Refusal, refusal

# FUZZ_EXAMPLES=200000 pytest tests/workers/test_fuzz.py gives each of the five tests so many: a million in all.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
LIMIT = 1 << 16

fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 1000 else 180)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)

GOOD: dict[str, Any] = {
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


def paths(tree: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [at] if at else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += paths(value, (*at, key))
    return found


def changed(tree: Any, path: tuple[str, ...], value: Any, *, drop: bool) -> Any:
    """A copy of *tree* with what is at *path* replaced or gone."""
    copy = json.loads(json.dumps(tree))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if drop:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return copy


mutants = st.builds(
    lambda path, value, drop: changed(GOOD, path, value, drop=drop),
    st.sampled_from(paths(GOOD)),
    values,
    st.booleans(),
)


def reads(raw: bytes) -> None:
    """Read *raw* as a worker does, up to where Celery takes over."""
    try:
        message = decode(raw, LIMIT)
    except BadMessage:
        return
    json.dumps(message)  # It can be put back.
    try:
        delivered = Message(message, channel=Channel(), accept={"application/json"})
    except (ValueError, TypeError):  # The transport quarantines these (Channel._take).
        return
    verdict = refusal(delivered)
    assert verdict is None or isinstance(verdict, Refusal)
    if verdict is None:
        headers = message["headers"]
        assert isinstance(headers["task"], str)
        assert 0 < len(headers["id"]) <= 255
        _args, _kwargs, embed = delivered.payload
        assert embed is None or isinstance(embed, dict)


class Channel:
    """What a message asks of the channel that it came by."""

    def decode_body(self, body: Any, encoding: str | None = None) -> Any:
        return base64.b64decode(body) if encoding == "base64" else body


@fuzzed
@given(raw=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(raw):
    reads(raw)


@fuzzed
@given(message=mutants | values)
def test_a_message_with_anything_in_any_place_is_read_or_refused(message):
    reads(json.dumps(message).encode())


@fuzzed
@given(body=st.binary(max_size=200), kind=st.sampled_from(["application/x-gzip", "application/x-bz2", "other", 5]))
def test_any_compressed_body_is_read_or_refused(body, kind):
    message = changed(GOOD, ("headers", "compression"), kind, drop=False)
    message["body"] = base64.b64encode(body).decode()
    reads(json.dumps(message).encode())


@fuzzed
@given(message=values | mutants)
def test_any_broadcast_is_delivered_or_dropped(message):
    try:
        assert checked(message, LIMIT) is message
    except BadMessage:
        pass


@fuzzed
@given(
    text=st.text(max_size=200) | st.binary(min_size=32, max_size=200).map(lambda raw: base64.b64encode(raw).decode())
)
def test_no_text_passes_for_an_envelope_or_a_report(text):
    """Without the key nothing reaches pickle."""
    for opens in (Envelope.open, Report.open):
        with pytest.raises(EnvelopeError):
            opens(text, "id")


def test_the_message_that_the_others_are_made_from_is_good():
    assert decode(json.dumps(GOOD).encode(), LIMIT) == GOOD
    assert refusal(Message(decode(json.dumps(GOOD).encode(), LIMIT), channel=Channel(), accept=None)) is None


@fuzzed
@given(content=st.binary(max_size=100), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_breaks_the_seal(content, place, bit):
    raw = bytearray(base64.b64decode(codec.seal("fuzz", content)))
    raw[place % len(raw)] ^= 1 << bit
    with pytest.raises(EnvelopeError):
        codec.unseal("fuzz", base64.b64encode(raw).decode())
