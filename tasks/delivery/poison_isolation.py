"""One suspect at a time: what would be given up after one more death runs while no other such runs in the same worker.

Whatever takes a whole worker with it takes its neighbours along. They come back together, are taken together, and would
die together until all had used up their runs: nobody could tell the killer from the killed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from typing import Final

from graft.config.settings import settings

WAIT: Final = 0.5  # Seconds before a suspect that finds another one running goes back to its queue.


class NotAloneError(Exception):
    """Another suspect runs in this worker. The run has not been counted, and may begin later."""


def deaths() -> int:
    """How many deaths make a suspect: all but the last."""
    return max(1, settings().run_limit - 1)


_lock = threading.Lock()
_inside: str | None = None
_place: int | None = None  # A file without a name, which the kernel unlocks for those that die.


def prepare() -> None:
    """In a worker, before its pool processes are forked: the place is one for all of them."""
    global _place
    if _place is None:
        _place, path = tempfile.mkstemp(prefix="graft-suspect-")
        os.unlink(path)


def enter(envelope_id: str) -> None:
    """Keep others out, until :func:`leave` or the death of this process.

    Raises:
        NotAloneError: another one is in.
    """
    global _inside
    with _lock:
        if _inside is not None:
            raise NotAloneError(f"{_inside} runs, and one of the two may be what kills its worker")
        if _place is not None:
            try:
                fcntl.lockf(_place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NotAloneError("another process of the pool runs what may kill its worker") from None
        _inside = envelope_id


def leave(envelope_id: str) -> None:
    """Let others in, if it was this one that kept them out."""
    global _inside
    with _lock:
        if _inside == envelope_id:
            _inside = None
            if _place is not None:
                fcntl.lockf(_place, fcntl.LOCK_UN)
