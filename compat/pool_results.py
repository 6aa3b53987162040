"""The results of ``apply_async`` and the maps of a Pool: ``AsyncResult``."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from graft.tasks.errors import CancelledBatchError

logger = logging.getLogger(__name__)

Callback = Callable[[Any], object]


def terminated() -> CancelledBatchError:
    """The error of calls that a terminated pool abandons."""
    return CancelledBatchError("the pool was terminated before the call had ended")


class AsyncResult:
    """The result of ``apply_async``, ``map_async`` or ``starmap_async``. Callbacks have run before it is ready."""

    def __init__(
        self,
        ended: Future[Any],
        read: Callable[[], Any],
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        *,
        bar: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._bar = bar
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
            ValueError: the result is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        self._is_ready.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the call's own error raised; of a map the list of values, or the error that came first.

        Raises:
            multiprocessing.TimeoutError: the result is not ready after *timeout* seconds; try again later.
            CancelledBatchError: the pool was terminated before the call had ended.
        """
        with self._bar():
            self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError(f"no result after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def _settle(self, read: Callable[[], Any], callback: Callback | None, error_callback: Callback | None) -> None:
        try:
            self._value = read()
        except BaseException as error:
            self._error = terminated() if isinstance(error, CancelledError) else error
        chosen, argument = (callback, self._value) if self._error is None else (error_callback, self._error)
        try:
            if chosen is not None:
                chosen(argument)
        except BaseException:  # The caller's code, on the thread that receives everybody's results.
            logger.exception("a callback of a pool failed")
        finally:
            self._is_ready.set()
