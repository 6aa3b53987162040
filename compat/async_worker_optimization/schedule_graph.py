"""Which tasks depend on which: an order that respects it, and what makes one impossible. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from graft.tasks.errors import TaskQueueError


class SkippedTaskError(TaskQueueError):
    """A task did not run, because one that it depends on failed: ``failed`` is its id, ``__cause__`` its error."""

    def __init__(self, task_id: Hashable, failed: Hashable, error: BaseException | None = None) -> None:
        super().__init__(task_id, failed, error)
        self.task_id = task_id
        self.failed = failed
        self.__cause__ = error

    def __str__(self) -> str:
        return f"the task {self.task_id!r} did not run: it depends on {self.failed!r}, which failed"


@dataclass(frozen=True)
class Graph:
    """``needs``: id -> the ids that must come first, in the order of the tasks. ``doubles``: ids that came twice."""

    needs: Mapping[Hashable, tuple[Hashable, ...]]
    doubles: tuple[str, ...] = ()

    @classmethod
    def of(cls, tasks: Iterable[Mapping[str, Any]]) -> Self:
        """The graph of dicts with ``id`` and, where there are some, ``dependencies``; a later dict of an id counts.

        Raises:
            KeyError: a task has no ``id``.
        """
        needs: dict[Hashable, tuple[Hashable, ...]] = {}
        doubles: list[str] = []
        for task in tasks:
            if task["id"] in needs:
                doubles.append(f"the id {task['id']!r} is given twice")
            needs[task["id"]] = tuple(task.get("dependencies", ()))
        return cls(needs, tuple(dict.fromkeys(doubles)))

    def order(self) -> list[Hashable]:
        """Ids without dependencies first, as given, then each when its last dependency has been placed."""
        missing = {task_id: len(needed) for task_id, needed in self.needs.items()}
        dependents = self.dependents()
        order = [task_id for task_id, count in missing.items() if count == 0]
        for placed in order:  # Which grows meanwhile.
            for dependent in dependents.get(placed, ()):
                missing[dependent] -= 1
                if missing[dependent] == 0:
                    order.append(dependent)
        return order

    def flaws(self) -> list[str]:
        """Why some tasks have no place in the order: each unknown dependency, and each cycle, as words."""
        unknown = [
            f"{task_id!r} depends on {needed!r}, which is no task"
            for task_id, every in self.needs.items()
            for needed in dict.fromkeys(every)
            if needed not in self.needs
        ]
        return unknown + [f"a cycle: {' -> '.join(map(repr, cycle))}" for cycle in self._cycles()]

    def behind(self, task_id: Hashable) -> set[Hashable]:
        """The ids that depend on *task_id*, directly or through others."""
        dependents, found, todo = self.dependents(), set[Hashable](), [task_id]
        while todo:
            new = set(dependents.get(todo.pop(), ())) - found
            found |= new
            todo += new
        return found

    def dependents(self) -> dict[Hashable, list[Hashable]]:
        """Id -> the ids that name it as a dependency."""
        dependents: dict[Hashable, list[Hashable]] = {}
        for task_id, needed in self.needs.items():
            for dependency in needed:
                dependents.setdefault(dependency, []).append(task_id)
        return dependents

    def _cycles(self) -> list[list[Hashable]]:
        """Cycles without a common task; the first and the last id of each are the same."""
        known = Graph({task_id: tuple(filter(self.needs.__contains__, needs)) for task_id, needs in self.needs.items()})
        left = known.needs.keys() - set(known.order())  # Each depends on another of these, or on itself.
        cycles: list[list[Hashable]] = []
        seen: set[Hashable] = set()
        for start in self.needs:
            at, path = start, dict[Hashable, None]()
            while at in left and at not in seen and at not in path:
                path[at] = None
                at = next(needed for needed in known.needs[at] if needed in left)
            if at in path:
                ids = list(path)
                cycles.append([*ids[ids.index(at) :], at])
            seen.update(path)
        return cycles
