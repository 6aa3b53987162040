"""A master that dies, watched by Sentinel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar
from urllib.parse import urlsplit

import redis

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Kind, Stage
from graft.scripts.stack.redis_server import RedisServer, StackError, find, free_port

MASTER = "drill"


SENTINELS = 3


CONFIGURATION = """\
port {port}
bind 127.0.0.1
sentinel monitor {name} 127.0.0.1 {master} 2
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} 2000
sentinel failover-timeout {name} 10000
"""


class WatchedStage(Stage):
    """A master with a replica, and three Sentinels that watch them."""

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__(kind, **options)
        self.replica: RedisServer | None = None

    def add_drill_worker(self, concurrency: int = 2) -> Any:
        if self.replica is None:
            self._watch()
        return super().add_drill_worker(concurrency)

    def _watch(self) -> None:
        master = self.redis
        assert master is not None
        password = str(urlsplit(master.url).password)
        self.replica = RedisServer(self.guard, find(self.env), self.env, name="replica")
        self.replica.start()
        with redis.Redis.from_url(master.url) as client:
            client.config_set("masterauth", password)
        with redis.Redis.from_url(self.replica.url) as client:
            client.config_set("masterauth", password)
            client.replicaof("127.0.0.1", master.port)
            client.config_set("requirepass", password)
        ports = [free_port() for _ in range(SENTINELS)]
        for number, port in enumerate(ports):
            path = self.directory / f"sentinel{number}.conf"
            path.write_text(CONFIGURATION.format(port=port, name=MASTER, master=master.port, password=password))
            argv = [str(find(self.env)), str(path), "--sentinel"]
            self.guard.start(argv, {**self.env, "LC_ALL": "C"}, log=self.directory / f"sentinel{number}.log")
        if not self.until(lambda: all(_sees_replica(port) for port in ports), 60):
            raise StackError("the Sentinels do not see the replica")
        url = ";".join(f"sentinel://:{password}@127.0.0.1:{port}/0" for port in ports)
        self.env |= {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, "GRAFT_SENTINEL_MASTER": MASTER}


def _sees_replica(port: int) -> bool:
    with redis.Redis(port=port, socket_timeout=5) as client:
        replicas: list[dict[str, Any]] = client.sentinel_slaves(MASTER)
        others = client.execute_command("SENTINEL", "SENTINELS", MASTER)
        return len(others) == SENTINELS - 1 and any(
            one["flags"] == {"slave"} or one["flags"] == "slave" for one in replicas
        )


class Failover(Fault):
    """The master that Sentinel watches is killed; its replica takes over."""

    name = "sentinel"
    limit = "0 lost, no gap between runs of 10 s"
    on: ClassVar[type[Stage]] = WatchedStage
    stage: ClassVar[Mapping[str, Any]] = {"environ": {"GRAFT_LOST_AFTER": "5"}}

    @property
    def lasts(self) -> float:
        return 20.0

    def inject(self, stage: Stage) -> None:
        self._began = time.monotonic()
        stage.kill_redis()
        self.strikes += 1

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        gap = self.gap(count)
        self.seen.append(f"the longest gap between runs was {gap:.1f} s")
        return super().passes(stage, count, result) and gap < 10

    def gap(self, count: Count) -> float:
        """The longest time without a run from the kill on, while there was work."""
        times = [self._began, *(at for at in sorted(count.started_at) if at > self._began)]
        return max((later - earlier for earlier, later in pairwise(times)), default=float("inf"))
