"""Celery's events of runs that only a pool process has seen.

The main process is told of them together, within about a second, and sends them with the times at which they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from graft.workers.direct.plain_run import PlainRun


class EndedRun(NamedTuple):
    """A run that has succeeded. ``began`` and ``ended`` are seconds since the epoch, ``runtime`` is seconds."""

    task: str
    task_id: str
    told: dict[str, Any]  # What its first event says besides.
    began: float
    ended: float
    result: str
    runtime: float

    @classmethod
    def of(cls, run: PlainRun, began: float, ended: float, answer: tuple[Any, str, float]) -> EndedRun:
        headers = run.request
        told = {
            "name": headers.get("shadow") or run.name, "eta": None, "expires": None,
            "args": headers.get("argsrepr", ""), "kwargs": headers.get("kwargsrepr", ""),
            "root_id": headers.get("root_id"), "parent_id": headers.get("parent_id"), "retries": run.retries,
        }  # fmt: skip
        _, result, runtime = answer
        return cls(run.name, run.task_id, told, began, ended, result, runtime)


def tell(dispatcher: Any, tasks: Mapping[str, Any], runs: Iterable[EndedRun]) -> None:
    """Send the events of *runs*, as Celery's requests do."""
    for run in runs:
        if tasks[run.task].send_events:
            dispatcher.send("task-received", uuid=run.task_id, timestamp=run.began, **run.told)
            dispatcher.send("task-started", uuid=run.task_id, timestamp=run.began)
            result = {"result": run.result, "runtime": run.runtime}
            dispatcher.send("task-succeeded", uuid=run.task_id, timestamp=run.ended, **result)


class Late:
    """Celery's event dispatcher for the request of a run that the main process sees late.

    It began at *began*, seconds since the epoch, and has ended at *ended*, if it has.
    """

    def __init__(self, dispatcher: Any, began: float, ended: float | None) -> None:
        self._dispatcher, self._began, self._ended = dispatcher, began, ended

    @property
    def enabled(self) -> bool:
        return bool(self._dispatcher and self._dispatcher.enabled)

    def send(self, kind: str, **fields: Any) -> None:
        at = self._began if kind in ("task-received", "task-started") else self._ended
        self._dispatcher.send(kind, **fields, **({} if at is None else {"timestamp": at}))


def tell_received(request: Any) -> None:
    """Send the event of a message that the main process sees only now; its request sends the others."""
    request.send_event(
        "task-received", name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr, root_id=request.root_id,
        parent_id=request.parent_id, retries=request.request_dict.get("retries", 0), eta=None, expires=None,
    )  # fmt: skip
