"""Other task queues, each with one worker process per core and the settings that suit it best."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from graft.scripts.bench.contenders.base import Contender, Starter, callable_of

APPS = "graft.scripts.bench.peers"
LOOK = 0.002


def program(name: str) -> str:
    """A console program that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


class Peer(Contender):
    """Knows no batches: a batch is that many single calls."""

    shapes = frozenset({"batch", "singles", "submit", "latency", "callers", "load"})
    is_peer = True

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self.singles(function, items)


class Dramatiq(Peer):
    name = "dramatiq"
    title = "dramatiq"
    needs = ("dramatiq",)

    def start(self, starter: Starter) -> None:
        argv = [program("dramatiq"), f"{APPS}.dramatiq_app", "-p", str(self.setup.concurrency), "-t", "2"]
        starter.start(argv, self.environ)

    def open(self) -> None:
        from graft.scripts.bench.peers import dramatiq_app

        self.actors = dramatiq_app.ACTORS

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        import dramatiq

        actor = self.actors[function]
        group = dramatiq.group([actor.message(item) for item in items]).run()
        return list(group.get_results(block=True, timeout=600_000))

    def submit(self, function: str, item: Any) -> Any:
        return self.actors[function].send(item)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get_result(block=True, timeout=600_000) for handle in handles]


class Huey(Peer):
    name = "huey"
    title = "huey"
    needs = ("huey",)

    def start(self, starter: Starter) -> None:
        argv = [program("huey_consumer"), f"{APPS}.huey_app.huey", "-k", "process", "-w", str(self.setup.concurrency)]
        starter.start([*argv, "-q"], self.environ)

    def open(self) -> None:
        from graft.scripts.bench.peers import huey_app

        self.tasks = huey_app.TASKS

    def submit(self, function: str, item: Any) -> Any:
        return self.tasks[function](item)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get(blocking=True, timeout=600) for handle in handles]


class Rq(Peer):
    name = "rq"
    title = "rq, SimpleWorker"
    needs = ("rq",)

    def start(self, starter: Starter) -> None:
        argv = [program("rq"), "worker-pool", "bench", "-n", str(self.setup.concurrency), "-q"]
        # The default worker forks for every job; this one does not, and is many times faster.
        starter.start([*argv, "-w", "rq.worker.SimpleWorker", "-u", self.setup.redis_url], self.environ)

    def open(self) -> None:
        import redis
        import rq

        self.client = redis.Redis.from_url(self.setup.redis_url)
        self.queue = rq.Queue("bench", connection=self.client)
        self.prepared = rq.Queue.prepare_data

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        target = callable_of(function)
        jobs: list[Any] = []
        left = iter(items)
        while part := list(islice(left, 500)):
            jobs += self.queue.enqueue_many([self.prepared(target, (item,), result_ttl=600) for item in part])
        return self.gather(jobs)

    def submit(self, function: str, item: Any) -> Any:
        return self.queue.enqueue(callable_of(function), item, result_ttl=600)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        values = []
        for job in handles:
            while (result := job.latest_result()) is None:
                time.sleep(LOOK)
            values.append(result.return_value)
        return values


class Dask(Peer):
    name = "dask"
    title = "dask.distributed"
    needs = ("distributed",)

    def open(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=self.setup.concurrency, threads_per_worker=1, dashboard_address=None, silence_logs=40
        )
        self.client = Client(self.cluster)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self.gather(self.client.map(callable_of(function), items, pure=False))

    def submit(self, function: str, item: Any) -> Any:
        return self.client.submit(callable_of(function), item, pure=False)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.client.gather(list(handles))
        return found


class Ray(Peer):
    name = "ray"
    title = "ray"
    needs = ("ray",)

    def open(self) -> None:
        import ray

        self.ray = ray
        ray.init(num_cpus=self.setup.concurrency, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.remote: dict[str, Any] = {}

    def close(self) -> None:
        self.ray.shutdown()

    def submit(self, function: str, item: Any) -> Any:
        if function not in self.remote:
            self.remote[function] = self.ray.remote(callable_of(function))
        return self.remote[function].remote(item)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        found: list[Any] = self.ray.get(list(handles))
        return found
