"""A channel for all results of the tasks that a thread has sent, where Celery has one for each result.

    caller's thread ── reply_to ──► message ──► worker ── PUBLISH ──► channel of the thread

Celery puts a thread's id into each message already, as ``reply_to``. Whether the workers answer there shows when the
first does: until then, and beside workers that do not, callers subscribe to each result as Celery does.
"""

from __future__ import annotations

import time
from typing import Any, Final

LARGE: Final = b">"  # What is announced of a large result: where it lies.
UNREAD: Final = 1000  # Answers that nobody wants any more; Redis keeps them for a thread that does not read.
LATE: Final = 1.0  # Seconds from a look that finds a result to its answer, where many wait to be read.
DOUBT: Final = 60.0  # Seconds after a result that was not announced in which no other is left to the channel.


def channel_of(backend: Any, thread: str) -> str:
    """The channel of the thread whose messages say *thread* in ``reply_to``: one of those of results."""
    key = backend.get_key_for_task(f"replies-{thread}")
    return key.decode() if isinstance(key, bytes) else str(key)


class Replies:
    """What a caller expects on such channels."""

    def __init__(self) -> None:
        self.channels: dict[str, str] = {}  # By thread.
        self.are_heard = False
        self.expected: set[str] = set()  # Tasks whose results nothing else announces.
        self._given_up: set[str] = set()  # Those whose results nobody wants any more, or not yet.
        self._found: dict[str, float] = {}  # Results that a look has found, and when.
        self._doubt_until = 0.0

    def give_up(self, task_id: str) -> bool:
        """Nobody waits for this result now; False where it was not expected here."""
        if task_id not in self.expected:
            return False
        self.expected.discard(task_id)
        self._given_up.add(task_id)
        return True

    def expects(self, task_id: str) -> bool:
        """Somebody waits for this result: whether it comes here."""
        if task_id in self._given_up:
            self._given_up.discard(task_id)
            self.expected.add(task_id)
        return task_id in self.expected

    @property
    def is_flooded(self) -> bool:
        """Whether answers pile up in Redis, for a thread that does not read them."""
        return len(self._given_up) > UNREAD

    def take(self, task_id: str) -> bool:
        """An answer has come: whether it is the first word of this result, and somebody wants it."""
        self._found.pop(task_id, None)
        self._given_up.discard(task_id)
        self.are_heard = self.are_heard or time.monotonic() >= self._doubt_until
        is_first = task_id in self.expected
        self.expected.discard(task_id)
        return is_first

    def note_found(self, task_id: str) -> None:
        """A look has found this result; its answer may be on its way."""
        if task_id in self.expected:
            self.expected.discard(task_id)
            self._found[task_id] = time.monotonic()

    def have_failed(self) -> bool:
        """Whether a result was not announced here."""
        if any(time.monotonic() - found_at > LATE for found_at in self._found.values()):
            self._doubt_until = time.monotonic() + DOUBT
            return True
        return False

    def leave(self) -> set[str]:
        """Expect nothing here any more: what was."""
        expected, self.expected = self.expected, set()
        self.are_heard = False
        self._given_up.clear()
        self._found.clear()
        return expected
