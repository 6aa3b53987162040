"""All dead letters without their envelopes and tracebacks, kept in a process that shows them again and again.

A hundred thousand letters are hundreds of megabytes in Redis. What a list needs of them is read once, a page at a time
and cut inside Redis; later looks read what is new, and notice by the counts what is gone.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from graft.config import lua
from graft.config.redis_client import shared
from graft.tasks.dead_letters.store import FAILED, INDEX, LETTERS, DeadLetter

DESCRIBE: Final = lua.load(__file__, "describe")
PAGE: Final = 200
LONGEST_ERROR: Final = 300  # Bytes of an error's text that are kept.
WHOLE_EVERY: Final = 300.0  # Seconds after which all is read again: a letter may be replaced under its id.
SHARED_TEXTS: Final = ("task", "queue", "reason", "function", "error", "fingerprint")
NEWEST: Final = 1000
SOON: Final = 0.2  # Seconds to wait for another who reads.


class Descriptions:
    """What is known of the letters; each is a DeadLetter with empty ``envelope`` and ``traceback``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, DeadLetter] = {}
        self._missing: list[str] = []  # Ids that are not read yet, the newest last.
        self._counts = (0, 0)
        self._read_at = float("-inf")

    def look(self, budget: float = 1.5) -> tuple[list[DeadLetter], int]:
        """The letters, the newest first, and how many are not read yet; reads for about *budget* seconds at most.

        Raises:
            RedisError: Redis does not answer.
        """
        if self._lock.acquire(timeout=SOON):  # Else another reads, and this one has what there is.
            try:
                deadline = time.monotonic() + budget
                client = shared()
                self._find_ids(client)
                while self._missing and time.monotonic() < deadline:
                    page = self._missing[-PAGE:]
                    self._read(page, client)
                    del self._missing[-len(page) :]
            finally:
                self._lock.release()
        newest = sorted(self._known.values(), key=lambda letter: -letter.buried_at)
        return newest, len(self._missing)

    def _find_ids(self, client: Any) -> None:
        """Note which letters there are: the newest alone where the counts say that nothing else has changed."""
        with client.pipeline(transaction=False) as pipe:
            for index in (INDEX, FAILED):
                pipe.zcard(index)
                pipe.zrevrange(index, 0, NEWEST - 1)
            given_up, newest, failed, newest_failed = pipe.execute()
        recent = [name.decode() for name in (*newest, *newest_failed)]
        fresh = [name for name in recent if name not in self._known]
        grown = given_up + failed - sum(self._counts)
        is_due = time.monotonic() - self._read_at > WHOLE_EVERY
        pending = set(self._missing)
        if is_due or grown != len([name for name in fresh if name not in pending]):
            every = [name.decode() for index in (INDEX, FAILED) for name in client.zrange(index, 0, -1)]
            there = set(every)
            self._known = {} if is_due else {name: one for name, one in self._known.items() if name in there}
            self._missing = [name for name in every if name not in self._known]
            self._read_at = time.monotonic() if is_due else self._read_at
        else:
            self._missing += [name for name in reversed(fresh) if name not in pending]
        self._counts = (given_up, failed)

    def _read(self, ids: Sequence[str], client: Any) -> None:
        for name, text in zip(ids, DESCRIBE([], [LETTERS, LONGEST_ERROR, *ids], client), strict=True):
            if text:
                record = json.loads(text.decode("utf-8", "replace"))
                record |= {"error": record["error"][:LONGEST_ERROR], "envelope": "", "traceback": ""}
                # Thousands have the same: one text for all of them.
                record |= {part: sys.intern(str(record[part])) for part in SHARED_TEXTS}
                self._known[name] = DeadLetter(**record)
