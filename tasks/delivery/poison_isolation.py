"""Poison isolation: a task one crash away from its limit runs apart from others of that kind in the same worker.

An item that ends a whole worker ends its neighbours too. They come back together, are fetched together, and would die
together until all had used up their runs: nobody could tell the killer from the killed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from typing import Final

from graft.config.deployment import part, settings

WAIT: Final = 0.5  # Seconds before a task that must wait for another goes back to its queue.


class NotAloneError(Exception):
    """Another task that is one crash away from its limit runs in this worker. The run was not counted."""


def deaths() -> int:
    """How many deaths isolate a task: all but the last."""
    return max(1, settings().run_limit - 1)


class _Turnstile:
    """Admits one isolated task at a time: among the threads of this process, and the processes of its pool."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside: str | None = None
        self.lock_fd: int | None = None  # A file without a name, which the kernel unlocks for those that die.

    def after_fork(self) -> None:
        """A pool process shares the file with the others; who is inside is its own."""
        self.lock, self.inside = threading.Lock(), None


def prepare() -> None:
    """In a worker, before its pool processes are forked: the lock is one for all of them."""
    turnstile = part(_Turnstile)
    if turnstile.lock_fd is None:
        turnstile.lock_fd, path = tempfile.mkstemp(prefix="graft-poison-")
        os.unlink(path)


def enter(envelope_id: str) -> None:
    """Keep others out, until :func:`leave` or the death of this process.

    Raises:
        NotAloneError: another one is in.
    """
    turnstile = part(_Turnstile)
    with turnstile.lock:
        if turnstile.inside is not None:
            raise NotAloneError(f"{turnstile.inside} runs, and one of the two may be what kills its worker")
        if turnstile.lock_fd is not None:
            try:
                fcntl.lockf(turnstile.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NotAloneError("another process of the pool runs what may kill its worker") from None
        turnstile.inside = envelope_id


def leave(envelope_id: str) -> None:
    """Let others in, if it was this one that kept them out."""
    turnstile = part(_Turnstile)
    with turnstile.lock:
        if turnstile.inside == envelope_id:
            turnstile.inside = None
            if turnstile.lock_fd is not None:
                fcntl.lockf(turnstile.lock_fd, fcntl.LOCK_UN)
