"""Yardsticks: loops that somebody writes by hand on Redis lists, without retries, limits or any guarantee.

    client ──RPUSH jobs──► BLPOP ── worker ──RPUSH outcomes──► BLPOP ── client

A job is a record with its id, function and arguments, an outcome one with its id and the value or the error, in JSON:
what no queue can do without. ``loop-bare`` does without it: two pickled lists, the least that Redis can be asked for.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import redis

from graft.scripts.bench.contenders.base import Contender, Starter
from graft.scripts.bench.contenders.sweep import best, sizes
from graft.scripts.bench.work import FUNCTIONS, REDIS_URL

JOBS, ANSWERS = "jobs", "answers"
TOGETHER = 500


def _next(client: Any, key: str) -> bytes:
    _, message = client.blpop([key])
    assert isinstance(message, bytes)
    return message


def work() -> None:
    """The worker program."""
    client = redis.Redis.from_url(os.environ[REDIS_URL], socket_timeout=None)
    while True:
        message = _next(client, JOBS)
        client.rpush(ANSWERS, json.dumps([_outcome(job) for job in json.loads(message)]))


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"id": job["id"], "value": FUNCTIONS[job["function"]](*job["args"])}
    except Exception as error:
        return {"id": job["id"], "error": repr(error)}


def work_bare() -> None:
    """The same for bare lists."""
    client = redis.Redis.from_url(os.environ[REDIS_URL], socket_timeout=None)
    while True:
        message = _next(client, JOBS)
        start, name, items = pickle.loads(message)
        function = FUNCTIONS[name]
        client.rpush(ANSWERS, pickle.dumps((start, [function(item) for item in items]), 5))


class BatchedLoop(Contender):
    """A few messages with many jobs each, of the best size."""

    name = "loop-batched"
    title = "hand-written Redis loop, batched"
    shapes = frozenset({"batch"})
    program = "work"
    batch_size = 500

    def start(self, starter: Starter) -> None:
        code = f"from graft.scripts.bench.contenders.yardsticks import {self.program}; {self.program}()"
        starter.start([sys.executable, "-c", code], self.environ, copies=self.setup.concurrency)

    def open(self) -> None:
        self.client = redis.Redis.from_url(self.setup.redis_url, socket_timeout=None)

    def close(self) -> None:
        self.client.close()

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        found = sizes(len(items), self.setup.concurrency)
        self.batch_size = batch_size or best(found, lambda size: self._run(function, items, size))

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self._run(function, items, self.batch_size)

    def _run(self, function: str, items: Sequence[Any], size: int) -> list[Any]:
        starts = range(0, len(items), size)
        for first in range(0, len(starts), TOGETHER):
            with self.client.pipeline(transaction=False) as pipe:
                for start in starts[first : first + TOGETHER]:
                    pipe.rpush(JOBS, self._message(function, start, items[start : start + size]))
                pipe.execute()
        return self._collect(range(len(items)), len(starts))

    def _message(self, function: str, start: int, items: Sequence[Any]) -> str | bytes:
        return json.dumps([{"id": start + at, "function": function, "args": [item]} for at, item in enumerate(items)])

    def _collect(self, ids: Sequence[int], messages: int) -> list[Any]:
        values: dict[int, Any] = {}
        for message in self._messages(messages):
            for outcome in json.loads(message):
                values[outcome["id"]] = outcome["value"]
        return [values[number] for number in ids]

    def _messages(self, count: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count:
            found.append(_next(self.client, ANSWERS))
            if count - len(found) > 1:
                more: Any = self.client.lpop(ANSWERS, TOGETHER)
                found += more or ()
        return found


class BareLoop(BatchedLoop):
    """Lists without ids, without errors: what is left when nothing more can be left out."""

    name = "loop-bare"
    title = "hand-written Redis loop, two bare lists"
    program = "work_bare"

    def _message(self, function: str, start: int, items: Sequence[Any]) -> bytes:
        return pickle.dumps((start, function, items), 5)

    def _collect(self, ids: Sequence[int], messages: int) -> list[Any]:
        parts: dict[int, list[Any]] = dict(pickle.loads(message) for message in self._messages(messages))
        return [value for start in sorted(parts) for value in parts[start]]


class Loop(BatchedLoop):
    """One message for each job."""

    name = "loop"
    title = "hand-written Redis loop"
    shapes = frozenset({"batch", "singles", "submit", "latency"})

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        self.batch_size = 1

    def open(self) -> None:
        super().open()
        self.batch_size = 1
        self._number = 0

    def submit(self, function: str, item: Any) -> int:
        self._number += 1
        self.client.rpush(JOBS, self._message(function, self._number, [item]))
        return self._number

    def gather(self, handles: Sequence[int]) -> list[Any]:
        return self._collect(handles, len(handles))
