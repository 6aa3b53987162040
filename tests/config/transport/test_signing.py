"""Whoever has only Redis's address cannot run anything, and cannot stop or reconfigure a worker."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.config.transport import signing
from tests.workers.redis_server import ROOT, RedisServer, Worker, wait_until

KEY, OTHER = b"k" * 32, b"o" * 32
STRANGER = """
import sys
from celery import Celery
app = Celery("stranger", broker=sys.argv[1])
app.conf.task_default_queue = "default"
app.conf.broker_transport_options = {"priority_steps": list(range(10))}
if sys.argv[2] == "run":
    app.send_task("sample.note", ("stranger",))
elif sys.argv[2] == "ping":
    print(app.control.ping(timeout=5))
else:
    app.control.broadcast(sys.argv[2], arguments={"n": 1} if "pool" in sys.argv[2] else {})
"""


def message(**headers):
    return {
        "body": base64.b64encode(b'[["x"], {}, {}]').decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "t", "id": "i", "eta": None, "timelimit": [None, None], **headers},
        "properties": {"correlation_id": "i", "delivery_info": {"exchange": "", "routing_key": "q"}},
    }


def travelled(sent):
    """*sent* as it arrives: through JSON, taken, given back once."""
    arrived = json.loads(json.dumps(sent))
    arrived["headers"]["redelivered"] = True
    arrived["properties"] |= {"delivery_tag": "another", "priority": 3}
    return arrived


def test_a_message_is_known_again_after_its_journey():
    sent = message(timelimit=(None, 5.0), stamps={})
    signing.sign(sent, "/q", [KEY], now=1000.0)
    assert signing.flaw(travelled(sent), "/q", [KEY], 60, now=1010.0) is None
    assert signing.flaw(travelled(sent), "/q", [OTHER, KEY], 60, now=1010.0) is None


@pytest.mark.parametrize(
    ("place", "keys", "now", "told"),
    [
        ("/other", [KEY], 1010.0, "does not verify"),
        ("/q", [OTHER], 1010.0, "does not verify"),
        ("/q", [KEY], 1100.0, "100 s ago"),
        ("/q", [KEY], 100.0, "from now"),
    ],
)
def test_elsewhere_with_another_key_or_too_late_it_is_worth_nothing(place, keys, now, told):
    sent = message()
    signing.sign(sent, "/q", [KEY], now=1000.0)
    assert told in (signing.flaw(travelled(sent), place, keys, 60, now=now) or "")


@given(
    part=st.sampled_from(["body", "content-type", "headers.task", "headers.id", "headers.eta", "headers.new"]),
    value=st.text(max_size=10) | st.integers() | st.none(),
)
def test_whatever_is_altered_is_noticed(part, value):
    sent = message()
    signing.sign(sent, "/q", [KEY], now=1000.0)
    arrived = travelled(sent)
    outer, _, inner = part.partition(".")
    place = arrived[outer] if inner else arrived
    name = inner or outer
    altered = name not in place or place[name] != value
    place[name] = value
    found = signing.flaw(arrived, "/q", [KEY], 60, now=1010.0)
    assert (found is not None) == (altered and not (part == "body" and not value and not sent["body"]))


def test_what_nobody_signed_is_said_to_be_unsigned():
    assert signing.flaw(message(), "/q", [KEY], 60) == "it is not signed"
    assert signing.flaw({}, "/q", [KEY], 60) == "it is not signed"


@pytest.mark.parametrize(
    ("method", "harmless"), [("ping", True), ("shutdown", False), ("pool_shrink", False), ("conf", False), (5, False)]
)
def test_only_commands_that_change_and_reveal_nothing_are_harmless(method, harmless):
    body = base64.b64encode(json.dumps({"method": method}).encode()).decode()
    assert signing.is_harmless({"body": body}) is harmless


@pytest.mark.parametrize("body", ["", "*", "W10=", None, 5])
def test_a_command_that_cannot_be_read_is_not_harmless(body):
    assert not signing.is_harmless({"body": body})


def stranger(server: RedisServer, what: str) -> str:
    """A program that knows Redis's address and Celery, and not the key."""
    environ = {"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", STRANGER, server.url, what]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.redis
@pytest.mark.worker
def test_a_stranger_can_neither_run_nor_stop_nor_reconfigure_anything(tmp_path):
    with RedisServer(tmp_path) as server, Worker(server, signing="require") as worker:
        worker.wait_until_ready()
        for what in ("run", "shutdown", "pool_shrink", "ping"):
            told = stranger(server, what)
        assert "pong" in told
        worker.send("ours")
        wait_until(lambda: worker.has("end", "ours"), "our own task ends")
        wait_until(lambda: server.client.llen("graft:quarantine") == 1, "the stranger's task is kept")
        (entry,) = (json.loads(text) for text in server.client.lrange("graft:quarantine", 0, -1))
        assert entry["reason"] == "bad_signature"
        sent = json.loads(base64.b64decode(entry["raw"]))["headers"]["id"]
        answer = json.loads(server.client.get(f"celery-task-meta-{sent}") or "{}")
        assert answer["result"]["exc_type"] == "SignatureError"
        wait_until(lambda: worker.said("a control command is refused") == 2, "the commands are refused")
        assert worker.is_alive()
        assert worker.events() == {("start", "ours"): 1, ("end", "ours"): 1}
        assert worker.answers_to_its_name()


@pytest.mark.redis
@pytest.mark.worker
def test_negative_control_stock_celery_obeys_a_stranger(tmp_path):
    with RedisServer(tmp_path) as server, Worker(server, stock=True) as worker:
        worker.wait_until_ready()
        stranger(server, "shutdown")
        wait_until(lambda: not worker.is_alive(), "the worker is stopped")
