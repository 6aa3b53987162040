"""The place of a run: one private Redis, and every contender with its workers and its client process.

Contenders are started when the first workload needs them and stopped after the last one. Everything descends from the
guard of a local stack, so nothing outlives the run, whatever ends it.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener
from typing import Any, Self

import psutil
import redis

from graft.config.queues import Lane
from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.contenders.base import Contender, ContenderSetup
from graft.scripts.bench.measuring import tree
from graft.scripts.bench.runner import ADDRESS, SECRET
from graft.scripts.stack.local_stack import LocalStack, own_environ
from graft.scripts.stack.redis_server import last_lines
from graft.scripts.stack.services import Service

DATABASES = 16
PATIENCE = 60.0  # For a contender's first answer, with everybody else starting, too.


class ContenderFailedError(RuntimeError):
    """A contender could not start, or did not do what it was asked to."""


class Seat:
    """One contender on the field: its worker programs, its client process, and the line to that."""

    def __init__(self, stack: LocalStack, kind: type[Contender], database: int, concurrency: int) -> None:
        self.name = kind.name
        self.database = database
        self._stack = stack
        self._services: list[Service] = []
        self._line: Connection | None = None
        self._runner: Service | None = None
        self.url = stack.redis_url.rpartition("/")[0] + f"/{database}"
        self.contender = kind(ContenderSetup(self.url, concurrency, stack.env))

    # ---- for the contender: a Starter -------------------------------------------------------------------------------

    def start(self, argv: Sequence[str], env: Mapping[str, str], copies: int = 1) -> None:
        for _ in range(copies):
            self._start(argv, env)

    def worker(self, lane: Lane, concurrency: int, env: Mapping[str, str]) -> None:
        # Not its TMPDIR, where the stack has one that goes with it.
        own = {name: value for name, value in env.items() if self._stack.env.get(name) != value}
        self._services.append(self._stack.add_worker(lane, concurrency, env=own))

    # ---- for the field ----------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Start the workers and the client, and wait until one item has come back.

        Raises:
            ContenderFailedError: one of them ended, or they took longer than is patience.
        """
        self.contender.start(self)
        secret = secrets.token_hex(16)
        address = f"celery-graft-bench-{secrets.token_hex(8)}"
        # In the abstract namespace: a path in somebody's temporary directory may be longer than a socket's can be.
        with Listener(f"\0{address}", "AF_UNIX", authkey=bytes.fromhex(secret)) as listener:
            env = {**self._stack.env, ADDRESS: address, SECRET: secret, "GRAFT_BENCH_URL": self.url}
            argv = [sys.executable, "-m", "graft.scripts.bench.runner", self.name]
            self._runner = self._start([*argv, str(self.contender.setup.concurrency)], env)
            listener._listener._socket.settimeout(PATIENCE)  # type: ignore[attr-defined]
            try:
                self._line = listener.accept()
            except TimeoutError:
                raise ContenderFailedError(self.explain("its client did not start")) from None
        self.ask("open", timeout=PATIENCE)
        functions = sorted(self.contender.functions, key=lambda name: (name != "noop", name != "anoop"))
        self.ask("hello", functions[0], timeout=PATIENCE)

    def ask(self, verb: str, *arguments: Any, timeout: float = 600.0) -> Any:
        """Have the client do something.

        Raises:
            ContenderFailedError: it failed, ended, or took longer; the message has the end of its log.
        """
        assert self._line is not None
        deadline = time.monotonic() + timeout
        try:
            self._line.send((verb, arguments))
            while not self._line.poll(1.0):
                self._check(verb)
                if time.monotonic() > deadline:
                    raise ContenderFailedError(self.explain(f"{verb} took longer than {timeout:g} s"))
            state, answer = self._line.recv()
        except (EOFError, OSError):
            raise ContenderFailedError(self.explain(f"its client ended during {verb}")) from None
        if state == "failed":
            raise ContenderFailedError(answer)
        return answer

    @property
    def client_pids(self) -> list[int]:
        return [self._runner.pid] if self._runner else []

    @property
    def worker_pids(self) -> list[int]:
        """Of the worker programs; a contender without any works in children of its client."""
        return [service.pid for service in self._services if service is not self._runner]

    @contextmanager
    def stopped_workers(self) -> Iterator[Callable[[], None]]:
        """Freeze the workers for the block, or until what it gets is called."""
        frozen = tree(self.worker_pids)

        def thaw() -> None:
            while frozen:
                with suppress(psutil.Error):
                    frozen.pop().send_signal(signal.SIGCONT)

        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield thaw
        finally:
            thaw()

    def leave(self) -> None:
        """Stop everything of this contender, and empty its database."""
        if self._line:
            with suppress(ContenderFailedError):
                self.ask("close", timeout=5.0)
            self._line.close()
        for service in self._services:
            service.signal(signal.SIGTERM)
        deadline = time.monotonic() + 5.0
        for service in self._services:
            service.stop(max(0.0, deadline - time.monotonic()))
        with self.connect() as client:
            client.flushdb()

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=60.0)

    def explain(self, what: str) -> str:
        """*what*, with the ends of the logs of whatever has ended, or of everything."""
        ended = [service for service in self._services if service.status is not None]
        logs = [service.log for service in ended or self._services]
        return "\n".join([f"{self.name}: {what}", *(f"{log.name}:\n{last_lines(log)}" for log in logs)])

    def _check(self, verb: str) -> None:
        for service in self._services:
            if service.status is not None:
                raise ContenderFailedError(self.explain(f"process {service.pid} ended during {verb}"))

    def _start(self, argv: Sequence[str], env: Mapping[str, str]) -> Service:
        name = f"{self.name}-{self.database}-{len(self._services)}"
        log = self._stack.directory / f"{name}.log"
        temporary = self._stack.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        child = self._stack.guard.start(argv, {**env, "TMPDIR": str(temporary)}, log=log)
        service = Service(name, log, child)
        self._services.append(service)
        return service


