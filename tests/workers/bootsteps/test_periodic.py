"""What a worker does again and again costs it few connections: a Redis takes only so many."""

from __future__ import annotations

import time

import pytest

from tests.workers.redis_server import RedisServer, Worker, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_the_steps_of_a_worker_share_their_connections(tmp_path, pool):
    """Each had one of its own, six in the end. Those that tick in the same moment need one each, too."""
    with RedisServer(tmp_path) as server, Worker(server, pool) as worker:
        worker.wait_until_ready()
        worker.send("one")
        wait_until(lambda: worker.has("end", "one"), "it runs")
        time.sleep(5.0)  # Until each step that ticks every second or two has done so.
        ours = [one for one in worker.queue.client_list() if one["name"] == "graft-worker"]
        assert 1 <= len(ours) < 6, [one["name"] for one in ours]
