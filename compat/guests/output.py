"""What the calls of guests have written, written to this program's own streams."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from collections.abc import Iterable
from typing import Any

_lock = threading.Lock()


def replay(events: Iterable[tuple[str, bytes]]) -> None:
    """Write *events*, in their order, to ``sys.stdout`` and ``sys.stderr``, and hand log records to their loggers."""
    with _lock:
        for kind, data in events:
            try:
                if kind == "log":
                    record = logging.makeLogRecord(pickle.loads(data))
                    logging.getLogger(record.name).handle(record)
                else:
                    _write(sys.stdout if kind == "out" else sys.stderr, data)
            except (OSError, ValueError):  # The program has closed the stream.
                continue


def _write(stream: Any, data: bytes) -> None:
    if stream is None:
        return
    binary = getattr(stream, "buffer", None)
    if binary is None:
        stream.write(data.decode(getattr(stream, "encoding", None) or "utf-8", "replace"))
    else:
        stream.flush()
        binary.write(data)
    stream.flush()
