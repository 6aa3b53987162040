"""A message stays with its worker for as long as the worker lives, however short the visibility timeout."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from kombu import Connection, Queue

from graft.config import transport
from graft.config.deployment import current
from graft.config.transport.channel import Channel
from graft.tasks.delivery import lease
from graft.tasks.delivery.lease import LeaseClock
from graft.workers.bootsteps.lease_renewal import LeaseRenewal
from tests.workers.redis_server import RedisServer, Worker, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
def connections() -> Iterator[ExitStack]:
    transport.register()
    with ExitStack() as stack:
        yield stack


def sweeper(connections: ExitStack, url: str, vt: float) -> Channel:
    """A channel that looks for abandoned messages, as every other worker does."""
    options = {"visibility_timeout": vt, "priority_steps": list(range(10))}
    connection = Connection(transport.transport_url(url), transport_options=options)
    return connections.enter_context(connection).default_channel


def sweep(channel: Channel) -> None:
    channel.qos.restore_visible(num=100, interval=1)


def test_tasks_and_waiting_tasks_of_three_visibility_timeouts_run_once_in_every_pool(server, connections):
    workers = [Worker(server, pool, db, vt=3) for db, pool in enumerate(("prefork", "threads", "solo"))]
    for worker in workers:
        connections.enter_context(worker)
    for worker in workers:
        worker.wait_until_ready()
        worker.send("later", countdown=9)
        worker.send("long", seconds=9)
    sweepers = [sweeper(connections, worker.env_of("worker")["CELERY_BROKER_URL"], 3) for worker in workers]

    def all_have_ended() -> bool:
        for channel in sweepers:
            sweep(channel)
        return all(worker.has("end", "long", "later") for worker in workers)

    wait_until(all_have_ended, "all tasks end", seconds=60)
    for worker in workers:
        wait_until(lambda of=worker: not of.queue.hlen("graft:unacked"), "everything is acknowledged")
        assert worker.events() == {(kind, label): 1 for kind in ("start", "end") for label in ("long", "later")}


def test_negative_control_stock_celery_runs_a_task_of_three_visibility_timeouts_again(server):
    with Worker(server, stock=True, vt=1) as worker:
        worker.wait_until_ready()
        worker.send("long", seconds=3)
        wait_until(lambda: worker.events()["start", "long"] > 1, "the task starts again")


def test_a_killed_worker_gives_its_messages_back_after_the_visibility_timeout(server, connections):
    with Worker(server, vt=2) as worker:
        worker.wait_until_ready()
        worker.send("long", seconds=30)
        wait_until(lambda: worker.has("start", "long"), "the task runs")
        channel = sweeper(connections, server.url, 2)
    wait_until(lambda: sweep(channel) or server.client.llen("default\x06\x165"), "the message is back", seconds=5)


def test_an_outage_is_logged_once_and_the_leases_go_on_after_it(server, connections, caplog):
    caplog.set_level(logging.WARNING, logger="graft.workers.bootsteps.lease_renewal")
    channel = sweeper(connections, server.url, 30)
    queue = Queue("q", routing_key="q")(channel)
    queue.declare()
    connections.enter_context(channel.connection.client.Producer()).publish({}, routing_key="q", declare=[queue])
    message = queue.get()
    step = LeaseRenewal(SimpleNamespace())
    step._channel = channel
    server.kill()
    step.renew()
    step.renew()
    assert [record.getMessage()[:10] for record in caplog.records] == ["the leases"]
    server.start()
    server.client.zadd("graft:unacked_index", {message.delivery_tag: 1})
    step.renew()
    assert server.client.zscore("graft:unacked_index", message.delivery_tag) > 1
    message.ack()
    step.renew()
    assert not server.client.exists("graft:unacked", "graft:unacked_index")


def test_a_worker_that_finds_its_message_with_others_says_that_it_lives(server, connections, redis):
    channel = sweeper(connections, server.url, 30)
    queue = Queue("q", routing_key="q")(channel)
    queue.declare()
    producer = connections.enter_context(channel.connection.client.Producer())
    producer.publish({}, routing_key="q", headers={"id": "lives", "retries": 2}, declare=[queue])
    message = queue.get()
    step = LeaseRenewal(SimpleNamespace())
    step._channel = channel
    channel.qos.restore_by_tag(message.delivery_tag)  # As another worker's sweep would.
    try:
        step.renew()
        step.renew()
        assert redis.hget("graft:run:lives:2", "pardons") == b"1"
        assert not lease.keep_clock().is_certain  # Until it has settled what is another's, each run asks.
        channel.qos.forget(message.delivery_tag)
        step.renew()
        assert lease.keep_clock().is_certain
    finally:
        redis.delete("graft:run:lives:2")
        current.drop(LeaseClock)
