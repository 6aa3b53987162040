"""What may stand in the way of a call, by rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["blocks", "unknown", "care"]
RULES: Final = {
    "state": "it captures or assigns something of the caller's that can change: it stays in the caller",
    "method": "it is bound to an object of the caller's: it stays in the caller",
    "handle": "a lock, queue, file or connection of this process is captured or passed: it cannot be pickled",
    "global": "it reads a global name that is set after the import: a worker would not see that",
    "argument": "it changes its argument: a worker changes a copy",
    "large": "a value may be above the limit of one item",
    "cwd": "it opens a file relative to the current folder, which on a worker is another",
    "output": "it prints: on a worker that goes to the worker's log",
    "nested": "it makes a pool of its own: inside a task that runs in place",
    "exits": "it ends its process",
    "bound": "it bounds one process, where several callers would each have a bound of their own",
    "unknown": "only the running program can tell what is called",
}


@dataclass(frozen=True, order=True)
class Obstacle:
    """What stands in the way, where, and what to change.

    ``level``: ``blocks``: it does not move as it is, or would do something else; ``unknown``; ``care``: it moves, and
    somebody should look.
    """

    path: str
    line: int
    rule: str
    level: Level
    text: str
    change: str
