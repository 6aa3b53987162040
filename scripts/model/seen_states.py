"""What walkers have seen: a table of states' names that processes share."""

from __future__ import annotations

import mmap
import multiprocessing
import struct
from typing import Final

SLOTS: Final = 1 << 25
COUNTS: Final = struct.Struct("qqq")  # States, those at rest, and how many have asked all others to stop.


class SeenStates:
    """The names of states that some process has seen, and in how many nothing is left to be done.

    Shared by those that are forked from the one that makes it.
    """

    def __init__(self) -> None:
        self._slots = mmap.mmap(-1, SLOTS * 8)
        self._counts = mmap.mmap(-1, COUNTS.size)
        self._lock = multiprocessing.get_context("fork").Lock()

    def add(self, name: str) -> bool:
        """Whether nobody has seen the state *name* before."""
        word = bytes.fromhex(name[:16])
        at = int.from_bytes(word, "big") % SLOTS * 8
        with self._lock:
            while (found := self._slots[at : at + 8]) != bytes(8):
                if found == word:
                    return False
                at = (at + 8) % (SLOTS * 8)
            self._slots[at : at + 8] = word
            self._count(states=1)
        if len(self) > SLOTS * 3 // 4:
            raise MemoryError(f"more than {SLOTS * 3 // 4} states")
        return True

    def end(self) -> None:
        """One more of the states is at rest."""
        with self._lock:
            self._count(ends=1)

    def stop(self) -> None:
        """Have everybody stop looking."""
        with self._lock:
            self._count(stops=1)

    def _count(self, *, states: int = 0, ends: int = 0, stops: int = 0) -> None:
        before = COUNTS.unpack(self._counts[:])
        self._counts[:] = COUNTS.pack(before[0] + states, before[1] + ends, before[2] + stops)

    def __len__(self) -> int:
        return int(COUNTS.unpack(self._counts[:])[0])

    @property
    def ends(self) -> int:
        return int(COUNTS.unpack(self._counts[:])[1])

    @property
    def is_stopped(self) -> bool:
        return bool(COUNTS.unpack(self._counts[:])[2])