class Field:
    """The private Redis and those who are on it now."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._stack = LocalStack({}, environ=own_environ())
        self._seats: dict[tuple[str, int], Seat] = {}

    def __enter__(self) -> Self:
        try:
            self._stack.start()
            with self._stack.connect() as client:
                # Redis cuts off a subscriber with 32 MiB to read, and stock Celery then waits for ever for what it
                # has missed: large results would not be measured, but this limit.
                client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        except BaseException:
            self._stack.stop(1.0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.stop(1.0)

    @property
    def redis_pids(self) -> list[int]:
        return [self._stack.redis.pid] if self._stack.redis and self._stack.redis.pid else []

    def seat(self, name: str, concurrency: int) -> Seat:
        """The contender with so many worker processes (0: one per core), started if it is not there.

        Raises:
            ContenderFailedError: it does not start.
        """
        key = (name, concurrency or self.cores)
        if key not in self._seats:
            taken = {seat.database for seat in self._seats.values()}
            free = [number for number in range(DATABASES) if number not in taken]
            if not free:
                raise ContenderFailedError(f"{name}: all {DATABASES} databases of the run's Redis are taken")
            seat = Seat(self._stack, CONTENDERS[name], free[0], key[1])
            try:
                seat.take()
            except BaseException:
                seat.leave()
                raise
            self._seats[key] = seat
        return self._seats[key]

    def dismiss(self, keep: set[tuple[str, int]]) -> None:
        """Stop everybody but those in *keep*: pairs of name and concurrency."""
        wanted = {(name, concurrency or self.cores) for name, concurrency in keep}
        for key in self._seats.keys() - wanted:
            self._seats.pop(key).leave()

    def find(self, name: str, concurrency: int) -> Seat | None:
        """The contender with so many worker processes, where it runs."""
        return self._seats.get((name, concurrency or self.cores))

    def drop(self, seat: Seat) -> None:
        """Stop one that has failed."""
        self._seats = {key: other for key, other in self._seats.items() if other is not seat}
        seat.leave()

    def redis_version(self) -> str:
        with self._stack.connect() as client:
            return str(client.info("server")["redis_version"])
