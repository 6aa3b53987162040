"""What Celery applies to the pool ``direct``, and is told of: one task in a pool process."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo


class Job:
    """A task that a pool process runs, or will run, for the main process."""

    def __init__(
        self, number: int, target: Any = None, arguments: Any = (), callback: Any = None, accept_callback: Any = None,
        error_callback: Any = None, timeout_callback: Any = None, soft_timeout: float | None = None,
        timeout: float | None = None, **_: Any,
    ) -> None:  # fmt: skip
        self.number, self.target, self.arguments = number, target, arguments
        self._callback, self._error_callback = callback, error_callback
        self._accept_callback, self._timeout_callback = accept_callback, timeout_callback
        self.soft, self.hard = soft_timeout, timeout
        self.began: float | None = None
        self.signal: int | None = None  # By which it was terminated.
        self.is_over = False

    def accept(self, pid: int, began: float) -> None:
        self.began = began
        if self._accept_callback:
            self._accept_callback(pid, began)

    def end(self, answer: tuple[bool, Any]) -> None:
        """Tell Celery how it ended; once."""
        if self.is_over:
            return
        self.is_over = True
        is_answer, value = answer
        callback = self._callback if is_answer else self._error_callback
        if callback:
            callback(value)

    def fail(self, error: BaseException) -> None:
        try:
            raise error
        except type(error):
            self.end((False, ExceptionInfo()))

    def terminate(self, signum: Any) -> None:
        """Note that its process was sent a signal for its sake: Celery asks for that."""
        self.signal = int(signum)

    def tell_timeout(self, *, soft: bool) -> None:
        if self._timeout_callback:
            self._timeout_callback(soft=soft, timeout=self.soft if soft else self.hard)
