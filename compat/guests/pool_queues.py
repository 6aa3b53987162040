"""The two queues of a pool, as its own processes would use them: calls come out of one, results go into the other."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait as wait_readable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.compat.guests.call_frames import CallFrame
    from graft.compat.guests.decision import PoolKind


def _pickler(kind: PoolKind) -> Any:
    return import_module(f"{kind.package}.reduction").ForkingPickler


class CallsQueue:
    """The calls of a pool of *kind*, as frames."""

    def __init__(self, kind: PoolKind, pools_own: Any) -> None:
        self._queue = pools_own
        # Of our own: an executor closes its queue while its processes still read the rest.
        connection = type(pools_own._reader)
        self._reader = connection(os.dup(pools_own._reader.fileno()), writable=False)
        self._wake, self._woken = import_module(kind.package).Pipe(duplex=False)
        self._lock = threading.Lock()
        self.farewell = bytes(_pickler(kind).dumps(None))  # What tells one process to end.

    def wait(self) -> bool:
        """Until there may be a frame; False once the queue is shut."""
        return self._wake not in wait_readable([self._reader, self._wake])

    def take(self) -> bytes | None:
        """The next frame, if nobody else had it first.

        Raises:
            EOFError: the pool has closed its queue, and nothing is left in it.
        """
        if not self._queue._rlock.acquire(timeout=0.2):  # The pool empties its queue, as it does when it ends.
            return None
        try:
            if not self._reader.poll(0):
                return None
            frame = bytes(self._reader.recv_bytes())
        finally:
            self._queue._rlock.release()
        if hasattr(self._queue, "_sem"):
            self._queue._sem.release()
        return frame

    def shut(self) -> bool:
        """Have nobody wait for a frame any more; whether it was not shut before."""
        with self._lock:
            woken, self._woken = self._woken, None
        if woken is not None:
            woken.close()
        return woken is not None

    def close(self) -> None:
        """Once nobody reads it."""
        self._wake.close()
        self._reader.close()


class ResultsQueue:
    """The results of a pool of *kind*."""

    def __init__(self, kind: PoolKind, pools_own: Any) -> None:
        self._kind, self._queue = kind, pools_own

    def put(self, frame: bytes) -> None:
        """Pass on the result that a guest has pickled."""
        with suppress(OSError, ValueError), self._queue._wlock:  # The pool has ended, and closed its queue.
            self._queue._writer.send_bytes(frame)

    def fail(self, call: CallFrame, error: BaseException) -> None:
        """Answer *call* with *error*, or with its text where it cannot be pickled."""
        dumps = _pickler(self._kind).dumps
        try:
            frame = dumps(self._failure(call, error))
        except Exception:  # Whatever its pickling raises.
            frame = dumps(self._failure(call, RuntimeError(repr(error))))
        self.put(bytes(frame))

    def _failure(self, call: CallFrame, error: BaseException) -> Any:
        """The result that the pool's own process would have sent."""
        if self._kind.kind != "executor":
            return call.job, call.index, (False, error)
        return import_module("concurrent.futures.process")._ResultItem(call.work_id, exception=error)
