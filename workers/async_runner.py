"""One event loop on one thread in each pool process, for as long as the process lives.

Coroutines of all items run on it, so what they cache per loop (connections, sessions) is found again by the next item.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any


class AsyncRunner:
    """Runs coroutines on its own loop while the calling thread waits; several threads may call at once."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="graft-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result or error. Interrupted (by a time limit), it cancels the coroutine and waits for it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
            raise


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_lock = threading.Lock()
_runner: AsyncRunner | None = None


def runner() -> AsyncRunner:
    """This process's runner, made when the first coroutine arrives."""
    global _runner
    with _lock:
        if _runner is None:
            _runner = AsyncRunner()
        return _runner


def _forget() -> None:
    global _runner, _lock
    _runner, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
