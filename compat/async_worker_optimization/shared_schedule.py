"""Pending tasks in Redis: one strict order over all callers, and each task taken by exactly one of them.

``…:order`` is a sorted set of ``<number>:<id>`` by -priority, so that equal priorities go by number, which is the order
of scheduling. ``…:tasks`` maps an id to its number and its sealed callable.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from graft.compat.async_worker_optimization import redis_records
from graft.config import lua
from graft.tasks import codec
from graft.tasks.callables.references import FunctionRef, resolve

PURPOSE: Final = "compat-scheduled-task"
DIGITS: Final = 16  # Numbers sort as text.

SCRIPT: Final = lua.load(__file__, "shared_schedule")


class TakenTask(NamedTuple):
    """A task that now belongs to the caller. Priorities are kept as doubles."""

    id: Hashable
    priority: float
    number: int
    sealed: str

    def func(self) -> Callable[[], Any]:
        """The callable.

        Raises:
            UnreferenceableError: this process cannot import it.
            SignatureError: another deployment signed it.
        """
        how, name, payload, is_async = pickle.loads(codec.unseal(PURPOSE, self.sealed))
        return resolve(FunctionRef(how, name, payload, is_async))


class SharedSchedule:
    """The pending tasks under one name. Every method blocks for a round trip and may raise BrokerUnavailable."""

    def __init__(self, name: str) -> None:
        base = f"{redis_records.PREFIX}schedule:{name}"
        self._keys = (f"{base}:order", f"{base}:tasks", f"{base}:number")

    def add(self, task_id: Hashable, ref: FunctionRef, priority: float) -> None:
        """Schedule the callable behind *ref*, in place of an earlier task of that id."""
        content = pickle.dumps((ref.how, ref.name, ref.payload, ref.is_async), codec.PROTOCOL)
        self._run("add", _key(task_id), _score(priority), codec.seal(PURPOSE, content), "")

    def put_back(self, task: TakenTask) -> None:
        """Return a task that could not run to its old position."""
        self._run("add", _key(task.id), _score(task.priority), task.sealed, f"{task.number:0{DIGITS}d}")

    def remove(self, task_id: Hashable) -> bool:
        return bool(self._run("remove", _key(task_id)))

    def take(self, before: tuple[float, int] | None) -> TakenTask | None:
        """The first task, unless there is none or *before* (a priority and a number) goes first."""
        mine = ("", "") if before is None else (_score(before[0]), f"{before[1]:0{DIGITS}d}")
        taken = self._run("take", *mine)
        if taken is None:
            return None
        task_id, score, number, sealed = (part.decode() for part in taken)
        return TakenTask(json.loads(task_id), -float(score), int(number), sealed)

    def next_number(self) -> int:
        """A number in the order of scheduling, for a task that the caller keeps itself."""
        with redis_records.redis_or_error() as client:
            return int(client.incr(self._keys[2]))

    def pending(self) -> list[tuple[int, Hashable]]:
        """Numbers and ids, in the order of scheduling."""
        with redis_records.redis_or_error() as client:
            members = [member.decode() for member in client.zrange(self._keys[0], 0, -1)]
        return sorted((int(member[:DIGITS]), json.loads(member[DIGITS + 1 :])) for member in members)

    def _run(self, operation: str, *arguments: str) -> Any:
        with redis_records.redis_or_error() as client:
            return SCRIPT(self._keys, [operation, *arguments], client)


def _score(priority: float) -> str:
    return repr(-float(priority))


def _key(task_id: Hashable) -> str:
    if not isinstance(task_id, str | int):
        raise TypeError(f"the id {task_id!r} ({type(task_id).__name__}) cannot be kept in Redis; use a str or an int")
    return json.dumps(task_id)
