"""What every actor saw, as a file of JSON lines: each operation with its actor, its call and its return.

An operation that never returned (its process died) has no end: it may have happened or not.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Operation:
    """One operation of one actor on the thing named *on*. Times are those of the machine's clock, in seconds.

    ``ended`` is None for one that did not return; ``value`` is what it was given or returned.
    """

    actor: str
    kind: str
    on: str
    began: float
    ended: float | None = None
    value: Any = None


def write(operation: Operation) -> None:
    """Append *operation* to the file that DRILL_HISTORY names, in one write."""
    line = json.dumps(asdict(operation)).encode() + b"\n"
    file = os.open(os.environ["DRILL_HISTORY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


class Returned:
    """What an operation returned; set inside the block of :func:`operation`."""

    value: Any = None


@contextmanager
def operation(kind: str, on: str, value: Any = None) -> Iterator[Returned]:
    """Write down an operation: when the block is entered, and again, complete, when it is left without an error."""
    found = Operation(f"{os.getpid()}.{threading.get_ident()}", kind, on, time.time(), None, value)
    write(found)
    returned = Returned()
    returned.value = value
    yield returned
    write(replace(found, ended=time.time(), value=returned.value))


def read(path: Path) -> list[Operation]:
    """The operations in *path*, in the order in which they began; the last line may be half written."""
    found: dict[tuple[str, str, str, float], Operation] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            one = Operation(**json.loads(line))
        except (ValueError, TypeError):
            continue
        key = (one.actor, one.kind, one.on, one.began)
        if key not in found or found[key].ended is None:
            found[key] = one
    return sorted(found.values(), key=lambda one: one.began)


def of_ledger(path: Path) -> list[Operation]:
    """What the drill's ledger (ledger.py) says of each task: when it was sent, ran, and was answered.

    A call that somebody waits for is noted before it is sent (``asked``). Others are noted once they have been sent,
    and may have begun by then.
    """
    found: list[Operation] = []
    runs: dict[tuple[str, str], float] = {}
    asked: dict[str, float] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        parts = line.split(" ")
        if len(parts) != 4 or parts[1].startswith("."):
            continue
        kind, label, actor, at = parts[0], parts[1], parts[2], float(parts[3])
        match kind:
            case "asked":
                asked[label] = at
                found.append(Operation(actor, "ask", label, at, at, label))
            case "sent" | "unsure":
                began = asked.get(label, at)
                found.append(Operation(actor, "send", label, began, at if kind == "sent" else None, label))
            case "start":
                found.append(Operation(actor, "take", label, at, at, label))
                runs[actor, label] = at
            case "end" if (actor, label) in runs:
                found.append(Operation(actor, "run", label, runs.pop((actor, label)), at, label))
            case "answered" | "told":
                found.append(Operation(actor, "answer", label, at, at, label if kind == "answered" else None))
    return found
