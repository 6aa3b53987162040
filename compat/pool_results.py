"""What a Pool gives for the calls of ``apply_async`` and the maps: ``AsyncResult``."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from graft.tasks.errors import CancelledBatchError

logger = logging.getLogger(__name__)

Callback = Callable[[Any], object]


def terminated() -> CancelledBatchError:
    """What waits for a pool that is no more."""
    return CancelledBatchError("the pool was terminated before the call had ended")


class AsyncResult:
    """What ``apply_async``, ``map_async`` and ``starmap_async`` give. Callbacks have run before it is ready."""

    def __init__(
        self,
        ended: Future[Any],
        read: Callable[[], Any],
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> None:
        self._is_ready = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        # Taken out when it is called: a future keeps its callbacks, and must not keep the values through them.
        settle = [functools.partial(self._settle, read, callback, error_callback)]
        ended.add_done_callback(lambda _: settle.pop()())

    def ready(self) -> bool:
        return self._is_ready.is_set()

    def successful(self) -> bool:
        """Whether the call raised no error.

        Raises:
            ValueError: it is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        self._is_ready.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the call's own error raised; of a map the list of values, or the error that came first.

        Raises:
            multiprocessing.TimeoutError: it is not ready after *timeout* seconds; it can still be had later.
            CancelledBatchError: the pool was terminated before the call had ended.
        """
        self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError(f"no result after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def _settle(self, read: Callable[[], Any], callback: Callback | None, error_callback: Callback | None) -> None:
        told, argument = callback, None
        try:
            self._value = argument = read()
        except CancelledError:
            told, self._error = error_callback, terminated()
            argument = self._error
        except BaseException as error:
            told, self._error, argument = error_callback, error, error
        try:
            if told is not None:
                told(argument)
        except BaseException:  # It is the caller's code, on the thread that hears everybody's results.
            logger.exception("a callback of a pool failed")
        finally:
            self._is_ready.set()
