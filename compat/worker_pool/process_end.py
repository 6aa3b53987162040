"""What becomes of this process's part in a pool when nobody holds it any more, the process ends, or it forks."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from graft.compat.worker_pool.submission import Submission
from graft.tasks.sending.pool_sender import PoolSender

LAST_WORDS: Final = 2.0  # Seconds that a process waits at its end for what it has accepted to be in Redis.

C = TypeVar("C")


def leave(submission: Submission, senders: Sequence[PoolSender]) -> None:
    """Nobody holds the pool here any more, or the process ends: what was accepted waits in Redis for its turn."""
    submission.stop()
    is_ending = threading.current_thread() is threading.main_thread()
    if is_ending and submission.thread is not None:
        submission.thread.join(LAST_WORDS)  # Its last call may have slots to give away: their messages must get out.
    for sender in senders:
        sender.leave(LAST_WORDS if is_ending else 0.0)


def calling(client: weakref.ref[C], method: Callable[..., None]) -> Callable[..., None]:
    """Calls *method* of the client, for as long as somebody holds it."""

    def call(*arguments: Any) -> None:
        if (one := client()) is not None:
            method(one, *arguments)

    return call


class Forking(Protocol):
    def before_fork(self) -> None: ...
    def after_fork(self) -> None: ...


_clients: weakref.WeakSet[Forking] = weakref.WeakSet()


def follow_forks(client: Forking) -> None:
    """Have *client* told of forks: it comes along into the child."""
    _clients.add(client)


def _before() -> None:
    for client in list(_clients):
        client.before_fork()


def _in_child() -> None:
    for client in list(_clients):
        client.after_fork()


os.register_at_fork(before=_before, after_in_child=_in_child)  # The deployment's own, imported above, goes first.
