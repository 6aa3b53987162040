"""Tries several ways on from one state: each in a copy of this process, on the Redis that it left.

A history costs all that happened from its beginning; a copy of a process costs a fork. The copies run one after the
other, and use the connections of their parent: nobody is in the middle of a command when a process is copied.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.connection import AbstractConnection

from graft.scripts.model.world import World
from graft.tasks.delivery.cancellation import SharedFilter
from graft.tasks.delivery.lease import LeaseClock

ANSWERED, FAILED = 1, 2  # How copies end.
SAVE: Final = """
local kept = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  kept[#kept + 1] = key
  kept[#kept + 1] = redis.call('DUMP', key)
  kept[#kept + 1] = math.max(0, redis.call('PTTL', key))
end
return kept
"""
RESTORE: Final = """
redis.call('FLUSHDB')
for i = 1, #ARGV, 3 do redis.call('RESTORE', ARGV[i], ARGV[i + 2], ARGV[i + 1]) end
"""


class Branches:
    """Copies this process; what one of them returns stops all the others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._save = world.redis.register_script(SAVE)
        self._restore = world.redis.register_script(RESTORE)
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this is.

    @contextmanager
    def possible(self) -> Iterator[None]:
        """Meanwhile this process may be copied."""
        kind: Any = AbstractConnection
        pid, getpid, disconnect = os.getpid(), os.getpid, kind.disconnect

        def close(connection: Any, *args: Any, **options: Any) -> None:
            connection.pid = 0  # redis-py would shut the socket down, which is that of the others, too.
            disconnect(connection, *args, **options)
            connection.pid = pid

        os.getpid, kind.disconnect = lambda: pid, close  # The connections are everybody's.
        gc.collect()
        gc.freeze()
        gc.disable()  # It would touch, and so copy, every page.
        try:
            yield
        finally:
            os.getpid, kind.disconnect = getpid, disconnect
            gc.enable()
            gc.unfreeze()

    def each(self, ways: Sequence[Any], follow: Callable[[Any], object]) -> object:
        """Have each of *ways* followed from here. The first answer that is not None, of which others are told none."""
        kept = self._kept()
        for way in ways:
            child = os.fork()
            if not child:
                self._end(follow, way)
            _, status = os.waitpid(child, 0)
            if (code := os.waitstatus_to_exitcode(status)) == ANSWERED:
                return self._told()
            if code:
                raise RuntimeError(f"a copy of the model ended with {code}")
            self._put_back(kept)
        return None

    def _end(self, follow: Callable[[Any], object], way: Any) -> None:
        """Have *way* followed in this copy, and end it."""
        code = FAILED
        try:
            answer = follow(way)
            if answer is not None:
                self._answer.seek(0)
                self._answer.truncate()
                pickle.dump(answer, self._answer)
                self._answer.flush()
            code = 0 if answer is None else ANSWERED
        except KeyboardInterrupt:
            pass  # So its parent says.
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _told(self) -> object:
        self._answer.seek(0)
        return pickle.load(self._answer)

    def _kept(self) -> tuple[list[Any], list[tuple[mmap.mmap, bytes]]]:
        """What copies share: Redis, and what processes of the deployment say to those they fork."""
        shared = [part for worker in self._world.workers.values() for part in _shared_memory(worker.main.parts)]
        return self._save(), [(memory, memory[:]) for memory in shared]

    def _put_back(self, kept: tuple[list[Any], list[tuple[mmap.mmap, bytes]]]) -> None:
        database, shared = kept
        self._restore(args=database)
        for memory, content in shared:
            memory[:] = content
        self._world.forget_look()


def _shared_memory(parts: dict[Any, Any]) -> Iterator[mmap.mmap]:
    if (clock := parts.get(LeaseClock)) is not None:
        yield clock._until
    if (known := parts.get(SharedFilter)) is not None:
        yield known._bits
