"""The memory that a worker's main process shares with its pool processes: what they may do, and what each one has.

    orders      written by the main process: may messages be taken, from which lists, how many jobs wait
    entries     32 for each pool process, written by it: the messages that it has asked for, holds, or runs

Where both may change an entry at once, they take the process's lock. One that is killed with its lock held keeps the
main process waiting for a tenth of a second.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, NamedTuple

MOST_PROCESSES: Final = 1024
ORDERS: Final = 1 << 18  # Bytes; a queue takes about 500 of them.
PROCESS: Final = 64  # Bytes that a process has beside its entries.
ENTRIES: Final = 32
ENTRY: Final = 384
TAG, ID = 64, 255  # The longest that are written.
LOCK_PATIENCE: Final = 0.1

_ORDERS: Final = struct.Struct("<III")  # Version, jobs that wait, length of the text.
_HEAD: Final = struct.Struct("<QB")  # The client id of the process's connection, for CLIENT UNBLOCK; whether it ends.
_SINCE: Final = struct.Struct("<d")
_ENTRY: Final = struct.Struct(f"<BBHIdI{TAG}s{ID}s")  # State, lengths of tag and id, retries, since, unused, tag, id.


class State(IntEnum):
    """What a pool process has of a message."""

    FREE = 0
    ASKED = 1  # A fetch may bring it.
    HELD = 2  # Taken, not begun.
    RUNNING = 3
    PROMOTED = 4  # Running, and the main process has a request for it: it settles the message.
    ENDED = 5  # Its run has ended; Redis is being told.
    TAKEN_BACK = 6  # The main process has given it to others.


class Entry(NamedTuple):
    """A message that a pool process has; ``since`` is the machine's monotonic time of its last change."""

    number: int
    state: State
    tag: str
    task_id: str
    retries: int
    since: float


class SharedState:
    """One for each worker, made before its pool processes are forked."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, ORDERS + MOST_PROCESSES * (PROCESS + ENTRIES * ENTRY))

    # ---- orders ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes with every order."""
        return int(_ORDERS.unpack_from(self._memory)[0])

    def write_orders(self, orders: dict[str, Any]) -> None:
        """By the main process alone. A reader that comes in between reads once more."""
        text = json.dumps(orders).encode()
        if len(text) > ORDERS - _ORDERS.size:
            raise ValueError(f"the queues of this worker need {len(text)} bytes of orders, at most {ORDERS} fit")
        version, jobs, _ = _ORDERS.unpack_from(self._memory)
        _ORDERS.pack_into(self._memory, 0, version + 1, jobs, 0)
        self._memory[_ORDERS.size : _ORDERS.size + len(text)] = text
        _ORDERS.pack_into(self._memory, 0, version + 2, jobs, len(text))

    def read_orders(self) -> tuple[int, dict[str, Any]]:
        """The orders, with their version."""
        while True:
            version, _, length = _ORDERS.unpack_from(self._memory)
            text = self._memory[_ORDERS.size : _ORDERS.size + length]
            if version % 2 == 0 and version == self.version:
                return version, json.loads(text or b"{}")
            time.sleep(0.0001)

    @property
    def jobs(self) -> int:
        """How many jobs of the main process wait for a pool process."""
        return int(_ORDERS.unpack_from(self._memory)[1])

    @jobs.setter
    def jobs(self, count: int) -> None:
        struct.pack_into("<I", self._memory, 4, count)

    # ---- processes ---------------------------------------------------------------------------------------------------

    def clear(self, process: int) -> None:
        """Forget all of a process that has ended."""
        at = self._at(process)
        self._memory[at : at + PROCESS + ENTRIES * ENTRY] = bytes(PROCESS + ENTRIES * ENTRY)

    def client_id(self, process: int) -> int:
        return int(_HEAD.unpack_from(self._memory, self._at(process))[0])

    def note_client(self, process: int, client_id: int) -> None:
        """The connection on which *process* waits for messages."""
        struct.pack_into("<Q", self._memory, self._at(process), client_id)

    def end(self, process: int) -> None:
        """Have *process* end once it runs nothing."""
        self._memory[self._at(process) + 8] = 1

    def is_to_end(self, process: int) -> bool:
        return bool(self._memory[self._at(process) + 8])

    def entries(self, process: int) -> Iterator[Entry]:
        """The messages that *process* has, by their numbers."""
        at = self._at(process) + PROCESS
        for number in range(ENTRIES):
            position = at + number * ENTRY
            if self._memory[position]:
                yield self._entry(number, position)

    def _entry(self, number: int, position: int) -> Entry:
        state, tag_length, id_length, retries, since, _, tag, task_id = _ENTRY.unpack_from(self._memory, position)
        return Entry(
            number,
            State(state),
            tag[:tag_length].decode(),
            task_id[:id_length].decode(errors="replace"),
            retries,
            since,
        )

    def write(self, process: int, number: int, state: State, tag: str, task_id: str = "", retries: int = 0) -> None:
        """By the pool process: what it has in the entry *number*."""
        name = task_id.encode()[:ID]
        position = self._position(process, number)
        _ENTRY.pack_into(
            self._memory, position, state, len(tag), len(name), retries, time.monotonic(), 0, tag.encode(), name
        )

    def hold(self, process: int, entry: Entry, lock: Any) -> bool:
        """By the pool process: it was brought *entry*, which it had asked for; False where it was taken back."""
        with held(lock):
            if self.state(process, entry.number) is not State.ASKED:
                return False
            self.write(process, entry.number, State.HELD, entry.tag, entry.task_id, entry.retries)
            return True

    def set(self, process: int, number: int, state: State) -> None:
        self._memory[self._position(process, number)] = state

    def state(self, process: int, number: int) -> State:
        return State(self._memory[self._position(process, number)])

    def change(self, process: int, number: int, tag: str, before: State, after: State, lock: Any) -> bool:
        """Whether the entry was *tag*'s in the state *before*; it is in the state *after* now."""
        position = self._position(process, number)
        with held(lock):
            entry = self._entry(number, position)
            if entry.tag != tag or entry.state != before:
                return False
            self._memory[position] = after
            if after is State.RUNNING:
                _SINCE.pack_into(self._memory, position + 8, time.monotonic())
            return True

    def _at(self, process: int) -> int:
        return ORDERS + process * (PROCESS + ENTRIES * ENTRY)

    def _position(self, process: int, number: int) -> int:
        return self._at(process) + PROCESS + number * ENTRY


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """With *lock*, or without where its holder was killed."""
    is_held = lock.acquire(timeout=LOCK_PATIENCE)
    try:
        yield
    finally:
        if is_held:
            lock.release()
