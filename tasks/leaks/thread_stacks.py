"""Where the threads of a worker process are, on request: for a task that does not end.

The process answers when it is next measured (GRAFT_LEAKS_EVERY), on a thread that a stuck task does not hold up.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import keys

REQUESTED: Final = f"{keys.TRACE}:stack:"
SHOWN: Final = f"{keys.TRACE}d:stack:"
KEPT: Final = 3600
LONGEST: Final = 16_384  # Characters of one thread's stack; the innermost frames stay.


@dataclass(frozen=True)
class Stacks:
    """The stacks of one process at one moment, in seconds since the epoch: thread -> its frames, the innermost last."""

    at: float
    threads: dict[str, str]


def request(process: str, client: Any) -> None:
    """Have *process* (the key of its series) show its stacks."""
    client.delete(SHOWN + process)
    client.set(REQUESTED + process, 1, ex=KEPT)


def result(process: str, client: Any) -> Stacks | None:
    """The stacks that *process* has shown; None before it has."""
    text = client.get(SHOWN + process)
    return Stacks(**json.loads(text)) if text else None


def answer(process: str, now: float, client: Any) -> None:
    """In the process itself: show its stacks where that is requested."""
    if client.getdel(REQUESTED + process) is not None:
        client.set(SHOWN + process, json.dumps(asdict(Stacks(now, here()))), ex=KEPT)


def here() -> dict[str, str]:
    """The stacks of this process, but for the thread that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): "".join(traceback.format_stack(frame))[-LONGEST:]
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }
