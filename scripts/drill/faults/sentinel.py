"""A master that dies, watched by Sentinel."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
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
bind {host}
protected-mode no
sentinel monitor {name} {master} 2
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} 2000
sentinel failover-timeout {name} 10000
"""


class WatchedStage(Stage):
    """A master with replicas, and three Sentinels that watch them."""

    replicas: ClassVar[int] = 1

    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__(kind, **options)
        self.sentinels: list[tuple[str, int]] = []

    def add_drill_worker(self, concurrency: int = 2) -> Any:
        if not self.sentinels:
            self._watch()
        return super().add_drill_worker(concurrency)

    def place(self, number: int) -> tuple[str, list[str]]:
        """The address of the host of a Sentinel, and the command that starts a program there.

        The first is that of the master, the next are those of replicas.
        """
        return "127.0.0.1", []

    def _watch(self) -> None:
        master = self.redis
        assert master is not None
        password = str(urlsplit(master.url).password)
        program = find(self.env)
        with redis.Redis.from_url(master.url) as client:
            self._configure(client, password)
        for number in range(1, 1 + self.replicas):
            address, before = self.place(number)
            name = f"replica{number}"
            replica = RedisServer(self.guard, program, self.env, name=name, host=address, before=before)
            replica.start()
            with redis.Redis.from_url(replica.url) as client:
                client.replicaof(self.place(0)[0], master.port)
                self._configure(client, password)
        self.sentinels = [
            self._sentinel(number, f"{self.place(0)[0]} {master.port}", password) for number in range(SENTINELS)
        ]
        if not self.until(lambda: all(_sees_replicas(*one, self.replicas) for one in self.sentinels), 60):
            raise StackError("the Sentinels do not see the replicas")
        url = ";".join(f"sentinel://:{password}@{host}:{port}/0" for host, port in self.sentinels)
        self.env |= {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, "GRAFT_SENTINEL_MASTER": MASTER}

    def _configure(self, client: Any, password: str) -> None:
        """Have a server accept the others; the last command is the last for which *client* has the right password."""
        client.config_set("masterauth", password)
        if self.replicas > 1:  # As advised: a master that was cut off takes nothing that would be lost.
            client.config_set("min-replicas-to-write", 1)
            client.config_set("min-replicas-max-lag", 2)
        client.config_set("requirepass", password)

    def _sentinel(self, number: int, master: str, password: str) -> tuple[str, int]:
        """Start one; where it listens."""
        host, before = self.place(number)
        port = free_port()
        path = self.directory / f"sentinel{number}.conf"
        path.write_text(CONFIGURATION.format(host=host, port=port, name=MASTER, master=master, password=password))
        argv = [*before, str(find(self.env)), str(path), "--sentinel"]
        self.guard.start(argv, {**self.env, "LC_ALL": "C"}, log=self.directory / f"sentinel{number}.log")
        return host, port

    def master(self) -> str:
        """The address of the master that most Sentinels agree upon."""
        found: Counter[str] = Counter()
        for host, port in self.sentinels:
            with suppress(redis.RedisError), redis.Redis(host, port, socket_timeout=1) as client:
                address, its_port = client.sentinel_get_master_addr_by_name(MASTER)
                found[f"{address}:{its_port}"] += 1
        return found.most_common(1)[0][0] if found else ""


def _sees_replicas(host: str, port: int, number: int) -> bool:
    with redis.Redis(host, port, socket_timeout=5) as client:
        replicas: list[dict[str, Any]] = client.sentinel_slaves(MASTER)
        others = client.execute_command("SENTINEL", "SENTINELS", MASTER)
        return len(others) == SENTINELS - 1 and number == sum(one["flags"] in ({"slave"}, "slave") for one in replicas)


class Failover(Fault):
    """The master that Sentinel watches is killed; its replica takes over."""

    name = "sentinel"
    limit = "0 lost, no gap between runs of 10 s"
    longest_gap: ClassVar[float] = 10.0
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
        return super().passes(stage, count, result) and gap < self.longest_gap

    def gap(self, count: Count) -> float:
        """The longest time without a run from the kill on, while there was work."""
        times = [self._began, *(at for at in sorted(count.started_at) if at > self._began)]
        return max((later - earlier for earlier, later in pairwise(times)), default=float("inf"))
