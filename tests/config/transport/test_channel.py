"""No message and no outage ends a process that uses the hardened transport, and neither makes a message vanish."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.compression import compress
from kombu.transport import redis as stock

from graft.config import transport
from graft.config.private_names import UnknownVersionError
from graft.config.transport import quarantine
from graft.config.transport.channel import Channel
from graft.config.transport.sending_channel import Outgoing
from tests.workers.redis_server import ROOT, RedisServer, Worker, wait_until

PIDBOX = "/0.celery.pidbox"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
def connection(server: RedisServer) -> Iterator[Connection]:
    transport.register()
    with Connection(transport.transport_url(server.url), transport_options={"visibility_timeout": 2}) as connected:
        yield connected


def task(**changes: Any) -> dict[str, Any]:
    """A message that runs ``sample.note``, but for *changes*: of the envelope, or of ``headers`` and ``payload``."""
    payload = changes.pop("payload", [["bad"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    headers = {"task": "sample.note", "id": "some-id", "lang": "py", **changes.pop("headers", {})}
    return {
        "body": base64.b64encode(json.dumps(payload).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {name: value for name, value in headers.items() if value != "absent"},
        "properties": {
            "delivery_tag": "some-tag",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "default"},
            "priority": 0,
        },
        **changes,
    }


def old_task(**changes: Any) -> dict[str, Any]:
    """A message of task protocol 1 that runs ``sample.note``, but for *changes* of its body."""
    body = {"task": "sample.note", "id": "some-id", "args": ["bad"], "kwargs": {}, **changes}
    return task(headers={"task": "absent"}, payload=body)


def bomb() -> dict[str, Any]:
    packed, kind = compress(b" " * (64 << 20), "zlib")
    return task(body=base64.b64encode(packed).decode(), headers={"compression": kind})


def quarantined(client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in client.lrange(quarantine.MESSAGES, 0, -1)]


FAR = (datetime.now(UTC) + timedelta(days=31)).isoformat()
BAD_MESSAGES: dict[str, tuple[str, str | bytes | dict[str, Any] | list[Any]]] = {
    "not UTF-8": ("malformed_json", b"\xff\xfe"),
    "empty": ("malformed_json", b""),
    "nested too deeply": ("malformed_json", "[" * 100_000),
    "a list": ("malformed_envelope", [1]),
    "an empty object": ("malformed_envelope", {}),
    "no delivery tag": ("malformed_envelope", task(properties={"delivery_info": {}})),
    "no headers": ("no_task_header", task(headers={"task": "absent"})),
    "protocol 1 without a list of arguments": ("malformed_body", old_task(args=5)),
    "protocol 1 without an id": ("missing_id", old_task(id=None)),
    "protocol 1 with an eta far away": ("eta_too_far", old_task(eta=FAR)),
    "no body": ("malformed_body", task(body=None)),
    "a body that is not base64": ("malformed_body", task(body="*")),
    "a body of one part": ("malformed_body", task(payload=[1])),
    "a body that shadows Celery's names": ("malformed_body", task(payload=[[], {}, {"args": 1}])),
    "a task without a name": ("unknown_task", task(headers={"task": 5})),
    "a task nobody knows": ("unknown_task", task(headers={"task": "sample.unknown"})),
    "no id": ("missing_id", task(headers={"id": "absent"})),
    "null for an id": ("missing_id", task(headers={"id": None})),
    "an id of two lines": ("bad_id", task(headers={"id": "a\nb"})),
    "an endless id": ("bad_id", task(headers={"id": "x" * 100_000})),
    "a time limit in words": ("bad_timelimit", task(headers={"timelimit": "abc"})),
    "a negative time limit": ("bad_timelimit", task(headers={"timelimit": [-1, None]})),
    "retries in words": ("malformed_headers", task(headers={"retries": "many"})),
    "stamps that are none": ("malformed_headers", task(headers={"stamped_headers": 5})),
    "an eta that is none": ("malformed_headers", task(headers={"eta": 5})),
    "an eta far away": ("eta_too_far", task(headers={"eta": FAR})),
    "a pickle": ("disallowed_content_type", task(**{"content-type": "application/x-python-serialize"})),
    "a bomb": ("too_large", bomb()),
    "an unknown compression": ("malformed_headers", task(headers={"compression": "application/zstd"})),
}


def raw(message: str | bytes | dict[str, Any] | list[Any]) -> str | bytes:
    return message if isinstance(message, str | bytes) else json.dumps(message)


@pytest.mark.redis
@pytest.mark.worker
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_bad_messages_are_kept_with_a_reason_and_disturb_nobody(server, pool):
    with Worker(server, pool) as worker:
        worker.wait_until_ready()
        for _, message in BAD_MESSAGES.values():
            server.client.lpush("default", raw(message))
        for message in ("[1]", "[" * 100_000, "{}", json.dumps(task(body="*")), b"\xff", json.dumps(bomb())):
            server.client.publish(PIDBOX, message)
            server.client.publish(f"{PIDBOX}/elsewhere", message)
        worker.send("canary")
        wait_until(lambda: worker.has("end", "canary"), "the canary is answered", seconds=10)
        wait_until(
            lambda: not server.client.exists("default", "graft:unacked", "graft:unacked_index"), "nothing is left over"
        )
        wait_until(lambda: worker.said("dropped a broadcast message") >= 3, "the broadcast messages are dropped")
        assert worker.answers_to_its_name()
        assert worker.said("Connection to broker lost") == 0
        assert worker.events() == {("start", "canary"): 1, ("end", "canary"): 1}
        kept = [entry for entry in quarantined(server.client) if entry["queue"] == "default"]
        assert sorted(entry["reason"] for entry in kept) == sorted(reason for reason, _ in BAD_MESSAGES.values())
        assert {base64.b64decode(entry["raw"]) for entry in kept} >= {b"\xff\xfe", b"", b"[1]", b"{}"}
        assert int(server.client.hget(quarantine.COUNTS, "missing_id") or 0) == 3


@pytest.mark.redis
@pytest.mark.worker
@pytest.mark.parametrize("bad", ["no body", "a broadcast"])
def test_negative_control_stock_celery_ends_at_one_bad_message(server, bad):
    with Worker(server, stock=True) as worker:
        worker.wait_until_ready()
        if bad == "a broadcast":  # It may be ready before it listens.
            wait_until(lambda: server.client.publish(PIDBOX, "[1]"), "somebody hears it")
        else:
            server.client.lpush("default", raw(BAD_MESSAGES[bad][1]))
        wait_until(lambda: not worker.is_alive(), "the worker ends")


@pytest.mark.redis
def test_the_quarantine_is_bounded(connection, server, monkeypatch):
    monkeypatch.setattr(quarantine, "LENGTH", 3)
    for size in range(5):
        connection.default_channel.quarantine(b"x" * (size << 20), "q", "malformed_json", "")
    kept = quarantined(server.client)
    assert [entry["bytes"] >> 20 for entry in kept] == [4, 3, 2]
    assert len(base64.b64decode(kept[0]["raw"])) == quarantine.BYTES
    assert server.client.hgetall(quarantine.COUNTS) == {b"malformed_json": b"5"}


def received_by(connection: Connection, *names: str, no_ack: bool = False) -> list[Any]:
    """A list that fills with the messages of the queues while the connection is drained."""
    messages: list[Any] = []
    consumer = Consumer(
        connection, [Queue(name, routing_key=name) for name in names], on_message=messages.append, accept=["json"]
    )
    consumer.qos(prefetch_count=10)
    consumer.consume(no_ack=no_ack)
    return messages


def drain(connection: Connection) -> None:
    try:
        connection.drain_events(timeout=0.1)
    except TimeoutError:
        pass


@pytest.mark.redis
def test_publishing_in_batches_is_one_round_trip(connection, server):
    assert connection.transport.supports_batch_publish
    assert connection.default_channel.supports_batch_publish
    producer = connection.Producer(serializer="json")
    with producer.batch():
        for number in range(50):
            producer.publish({"number": number}, routing_key="q", declare=[])
        assert not server.client.llen("q")
    assert server.client.llen("q") == 50


@pytest.mark.redis
def test_a_message_that_its_reader_would_refuse_is_refused_when_it_is_sent(connection):
    with pytest.raises(ValueError, match="exceeds message_limit=16777216"):
        connection.Producer().publish({"text": "x" * (16 << 20)}, routing_key="q")


@pytest.mark.redis
def test_a_message_is_taken_settled_and_given_back_while_redis_is_full(connection, server):
    for _ in range(2):
        connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q")
    server.client.config_set("maxmemory", 1)
    wait_until(lambda: drain(connection) or len(messages) == 2, "both are delivered")
    assert server.client.hlen("graft:unacked") == server.client.zcard("graft:unacked_index") == 2
    messages[0].ack()
    messages[1].requeue()
    server.client.config_set("maxmemory", 0)
    wait_until(lambda: drain(connection) or len(messages) == 3, "the one given back is delivered again")
    messages[2].ack()
    assert not server.client.exists("q", "graft:unacked", "graft:unacked_index")
    assert not connection.default_channel.pending_acks


@pytest.mark.redis
def test_a_message_is_on_record_in_the_instant_it_leaves_its_list(connection, server):
    """What kombu does in two steps is one here: at no time is a message in neither place."""
    connection.Producer().publish({"some": "thing"}, routing_key="q")
    with server.client.monitor() as monitor:
        messages = received_by(connection, "q")
        wait_until(lambda: drain(connection) or messages, "the message is delivered")
        server.client.echo("end")
        seen = []
        for command in monitor.listen():
            if "ECHO" in command["command"]:
                break
            seen.append((command["command"].split()[0], command["client_type"]))
    assert ("RPOP", "lua") in seen
    assert ("HSET", "lua") in seen
    assert not [name for name, kind in seen if name in ("RPOP", "HSET", "ZADD") and kind != "lua"]


@pytest.mark.redis
def test_a_reader_that_acknowledges_nothing_is_given_nothing_twice(connection, server):
    for _ in range(2):
        connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q", no_ack=True)
    wait_until(lambda: drain(connection) or len(messages) == 2, "both are delivered")
    assert not server.client.exists("q", "graft:unacked", "graft:unacked_index")


@pytest.mark.redis
def test_priorities_and_queues_are_taken_in_order(server):
    transport.register()
    options = {"priority_steps": list(range(10)), "queue_order_strategy": "priority"}
    with Connection(transport.transport_url(server.url), transport_options=options) as connection:
        producer = connection.Producer()
        for queue, priority in (("b", 5), ("a", 5), ("b", 0), ("a", 9), ("a", 5)):
            producer.publish({"from": f"{queue}{priority}"}, routing_key=queue, priority=priority)
        messages = received_by(connection, "a", "b")
        wait_until(lambda: drain(connection) or len(messages) == 5, "all are delivered")
        assert [message.payload["from"] for message in messages] == ["b0", "a5", "a5", "b5", "a9"]


def labels_of(connected: Connection, messages: list[Any], sent: list[str]) -> list[str]:
    """The labels of the next messages, in the order in which they come, for as many as were *sent*."""
    messages.clear()
    wait_until(lambda: drain(connected) or len(messages) == len(sent), "all are delivered")
    return [message.payload[0][0] for message in messages]


@pytest.mark.redis
def test_a_more_urgent_message_goes_first_wherever_the_last_one_came_from(server):
    transport.register()
    options = {"priority_steps": list(range(10))}
    with Connection(transport.transport_url(server.url), transport_options=options) as connected:
        messages = received_by(connected, "q", "other")
        for labels in (["q5"], ["q5", "q0", "other6", "q9", "other1"], ["other9", "q5"]):
            for label in labels:
                key = connected.default_channel._q_for_pri(label[:-1], int(label[-1]))
                server.client.lpush(key, json.dumps(task(payload=[[label], {}, {}])))
            assert labels_of(connected, messages, labels) == sorted(labels, key=lambda label: label[-1])


@pytest.mark.redis
def test_a_server_that_forgot_the_script_is_told_it_again(connection, server):
    messages = received_by(connection, "q")
    for _ in range(3):
        server.client.script_flush()
        server.client.lpush("q", json.dumps(task()))
        labels_of(connection, messages, ["bad"])
    assert server.client.info("commandstats")["cmdstat_evalsha"]["failed_calls"] >= 2


@pytest.mark.redis
def test_a_waiting_reader_hears_of_a_message_that_another_program_pushed(connection, server):
    messages = received_by(connection, "q")
    drain(connection)
    drain(connection)
    server.client.lpush("q", json.dumps(task()))  # Without a sign: stock kombu gives none.
    wait_until(lambda: drain(connection) or messages, "the message is delivered")


@pytest.mark.redis
def test_signs_do_not_pile_up(connection, server):
    for _ in range(20):
        connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q")
    for expected in range(1, 21):
        wait_until(lambda at=expected: drain(connection) or len(messages) >= at, "the next is delivered")
        messages[expected - 1].ack()
    wait_until(lambda: drain(connection) or not server.client.exists("q\x06\x16sign"), "no sign is left")


@pytest.mark.redis
def test_an_acknowledgement_without_redis_is_owed_and_paid_through_the_next_channel(connection, server):
    connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or messages, "the message is delivered")
    server.kill()
    messages[0].ack()
    connection.default_channel.close()
    server.start()
    assert server.client.hlen("graft:unacked") == 1
    with connection.clone() as other:
        other.default_channel.flush_acks()
    assert not server.client.exists("q", "graft:unacked", "graft:unacked_index")


@pytest.mark.redis
@pytest.mark.parametrize("requeue", [False, True])
def test_a_message_that_could_not_be_settled_for_any_reason_is_settled_later(connection, server, monkeypatch, requeue):
    """gevent raises its own error where two greenlets read one connection: the message was held for ever."""
    connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or messages, "the message is delivered")
    channel = connection.default_channel
    with monkeypatch.context() as broken:

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("second simultaneous read on this socket")

        broken.setattr(channel, "conn_or_acquire", fail)
        messages[0].reject(requeue=requeue)
    assert not channel.qos.outstanding()
    channel.flush_acks()
    assert server.client.llen("q") == int(requeue)
    assert not server.client.exists("graft:unacked", "graft:unacked_index")


@pytest.mark.redis
def test_what_is_sent_together_goes_on_after_a_refusal_and_after_a_cut(connection, server):
    sender = connection.default_channel

    def push(count: int) -> None:
        messages = [Outgoing("q", sender.prepare_message("{}")) for _ in range(count)]
        for queue, message, *_ in messages:
            sender.seal(queue, message)
        sender.push(messages)

    server.client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        push(3)
    server.client.config_set("maxmemory", 0)
    push(2)
    assert server.client.llen("q") == 2
    server.client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(redis.ConnectionError):
        push(1)
    push(1)
    assert server.client.llen("q") == 3


@pytest.mark.redis
def test_closing_without_redis_closes_everything(connection, server):
    connection.Producer().publish({}, routing_key="q")
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or messages, "the message is delivered")
    drain(connection)
    channel, poller = connection.default_channel, connection.transport.cycle
    assert channel._in_poll
    server.kill()
    channel.close()
    channel.close()
    assert channel.closed
    assert channel.connection is None
    assert channel not in poller._channels
    assert channel not in connection.transport.channels


@pytest.mark.redis
def test_copies_of_a_message_are_settled_one_by_one(connection, server):
    for _ in range(2):
        server.client.lpush("q", json.dumps(task()))
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or len(messages) == 2, "both are delivered")
    messages[0].ack()
    assert server.client.hlen("graft:unacked") == 1


@pytest.mark.redis
def test_nothing_counts_as_abandoned_until_owners_could_report_to_a_new_redis(connection, server):
    channel = connection.default_channel
    record = json.dumps([task(), "", "q"])
    server.client.hset("graft:unacked", "tag", record)
    server.client.zadd("graft:unacked_index", {"tag": 1})
    channel.qos.restore_visible(num=10, interval=1)
    assert server.client.info("server")["uptime_in_seconds"] >= 2 or not server.client.llen("q")
    wait_until(lambda: channel.qos.restore_visible(num=10, interval=1) or server.client.llen("q"), "it is given back")
    assert server.client.info("server")["uptime_in_seconds"] >= 2


@pytest.mark.redis
def test_no_workers_clock_decides_about_the_messages_of_another(connection, server, monkeypatch):
    server.client.lpush("q", json.dumps(task()))
    real = time.time
    with monkeypatch.context() as days_behind:
        days_behind.setattr(time, "time", lambda: real() - 86400)
        messages = received_by(connection, "q")
        wait_until(lambda: drain(connection) or messages, "it is delivered")
    qos = connection.default_channel.qos
    qos._owners_could_report = True
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: real() + 120)
        qos.restore_visible(num=10, interval=1)
        assert server.client.hlen("graft:unacked") == 1
        connection.default_channel.renew(qos.outstanding())
        ((_, renewed),) = server.client.zrange("graft:unacked_index", 0, -1, withscores=True)
    seconds, _ = server.client.time()
    assert abs(renewed - seconds) < 60


@pytest.mark.redis
def test_the_mark_of_a_return_lasts_as_long_as_a_run_may_come_back(connection, server):
    """For a day after a sweep, whose worker may be frozen; what a worker gives back itself has no such run."""
    qos = connection.default_channel.qos
    lasts = []
    for options in ({}, {"renewed_until": float("inf")}):
        server.client.hset("graft:unacked", "a-tag", json.dumps([task(), "", "q"]))
        server.client.zadd("graft:unacked_index", {"a-tag": 1.0})
        qos.restore_by_tag("a-tag", **options)
        lasts.append(server.client.ttl("graft:returned:a-tag"))
    own, swept = lasts
    assert 0 < own <= 10 * connection.default_channel.visibility_timeout
    assert swept > 80_000


@pytest.mark.redis
def test_a_clock_that_is_a_day_ahead_takes_nothing_from_stock_workers(connection, server, monkeypatch):
    qos = connection.default_channel.qos
    qos._owners_could_report = True
    server.client.hset("unacked", "a-tag", json.dumps([task(), "", "q"]))
    server.client.zadd("unacked_index", {"a-tag": time.time()})  # As a stock worker writes it.
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86400)
    qos.restore_visible(num=10, interval=1)
    assert server.client.hlen("unacked") == 1


@pytest.mark.redis
def test_only_a_message_whose_worker_was_lost_comes_back_as_redelivered(connection, server):
    def comes_back_as():
        raw = json.loads(server.client.rpop("q"))
        return raw["headers"].get("redelivered", False), raw["properties"]["delivery_info"].get("redelivered", False)

    qos = connection.default_channel.qos
    messages = received_by(connection, "q")
    for give_back, marked in (
        (lambda tag: qos.restore_unacked(), False),
        (lambda tag: qos.settle(tag, requeue=True), False),
        (lambda tag: qos.reject(tag, requeue=True), True),
        (lambda tag: qos.restore_by_tag(tag), True),
    ):
        messages.clear()
        server.client.lpush("q", json.dumps(task()))
        wait_until(lambda: drain(connection) or messages, "it is delivered")
        give_back(messages[0].delivery_tag)
        assert comes_back_as() == (marked, marked)


@pytest.mark.redis
def test_a_record_that_cannot_be_restored_is_kept_and_holds_nobody_up(connection, server):
    qos = connection.default_channel.qos
    server.client.hset("graft:unacked", mapping={"garbage": "*", "nowhere": json.dumps([task(), "gone", "gone"])})
    server.client.zadd("graft:unacked_index", {"garbage": 1, "nowhere": 2})
    for tag in ("garbage", "nowhere"):
        qos.restore_by_tag(tag)
    assert {entry["reason"] for entry in quarantined(server.client)} == {"malformed_record", "unroutable"}
    assert not server.client.exists("graft:unacked", "graft:unacked_index")


def _commands(server):
    """How often each command was run, but those of asking."""
    stats = server.client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items() if name != "cmdstat_info"}


@pytest.mark.redis
def test_a_sweep_asks_a_few_times_and_nobody_who_settles_meanwhile_makes_it_start_again(connection, server):
    """A transaction that WATCHes the record of all workers never ends where these settle without a pause."""
    qos = connection.default_channel.qos
    qos._owners_could_report = True
    for number in range(50):
        server.client.hset("graft:unacked", f"tag-{number}", json.dumps([task(headers={"id": str(number)}), "", "q"]))
        server.client.zadd("graft:unacked_index", {f"tag-{number}": number + 1})
    connection.default_channel.queue_declare("q")
    server.client.config_resetstat()
    qos.restore_visible(num=200, interval=1)
    commands = _commands(server)
    assert not {"watch", "multi", "exec"} & commands.keys()
    assert commands["evalsha"] == 4 + 4 + 1  # Of 20, 20 and 10, and to tell it of each script; and of stock workers.
    back = [json.loads(raw)["headers"]["id"] for raw in server.client.lrange("q", 0, -1)]
    assert back == [str(number) for number in range(49, -1, -1)]  # The oldest is the next.


@pytest.mark.redis
def test_a_record_that_nobody_can_read_keeps_no_other_from_going_back_to_a_redis_that_is_full(connection, server):
    qos = connection.default_channel.qos
    qos._owners_could_report = True
    connection.default_channel.queue_declare("q")
    server.client.hset("graft:unacked", mapping={"garbage": "*", "a-tag": json.dumps([task(), "", "q"])})
    server.client.zadd("graft:unacked_index", {"garbage": 1, "a-tag": 2})
    qos._overdue(1)  # Redis knows the scripts.
    qos.restore_by_tag("nothing")
    server.client.config_set("maxmemory", 1)
    try:
        qos.restore_visible(num=200, interval=1)
        assert server.client.llen("q") == 1
        assert server.client.hkeys("graft:unacked") == [b"garbage"]
    finally:
        server.client.config_set("maxmemory", 0)
    qos.restore_visible(num=200, interval=1)
    assert [entry["reason"] for entry in quarantined(server.client)] == ["malformed_record"]


@pytest.mark.redis
def test_a_sweep_of_large_messages_takes_a_few_at_a_time(connection, server):
    qos = connection.default_channel.qos
    connection.default_channel.queue_declare("q")
    large = task()
    large["body"] = base64.b64encode(bytes(3_000_000)).decode()
    for number in range(5):
        server.client.hset("graft:unacked", f"tag-{number}", json.dumps([large, "", "q"]))
        server.client.zadd("graft:unacked_index", {f"tag-{number}": number + 1})
    _, has_more, records = qos._overdue(20)
    assert (has_more, list(records)) == (True, [b"tag-4", b"tag-3"])
    qos._owners_could_report = True
    qos.restore_visible(num=200, interval=1)
    assert server.client.llen("q") == 5


@pytest.mark.redis
def test_messages_go_back_to_a_redis_that_is_full(connection, server):
    channel, messages = connection.default_channel, received_by(connection, "q")
    server.client.lpush("q", json.dumps(task()))
    wait_until(lambda: drain(connection) or messages, "it is delivered")
    channel.qos.restore_by_tag("nothing")  # Redis knows the script.
    server.client.config_set("maxmemory", 1)
    try:
        messages[0].reject(requeue=True)
        assert not channel.pending_acks
        assert server.client.llen("q") == 1
    finally:
        server.client.config_set("maxmemory", 0)


@pytest.mark.redis
def test_a_worker_that_leaves_gives_its_messages_back_in_their_order(connection, server):
    messages = received_by(connection, "q")
    for name in ("first", "second", "third"):
        server.client.lpush("q", json.dumps(task(headers={"id": name})))
    wait_until(lambda: drain(connection) or len(messages) == 3, "they are delivered")
    connection.default_channel.qos.restore_unacked()
    assert [json.loads(server.client.rpop("q"))["headers"]["id"] for _ in range(3)] == ["first", "second", "third"]


@pytest.mark.redis
def test_a_message_whose_list_is_none_stays_on_record(connection, server):
    connection.default_channel.queue_declare("q")
    server.client.hset("graft:unacked", "a-tag", json.dumps([task(), "", "q"]))
    server.client.set("q", "no list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        connection.default_channel.qos.restore_by_tag("a-tag")
    assert server.client.hexists("graft:unacked", "a-tag")


@pytest.mark.redis
@pytest.mark.parametrize("scheme", ["redis+socket://", "socket://", "unix://"])
def test_a_unix_socket_is_spoken_to(server, scheme):
    transport.register()
    with Connection(transport.transport_url(f"{scheme}{server.socket}?db=3")) as connection:
        assert isinstance(connection.default_channel, Channel)
        connection.Producer().publish({}, routing_key="q")
    with redis.Redis(port=server.port, db=3) as client:
        assert client.llen("q") == 1


@pytest.mark.redis
def test_tls_is_spoken_and_certificates_are_verified(server, tmp_path):
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key]
    subject = ["-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*openssl, *subject], check=True, capture_output=True)
    server.kill()
    options = ["--port", "0", "--tls-port", str(server.port), "--tls-auth-clients", "no"]
    if not server.try_to_start(*options, "--tls-cert-file", certificate, "--tls-key-file", key):
        pytest.skip("this redis-server was built without TLS")
    url = transport.transport_url(f"rediss://localhost:{server.port}/0")
    transport.register()
    with Connection(f"{url}?ssl_ca_certs={certificate}") as trusting:
        assert isinstance(trusting.default_channel, Channel)
    with Connection(url) as doubting, pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        doubting.transport.create_channel(doubting.transport)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://u:p@h:1/2", "graft://u:p@h:1/2"),
        ("rediss://h/0?ssl_cert_reqs=required", "grafts://h/0?ssl_cert_reqs=required"),
        ("redis+socket:///a/b.sock?virtual_host=1", "graft+socket:///a/b.sock?virtual_host=1"),
        ("socket:///a/b.sock", "graft+socket:///a/b.sock"),
        ("unix:///a/b.sock?db=1", "graft+socket:///a/b.sock?virtual_host=1"),
        ("redis://a;redis://b", "graft://a;graft://b"),
        ("sentinel://a:26379", "sentinel://a:26379"),
    ],
)
def test_addresses_are_mapped(given, expected):
    assert transport.transport_url(given) == expected
    assert transport.transport_url(expected) == expected


def test_addresses_are_shown_as_they_were_given():
    transport.register()
    assert Connection("graft://:secret@h:1/2").as_uri() == "redis://:**@h:1/2"
    assert Connection("grafts://h/0").as_uri(include_password=True) == "rediss://h:6379/0"
    assert Connection("graft://h").clone().transport_cls == "graft"


def test_the_transport_is_redis_to_celery():
    transport.register()
    assert Connection("graft://h").transport.driver_type == "redis"


def test_an_unknown_version_of_kombu_is_refused_with_a_way_out(monkeypatch):
    transport.register()
    monkeypatch.delattr(stock.Channel, "_brpop_read")
    message = r"_brpop_read.* kombu 5\.7\.\d+ .*is not known to us. Supported are celery>=.*: pip install 'celery>="
    with pytest.raises(UnknownVersionError, match=message):
        transport.register.__wrapped__()  # As in a process that has not registered it yet.


def test_the_app_uses_the_hardened_transport_although_celery_reads_the_variable_itself():
    code = (
        "from graft.config.celery_app import app\n"
        "print(app.connection_for_read().transport_cls, app.connection_for_write().transport_cls)"
    )
    environment = {**os.environ, "CELERY_BROKER_URL": "redis://h/0"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert shown.stdout.split() == [b"graft", b"graft"]


@pytest.mark.redis
def test_a_death_that_redis_could_not_be_told_of_at_once_is_told_later(connection, server, monkeypatch):
    connection.Producer().publish({"some": "thing"}, routing_key="q")
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or messages, "the message is delivered")
    channel = messages[0].channel
    with monkeypatch.context() as outage:
        outage.setattr(channel.qos, "restore_by_tag", _refuse)
        messages[0].reject(requeue=True)
    assert list(channel.pending_acks.values()) == ["lost"]
    channel.flush_acks()
    wait_until(lambda: drain(connection) or len(messages) == 2, "it is delivered again")
    assert messages[1].headers["redelivered"]
    assert messages[1].properties["delivery_info"]["again"]
    messages[1].ack()


def _refuse(*_: Any, **__: Any) -> None:
    raise redis.ConnectionError("refused by the test")


@pytest.mark.redis
def test_a_sweep_takes_no_lease_that_is_renewed_while_it_looks(connection, server):
    connection.Producer().publish({"some": "thing"}, routing_key="q")
    messages = received_by(connection, "q")
    wait_until(lambda: drain(connection) or messages, "the message is delivered")
    tag, qos = messages[0].delivery_tag, messages[0].channel.qos
    before = server.client.zscore("graft:unacked_index", tag)
    messages[0].channel.renew([tag])
    qos.restore_by_tag(tag, renewed_until=before)
    assert server.client.hexists("graft:unacked", tag)
    qos.restore_by_tag(tag, renewed_until=before + 60)
    assert not server.client.hexists("graft:unacked", tag)
    assert messages[0].channel.renew([tag]) == [tag]  # Whoever still holds it is told.
