"""Results that have arrived in this process, and how they are read from the pool's stream in Redis."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.processor import as_result
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.errors import EnvelopeError
from graft.tasks.pools.slot import RESULTS, Row


class Mailbox:
    """Results that have arrived in this process and have not been delivered, in order of arrival."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.reading = threading.Lock()  # Held by who fetches results from Redis.
        self._results: deque[Result] = deque()

    def put(self, *results: Result) -> None:
        with self.changed:
            self._results.extend(results)
            self.changed.notify_all()

    def note_rows(self, slot: int, worker: str, rows: Iterable[Row]) -> None:
        """Put the results in that came in the report of *worker*."""
        self.put(*_results_of(slot, worker, rows))

    def take(self) -> Result | None:
        try:
            return self._results.popleft()
        except IndexError:
            return None

    def wait(self, seconds: float) -> None:
        """Until there may be a result, and *seconds* at most."""
        with self.changed:
            if not self._results:
                self.changed.wait(seconds)


def pop(key: str, wait: float) -> list[Result]:
    """The results in the piece at the head of the list *key*, after up to *wait* seconds for one."""
    if wait <= 0.002:  # Redis 6.2 takes less than a millisecond for "without end".
        piece = shared().lpop(key)
        return [] if piece is None else _results(piece)
    found = shared().blpop(key, timeout=wait)
    return [] if found is None else _results(found[1])


def _results(piece: bytes) -> list[Result]:
    """The results in one piece of the stream; a piece that cannot be opened is a result with that error."""
    try:
        slot, worker, rows = pickle.loads(codec.unseal(RESULTS, piece))
    except Exception as error:
        return [Result(error=error)]
    return _results_of(slot, worker, rows)


def _results_of(slot: int, worker: str, rows: Iterable[Row]) -> list[Result]:
    return [_result(content, succeeded, Result(key, None, None, seconds, slot, worker))
            for key, seconds, succeeded, content in rows]  # fmt: skip


def _result(content: Any, succeeded: bool, measured: Result) -> Result:
    if not succeeded:
        measured.error = codec.load_error(content)
        return measured
    try:
        output = content[0] if type(content) is list else pickle.loads(content)
        return as_result(output, measured)
    except Exception as error:
        measured.error = EnvelopeError(f"the output of task {measured.task_id} cannot be opened here: {error}")
        return measured
