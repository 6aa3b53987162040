"""No bytes whatever, on a queue or on a control channel, end the reader or pass for a message that they are not."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft.config.deployment import settings as graft_settings
from graft.config.transport import signing
from graft.config.transport.message_validation import BadMessage, checked
from graft.tasks import codec
from graft.tasks.envelope import Envelope, Report
from graft.tasks.errors import EnvelopeError
from tests.config.transport.fuzz_target import GOOD, LIMIT, PLACE, Mutants, Reader

# FUZZ_EXAMPLES=200000 gives each of the five tests so many: a million in all.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
# FUZZ_INPUTS=1000000, with -k storm -s, sends a million through one reader, in minutes.
INPUTS = int(os.environ.get("FUZZ_INPUTS", "3000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
pytestmark = pytest.mark.timeout(0 if EXAMPLES > 1000 or INPUTS > 10_000 else 180)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


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


READER = Reader()


def reads(raw: bytes) -> str:
    """Read *raw* as a worker does, up to its pool."""
    return READER.read(raw)


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


def signed(message: dict[str, Any]) -> bytes:
    copy = json.loads(json.dumps(message))
    signing.sign(copy, PLACE, graft_settings().signing_keys)
    return json.dumps(copy).encode()


def test_the_message_that_the_others_are_made_from_is_good():
    assert reads(signed(GOOD)) == "run"
    assert reads(json.dumps(GOOD).encode()) == "bad_signature"


def test_a_storm_of_nearly_good_messages_ends_nobody():
    """Each is read from a queue and heard on the control channel; an error that a worker would not survive fails."""
    reader = Reader()
    for number, raw in zip(range(INPUTS), Mutants(SEED), strict=False):
        try:
            reader.read(raw)
            reader.hear(raw)
        except BaseException as error:
            raise AssertionError(f"input {number} of seed {SEED}: {raw!r}") from error
    print(f"{INPUTS} inputs of seed {SEED}: {dict(reader.seen.most_common())}")
    # The storm reaches what it is to reach.
    reached = {"run", "bad_signature", "malformed_json", "malformed_envelope", "malformed_body", "too_large",
               "malformed_headers", "undeliverable", "dropped", "refused", "answered", "obeyed"}  # fmt: skip
    assert reached <= reader.seen.keys(), reached - reader.seen.keys()


@fuzzed
@given(content=st.binary(max_size=100), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_breaks_the_seal(content, place, bit):
    raw = bytearray(base64.b64decode(codec.seal("fuzz", content)))
    raw[place % len(raw)] ^= 1 << bit
    with pytest.raises(EnvelopeError):
        codec.unseal("fuzz", base64.b64encode(raw).decode())
